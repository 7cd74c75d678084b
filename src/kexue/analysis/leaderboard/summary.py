"""All that a leaderboard says, as plain values for JSON, a terminal or a page (S13)."""

import math
from typing import Any

import numpy as np

from kexue.analysis.leaderboard.board import Leaderboard
from kexue.analysis.leaderboard.traps import traps
from kexue.probability.means import MEANS

__all__ = ["summary"]


def summary(
    board: Leaderboard,
    means: tuple[str, ...] = tuple(MEANS),
    *,
    over: str = "tasks",
    draws: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Means, ranks, agreement, stability, audit and findings.

    Args:
        board: the leaderboard.
        means: the means to compare.
        over: what is resampled.
        draws: resamples.
        seed: of the resamples.

    Raises:
        ValueError: a negative score under one of the means but the arithmetic.
    """
    ways = [*means, "borda", "wins"]
    values = {way: board.aggregate(way) for way in ways}
    stability = {}
    exact = False
    for mean in means:
        found = board.bootstrap(draws, over, seed, mean=mean)
        exact = found.exact
        stability[mean] = {
            "rank": found.rank_interval().tolist(),
            "value": found.value_interval().tolist(),
            "first": found.first.tolist(),
        }
    agreement = {
        a: {b: _number(board.agreement(a, b).kendall) for b in ways if b != a} for a in ways
    }
    return {
        "models": list(board.models),
        "tasks": list(board.tasks),
        "weights": board.weights.tolist(),
        "scores": board.scores.tolist(),
        "tasks_left_out": list(board.tasks_left_out),
        "models_left_out": list(board.models_left_out),
        "means": list(means),
        "values": {way: one.tolist() for way, one in values.items()},
        "ranks": {way: board.rank(way).tolist() for way in ways},
        "pairwise": board.pairwise().tolist(),
        "kendall": agreement,
        "leave_one_out": {
            mean: {task: one.tolist() for task, one in board.leave_one_out(mean).items()}
            for mean in means
        },
        "bootstrap": {"over": over, "draws": draws, "exact": exact, "of": stability},
        "published": {m: v for m, v in board.table.published.items() if m in board.models},
        "audit": board.audit().as_json() if board.table.published else None,
        "findings": [vars(one) for one in traps(board)],
        "notes": [list(one) for one in board.table.notes],
        "best": [board.models[int(m)] for m in np.flatnonzero(board.rank(means[0]) == 1)],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
