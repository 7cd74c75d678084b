"""How stable a ranking is: resampled tasks, seeds or examples (S13).

    tasks      T tasks are drawn from the T with replacement; weights follow their counts        (8)
    seeds      the seeds of every cell are drawn with replacement, cell by cell                  (9)
    examples   the examples of every task are drawn, the same ones for all models (paired)      (10)

(8) has only C(2T − 1, T) different outcomes, each with a multinomial probability: 6435 for T = 8.
Where that is no more than the number of draws asked for, all of them are taken with their weights,
and the result is exact, without any chance. Percentiles are the smallest value that reaches the
level, so those of ranks are ranks.

A bootstrap over a handful of tasks says how sensitive the order is to the choice of tasks; it is no
test of significance, since tasks are not a sample.

Axes: B resamples, M models, T tasks.   Cost: one product (B, T) × (T, M) and B sorts of M.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int

from kexue.analysis.leaderboard.ranks import ranks
from kexue.probability.means import power_mean

__all__ = ["Bootstrap", "over_examples", "over_seeds", "over_tasks", "task_counts"]


@dataclass(frozen=True)
class Bootstrap:
    """What the resamples gave.

    Args:
        models: names of the columns of `values`.
        values: the mean of every model in every resample, (B, M).
        probability: of every resample, (B,), sum 1.
        exact: all resamples are there, not a draw of them.
    """

    models: tuple[str, ...]
    values: Float[np.ndarray, "B M"]
    probability: Float[np.ndarray, " B"]
    exact: bool = False

    @cached_property
    def ranks(self) -> Int[np.ndarray, "B M"]:
        """The rank of every model in every resample."""
        return ranks(self.values)

    @property
    def first(self) -> Float[np.ndarray, " M"]:
        """How likely each model is first, alone or with others."""
        return np.asarray(self.probability @ (self.ranks == 1))

    def rank_interval(self, level: float = 0.95) -> Int[np.ndarray, "M 3"]:
        """Lower end, median and upper end of every model's rank."""
        return np.stack([self._percentiles(column, level) for column in self.ranks.T])

    def value_interval(self, level: float = 0.95) -> Float[np.ndarray, "M 3"]:
        """Lower end, median and upper end of every model's mean."""
        return np.stack([self._percentiles(column, level) for column in self.values.T])

    def difference(self, a: str, b: str, level: float = 0.95) -> Float[np.ndarray, "3"]:
        """Lower end, median and upper end of the mean of `a` minus that of `b`."""
        for name in (a, b):
            if name not in self.models:
                raise ValueError(f"{name!r} is no model here; there are {', '.join(self.models)}")
        one, other = (self.values[:, self.models.index(name)] for name in (a, b))
        return self._percentiles(one - other, level)

    def _percentiles(self, values: np.ndarray, level: float) -> np.ndarray:
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(self.probability[order])
        ends = np.array([(1 - level) / 2, 0.5, (1 + level) / 2]) - 1e-12
        at = np.minimum(np.searchsorted(reached, ends), len(values) - 1)
        return np.asarray(values[order][at])


def task_counts(
    tasks: int, draws: int, seed: int = 0
) -> tuple[Int[np.ndarray, "B T"], Float[np.ndarray, " B"], bool]:
    """How often every task is drawn, the probability of that, and whether all outcomes are there.

    Example:
        >>> counts, probability, exact = task_counts(2, 100)
        >>> counts.tolist(), probability.tolist(), exact
        ([[0, 2], [1, 1], [2, 0]], [0.25, 0.5, 0.25], True)
    """
    if draws < 1:
        raise ValueError(f"at least one resample is needed, got {draws}")
    if math.comb(2 * tasks - 1, tasks) > draws:
        random = np.random.default_rng(seed)
        counts = random.multinomial(tasks, np.full(tasks, 1 / tasks), size=draws)
        return counts, np.full(draws, 1 / draws), False
    places = list(combinations(range(2 * tasks - 1), tasks - 1))
    bars = np.array(places, dtype=np.int64).reshape(len(places), tasks - 1)
    ends = np.pad(bars, ((0, 0), (1, 1)), constant_values=-1)
    ends[:, -1] = 2 * tasks - 1
    counts = np.diff(ends, axis=1) - 1  # stars between bars
    orders = np.array([math.factorial(count) for count in range(tasks + 1)], dtype=np.float64)
    probability = orders[tasks] / orders[counts].prod(axis=1) / float(tasks) ** tasks
    return counts, probability, True


def over_tasks(
    models: Sequence[str],
    scores: Float[np.ndarray, "M T"],
    weights: Float[np.ndarray, " T"],
    mean: str | float | int,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> Bootstrap:
    """Bootstrap (8); tasks without a weight are never drawn."""
    used = weights > 0
    counts, probability, exact = task_counts(int(used.sum()), draws, seed)
    values = power_mean(scores[:, used], mean, counts * weights[used])  # (8)
    return Bootstrap(tuple(models), values, probability, exact)


def over_seeds(
    models: Sequence[str],
    cells: Sequence[Sequence[Sequence[float]]],
    weights: Float[np.ndarray, " T"],
    mean: str | float | int,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> Bootstrap:
    """Bootstrap (9); `cells` holds the scores of every seed, by model and task."""
    random = np.random.default_rng(seed)
    drawn = np.empty((draws, len(models), len(weights)))
    for m, row in enumerate(cells):
        for t, cell in enumerate(row):
            scores = np.asarray(cell, dtype=np.float64)
            picked = random.integers(len(scores), size=(draws, len(scores)))
            drawn[:, m, t] = scores[picked].mean(axis=1)  # (9)
    values = power_mean(drawn, mean, weights)
    return Bootstrap(tuple(models), values, np.full(draws, 1 / draws))


def over_examples(
    models: Sequence[str],
    examples: Mapping[str, Float[np.ndarray, "M _"]],
    weights: Float[np.ndarray, " T"],
    mean: str | float | int,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> Bootstrap:
    """Bootstrap (10); `examples` holds the score of every model on every example, by task."""
    random = np.random.default_rng(seed)
    drawn = np.empty((draws, len(models), len(weights)))
    for t, scores in enumerate(examples.values()):
        count = scores.shape[1]
        step = max(1, 4_000_000 // count)  # 32 MB of counts at a time
        for start in range(0, draws, step):
            size = min(step, draws - start)
            picked = random.multinomial(count, np.full(count, 1 / count), size=size)
            drawn[start : start + size, :, t] = picked @ scores.T / count  # (10)
    values = power_mean(drawn, mean, weights)
    return Bootstrap(tuple(models), values, np.full(draws, 1 / draws))
