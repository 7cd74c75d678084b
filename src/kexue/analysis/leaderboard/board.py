"""A leaderboard: means, ranks, Borda, stability, audit, and what to distrust (S13)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from kexue.analysis.leaderboard.audit import Audit, audit_averages
from kexue.analysis.leaderboard.bootstrap import Bootstrap, over_examples, over_seeds, over_tasks
from kexue.analysis.leaderboard.comparable import Weights, complete, weights_of
from kexue.analysis.leaderboard.ranks import borda_points, copeland, kendall, ranks, spearman
from kexue.analysis.leaderboard.reading import read_table
from kexue.analysis.leaderboard.table import ScoreTable
from kexue.probability.means import MEANS, power_mean, power_of

__all__ = ["Agreement", "Leaderboard"]


@dataclass(frozen=True)
class Agreement:
    """How alike two rankings are; NaN where one of them ranks all models equal."""

    kendall: float
    spearman: float


class Leaderboard:
    """Scores of models on tasks, more is better.

    Args:
        scores: (models, columns), or a data frame with models as index; NaN is a missing score.
        tasks: names of the columns; those of the data frame when None.
        models: names of the rows; those of the data frame when None.
        weights: of the tasks, by name or in order; equal when None, scaled to sum 1.
        metrics_per_task: task → columns that are averaged into it first, such as F1 and accuracy;
            columns that are not named are tasks themselves.
        missing: "common" keeps the tasks that every row has, "drop_rows" the rows that have every
            task, "error" refuses. Nothing is ever averaged over what a row happens to have.

    Raises:
        ValueError: an empty table, names that occur twice, a shape that does not fit, infinite
            scores, unusable weights, nothing left once missing scores are handled.

    Example:
        >>> board = Leaderboard([[90, 40], [70, 70.0]], ["easy", "hard"], ["even", "flat"][::-1])
        >>> board.aggregate("harmonic").round(2).tolist(), board.rank("harmonic").tolist()
        ([55.38, 70.0], [2, 1])
    """

    def __init__(
        self,
        scores: Any,
        tasks: Sequence[str] | None = None,
        models: Sequence[str] | None = None,
        weights: Weights | None = None,
        metrics_per_task: Mapping[str, Sequence[str]] | None = None,
        *,
        missing: str = "common",
    ) -> None:
        if hasattr(scores, "columns") and hasattr(scores, "index"):  # a data frame
            tasks = list(map(str, scores.columns)) if tasks is None else tasks
            models = list(map(str, scores.index)) if models is None else models
            scores = scores.to_numpy()
        try:
            cells = np.array(scores, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"scores must be numbers, a row per model: {error}") from None
        if tasks is None or models is None:
            raise ValueError("give the names of tasks and models, or a data frame that has them")
        cells = cells.reshape(len(models), len(tasks)) if cells.size == 0 else cells
        table = ScoreTable(tuple(models), tuple(tasks), cells)
        self._take(table.merged(metrics_per_task or {}), weights, missing)

    @classmethod
    def of(
        cls,
        table: ScoreTable,
        weights: Weights | None = None,
        *,
        missing: str = "common",
    ) -> "Leaderboard":
        """A leaderboard from a table that was read."""
        board = cls.__new__(cls)
        board._take(table, weights, missing)
        return board

    @classmethod
    def read(cls, *paths: Path | str, missing: str = "common") -> "Leaderboard":
        """A leaderboard from a CSV or JSON file, or from run folders; see `read_table`."""
        return cls.of(read_table(paths), missing=missing)

    def _take(
        self,
        table: ScoreTable,
        weights: Weights | None,
        missing: str,
    ) -> None:
        self.table = table
        whole = table.scores()
        rows, kept = complete(table, whole, missing)
        names = list(table.tasks)
        self.models = tuple(table.models[m] for m in rows)
        self.tasks = tuple(names[t] for t in kept)
        self.scores: Float[np.ndarray, "M T"] = whole[np.ix_(rows, kept)]
        self.weights: Float[np.ndarray, " T"] = weights_of(weights, names)[kept]
        if self.weights.sum() <= 0:
            raise ValueError(f"the tasks that are left have no weight: {', '.join(self.tasks)}")
        self.weights = self.weights / self.weights.sum()
        self.tasks_left_out = tuple(name for name in names if name not in self.tasks)
        self.models_left_out = tuple(one for one in table.models if one not in self.models)

    def aggregate(self, mean: str | float | int = "arithmetic") -> Float[np.ndarray, " M"]:
        """One value per model.

        Args:
            mean: "arithmetic", "geometric", "harmonic" or a power; also "borda" (points) and
                "wins" (models beaten in pairwise comparison).

        Raises:
            ValueError: a negative score under any mean but the arithmetic; row and column named.
        """
        if mean == "borda":
            return borda_points(self.scores, self.weights)
        if mean == "wins":
            return copeland(self.scores, self.weights)[1]
        self._check_sign(mean)
        return power_mean(self.scores, mean, self.weights)

    def rank(self, mean: str | float | int = "arithmetic") -> Int[np.ndarray, " M"]:
        """Competition ranks of `aggregate(mean)`: 1 is best, ties share the smallest rank."""
        return ranks(self.aggregate(mean))

    def borda(self) -> Float[np.ndarray, " M"]:
        """Borda points: models beaten, plus half of the ties, summed over tasks."""
        return self.aggregate("borda")

    def pairwise(self) -> Float[np.ndarray, "M M"]:
        """Tasks on which the row's model beats the column's, ties half."""
        return copeland(self.scores, self.weights)[0]

    def agreement(self, a: str | float | int, b: str | float | int) -> Agreement:
        """Kendall's tau-b and Spearman's rho between the rankings under two means."""
        x, y = self.aggregate(a), self.aggregate(b)
        return Agreement(kendall(x, y), spearman(x, y))

    def bootstrap(
        self,
        n: int = 10_000,
        over: str = "tasks",
        seed: int = 0,
        *,
        mean: str | float | int = "arithmetic",
        examples: Mapping[str, Any] | None = None,
    ) -> Bootstrap:
        """Ranks and means over resampled tasks, seeds or examples.

        Args:
            n: resamples; with few tasks all different ones instead, see `Bootstrap.exact`.
            over: what is drawn with replacement.
            seed: of the draw.
            mean: "arithmetic", "geometric", "harmonic" or a power.
            examples: task → (models, examples), the score of every example in the order of
                `models`; needed for over="examples".

        Raises:
            ValueError: the table has no seeds, examples are missing or have another shape.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self._check_sign(mean)
        if over == "seeds":
            if not self.table.seeds:
                raise ValueError('the table holds one score per cell; over="seeds" needs runs')
            cells = [
                [
                    self.table.seeds.get((model, task)) or (float(self.scores[m, t]),)
                    for t, task in enumerate(self.tasks)
                ]
                for m, model in enumerate(self.models)
            ]
            return over_seeds(self.models, cells, self.weights, mean, draws=n, seed=seed)
        if over == "examples":
            found = self._examples(examples)
            return over_examples(self.models, found, self.weights, mean, draws=n, seed=seed)
        if over != "tasks":
            raise ValueError(f'over must be "tasks", "seeds" or "examples", got {over!r}')
        return over_tasks(self.models, self.scores, self.weights, mean, draws=n, seed=seed)

    def leave_one_out(
        self, mean: str | float | int = "arithmetic"
    ) -> dict[str, Int[np.ndarray, " M"]]:
        """The ranks without each of the tasks; empty for a single task."""
        found = {}
        for t, task in enumerate(self.tasks):
            rest = np.arange(len(self.tasks)) != t
            if self.weights[rest].sum() > 0:
                table = ScoreTable(
                    self.models, tuple(np.array(self.tasks)[rest]), self.scores[:, rest]
                )
                found[task] = Leaderboard.of(table, self.weights[rest].tolist()).rank(mean)
        return found

    def audit(
        self, published: Mapping[str, float] | None = None, decimals: int | None = None
    ) -> Audit:
        """By which rule were these averages computed, and is it one rule for every row?

        Args:
            published: model → average; the table's own column when None.
            decimals: as printed; as many as the longest average has when None.
        """
        return audit_averages(self.table, published or self.table.published, decimals)

    def relative_to(self, model: str) -> "Leaderboard":
        """Every score divided by that of one model on the task; ranks under GM stay."""
        if model not in self.models:
            raise ValueError(f"{model!r} is no model here; there are {', '.join(self.models)}")
        reference = self.scores[self.models.index(model)]
        if (reference <= 0).any():
            task = self.tasks[int((reference <= 0).argmax())]
            raise ValueError(f"{model!r} has no positive score on {task!r} to divide by")
        return self._scaled(self.scores / reference)

    def standardised(self) -> "Leaderboard":
        """Every task to mean 0 and standard deviation 1; one where all tie becomes 0."""
        deviation = self.scores.std(axis=0)
        flat = np.ptp(self.scores, axis=0) <= 1e-9
        scaled = (self.scores - self.scores.mean(axis=0)) / np.where(flat, 1.0, deviation)
        return self._scaled(np.where(flat, 0.0, scaled))

    def report(self) -> str:
        """The means and ranks as a Markdown table."""
        means = [mean for mean in MEANS if self._defined(mean)]
        head = ["model", *means, "Borda", *(f"rank, {mean}" for mean in means), "rank, Borda"]
        columns = [[f"{v:.4f}" for v in self.aggregate(mean)] for mean in means]
        columns.append([f"{v:g}" for v in self.borda().round(6)])
        columns += [[str(v) for v in self.rank(mean)] for mean in (*means, "borda")]
        lines = [head, ["---", *["---:"] * len(columns)]]
        lines += [list(row) for row in zip(self.models, *columns, strict=True)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def _defined(self, mean: str | float | int) -> bool:
        return power_of(mean) == 1 or not (self.scores < 0).any()

    def _check_sign(self, mean: str | float | int) -> None:
        if power_of(mean) == 1 or not (self.scores < 0).any():
            return
        m, t = np.argwhere(self.scores < 0)[0]
        raise ValueError(
            f"row {self.models[m]!r}, column {self.tasks[t]!r}: {self.scores[m, t]:g} is negative, "
            f"and the {mean} mean of negative scores is not defined; leave the column out, or use "
            "the arithmetic mean"
        )

    def _scaled(self, scores: np.ndarray) -> "Leaderboard":
        return Leaderboard.of(ScoreTable(self.models, self.tasks, scores), self.weights.tolist())

    def _examples(self, examples: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
        if not examples or set(examples) != set(self.tasks):
            raise ValueError(
                f"examples must hold a matrix for each of {', '.join(self.tasks)}, got "
                f"{', '.join(examples) if examples else 'none'}"
            )
        found = {task: np.asarray(examples[task], dtype=np.float64) for task in self.tasks}
        for task, one in found.items():
            if one.ndim != 2 or len(one) != len(self.models) or one.shape[1] == 0:
                raise ValueError(
                    f"examples of {task!r} must have shape ({len(self.models)} models, examples), "
                    f"got {one.shape}"
                )
        return found
