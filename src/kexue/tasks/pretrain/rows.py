"""Texts as rows of equal length: tokens of all texts in one stream, [SEP] behind each, cut.

    stream   春 眠 不 觉 晓 [SEP] 床 前 明 月 光 [SEP] …
    row 0    春 眠 不 觉   → next   眠 不 觉 晓
    row 1    晓 [SEP] 床 前 → next   [SEP] 床 前 明

A row has one token more than is read at once: its last is only predicted. Consecutive rows share
that token, so that every token but the first is predicted exactly once. A rest shorter than a row
is dropped.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from kexue.data.batching import Batch
from kexue.data.features import Feature, FeatureTable, content_hash, encode_once
from kexue.data.tokens import Pieces
from kexue.models.tiny import tiny_tokenizer
from kexue.tasks.pretrain.texts import Texts

__all__ = ["character_tokenizer", "collate", "rows_of", "split_rows"]

TEXTS_AT_ONCE = 1000


def character_tokenizer(texts: Iterable[str], most: int = 8000) -> Any:
    """The built-in tokenizer with the characters of these texts, the most frequent first.

    Args:
        texts: what to count.
        most: entries of the vocabulary at most, special tokens not counted; the rest is [UNK].

    Raises:
        ValueError: there is not a single character.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.lower())
    frequent = [c for c, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))]
    known = [c for c in frequent if not c.isspace()][:most]
    if not known:
        raise ValueError("there is not a single character to learn; the texts are empty")
    return tiny_tokenizer(known)


def rows_of(texts: Iterable[str], pieces: Pieces, length: int) -> Iterator[list[int]]:
    """Rows of `length + 1` ids, one token shared between neighbours.

    Args:
        texts: in order.
        pieces: the tokenizer.
        length: tokens that are read at once.
    """
    stream: list[int] = []
    texts = iter(texts)
    while chunk := list(islice(texts, TEXTS_AT_ONCE)):
        for tokens in pieces.cut(chunk):
            stream += [*tokens.ids, pieces.sep]
        start = 0
        while start + length < len(stream):
            yield stream[start : start + length + 1]
            start += length
        del stream[:start]


def split_rows(
    texts: Texts, split: str, tokenizer: Any, length: int, most: int | None = None
) -> FeatureTable:
    """The rows of a split, encoded once per content.

    Args:
        texts: where they come from.
        split: train or dev.
        tokenizer: a fast tokenizer with [SEP].
        length: tokens that are read at once.
        most: rows to take at most; None: all.

    Raises:
        ValueError: the texts do not fill a single row.
    """
    vocabulary = tokenizer.backend_tokenizer.to_str()
    key = content_hash("rows", 1, vocabulary, length, most, *texts.contents(split))

    def features() -> Iterator[Feature]:
        rows = rows_of(texts.read(split), Pieces(tokenizer), length)
        for number, ids in enumerate(islice(rows, most)):
            yield {"input_ids": ids, "length": length, "example": number}

    try:
        return encode_once(key, {"input_ids": "ints", "length": "int", "example": "int"}, features)
    except ValueError as error:
        raise ValueError(
            f"the {split} texts do not fill a row of {length} tokens: give more text, or a smaller "
            f"--length ({error})"
        ) from None


def collate(features: list[Feature]) -> Batch:
    """Ids, and the id that comes next at every position; the loss is a mean over positions."""
    ids = torch.tensor([feature["input_ids"] for feature in features])  # (R, n + 1)
    return Batch(
        inputs={"input_ids": ids[:, :-1].contiguous()},
        targets={"next": ids[:, 1:].contiguous()},
        count=ids[:, 1:].numel(),
        examples=[feature["example"] for feature in features],
        tokens=ids[:, 1:].numel(),
    )
