"""Ranks, Borda points, pairwise wins and the agreement of two rankings (S13).

    rank_m  = 1 + number of models that are better            ties share the smallest rank       (4)
    Borda_m = sum_t T w_t (models beaten on t + half of those that tie with m)                   (5)
    wins_mn = sum_t T w_t [x_mt > x_nt], ties half; Copeland_m = beaten + half of the ties       (6)
    tau_b   = (concordant − discordant) / sqrt(pairs untied in a · pairs untied in b)            (7)

Values that differ by less than 1e-9 are ties: 75.70 is the average of several pairs of metrics,
with other last bits each. With equal weights T w_t = 1 and (5), (6) count tasks.

Axes: B resamples, M models, T tasks.   Cost: a sort of M values per ranking,
M^2 for (6), (7).
See also: scipy.stats.rankdata, kendalltau, spearmanr, which compare bits and take a second to load.
"""

import math

import numpy as np
from jaxtyping import Float, Int

__all__ = ["TIE", "average_ranks", "borda_points", "copeland", "kendall", "ranks", "spearman"]

TIE = 1e-9
"""Scores no further apart are equal."""


def ranks(values: Float[np.ndarray, "*B M"], tie: float = TIE) -> Int[np.ndarray, "*B M"]:
    """Competition ranks over the last axis, 1 for the largest; ties share the smallest.

    Args:
        values: more is better.
        tie: neighbours in order that are no further apart have one rank.

    Example:
        >>> ranks(np.array([90.0, 75.7, 75.7 + 1e-14, 60.0]))
        array([1, 2, 2, 4])
    """
    order = np.argsort(-values, axis=-1, kind="stable")
    falling = np.take_along_axis(values, order, axis=-1)
    first = np.ones(falling.shape, dtype=bool)
    first[..., 1:] = falling[..., :-1] - falling[..., 1:] > tie
    places = np.where(first, np.arange(values.shape[-1]), 0)
    found = np.empty(values.shape, dtype=np.int64)
    np.put_along_axis(found, order, np.maximum.accumulate(places, axis=-1) + 1, axis=-1)  # (4)
    return found


def average_ranks(values: Float[np.ndarray, "*B M"]) -> Float[np.ndarray, "*B M"]:
    """Ranks in which ties share the average of their places."""
    return np.asarray((values.shape[-1] + 1 + ranks(values) - ranks(-values)) / 2)  # both ends


def borda_points(
    scores: Float[np.ndarray, "M T"], weights: Float[np.ndarray, " T"]
) -> Float[np.ndarray, " M"]:
    """Points of (5)."""
    models, tasks = scores.shape
    beaten = models - average_ranks(scores.T)  # (T, M): beaten + half of the ties
    return np.asarray(tasks * weights @ beaten)  # (5)


def copeland(
    scores: Float[np.ndarray, "M T"], weights: Float[np.ndarray, " T"]
) -> tuple[Float[np.ndarray, "M M"], Float[np.ndarray, " M"]]:
    """Tasks won by the row's model against the column's, and how many models each beats (6)."""
    places = ranks(scores.T).T  # (M, T)
    ahead = np.sign(places[None, :, :] - places[:, None, :])  # (M, M, T), 1: the row is better
    wins = ((1 + ahead) / 2) @ (len(weights) * weights)  # (6)
    beaten = (1 + np.sign(np.round(wins - wins.T, 9))) / 2
    return wins, beaten.sum(axis=1) - 0.5  # without the tie with itself


def kendall(a: Float[np.ndarray, " M"], b: Float[np.ndarray, " M"]) -> float:
    """tau_b of two sets of values (7); NaN where all values of one of them tie."""
    if _flat(a) or _flat(b):
        return math.nan
    x, y = (np.sign(r[:, None] - r).ravel() for r in (ranks(a), ranks(b)))
    return float(x @ y / math.sqrt((x @ x) * (y @ y)))  # (7)


def spearman(a: Float[np.ndarray, " M"], b: Float[np.ndarray, " M"]) -> float:
    """Correlation of the average ranks; NaN where all values of one of them tie."""
    if _flat(a) or _flat(b):
        return math.nan
    return float(np.corrcoef(average_ranks(a), average_ranks(b))[0, 1])


def _flat(values: Float[np.ndarray, " M"]) -> bool:
    return len(np.unique(ranks(values))) == 1
