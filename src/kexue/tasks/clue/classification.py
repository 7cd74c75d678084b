"""The seven tasks that give one label to one or two texts (S01): softmax over [CLS].

row     [CLS] text [SEP]   or   [CLS] text 1 [SEP] text 2 [SEP],   token types all 0
head    W · h_CLS + b, no pooler, no dropout
loss    cross-entropy, mean over the batch
answer  the label with the largest score
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.data.batching import Batch
from kexue.data.corpus import Record
from kexue.nn import SequenceHead
from kexue.tasks.clue.submission import submission_rows, write_lines
from kexue.tasks.clue.task import Example, Feature, Mistake, Task

__all__ = ["Classification", "TextExample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextExample(Example):
    """One or two texts and their label's name (None in the test split)."""

    texts: tuple[str, ...]
    label: str | None


class Classification(Task[TextExample]):
    """One label per record. A subclass names its labels and says which texts make a row."""

    labels: ClassVar[tuple[str, ...]]
    dropped: ClassVar[frozenset[str]] = frozenset()
    columns: ClassVar[dict[str, str]] = {
        "example": "int",
        "length": "int",
        "input_ids": "ints",
        "label": "int",
    }

    def texts(self, record: Record) -> tuple[str, ...]:
        """The texts of a row, in order."""
        return (record.text("sentence"),)

    def name_of(self, code: str) -> str:
        """The label's name for the string that stands in the files."""
        return code

    def code_of(self, name: str) -> str:
        """The string that stands in the files for a label's name."""
        return name

    def label_of(self, record: Record) -> str:
        """The record's label by name.

        Raises:
            DataError: the label is not one of the task's.
        """
        code = record.get("label", (str, int))
        name = self.name_of(str(code))
        if name not in self.labels:
            known = ", ".join(self.code_of(n) for n in self.labels[:20])
            raise record.error("label", f"{code!r} is no label of {self.name}; known: {known}")
        return name

    def read(self, record: Record, row: int, labelled: bool) -> list[TextExample | None]:
        if labelled and str(record.value.get("label")) in self.dropped:
            self.note("rows without a majority label were left out")
            return [None]
        return [
            TextExample(
                id=record.identity(row),
                row=row,
                where=record.where,
                texts=self.texts(record),
                label=self.label_of(record) if labelled else None,
            )
        ]

    def encode(self, examples: Sequence[TextExample], first: int) -> Iterator[Feature]:
        ids = {name: i for i, name in enumerate(self.labels)}
        pieces = [
            self.pieces.cut(texts) for texts in zip(*(e.texts for e in examples), strict=True)
        ]
        for index, (example, *parts) in enumerate(zip(examples, *pieces, strict=True), start=first):
            row = self.pieces.row(*(p.ids for p in parts), max_length=self.length)
            label = -1 if example.label is None else ids[example.label]
            yield {"example": index, "length": len(row), "input_ids": row, "label": label}

    def collate(self, features: Sequence[Feature]) -> Batch:
        batch = self.batch(features, [f["input_ids"] for f in features])
        batch.targets["label"] = torch.tensor([f["label"] for f in features])
        return batch

    def head(self, hidden_size: int) -> nn.Module:
        return SequenceHead(hidden_size, len(self.labels), self.pooling)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(**batch.inputs).float(), batch.targets["label"])

    def outputs(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        return list(model(**batch.inputs).float().cpu().numpy())

    def decode(
        self, examples: Sequence[TextExample], outputs: Sequence[tuple[int, np.ndarray]]
    ) -> list[str]:
        predictions = [""] * len(examples)
        for index, scores in outputs:
            predictions[index] = self.labels[int(scores.argmax())]
        return predictions

    def score(
        self, examples: Sequence[TextExample], predictions: Sequence[str]
    ) -> dict[str, float]:
        right = sum(e.label == p for e, p in zip(examples, predictions, strict=True))
        return {"accuracy": 100 * right / len(examples)}

    def chance(self, examples: Sequence[TextExample]) -> float:
        [(_, count)] = Counter(e.label for e in examples).most_common(1)
        return 100 * count / len(examples)

    def mistakes(
        self, examples: Sequence[TextExample], predictions: Sequence[str]
    ) -> Iterator[Mistake]:
        for e, p in zip(examples, predictions, strict=True):
            if e.label is not None and e.label != p:
                yield Mistake(" / ".join(e.texts), e.label, p)

    def confusion(
        self, examples: Sequence[TextExample], predictions: Sequence[str]
    ) -> dict[str, Any]:
        place = {name: i for i, name in enumerate(self.labels)}
        counts = np.zeros((len(place), len(place)), dtype=int)
        for e, p in zip(examples, predictions, strict=True):
            if e.label is not None:
                counts[place[e.label], place[p]] += 1
        return {"labels": list(self.labels), "counts": counts.tolist()}

    def write_submission(
        self, path: Path, examples: Sequence[TextExample], predictions: Sequence[str]
    ) -> None:
        pairs = zip(examples, predictions, strict=True)
        write_lines(path, ({"id": e.id, "label": self.code_of(p)} for e, p in pairs))

    def read_submission(self, path: Path, examples: Sequence[TextExample]) -> list[str]:
        labelled = any(e.label is not None for e in examples)
        lines = submission_rows(path, examples, rows_left_out=labelled and bool(self.dropped))
        return [self.label_of(line) for line in lines]
