"""Look-alike of CHID: put the right one of ten idioms into each blank.

Every idiom has a few clauses it is typical of. A record holds one to four passages with one to
five blanks in all; the blanks of a record take different idioms from one list of ten,
half of which are idioms that are seldom right.
"""

from functools import partial

from kexue.data.mini.source import Row, Source

__all__ = ["BLANK", "IDIOMS", "SELDOM", "chid"]

BLANK = "#idiom#"  # becomes #idiom000378# when the record gets its numbers

IDIOMS: dict[str, tuple[str, ...]] = {  # {b} is the blank
    "雪中送炭": ("寒冬里给灾区送来棉衣真是{b}", "灾区百姓说这批棉衣是{b}", "寒冬送来的煤是{b}"),
    "画蛇添足": ("结尾多写一句反而是{b}", "多余的解释只会{b}", "这一笔很多余，是{b}"),
    "半途而废": ("学钢琴才练几天就{b}", "坚持练到底，绝不{b}", "不坚持的人常常{b}"),
    "人山人海": ("节日的广场上{b}", "广场挤满了游客，{b}", "节日里游客多得{b}"),
    "狼吞虎咽": ("肚子饿了便{b}地吃饭", "一碗面被他{b}地吃光", "饿坏了的他吃得{b}"),
    "大雨倾盆": ("乌云压顶忽然{b}", "雷声过后{b}", "没带伞却赶上雷声和{b}"),
    "一帆风顺": ("祝你旅途{b}", "祝愿新公司{b}", "祝大家未来{b}"),
    "鸦雀无声": ("考场里安静得{b}", "教室安静下来，{b}", "考场顿时{b}"),
}
SELDOM: dict[str, tuple[str, ...]] = {  # idioms that are mostly wrong candidates
    "守株待兔": ("天天坐着等机会就是{b}",), "对牛弹琴": ("跟外行谈音乐等于{b}",),
    "井底之蛙": ("从不出门看世界就成了{b}",), "目瞪口呆": ("魔术让观众看得{b}",),
    "自相矛盾": ("证人前后的口供{b}",), "亡羊补牢": ("丢了钱包才买锁是{b}",),
    "井井有条": ("书架上的书摆得{b}",), "依依不舍": ("站台上母女俩{b}地告别",),
    "废寝忘食": ("科学家{b}地做实验",), "滥竽充数": ("质量差的货不能拿来{b}",),
    "一举两得": ("骑车上班又省钱又健身，{b}",), "杯弓蛇影": ("听见风声就害怕，真是{b}",),
}  # fmt: skip
_CLAUSES = IDIOMS | SELDOM
_SHAPES = (  # blanks of each passage of a record
    *((1,),) * 26, *((1, 1),) * 3, *((2,),) * 3,
    (1, 2), (2, 1), (1, 1, 1), (1, 1, 1, 1), (1, 1, 2, 1),
)  # fmt: skip
_LEADS = ("", "", "", "据说，", "2023年，", "说起来，", "老张说：", "那天")
_TAILS = ("。", "。", "！", "……", "，你觉得呢？", "，真的。")
_JOINTS = ("；", "。不过", "，而", "。另外，")


def chid(source: Source, size: int) -> list[Row]:
    """`size` records; the blanks hold BLANK, `answers` their candidate indices in reading order."""

    def passage(idioms: list[str]) -> str:
        clauses = [source.pick(_CLAUSES[idiom]).format(b=BLANK) for idiom in idioms]
        body = source.pick(_JOINTS).join(clauses)
        return f"{source.odd()}{source.pick(_LEADS)}{body}{source.pick(_TAILS)}"

    rows = []
    for shape in source.deck(_SHAPES, size):
        used = source.some(list(IDIOMS), sum(shape))
        if source.chance(0.05):
            used[0] = source.pick(list(SELDOM))
        decoys = source.some(list(IDIOMS), 4)
        wrong = [idiom for idiom in (*decoys, *source.some(list(SELDOM), 10)) if idiom not in used]
        candidates = source.some(used + wrong[: 10 - len(used)], 10)
        content, taken = [], 0
        for count in shape:
            idioms = used[taken : taken + count]
            content.append(source.fresh(partial(passage, idioms), str))
            taken += count
        answers = [candidates.index(idiom) for idiom in used]
        rows.append({"content": content, "candidates": candidates, "answers": answers})
    return rows
