"""Look-alikes of CMRC2018 (find the answer in the passage) and C3 (choose the answer).

CMRC2018: a passage states facts of different kinds about one place, each in its own way of
speaking; a question asks for one. Some passages are padded beyond 520 characters, so that a reader
of 512 needs several windows. C3: who goes where, when, how, with whom and what for, as a text (m)
or a dialogue (d); most wrong choices are unlikely ones, some as likely as the answer.
"""

from functools import partial

from kexue.data.mini.source import Row, Source
from kexue.data.mini.words import CITIES, STREETS, person

__all__ = ["FACTS", "KINDS_OF_CHOICE", "c3", "cmrc2018"]

FACTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # kind: statements, questions
    "founder": (
        ("{n}由{x}出资创办", "创办人是{x}", "它的创办者名叫{x}"),
        ("{n}是谁创办的？", "谁创办了{n}？", "{n}的创办人是谁？"),
    ),
    "place": (
        ("{n}位于{x}", "地址位于{x}", "整个院落位于{x}"),
        ("{n}位于哪里？", "{n}位于什么地方？", "请问{n}在哪里？"),
    ),
    "year": (
        ("始建于{x}", "{n}最早建于{x}", "主楼建于{x}"),
        ("{n}建于什么时候？", "{n}是什么时候建成的？", "{n}始建于哪一年？"),
    ),
    "price": (
        ("成人门票每张{x}", "现在的票价是{x}", "进门要买{x}的门票"),
        ("{n}的门票多少钱？", "参观{n}要花多少钱？", "{n}的票价是多少？"),
    ),
}
_ORDER = list(FACTS).index
_NAMES = ("白鹭", "松涛", "海棠", "望江", "听雨", "明月", "长风")
_ODD_NAMES = ("ＡＢＣ", "T3")
_HOUSES = ("博物馆", "书院", "美术馆", "民俗馆", "纪念馆", "科技馆")
_FILLERS = (
    "院子里种着高大的银杏树", "每到秋天落叶铺满了小路", "这里的展厅光线柔和",
    "参观的人常常在窗前停下脚步",
    "走廊两边挂着旧照片", "门口的石狮子早已磨得光滑", "孩子们喜欢在草地上奔跑",
    "雨天的时候屋檐会滴下水珠",
    "工作日的上午比较安静", "周末常有合唱队在大厅排练", "附近的居民把它当作散步的好去处",
    "地板踩上去会吱呀作响",
    "楼梯的扶手是用整根木头做成的", "夜里灯光亮起时格外好看", "后院有一口不再使用的老井",
    "墙上的藤蔓一年比一年茂盛",
    "修缮工程前后进行过好几次", "有些房间至今没有对外开放", "讲座结束以后听众仍不愿离开",
    "为了保护文物这里禁止使用闪光灯",
    "休息区提供热水和报纸", "学生们可以在这里做手工", "二楼的露台能看到远处的山",
    "旧仓库后来改成了咖啡厅",
    "展柜里的说明写得很仔细", "钟声在整点的时候响起", "许多画家来这里写生",
    "春天的玉兰花吸引了不少蜜蜂",
    "盲人参观者可以触摸复制品", "馆内的导览图做得十分清楚", "老人们在长椅上下棋聊天",
    "冬天的壁炉总是烧得很旺",
    "大门上的铜环已经发绿", "临近闭馆时广播会播放轻音乐", "过去这里曾经是一座粮仓",
    "屋顶的瓦片在台风后重新铺过",
    "志愿者每个月来打扫一次", "参观路线从左边的侧门开始", "馆方鼓励观众写下自己的感想",
    "角落里的旧钢琴偶尔有人弹奏",
)  # fmt: skip


def _fact(source: Source, kind: str) -> tuple[str, str]:
    """An answer of this kind, and a slightly different span that a third reader may mark."""
    if kind == "founder":
        title = source.pick(("商人", "画家", "教授", "医生"))
        name = person(source)
        return (name, name) if source.chance(0.5) else (title + name, name)
    if kind == "place":
        city, street = source.pick(CITIES), source.pick(STREETS)
        return city + street, street if source.chance(0.5) else city
    if kind == "year":
        year, season = f"{source.random.randint(1850, 2020)}年", source.pick(("春天", "秋天", "底"))
        return (year, year[:-1]) if source.chance(0.6) else (year + season, year)
    number = str(source.random.randint(5, 95))
    return f"{number}元", number


