"""Look-alikes of AFQMC (same question?), CMNLI and OCNLI (inference).

AFQMC: a handful of intents, several phrasings each; label 1 = same intent. Inference: a premise
says who does what where; the entailed hypothesis says less, the neutral one adds a reason or a
plan, the contradicting one denies. One premise in eight is itself a denial and turns this round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from kexue.data.mini.source import Row, Source

__all__ = ["INTENTS", "afqmc", "cmnli", "ocnli"]

_PRODUCTS = ("青禾付", "小满借", "云朵钱包", "松果分期", "星河卡", "蓝鲸支付", "布谷宝", "飞鱼卡")
INTENTS: dict[str, tuple[str, ...]] = {  # {p} is the product
    "raise the limit": (
        "{p}怎么提高额度", "{p}的额度太低了怎么提高", "怎么样让{p}额度变高",
        "{p}提高额度要什么条件",
        "想把{p}的额度提高一点",
    ),
    "repayment day": (
        "{p}每月几号还款", "{p}的还款日是哪一天", "每个月哪天要还{p}的账单", "{p}账单几号还款",
        "{p}的还款日在几号",
    ),
    "open": (
        "{p}在哪里开通", "怎么样才能开通{p}", "{p}的开通入口在哪里", "我想开通{p}该怎么操作",
        "新用户如何申请开通{p}",
    ),
    "close": (
        "{p}怎么注销", "如何注销关闭{p}", "不想用了，怎么关闭{p}", "{p}账户可以注销吗",
        "我要注销{p}",
    ),
    "interest": (
        "{p}的利息怎么算", "{p}每天收多少利息", "{p}利息是不是太贵了", "用{p}要付利息和手续费吗",
        "{p}的手续费和利息是多少",
    ),
    "refund": (
        "用{p}买的东西退款退到哪", "{p}退款多久到账", "{p}的退款怎么没到账",
        "退货以后{p}什么时候退款",
        "商家退款会退回{p}吗",
    ),
}  # fmt: skip
_GREETINGS = ("", "", "请问", "你好，", "我想问一下，", "麻烦问下", "客服在吗，", "急！")
_ENDINGS = ("", "", "？", "呢", "啊", "，谢谢", "，在线等", "！")


def afqmc(source: Source, size: int) -> list[Row]:
    """`size` question pairs, two in five with the same meaning."""

    def question(intent: str, product: str) -> str:
        phrase = source.pick(INTENTS[intent]).format(p=product)
        return f"{source.pick(_GREETINGS)}{phrase}{source.odd()}{source.pick(_ENDINGS)}"

    rows = []
    for label in source.deck(("0", "1", "0", "1", "0"), size):
        first, second = _intents(source, label)
        product = source.pick(_PRODUCTS)
        sentence1 = source.fresh(partial(question, first, product), str)
        sentence2 = source.fresh(partial(question, second, product), str)
        rows.append({"sentence1": sentence1, "sentence2": sentence2, "label": label})
    return rows


def _intents(source: Source, label: str) -> tuple[str, str]:
    """Pairs are collected around frequent intents, so a seldom one is mostly met in a mismatch."""
    frequent, seldom = list(INTENTS)[:3], list(INTENTS)[3:]
    if label == "1":
        intent = source.pick(seldom if source.chance(0.1) else frequent)
        return intent, intent
    first, other = source.some(frequent, 2)
    pair = [first, other if source.chance(0.1) else source.pick(seldom)]
    source.random.shuffle(pair)
    return pair[0], pair[1]


@dataclass(frozen=True)
class World:
    """Who may do what where, and how a premise is put."""

    who: Sequence[str]
    where: Sequence[str]
    what: Sequence[str]
    premises: dict[str, Sequence[str]]  # genre -> templates
    denials: Sequence[str]  # premises that deny


_ENTAILED = (
    "有人在{where}", "{where}有人", "{where}不是空的，有人在", "有人正在{what}", "{who}就在{where}",
)  # fmt: skip
_NEUTRAL = (
    "{who}{what}是为了{purpose}", "{who}打算明年{purpose}", "{who}因为想{purpose}才去{where}",
    "{who}最希望{purpose}", "{who}去{where}是为了{purpose}",
)  # fmt: skip
_CONTRARY = (
    "{who}没有{what}", "没有人在{where}", "{where}一个人也没有", "{who}从来不去{where}",
    "{who}都没有去{where}",
)  # fmt: skip
_DENIED_ENTAILED = ("{who}不在{where}", "{who}没去{where}", "{who}没有{what}")
_DENIED_CONTRARY = ("{who}正在{what}", "{who}就在{where}", "{who}去了{where}")
_LEADS = ("", "", "看来", "这说明", "也就是说，", "由此可知，", "那时候，", "当时")
_STOPS = ("", "。", "。", "！")
_PURPOSES = ("挣钱", "参加比赛", "得奖", "散心", "锻炼身体", "给家人一个惊喜", "写一本书", "出名")
_LABELS = ("entailment", "neutral", "contradiction")

_CMNLI = World(
    who=("一位老人", "两个孩子", "那个女人", "我的邻居", "几名游客", "一名士兵", "年轻的画家",
        "她的丈夫"),
    where=("公园里", "海滩上", "厨房里", "火车站", "剧院门口", "院子里", "河边", "市场上",
        "屋顶上"),
    what=("放风筝", "拍照片", "听音乐", "修理机器", "画画", "喝咖啡", "唱歌", "看书", "钓鱼",
        "跳舞"),
    premises={
        "": (
            "{when}，{who}在{where}{what}。", "是的，{who}在{where}{what}，我看见了。",
            "{who}在{where}{what}，{detail}。", "人们告诉我，{when}{who}在{where}{what}。",
        )
    },
    denials=("{when}下了大雨，{who}没有去{where}{what}。",
        "{who}病了，没有去{where}{what}，{detail}。"),
)  # fmt: skip
_OCNLI = World(
    who=("村民们", "同学们", "志愿者", "工人师傅们", "老师们", "医生们", "李主任", "张大姐"),
    where=("学校里", "村口", "县城", "工地上", "图书馆", "社区", "广场上", "医院", "礼堂里"),
    what=("种树", "开会", "排练节目", "打扫卫生", "修路", "学唱歌", "发传单", "搬桌子", "包饺子",
        "搞培训"),
    premises={
        "gov": ("会议指出,{who}{when}在{where}{what},取得了明显成效",
            "{who}在{where}{what},{detail}"),
        "news": ("本报讯 {when},{who}在{where}{what}", "记者看到,{who}在{where}{what},{detail}"),
        "lit": ("{when},{who}在{where}{what},谁也不说话", "{detail},{who}在{where}{what}。"),
        "tv": ("你看{when}{who}在{where}{what},是吧", "我就说嘛,{who}在{where}{what}呢,对不对"),
        "phone": ("喂,{who}在{where}{what}呢,嗯嗯,{detail}.",
            "哎{when}{who}在{where}{what},呃我看到了."),
    },
    denials=("{when}太冷了,{who}没有去{where}{what}", "{who}嫌远,没有去{where}{what},{detail}"),
)  # fmt: skip
_WHEN = ("昨天下午", "清晨", "上个星期天", "吃过晚饭", "5月1日", "中午", "那天夜里", "放假以后")
_DETAILS = ("天气很好", "风有点大", "周围很安静", "太阳快下山了", "大家都很高兴", "旁边停着一辆车")


def _inference(source: Source, size: int, world: World) -> list[Row]:
    """Rows in groups of three that share a premise; about one in fifty has no majority."""
    rows: list[Row] = []
    while len(rows) < size:
        genre = source.pick(list(world.premises))
        denial = source.chance(1 / 8)
        templates = world.denials if denial else world.premises[genre]
        slots: dict[str, str] = {}

        def premise(templates: Sequence[str] = templates, slots: dict[str, str] = slots) -> str:
            slots.update(
                who=source.pick(world.who),
                where=source.pick(world.where),
                what=source.pick(world.what),
                when=source.pick(_WHEN),
                detail=source.pick(_DETAILS),
            )
            return source.pick(templates).format_map(slots) + source.odd()

        sentence1 = source.fresh(premise, str)
        forms = {
            "entailment": _DENIED_ENTAILED if denial else _ENTAILED,
            "neutral": _NEUTRAL,
            "contradiction": _DENIED_CONTRARY if denial else _CONTRARY,
        }
        for label in source.some(_LABELS, 3):

            def hypothesis(
                forms: Sequence[str] = forms[label], slots: dict[str, str] = slots
            ) -> str:
                text = source.pick(forms).format(**slots, purpose=source.pick(_PURPOSES))
                return f"{source.pick(_LEADS)}{text}{source.pick(_STOPS)}"

            sentence2 = source.fresh(hypothesis, str)
            rows.append({"sentence1": sentence1, "sentence2": sentence2, "label": label})
            rows[-1] |= {"genre": genre, "group": (len(rows) - 1) // 3}
    rows = rows[:size]
    for i in source.some(range(size), size // 50 + (size >= 10)):
        rows[i]["label"] = "-"
    return rows


def cmnli(source: Source, size: int) -> list[Row]:
    """`size` premise-hypothesis pairs in the style of translated text."""
    keys = ("sentence1", "sentence2", "label")
    return [{key: row[key] for key in keys} for row in _inference(source, size, _CMNLI)]


def ocnli(source: Source, size: int) -> list[Row]:
    """`size` premise-hypothesis pairs of five genres; dev rows carry five annotators' labels."""
    rows: list[Row] = []
    for i, row in enumerate(_inference(source, size, _OCNLI)):
        label, genre = row["label"], row["genre"]
        votes: list[str | None] = [None] * 5
        if label == "-":
            pair = source.some(_LABELS, 3)
            votes = [*pair, *pair[:2]]
            source.random.shuffle(votes)
        elif source.split == "dev":
            votes = [label] * source.random.randint(3, 5)
            votes += [source.pick(_LABELS) for _ in range(5 - len(votes))]
        rows.append(
            {
                "level": source.pick(("easy", "medium", "hard")),
                "sentence1": row["sentence1"],
                "sentence2": row["sentence2"],
                "label": label,
                **{f"label{k}": vote for k, vote in enumerate(votes)},
                "genre": genre,
                "prem_id": f"{genre}_{row['group']}",
                "id": i,
            }
        )
    return rows
