"""WSC (CLUEWSC2020): does the pronoun stand for the noun? (S01)

Both spans are marked in the text: the noun between two "_", the pronoun in "[ ]".
"""

from kexue.data.corpus import Record
from kexue.tasks.clue.classification import Classification

__all__ = ["WSC", "mark_spans"]


class WSC(Classification):
    """ "true" the pronoun (span 2) stands for the noun (span 1), "false" it does not."""

    name = "wsc"
    hub_config = "cluewsc2020"
    epochs = 30
    labels = ("true", "false")
    versions = ("1.0", "1.1")
    submission = "cluewsc{version}_predict.json"

    def file_names(self, split: str) -> tuple[str, ...]:
        if split == "test" and self.version == "1.0":
            return ("test1.0.json",)
        return super().file_names(split)

    def texts(self, record: Record) -> tuple[str, ...]:
        text, target = record.text("text"), record.get("target", dict)
        spans = []
        for name in ("span1", "span2"):
            mention, start = target.get(f"{name}_text"), target.get(f"{name}_index")
            if not isinstance(mention, str) or not isinstance(start, int) or not mention:
                raise record.error(f"target.{name}", "needs a non-empty text and an integer index")
            found = text[start : start + len(mention)] if start >= 0 else ""
            if found != mention:
                raise record.error(
                    f"target.{name}_index",
                    f"{mention!r} is not at character {start} (there stands {found!r}); "
                    f"first occurrence: {text.find(mention)}",
                )
            spans.append((start, start + len(mention)))
        (a, b), (c, d) = sorted(spans)
        if a < c < b < d:
            raise record.error("target", f"the two spans cross: {spans[0]} and {spans[1]}")
        return (mark_spans(text, *spans),)


def mark_spans(text: str, noun: tuple[int, int], pronoun: tuple[int, int]) -> str:
    """The text with "_" around the noun and "[ ]" around the pronoun (half-open ranges).

    Example:
        >>> mark_spans("苹果很甜，他吃了它。", (0, 2), (8, 9))
        '_苹果_很甜，他吃了[它]。'
    """
    marks = []
    for (start, end), (opening, closing) in ((noun, "__"), (pronoun, "[]")):
        marks += [(start, 1, start - end, opening), (end, 0, end - start, closing)]
    # from the back; at one place a closing mark stands before an opening one, an inner one inside
    for place, _, _, mark in sorted(marks, reverse=True):
        text = text[:place] + mark + text[place:]
    return text
