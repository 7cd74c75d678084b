"""How frequent the classes of a task are: counted from training labels, or as given (S11).

    pi_c  proportional to  n_c + b,   n_c training labels of class c, b the pseudo-count         (1)

The counts come, in this order, from what the user gives, from task.json of the trained model (the
labels that it was trained on), and from the training split of the data.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kexue.data.corpus import DataError, existing_file, read_json, read_json_lines, shorten
from kexue.data.features import FeatureTable
from kexue.models.saving import read_purpose
from kexue.tasks.clue import examples
from kexue.tasks.clue.classification import Classification, TextExample
from kexue.tasks.clue.sources import Source
from kexue.tasks.clue.task import Example, Task

__all__ = ["LABEL_COUNTS", "ClassPrior", "find_prior", "label_counts", "read_prior"]

LABEL_COUNTS = "label_counts"
"""The entry of task.json that holds the counts of the training labels."""
LARGEST = 1e15
"""No class has more rows; sums of such numbers stay exact enough."""


@dataclass(frozen=True, slots=True)
class ClassPrior:
    """How frequent each class is, by name.

    Args:
        shares: name → count or frequency, one entry per class, in the task's order.
        origin: where they come from, for messages and records.
    """

    shares: dict[str, float]
    origin: str

    def probabilities(self, pseudo_count: float = 0.0) -> Float[Tensor, " C"]:
        """(1), in the order of the task's labels.

        Args:
            pseudo_count: b, added to every class; 0 takes the counts as they are.

        Raises:
            ValueError: a class has no share at all; the message names the first one.

        Example:
            >>> ClassPrior({"0": 1.0, "1": 2.0}, "by hand").probabilities(pseudo_count=1.0)
            tensor([0.4000, 0.6000], dtype=torch.float64)
        """
        counts = torch.tensor(list(self.shares.values()), dtype=torch.float64) + pseudo_count
        absent = [name for name, n in zip(self.shares, counts.tolist(), strict=True) if n == 0]
        if absent:
            raise ValueError(
                f"{self.origin}: {len(absent)} of {len(counts)} classes have no share (the first: "
                f"{absent[0]!r}), so CAN would never predict them; give "
                f"--can-option pseudo_count=1, which is added to every class, or --can-prior"
            )
        return counts / counts.sum()  # (1)


def find_prior(task: Classification, given: str | None, model: Path, source: Source) -> ClassPrior:
    """The prior of a task's classes and where it was found.

    Args:
        task: whose classes they are.
        given: "uniform", a file for `read_prior`, or None: to be found.
        model: the best/ folder of a run; its task.json holds the counts.
        source: where the training split is, if the model was saved without counts.

    Raises:
        DataError: counts that are damaged; no counts anywhere, with the way out.
    """
    if given == "uniform":
        return ClassPrior(dict.fromkeys(task.labels, 1.0), "uniform, as given")
    if given is not None:
        return read_prior(task, Path(given).expanduser())
    kept = read_purpose(model).get(LABEL_COUNTS)
    path = model / "task.json"
    if kept is not None:
        shares = checked_shares(task, kept, f"{path}:{LABEL_COUNTS}")
        return ClassPrior(shares, f"{sum(shares.values()):.0f} training labels, kept in {path}")
    try:
        return counted(task, examples(task, source, "train"), "the training split")
    except (DataError, OSError) as error:
        raise DataError(
            f"{error}; the class frequencies are counted from the training split, since {path} "
            "does not hold them; give --can-prior FILE or --can-prior uniform"
        ) from error


def read_prior(task: Classification, path: Path) -> ClassPrior:
    """Class frequencies from a file of the user's.

    Args:
        task: whose classes they are.
        path: one JSON object, class → count or frequency, classes by name or as they stand in the
            task's files; or labelled data in the task's official format, to be counted.

    Raises:
        DataError: neither of the two; a class is unknown or missing, a number is none.
    """
    if is_one_object(existing_file(path)):
        return ClassPrior(checked_shares(task, read_json(path), str(path)), f"given in {path}")
    rows = (task.read(r, i, labelled=True) for i, r in enumerate(read_json_lines(path)))
    return counted(task, (e for row in rows for e in row if e is not None), str(path))


def counted(task: Classification, found: Iterable[Example], where: str) -> ClassPrior:
    """The labels of examples, counted one by one.

    Raises:
        DataError: there is none.
    """
    counts: Counter[str] = Counter()
    file = ""
    for example in found:
        if isinstance(example, TextExample) and example.label is not None:
            counts[example.label] += 1
            file = example.where.rpartition(":")[0]
    if not counts:
        raise DataError(f"{where}: holds no row with a label of {task.name}")
    shares = {name: float(counts[name]) for name in task.labels}
    return ClassPrior(shares, f"{counts.total()} labels counted in {file}")


def is_one_object(path: Path) -> bool:
    """Whether the file is one JSON object of numbers rather than labelled rows, one a line."""
    with path.open("rb") as lines:
        first = lines.readline()
    try:
        value = json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return bool(first.strip())  # an object over several lines begins with half a value
    return isinstance(value, dict) and "label" not in value


def checked_shares(task: Classification, given: Any, where: str) -> dict[str, float]:
    """Shares by the task's label names, in the task's order, whatever order they came in.

    Raises:
        DataError: not an object, an unknown, doubled or missing class, a number that is none.
    """
    if not isinstance(given, Mapping):
        raise DataError(f"{where}: needs an object class → count, got {type(given).__name__}")
    shares: dict[str, float] = {}
    for key, value in given.items():
        name = key if key in task.labels else task.name_of(key)
        if name not in task.labels:
            known = ", ".join(task.labels[:20])
            raise DataError(f"{where}: {key!r} is no class of {task.name}; known: {known}")
        if name in shares:
            raise DataError(f"{where}: the class {name!r} is given twice, also as {key!r}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= LARGEST:
            raise DataError(
                f"{where}: {key!r} needs a count or frequency ≥ 0, got {shorten(value)}"
            )
        shares[name] = float(value)
    missing = [name for name in task.labels if name not in shares]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(task.labels)} classes of {task.name} are missing, "
            f"first {missing[0]!r}; give each class a number"
        )
    return {name: shares[name] for name in task.labels}


def label_counts(task: Task, train: FeatureTable) -> dict[str, int] | None:
    """How many training rows each class has, by name; None for tasks without fixed classes."""
    if not isinstance(task, Classification):
        return None
    counts = np.bincount(train.column("label"), minlength=len(task.labels))
    return dict(zip(task.labels, counts.tolist(), strict=True))
