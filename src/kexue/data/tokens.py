"""Token pieces with character offsets, and how they are cut and joined into one input row.

A fast tokenizer turns a text into ids and, for each id, the half-open character range it stands
for in the text as given: lower-casing and accent stripping change the tokens, never the offsets.
Spans travel as characters everywhere else; only `SpanMap` knows tokens, and it checks what it
maps: a span whose borders are not token borders has no token span.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Pieces", "SpanMap", "Tokens", "truncate_longest"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one text: ids, and the half-open character range of each."""

    ids: list[int]
    offsets: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)


class Pieces:
    """Cuts texts into tokens with a fast tokenizer and knows its special ids.

    Args:
        tokenizer: a fast Hugging Face tokenizer (one with a `backend_tokenizer`).

    Raises:
        ValueError: the tokenizer is slow, or lacks [CLS], [SEP] or [PAD].
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"{type(tokenizer).__name__} gives no character offsets; "
                "save a fast tokenizer (tokenizer.json) beside the model"
            )
        self.backend = backend
        self.tokenizer = tokenizer
        self.cls = special(tokenizer, "cls_token_id", "bos_token_id")
        self.sep = special(tokenizer, "sep_token_id", "eos_token_id")
        self.pad = special(tokenizer, "pad_token_id")
        self.mask = tokenizer.mask_token_id

    def cut(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of each text, without special tokens."""
        self.backend.no_truncation()  # either may be set in tokenizer.json, or by a call
        self.backend.no_padding()
        self.backend.encode_special_tokens = True  # "[SEP]" in a corpus is text
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [Tokens(e.ids, e.offsets) for e in encodings]

    def id_of(self, token: str) -> int:
        """The id of one vocabulary entry.

        Raises:
            ValueError: the vocabulary has no such entry.
        """
        index = self.tokenizer.get_vocab().get(token)
        if index is None:
            raise ValueError(f"the tokenizer's vocabulary has no {token}; add it as special token")
        return int(index)

    def row(self, *pieces: Sequence[int], max_length: int) -> list[int]:
        """[CLS] piece [SEP] piece [SEP] …, the longest pieces cut until all fit."""
        kept = truncate_longest([len(p) for p in pieces], max_length - len(pieces) - 1)
        row = [self.cls]
        for piece, n in zip(pieces, kept, strict=True):
            row += piece[:n]
            row.append(self.sep)
        return row


def special(tokenizer: Any, *names: str) -> int:
    """The first of the named special ids that the tokenizer has."""
    for name in names:
        if (index := getattr(tokenizer, name, None)) is not None:
            return int(index)
    raise ValueError(f"the tokenizer has no {names[0].removesuffix('_id')}; set it before saving")


def truncate_longest(lengths: Sequence[int], budget: int) -> list[int]:
    """How much of each piece stays when the longest loses its last token until all fit.

    On ties the first piece loses first. The closed form of removing one token at a time.

    Raises:
        ValueError: the budget is negative, so not even the special tokens fit.

    Example:
        >>> truncate_longest([5, 9, 9], 12)
        [4, 4, 4]
        >>> truncate_longest([2, 9, 9], 13)
        [2, 5, 6]
    """
    if budget < 0:
        raise ValueError(f"max_length leaves {budget} tokens for text; raise it")
    kept = list(lengths)
    while (excess := sum(kept) - budget) > 0:
        longest = max(kept)
        tied = [i for i, n in enumerate(kept) if n == longest]
        runner_up = max((n for n in kept if n < longest), default=0)
        if each := min(longest - runner_up, excess // len(tied)):
            for i in tied:
                kept[i] -= each
        else:
            for i in tied[:excess]:
                kept[i] -= 1
    return kept


class SpanMap:
    """Characters to tokens and back, for one row's piece of text.

    Args:
        offsets: half-open character ranges of the tokens, in order.
    """

    def __init__(self, offsets: Sequence[tuple[int, int]]) -> None:
        self.starts = [start for start, _ in offsets]
        self.ends = [end for _, end in offsets]

    def to_tokens(self, start: int, end: int) -> tuple[int, int] | None:
        """First and last token (inclusive) of the characters [start, end).

        None where a border of the span is no border of a token.
        """
        first = bisect_left(self.starts, start)
        last = bisect_right(self.ends, end) - 1
        if first > last or self.starts[first] != start or self.ends[last] != end:
            return None
        return first, last

    def to_characters(self, first: int, last: int) -> tuple[int, int]:
        """The half-open character range of the tokens first … last (inclusive)."""
        return self.starts[first], self.ends[last]