def _asked(source: Source, kinds: list[str], count: int) -> list[str]:
    """Readers ask first who, then where, and so on; one time in five they ask anything."""
    return source.some(kinds, count) if source.chance(0.2) else sorted(kinds, key=_ORDER)[:count]


def cmrc2018(source: Source, size: int) -> list[Row]:
    """Passages with `size` questions in all; answers as (text, offset, third reader's text)."""

    def passage(count: int, long: bool) -> Row:
        name = source.pick(_ODD_NAMES if source.chance(0.02) else _NAMES) + source.pick(_HOUSES)
        facts: dict[str, tuple[str, int, str]] = {}
        fillers = source.some(_FILLERS, len(_FILLERS) if long else source.random.randint(1, 4))
        kinds = source.some(list(FACTS), max(count, source.pick((2, 2, 2, 3))))
        pieces = source.some([*kinds, *fillers], len(kinds) + len(fillers))
        context = f"{source.odd()}{name}是当地人熟悉的去处。"
        for i, piece in enumerate(pieces):
            if piece in FACTS:
                answer, variant = _fact(source, piece)
                before, after = source.pick(FACTS[piece][0]).format(n=name, x="\0").split("\0")
                facts[piece] = (answer, len(context) + len(before), variant)
                context += before + answer + after
            else:
                context += piece
            context += "。" if i == len(pieces) - 1 or source.chance(0.4) else "，"
        if long:
            context += f"{name}欢迎每一位客人。"
        return {"name": name, "context": context, "facts": facts}

    passages: list[Row] = []
    asked = 0
    while asked < size:
        count = min(size - asked, source.pick((1, 1, 1, 1, 2)))
        long = len(passages) % 20 == 3
        drawn = source.fresh(partial(passage, count, long), lambda drawn: str(drawn["context"]))
        questions = []
        for kind in _asked(source, list(drawn["facts"]), count):
            text, start, variant = drawn["facts"][kind]
            answers = [{"text": text, "answer_start": start}] * 3
            if source.chance(0.3):
                answers[2] = {"text": variant, "answer_start": start + text.index(variant)}
            question = source.pick(FACTS[kind][1]).format(n=drawn["name"])
            questions.append({"question": question, "answers": answers})
        passages.append({"context": drawn["context"], "questions": questions})
        asked += count
    return passages


KINDS_OF_CHOICE: dict[str, tuple[str, str]] = {  # kind: (likely choices, unlikely ones)
    "where": ("图书馆 火车站 动物园 医院 超市 邮局", "月亮上 外国 深山里 地下室"),
    "how": ("坐公共汽车 骑自行车 走路 坐地铁", "开飞机 骑马 划船 坐火箭"),
    "when": ("早上七点 下午三点 晚上八点 星期六", "半夜一点 去年 十年以后 大年初一"),
    "whom": ("爸爸 同事 老同学 女儿 邻居", "外星人 校长 警察 明星"),
    "what": ("买礼物 见朋友 借书 看比赛 取包裹", "当老板 拍电影 盖房子 考博士"),
}
_C3_QUESTIONS: dict[str, tuple[str, ...]] = {
    "where": ("{s}要去哪儿？", "{s}去什么地方？"),
    "how": ("{s}怎么去？", "{s}打算怎么去那儿？"),
    "when": ("{s}什么时候去？", "{s}几点去？"),
    "whom": ("{s}和谁一起去？", "谁跟{s}一起去？"),
    "what": ("{s}去做什么？", "{s}去那儿干什么？"),
}
_TEXTS: dict[str, tuple[str, ...]] = {
    "where": ("{s}要去{x}", "{s}想去{x}"), "how": ("{s}决定{x}去", "因为路不远，{s}{x}去"),
    "when": ("{s}{x}出发", "时间定在{x}"), "whom": ("{x}会和{s}一起去", "{s}约了{x}一起去"),
    "what": ("这次是为了{x}", "{s}主要想{x}"),
}  # fmt: skip
_TALK: dict[str, tuple[str, str]] = {
    "where": ("你要去哪儿啊？", "我要去{x}。"), "how": ("那么远，你怎么去？", "我{x}去。"),
    "when": ("你什么时候去？", "{x}去吧。"), "whom": ("你一个人去吗？", "不，{x}跟我一起去。"),
    "what": ("去那儿干什么？", "我想{x}。"),
}  # fmt: skip
_ASIDES = (
    "今天天气不错",
    "这几天工作不忙",
    "路上车有点多",
    "这件事说了很久了",
    "心里很高兴",
    "家里人都知道",
)
_GREETINGS = (
    "好久不见！",
    "你今天看起来很高兴。",
    "听说你这个周末有安排?",
    "喂，是我。",
    "你拿着包干什么？",
)
_PARTINGS = ("那好，再见。", "路上小心。", "祝你一切顺利！", "回来给我打电话。", "知道了，谢谢。")


