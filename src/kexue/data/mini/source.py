"""Random draws for one split, such that no two splits can ever hold the same text.

Every text belongs to exactly one split: the CRC-32 of its bytes decides which. A split draws
until it gets a text of its own, so train, dev and test need not know of each other, and changing
the size of one leaves the others as they were.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

__all__ = ["ODD_STRINGS", "Row", "Source", "Split", "owner"]

T = TypeVar("T")
Row = dict[str, Any]
Split = Literal["train", "dev", "test"]

ODD_STRINGS = (
    "😀", "👍", "ＶＩＰ", "（Ａ）", "No.7 ", "iPad ", "5G ", "　", " ", "café ", "𠮷", "3.5%", "①",
    "OK，",
    "🇨🇳", "Wi-Fi ", "２４", "α",
)  # fmt: skip

_SHARES: tuple[Split, ...] = ("dev", "test", "dev", "test", *("train",) * 8)
_PATIENCE = 300  # draws after which a split of a small language may repeat itself
_DESPAIR = 20_000  # draws after which the language is too small to be split at all


def owner(text: str) -> Split:
    """The one split that may hold `text`."""
    return _SHARES[zlib.crc32(text.encode()) % len(_SHARES)]


class Source:
    """The random choices of one split of one task.

    Args:
        seed: the seed given by the user.
        task: name of the task; two tasks with one seed draw independently.
        split: train, dev or test.
        odd_rate: share of the texts that get an odd string (emoji, full-width, Latin, space).

    Example:
        >>> source = Source(0, "demo", "dev")
        >>> number = source.fresh(lambda: str(source.random.randrange(1000)), str)
        >>> owner(number)
        'dev'
    """

    def __init__(self, seed: int, task: str, split: Split, *, odd_rate: float = 0.04) -> None:
        self.split: Split = split
        self.random = random.Random(f"{seed}/{task}/{split}")
        self.odd_rate = odd_rate
        self._seen: set[str] = set()

    def pick(self, options: Sequence[T]) -> T:
        return self.random.choice(options)

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different options in random order."""
        return self.random.sample(options, count)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def odd(self) -> str:
        """Now and then a string that upsets careless offset arithmetic, mostly nothing."""
        return self.pick(ODD_STRINGS) if self.chance(self.odd_rate) else ""

    def deck(self, labels: Sequence[T], size: int) -> list[T]:
        """`size` labels in random order, each as often as any other (give or take one)."""
        deck = [labels[i % len(labels)] for i in range(size)]
        self.random.shuffle(deck)
        return deck

    def fresh(self, make: Callable[[], T], text: Callable[[T], str]) -> T:
        """Draw until the text belongs to this split and, if that is possible, is new in it.

        Raises:
            RuntimeError: no draw ever belongs to this split (the grammar is too small).
        """
        for attempt in range(_DESPAIR):
            drawn = make()
            key = text(drawn)
            if owner(key) == self.split and (attempt >= _PATIENCE or key not in self._seen):
                self._seen.add(key)
                return drawn
        raise RuntimeError(f"no text for split {self.split!r} in {_DESPAIR} draws")
