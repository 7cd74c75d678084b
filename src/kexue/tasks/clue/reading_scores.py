"""EM and F1 of reading comprehension as the official CMRC 2018 script computes them (S01).

Both lower-case and drop punctuation. EM asks for the same text; F1 compares segments (a Chinese
character, or a word of another script) by their longest common run. The script splits Latin
stretches with nltk; here they are split into words and single signs.
"""

import re
from collections.abc import Sequence

__all__ = ["exact_match", "f1", "segments"]

# Punctuation of the official script, which removes these and no others.
PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
WORDS = re.compile(r"\w+(?:['.]\w+|,\d+)*|[^\w\s]")


def segments(text: str) -> list[str]:
    """Lower-cased, punctuation removed, cut into Chinese characters, words and signs."""
    cut: list[str] = []
    for run in re.split(r"([\u4e00-\u9fa5])", without_punctuation(text)):
        cut += [run] if re.fullmatch(r"[\u4e00-\u9fa5]", run) else WORDS.findall(run)
    return cut


def without_punctuation(text: str) -> str:
    """Lower-cased and stripped, without the official punctuation."""
    return "".join(c for c in text.lower().strip() if c not in PUNCTUATION)


def exact_match(prediction: str, answer: str) -> bool:
    """Equal but for case and punctuation."""
    return without_punctuation(prediction) == without_punctuation(answer)


def f1(prediction: str, answer: str) -> float:
    """F1 of the longest common run of segments.

    Example:
        >>> round(f1("光荣和omega公司", "光荣和omega"), 4)
        0.8
    """
    p, a = segments(prediction), segments(answer)
    common = longest_common_run(p, a)
    if not common:
        return 0.0
    precision, recall = common / len(p), common / len(a)
    return 2 * precision * recall / (precision + recall)


def longest_common_run(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest run of equal neighbours in both."""
    best, before = 0, [0] * (len(b) + 1)
    for x in a:
        now = [0] * (len(b) + 1)
        for j, y in enumerate(b, start=1):
            if x == y:
                now[j] = before[j - 1] + 1
        best, before = max(best, *now), now
    return best
