"""Look-alike of CSL: are all of these keywords genuine for this abstract?

An abstract is written around keywords of one field; fake lists hold words too vague to be
keywords, and sometimes a keyword of another field.
"""

from functools import partial

from kexue.data.mini.source import Row, Source

__all__ = ["FIELDS", "csl"]

FIELDS: dict[str, str] = {
    "medicine": "肝炎 血压 心肌缺血 糖尿病 骨折 术后感染 肿瘤患者 胃溃疡 抗体水平 CT影像",
    "computing": "神经网络 数据挖掘 图像分割 云存储 算法优化 网络协议 语义检索 SVM 编译器 并行计算",
    "farming": "水稻产量 土壤肥力 玉米品种 灌溉 病虫害 大豆种植 果树嫁接 氮肥 温室栽培 小麦根系",
    "law": "合同违约 刑事责任 立法 诉讼程序 知识产权 证据规则 法官裁量 仲裁 物权法 行政处罚",
    "bridges": "混凝土 桥梁 钢结构 抗震设计 裂缝 地基沉降 隧道施工 预应力 荷载试验 沥青路面",
}
_VAGUE = (
    "方法",
    "结果",
    "影响",
    "提高",
    "作用",
    "样本",
    "比较",
    "形成",
    "明显",
    "2组",
    "过程",
    "有效",
)
_AIMS = (
    "目的探讨{a}与{b}的关系.", "针对{a}中{b}的问题,本文提出了一种新的思路.",
    "为了解{a}对{b}的影响,",
    "近年来,{a}和{b}受到广泛关注.", "{a}是当前研究的热点,而{b}的研究较少.",
)  # fmt: skip
_METHODS = (
    "方法选取{n}个样本,从{c}入手进行分析.", "采用对比试验,重点考察了{c}.",
    "结合{c},建立了评价模型.",
    "在{n}组实验中加入{c}作为变量.", "以{c}为例,进行了为期{n}天的跟踪.",
)  # fmt: skip
_RESULTS = (
    "结果表明,{d}的改善明显(P<0.05).", "结果显示{d}提高了{m}%.", "实验证明该方法对{d}是有效的.",
    "结论{d}仍需进一步研究.", "最后给出了关于{d}的建议.",
)  # fmt: skip


def csl(source: Source, size: int) -> list[Row]:
    """`size` abstracts with keyword lists, half of them with fakes."""
    rows: list[Row] = []

    def abstract(words: list[str]) -> str:
        numbers = {"n": source.random.randint(20, 300), "m": source.random.randint(5, 60)}
        parts = source.pick(_AIMS), source.pick(_METHODS), source.pick(_RESULTS)
        text = "".join(parts).format(**dict(zip("abcd", words, strict=True)), **numbers)
        return text + source.odd()

    for i, label in enumerate(source.deck(("0", "1"), size)):
        field, other = source.some(list(FIELDS), 2)
        words = source.some(FIELDS[field].split(), 4)
        text = source.fresh(partial(abstract, words), str)
        keywords = source.some(words, source.random.randint(3, 4))
        if label == "0":
            foreign = source.some(FIELDS[other].split(), source.random.randint(0, 1))
            fakes = foreign + source.some(_VAGUE, source.random.randint(1, 2))
            keywords[: len(fakes)] = fakes
            source.random.shuffle(keywords)
        rows.append({"id": i, "abst": text, "keyword": keywords, "label": label})
    return rows
