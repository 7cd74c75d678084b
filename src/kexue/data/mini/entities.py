"""Look-alike of CLUENER: names of ten types, marked by character with the end included.

Names are put together from short lists and stand where such names stand.
"""

import re
from functools import partial

from kexue.data.mini.source import Row, Source
from kexue.data.mini.words import person

__all__ = ["PARTS", "TYPES", "cluener"]

PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # type: (beginnings, endings)
    "address": (
        ("青河", "云岭", "白沙", "南浦", "临泉", "金坪", "东陵", "柳湾"),
        ("市", "县", "路", "镇", "区"),
    ),
    "book": (("春夜", "山中", "旧城", "海上", "灯下"), ("随笔》", "日记》", "诗集》", "传》")),
    "company": (
        ("宏达", "新元", "天蓝", "联创", "金桥", "Kite"),
        ("公司", "集团", "银行", "科技", "证券"),
    ),
    "game": (("龙族", "星海", "魔塔", "铁甲", "剑灵"), ("争霸", "online", "传奇3", "大乱斗")),
    "government": (
        ("国家", "市", "省", "联邦"),
        ("教育局", "公安局", "财政部", "税务局", "法院", "卫生部"),
    ),
    "movie": (
        ("最后的", "红色", "北方", "无声"),
        ("列车》", "恋人》", "风暴》", "证人》", "Mr.Q》"),
    ),
    "name": ((), ()),
    "organization": (
        ("飞虎", "北极星", "红土", "长江", "青年"),
        ("足球队", "篮球队", "乐队", "协会", "基金会"),
    ),
    "position": (("", "副", "总", "首席"), ("经理", "教练", "记者", "局长", "设计师", "董事")),
    "scene": (("月牙", "龙门", "望夫", "青云", "九曲"), ("山", "湖", "瀑布", "古寺", "公园")),
}
TYPES = tuple(PARTS)

_TEMPLATES = (
    "{company}{position}{name}表示，今年的业绩会更好。",
    "{name}是{company}的{position}，负责新产品。",
    "记者从{government}获悉，{address}的房价有所下降。",
    "{government}{position}{name}昨天到{address}考察。",
    "玩家在{game}里打败了最后的首领，", "网络游戏{game}今天开始公测，由{company}运营。",
    "{game}的玩家都在等新版本，", "导演{name}的新片{movie}下月上映，票房看好。",
    "电影{movie}由{name}主演，", "看完{movie}，观众都哭了。", "作家{name}的小说{book}再版了，",
    "书店里，{book}卖得很好，", "我最近在读{book}，作者是{name}。",
    "{organization}主教练{name}对比赛结果很满意，",
    "昨晚{organization}2比1战胜了{organization}，", "{name}加入{organization}已经三年了，",
    "周末去{scene}爬山，看看风景，", "到{address}旅游，一定要去{scene}看看，",
    "{scene}的门票已经涨到80元，",
    "{company}在{address}开了一家新店，", "家住{address}的{name}到{government}办事，",
    "{position}{name}说，{organization}还需要时间。",
    "{company}股价大涨，{position}{name}却卖出了股票。",
    "{government}发布通知，要求{company}整改。",
)  # fmt: skip
_LEADS = ("", "", "昨天，", "据了解，", "其实", "另外，", "3月5日，", "有人说，", "值得注意的是，")
_TAILS = (
    "",
    "",
    "大家都很关心。",
    "这让很多人没想到！",
    "详细情况还在了解中。",
    "价格也不贵",
    "记者为您报道。",
)


def _surface(source: Source, kind: str) -> str:
    if kind == "name":
        return person(source)
    beginnings, endings = PARTS[kind]
    surface = source.pick(beginnings) + source.pick(endings)
    return f"《{surface}" if kind in ("movie", "book") else surface


def cluener(source: Source, size: int) -> list[Row]:
    """`size` texts; every template, and so every type, equally often."""

    def draw(template: str) -> Row:
        label: dict[str, dict[str, list[list[int]]]] = {}
        text = source.odd() + source.pick(_LEADS)
        for piece in re.split(r"(\{\w+\})", template):
            if piece.startswith("{"):
                kind = piece[1:-1]
                surface = _surface(source, kind)
                spans = label.setdefault(kind, {}).setdefault(surface, [])
                spans.append([len(text), len(text) + len(surface) - 1])
                text += surface
            else:
                text += piece
        return {"text": text + source.pick(_TAILS), "label": label}

    return [
        source.fresh(partial(draw, template), lambda row: str(row["text"]))
        for template in source.deck(_TEMPLATES, size)
    ]
