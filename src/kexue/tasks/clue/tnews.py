"""TNEWS: the topic of a short news title, one of 15 (S01)."""

from kexue.tasks.clue.classification import Classification

__all__ = ["CODE_TO_NAME", "TNews"]

CODE_TO_NAME = {
    "100": "story",
    "101": "culture",
    "102": "entertainment",
    "103": "sports",
    "104": "finance",
    "106": "house",
    "107": "car",
    "108": "edu",
    "109": "tech",
    "110": "military",
    "112": "travel",
    "113": "world",
    "114": "stock",
    "115": "agriculture",
    "116": "game",
}
NAME_TO_CODE = {name: code for code, name in CODE_TO_NAME.items()}


class TNews(Classification):
    """Short-title classification. The codes 105 and 111 do not exist."""

    name = "tnews"
    hub_config = "tnews"
    labels = tuple(NAME_TO_CODE)
    versions = ("1.0", "1.1")
    submission = "tnews{version}_predict.json"

    def file_names(self, split: str) -> tuple[str, ...]:
        if split == "test" and self.version == "1.0":
            return ("test1.0.json",)
        return super().file_names(split)

    def name_of(self, code: str) -> str:
        return CODE_TO_NAME.get(code, "")

    def code_of(self, name: str) -> str:
        return NAME_TO_CODE[name]