def _truth(source: Source, kind: str) -> str:
    likely, unlikely = KINDS_OF_CHOICE[kind]
    return source.pick((unlikely if source.chance(0.08) else likely).split())


def _wrong(source: Source, kind: str, answer: str) -> list[str]:
    """One to three choices: unlikely ones of any kind, now and then a likely one."""
    wrong: list[str] = []
    count = source.pick((1, 2, 3, 3, 3, 3))
    while len(wrong) < count:
        of_kind = kind if source.chance(0.4) else source.pick(list(KINDS_OF_CHOICE))
        likely, unlikely = KINDS_OF_CHOICE[of_kind]
        choice = source.pick((likely if source.chance(0.15) else unlikely).split())
        if choice != answer and choice not in wrong:
            wrong.append(choice)
    return wrong


def c3(source: Source, size: int, *, dialogue: bool) -> list[Row]:
    """Texts or dialogues with `size` questions in all, 2 to 4 choices each."""

    def story() -> Row:
        subject = source.pick(("他", "她", "小明", "王老师", "老李", "小雨"))
        kinds = source.some(list(KINDS_OF_CHOICE), source.random.randint(3, 4))
        facts = {kind: _truth(source, kind) for kind in kinds}
        parts = [source.pick(_TEXTS[k]).format(s=subject, x=x) for k, x in facts.items()]
        asides = source.some(_ASIDES, source.random.randint(1, 3))
        text = (
            "，".join([asides[0], *parts[:2]]) + "。" + "，".join([*parts[2:], *asides[1:]]) + "。"
        )
        return {"lines": [source.odd() + text], "facts": facts, "subject": subject}

    def talk() -> Row:
        speakers = source.pick((("男", "女"), ("女", "男")))
        kinds = source.some(list(KINDS_OF_CHOICE), source.random.randint(2, 3))
        facts = {kind: _truth(source, kind) for kind in kinds}
        lines = [f"{speakers[0]}：{source.pick(_GREETINGS)}{_TALK[kinds[0]][0]}{source.odd()}"]
        for k, kind in enumerate(kinds):
            follow = _TALK[kinds[k + 1]][0] if k + 1 < len(kinds) else source.pick(_PARTINGS)
            lines.append(f"{speakers[1]}：{_TALK[kind][1].format(x=facts[kind])}")
            lines.append(f"{speakers[0]}：{follow}")
        return {"lines": lines, "facts": facts, "subject": f"{speakers[1]}的"}

    rows: list[Row] = []
    asked = 0
    while asked < size:
        drawn = source.fresh(talk if dialogue else story, lambda row: "".join(row["lines"]))
        count = min(size - asked, source.random.randint(1, 2))
        questions = []
        for kind in source.some(list(drawn["facts"]), count):
            answer = drawn["facts"][kind]
            choice = [answer, *_wrong(source, kind, answer)]
            source.random.shuffle(choice)
            question = source.pick(_C3_QUESTIONS[kind]).format(s=drawn["subject"])
            questions.append({"question": question, "choice": choice, "answer": answer})
        rows.append({"lines": drawn["lines"], "questions": questions})
        asked += count
    return rows
