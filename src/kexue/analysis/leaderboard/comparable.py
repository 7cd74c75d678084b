"""Which rows and tasks can be compared, and how much each task weighs (S13)."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from kexue.analysis.leaderboard.table import ScoreTable

__all__ = ["Weights", "complete", "weights_of"]

Weights = Mapping[str, float | int] | Sequence[float | int]
"""Of the tasks, by name or in order."""


def complete(table: ScoreTable, whole: np.ndarray, missing: str) -> tuple[list[int], list[int]]:
    """The rows and tasks between which no score is missing."""
    if missing not in ("common", "drop_rows", "error"):
        raise ValueError(f'missing must be "common", "drop_rows" or "error", got {missing!r}')
    gone = np.isnan(whole)
    rows, tasks = list(range(len(whole))), list(range(whole.shape[1]))
    if not gone.any():
        return rows, tasks
    m, t = np.argwhere(gone)[0]
    where = f"row {table.models[m]!r}, column {list(table.tasks)[t]!r}"
    if missing == "error":
        raise ValueError(f"{where}: the score is missing; fill it in or choose what to leave out")
    if missing == "drop_rows":
        rows = [m for m in rows if not gone[m].any()]
        if not rows:
            raise ValueError(f"no row has every task (see {where}); drop a task")
        return rows, tasks
    for m in rows:
        if gone[m].all():
            raise ValueError(f"row {table.models[m]!r} has no score at all; take it out")
    tasks = [t for t in tasks if not gone[:, t].any()]
    if not tasks:
        raise ValueError(f'no task is there in every row (see {where}); try missing="drop_rows"')
    return rows, tasks


def weights_of(weights: Weights | None, tasks: list[str]) -> np.ndarray:
    """One weight per task, by name or in order; 1 where none is given.

    Raises:
        ValueError: a weight for no task, too few or too many, one that is negative or infinite.
    """
    if weights is None:
        return np.ones(len(tasks))
    if isinstance(weights, Mapping):
        if unknown := [name for name in weights if name not in tasks]:
            raise ValueError(f"weight for {unknown[0]!r}, which is no task; {', '.join(tasks)} are")
        weights = [float(weights.get(task, 1.0)) for task in tasks]
    if len(weights) != len(tasks):
        raise ValueError(f"{len(tasks)} weights are needed, one per task, got {len(weights)}")
    for task, weight in zip(tasks, weights, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of {task!r} must be >= 0, got {weight}")
    return np.asarray(weights, dtype=np.float64)
