"""Small word lists that several grammars share: invented people and places, ordinary things."""

from kexue.data.mini.source import Source

__all__ = ["CITIES", "GIVEN_NAMES", "LATIN_WORDS", "STREETS", "SURNAMES", "person"]

SURNAMES = tuple("王李张刘陈杨赵黄周吴")
GIVEN_NAMES = (
    "建国", "小雨", "志远", "秀兰", "文博", "晓峰", "丽华", "子涵", "国强", "雪梅", "大海", "静",
)  # fmt: skip
CITIES = (
    "青河市", "云岭县", "白沙镇", "南浦市", "石桥县", "临泉市", "松江口", "金坪县", "东陵市",
    "柳湾镇",
)  # fmt: skip
STREETS = ("东大街", "幸福路", "河滨路", "北门外", "人民广场", "学府街")
LATIN_WORDS = ("App", "NBA", "AI", "Type-C", "GDP", "K12", "SUV", "4S", "IPO", "VR")


def person(source: Source) -> str:
    """A full name, family name first."""
    return source.pick(SURNAMES) + source.pick(GIVEN_NAMES)
