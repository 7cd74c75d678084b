"""What the two multiple-choice tasks share (S01): one row and one score per choice.

    loss    cross-entropy of the right choice among the scores of its question

A feature brings `rows` rows; shifting all scores of a question changes nothing, and permuting its
choices permutes its probabilities.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.data.batching import Batch
from kexue.nn import ChoiceHead
from kexue.tasks.clue.task import E, Feature, Task

__all__ = ["Choice"]


class Choice(Task[E]):
    """A task whose features are the `rows` choices of one question."""

    columns: ClassVar[dict[str, str]] = {
        "example": "int",
        "part": "int",
        "length": "int",
        "input_ids": "lists",
        "label": "int",
    }

    def collate(self, features: Sequence[Feature]) -> Batch:
        batch = self.batch(features, [row for f in features for row in f["input_ids"]])
        batch.targets["label"] = torch.tensor([f["label"] for f in features])
        batch.targets["part"] = torch.tensor([f["part"] for f in features])
        return batch

    def head(self, hidden_size: int) -> nn.Module:
        return ChoiceHead(hidden_size, self.pooling)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        scores = model(**batch.inputs, num_choices=self.rows)  # (questions, rows)
        return F.cross_entropy(scores.float(), batch.targets["label"])

    def outputs(self, model: nn.Module, batch: Batch) -> list[tuple[int, np.ndarray]]:
        """The part's number within its example, and the scores of its choices."""
        scores: Any = model(**batch.inputs, num_choices=self.rows).float().cpu().numpy()
        return list(zip(batch.targets["part"].tolist(), scores, strict=True))
