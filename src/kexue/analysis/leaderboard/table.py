"""A table of scores as it was written: rows, columns, missing cells, published averages (S13).

    ScoreTable(models, columns, cells)                 one metric per task
    ScoreTable(…, tasks={"CB": (1, 2), …})             tasks with several metrics
    cell_numbers("95.8/98.9")  →  [95.8, 98.9]         one cell as people write it

A missing score is NaN and stays NaN: nothing is filled in, and nothing is averaged over what
happens to be there.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

__all__ = ["PUBLISHED", "ScoreTable", "cell_numbers", "unique"]

MISSING = frozenset({"", "-", "–", "—", "--", "?", "na", "n/a", "nan", "null", "none", "缺"})
PUBLISHED = frozenset(
    {"average", "avg", "avg.", "mean", "overall", "published", "total", "score", "平均", "均分"}
    | {"平均分", "总分"}
)
"""Headings, lower-case, under which a table gives its own average."""
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?\s*%?", re.IGNORECASE)


@dataclass(frozen=True)
class ScoreTable:
    """Scores of models on tasks, nothing computed yet.

    Args:
        models: names of the rows.
        columns: names of the metrics.
        cells: (models, columns), NaN where a score is missing.
        tasks: task → places of its metrics; one task per column when empty.
        published: model → the average that the table itself gives.
        seeds: (model, task) → the score of every seed, in a table made from runs.
        notes: what was decided while reading, (English, Chinese).
    """

    models: tuple[str, ...]
    columns: tuple[str, ...]
    cells: np.ndarray
    tasks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    seeds: Mapping[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.models or not self.columns:
            raise ValueError(
                f"the table is empty: {len(self.models)} models and {len(self.columns)} columns"
            )
        if self.cells.shape != (len(self.models), len(self.columns)):
            raise ValueError(
                f"scores must have shape ({len(self.models)} models, {len(self.columns)} columns), "
                f"got {self.cells.shape}"
            )
        unique(self.models, "model")
        unique(self.columns, "column")
        if (infinite := np.argwhere(np.isinf(self.cells))).size:
            m, c = infinite[0]
            raise ValueError(
                f"row {self.models[m]!r}, column {self.columns[c]!r}: {self.cells[m, c]} is no "
                "score; leave the cell empty where there is none"
            )
        if not self.tasks:
            object.__setattr__(self, "tasks", {c: (i,) for i, c in enumerate(self.columns)})

    def scores(self) -> np.ndarray:
        """(models, tasks): the metrics of a task averaged; NaN where one of them is missing."""
        return np.stack([self.cells[:, list(at)].mean(axis=1) for at in self.tasks.values()], 1)

    def merged(self, groups: Mapping[str, Sequence[str]]) -> "ScoreTable":
        """The same table with several tasks as one, such as MNLI = MNLI-m and MNLI-mm.

        All metrics of the merged tasks count alike; a merged task has no seeds of its own.

        Raises:
            ValueError: a name is not a task of the table, or is used twice.
        """
        used = [name for names in groups.values() for name in names]
        unique(used, "merged task")
        for name in used:
            self._known(name)
        for name in groups:
            if name in self.tasks and name not in groups[name]:
                raise ValueError(f"{name!r} is a task already; name the merged task otherwise")
        home = {name: task for task, names in groups.items() for name in names}
        tasks: dict[str, tuple[int, ...]] = {}
        for task, at in self.tasks.items():
            name = home.get(task, task)
            tasks[name] = tasks.get(name, ()) + at
        seeds = {place: scores for place, scores in self.seeds.items() if place[1] not in used}
        return replace(self, tasks=tasks, seeds=seeds)

    def without(self, names: Sequence[str]) -> "ScoreTable":
        """The same table without some tasks."""
        for name in names:
            self._known(name)
        tasks = {task: at for task, at in self.tasks.items() if task not in names}
        if not tasks:
            raise ValueError(f"no task is left once {', '.join(names)} are dropped")
        return replace(self, tasks=tasks)

    def _known(self, name: str) -> None:
        if name not in self.tasks:
            raise ValueError(f"{name!r} is no task of the table; it has {', '.join(self.tasks)}")


def unique(names: Sequence[str], what: str) -> None:
    """Refuse a name that occurs twice.

    Raises:
        ValueError: with the name and both places.
    """
    first: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        if name in first:
            raise ValueError(
                f"{what} {name!r} is there twice, as number {first[name]} and {place}; names must "
                "differ"
            )
        first[name] = place


def cell_numbers(text: str) -> list[float]:
    """The numbers of one cell; several metrics stand as a/b, a missing one is NaN.

    Raises:
        ValueError: a part is neither a number nor a sign for a missing score.

    Example:
        >>> cell_numbers("95.8/98.9"), cell_numbers("90,5 %"), cell_numbers("n/a")
        ([95.8, 98.9], [90.5], [nan])
    """
    text = text.replace("\u2212", "-")  # the minus sign of mathematics
    if text.strip().casefold() in MISSING:
        return [math.nan]
    return [_number(part.strip(), text) for part in text.split("/")]


def _number(part: str, cell: str) -> float:
    if part.casefold() in MISSING:
        return math.nan
    if not NUMBER.fullmatch(part):
        raise ValueError(f"{cell.strip()!r} is no score; give a number, a/b, or leave it empty")
    return float(part.rstrip("% ").replace(",", "."))
