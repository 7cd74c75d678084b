"""CAN on a split: unsure predictions of a classification task corrected with the prior (S11).

    scores ──softmax──▶ p ──kexue.probability.can──▶ p' ──argmax──▶ label          (unsure rows)
       └──────────────────────────────── argmax ──────────────────▶ label          (trusted rows)

The rows of the split itself that are trusted are the reference, as in the article, so the result
depends on the split as a whole. The scores are those of the one pass of the model over the split;
they are gone through twice in pieces of `ROWS`, so that little more than they is held.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kexue.data.features import content_hash
from kexue.data.files import atomic_write_text
from kexue.probability.can import topk_uncertainty
from kexue.tasks.clue import TASKS
from kexue.tasks.clue.can_options import CANOptions
from kexue.tasks.clue.class_prior import ClassPrior
from kexue.tasks.clue.classification import Classification, TextExample
from kexue.tasks.clue.task import Task

__all__ = [
    "Correction",
    "correct",
    "record_path",
    "with_classes",
    "write_record",
]

ROWS = 4096
"""Rows whose probabilities are held at a time."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What CAN did to the predictions of a split.

    Args:
        predictions: label names, one per example.
        uncertain: how many rows were not trusted.
        changed: how many of them have another label now.
        accuracy: in percent, before and after; None where the split has no labels.
        options: as used; k is the number that was looked at.
        prior: class frequencies and where they come from.
        reference: hash of the trusted rows, which the result depends on.
        notes: what the user should know.
    """

    predictions: list[str]
    uncertain: int
    changed: int
    accuracy: tuple[float, float] | None
    options: CANOptions
    prior: ClassPrior
    reference: str
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """All but the predictions, as JSON."""
        accuracy = self.accuracy and dict(zip(("before", "after"), self.accuracy, strict=True))
        return {
            "predictions": len(self.predictions),
            "uncertain": self.uncertain,
            "changed": self.changed,
            "accuracy": accuracy,
            "prior": self.prior.origin,
            "class_shares": self.prior.shares,
            "options": asdict(self.options),
            "reference": self.reference,
            "notes": list(self.notes),
        }

    def summary(self) -> list[str]:
        """Lines for people."""
        lines = [
            f"CAN: {self.uncertain} of {len(self.predictions)} predictions uncertain, "
            f"{self.changed} changed",
            f"prior: {self.prior.origin}",
        ]
        if self.accuracy is not None:
            before, after = self.accuracy
            lines.append(f"accuracy: {before:.2f} before, {after:.2f} after")
        return lines


def with_classes(task: Task) -> Classification:
    """The task itself, if its answers are classes whose probabilities CAN can correct.

    Raises:
        ValueError: they are not; the message names the tasks whose answers are.
    """
    if isinstance(task, Classification):
        return task
    known = ", ".join(name for name, kind in TASKS.items() if issubclass(kind, Classification))
    raise ValueError(
        f"CAN corrects the probabilities of fixed classes, and {task.name} has none; it is for "
        f"{known}"
    )


def correct(
    task: Classification,
    examples: Sequence[TextExample],
    outputs: Sequence[tuple[int, np.ndarray]],
    prior: ClassPrior,
    options: CANOptions | None = None,
) -> Correction:
    """The predictions of a split, those of unsure rows corrected by CAN.

    Args:
        task: whose labels the scores are for, in the order of `task.labels`.
        examples: of the split.
        outputs: example index and scores (logits), of every example: `split_outputs`.
        prior: how frequent the classes are: `find_prior`.
        options: of CAN; None: the article's.

    Raises:
        ValueError: a class without a share in the prior; scores that are not finite.
    """
    classes = len(task.labels)
    used = (options or CANOptions()).for_classes(classes)
    notes = []
    if options is not None and options.k is not None and options.k > classes:
        notes.append(f"k = {options.k} is more than the {classes} classes; {classes} was taken")
    can = used.estimator(prior.probabilities(used.pseudo_count))
    before = task.decode(examples, outputs)
    after, uncertain = list(before), 0
    reference = hashlib.blake2b(digest_size=12)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _, p in pieces(outputs):
            can.partial_fit(p)
        for indices, p in pieces(outputs):
            unsure = unsure_rows(p, used)
            corrected = torch.as_tensor(can.transform(p))[unsure].argmax(1).tolist()
            for row, label in zip(unsure.nonzero()[:, 0].tolist(), corrected, strict=True):
                after[indices[row]] = task.labels[label]
            reference.update(p[~unsure].numpy().tobytes())
            uncertain += len(corrected)
    notes += [str(warning.message) for warning in warned]
    accuracy = None
    if examples and all(example.label is not None for example in examples):
        scores = [task.score(examples, labels)["accuracy"] for labels in (before, after)]
        accuracy = (scores[0], scores[1])
    return Correction(
        predictions=after,
        uncertain=uncertain,
        changed=sum(b != a for b, a in zip(before, after, strict=True)),
        accuracy=accuracy,
        options=used,
        prior=prior,
        reference=reference.hexdigest(),
        notes=tuple(dict.fromkeys(notes)),
    )


def pieces(outputs: Sequence[tuple[int, np.ndarray]]) -> Iterator[tuple[list[int], Tensor]]:
    """Example indices and probabilities (rows, C) in float64, `ROWS` at a time.

    Raises:
        ValueError: scores that are not finite.
    """
    for start in range(0, len(outputs), ROWS):
        indices, given = zip(*outputs[start : start + ROWS], strict=True)
        scores = torch.from_numpy(np.stack(given)).double()  # (rows, C)
        if len(bad := (~scores.isfinite()).any(1).nonzero()):
            where = int(bad[0])
            raise ValueError(
                f"example {indices[where]} has scores that are not finite, "
                f"{scores[where, :8].tolist()}; the weights of the model are damaged"
            )
        yield list(indices), scores.softmax(1)


def unsure_rows(p: Tensor, options: CANOptions) -> Tensor:
    """True where a row is not trusted."""
    uncertainty = topk_uncertainty(p, options.k or 3, options.uncertainty)
    return torch.as_tensor(uncertainty) >= options.tau


def record_path(submission: Path) -> Path:
    """Where the record of a corrected submission stands: beside it, `NAME.can.json`."""
    return submission.with_suffix(".can.json")


def write_record(submission: Path, correction: Correction | None, **facts: str) -> None:
    """Says beside a submission that CAN was applied, and how; or takes the earlier record away.

    Args:
        submission: the file just written.
        correction: what was done to it; None: nothing, so that no record may stand beside it.
        facts: of the run: task, split, data, model.
    """
    path = record_path(submission)
    if correction is None:
        path.unlink(missing_ok=True)
        return
    named = {"method": "CAN", "submission": submission.name, "content": content_hash(submission)}
    told = named | facts | correction.record()
    atomic_write_text(path, json.dumps(told, ensure_ascii=False, indent=1) + "\n")
