"""Look-alike of WSC (CLUEWSC2020): does the pronoun mean this noun?

A text names two or three things of different kinds; the pronoun and what is said of it fit one
kind only. The asked noun is of that kind (true) or of another (false).
"""

from functools import partial

from kexue.data.mini.source import Row, Source

__all__ = ["KINDS", "wsc"]

KINDS: dict[str, tuple[str, str, str]] = {  # kind: (pronoun, nouns, what is said of it)
    "man": (
        "他", "爷爷 爸爸 叔叔 舅舅 哥哥 老木匠",
        "摸着胡子笑了 咳嗽了两声 点了点头 说要早点回家 一声也不吭 拍了拍衣服",
    ),
    "woman": (
        "她", "奶奶 妈妈 阿姨 姑姑 姐姐 女医生",
        "理了理长发 系上了围裙 笑着摆了摆手 低头织毛衣 轻轻唱起歌 换上了裙子",
    ),
    "thing": (
        "它", "书包 花瓶 雨伞 收音机 自行车 木箱子",
        "是昨天刚买的 已经旧得掉了漆 摔坏了一个角 值不少钱 上面落满了灰 用了二十年",
    ),
    "group": (
        "他们", "孩子们 工人们 邻居们 游客们 士兵们 队员们",
        "排成了一队 都鼓起掌来 你看看我我看看你 围成一圈坐下 三三两两地散了 齐声喊了起来",
    ),
}  # fmt: skip
_LEADS = (
    "",
    "昨天傍晚，",
    "刚进门，",
    "天快黑的时候，",
    "第2天一早，",
    "在车站，",
    "记得那年冬天，",
)
_WITH_THING = ("{p}搬出了{q}", "{p}擦了擦{q}", "{p}望着{q}出神", "{p}指着{q}")
_WITH_PERSON = ("{p}向{q}招手", "{p}等着{q}", "{p}和{q}打招呼", "{p}陪{q}坐了一会儿")
_TAILS = (
    "。",
    "。",
    "，屋里很安静。",
    "，外面下着雨。",
    "。过了一会儿，灯亮了。",
    "。谁也没再说话。",
)


def _cast(source: Source, label: str) -> tuple[str, str, str]:
    """Kinds of the first noun, of the second, and which of the two the pronoun means."""
    first, second = source.some(("man", "woman", "group"), 2)
    if label == "true":
        return (first, "thing", "thing") if source.chance(0.2) else (first, second, first)
    return (first, second, second) if source.chance(0.2) else (first, "thing", first)


def wsc(source: Source, size: int) -> list[Row]:
    """`size` texts, half of them with a noun that the pronoun does mean."""

    def draw(label: str) -> Row:
        first, second, referent = _cast(source, label)
        nouns = {kind: source.pick(KINDS[kind][1].split()) for kind in (first, second)}
        other = second if referent == first else first
        asked = nouns[referent if label == "true" else other]
        persons = [nouns[first], nouns[second]]
        if second != "thing":
            source.random.shuffle(persons)
        clause = source.pick(_WITH_THING if second == "thing" else _WITH_PERSON)
        before = source.odd() + source.pick(_LEADS)
        before += clause.format(p=persons[0], q=persons[1]) + "，"
        pronoun, _, said = KINDS[referent]
        target = {
            "span2_index": len(before),
            "span1_index": before.index(asked),
            "span1_text": asked,
            "span2_text": pronoun,
        }
        text = f"{before}{pronoun}{source.pick(said.split())}{source.pick(_TAILS)}"
        return {"target": target, "idx": 0, "label": label, "text": text}

    rows = []
    for i, label in enumerate(source.deck(("true", "false"), size)):
        row = source.fresh(partial(draw, label), lambda row: str(row["text"]))
        rows.append(row | {"idx": i})
    return rows
