r"""The exact decision for one class: the largest ball of features in which it wins.

    maximise r   subject to   (w_i − w_k) · z + |w_i − w_k| r ≤ b_k − b_i   for all i ≠ k       (1)
                              lower ≤ z ≤ upper,   r ≤ 1 where z is free

The box confines z alone, not the ball. r > 0: class k wins at z. r ≤ 0: the multipliers λ ≥ 0 of
(1), scaled to sum one, are the mix of the dual certificate (`certificates.py`).

One row per class would be far too many. Cutting planes: solve with the classes that are nearest to
winning, add those that win at z nevertheless, until there are none. A verdict "no" from some of the
rows is one from all of them, since its mix lives on those.

Solver: HiGHS through scipy.optimize.linprog, dual simplex, in whitened coordinates where z is free.
Source: arXiv 2203.06462 (which builds the whole program); Kelley 1960.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kexue.analysis.unargmaxable.head import Box

__all__ = ["Decision", "largest_ball"]

CUTS = 128
"""Classes added per round."""
ZERO = 1e-9
"""A radius up to this is none; HiGHS works to 1e-7 by default and is asked for 1e-10."""


@dataclass(frozen=True)
class Decision:
    """What the program says.

    Attributes:
        radius: r at the optimum.
        point: z there.
        index: classes with a weight in the mix.
        weights: λ / Σ λ.
        rounds: linear programs solved.
    """

    radius: float
    point: Float[Tensor, " d"]
    index: Int[Tensor, " s"]
    weights: Float[Tensor, " s"]
    rounds: int


def largest_ball(
    rows: Float[Tensor, "c d"],
    offsets: Float[Tensor, " c"],
    index: int,
    box: Box | None = None,
    start: Float[Tensor, " d"] | None = None,
    most: int = 400,
    seconds: float | None = None,
) -> Decision | None:
    """(1) for class `index`; None where the solver gave up.

    Args:
        rows: w_i, or whitened rows.
        offsets: b_i.
        index: k.
        box: where z lies; default: anywhere, and then r ≤ 1.
        start: a point at which the first rows are chosen; default w_k.
        most: rounds.
        seconds: limit of one program.
    """
    from scipy.optimize import linprog

    away, gaps = rows - rows[index], offsets - offsets[index]
    norms = away.norm(dim=1)
    norms[index] = 1.0  # never used
    width = rows.shape[1]
    near = _ahead(away, gaps, norms, index, rows[index] if start is None else start)
    active = near.topk(min(4 * width + 4, len(rows) - 1)).indices
    sides = [(None, None)] * width if box is None else _sides(box)
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    for round_ in range(1, most + 1):
        table = torch.cat((away[active], norms[active, None]), dim=1).cpu().numpy()
        found = linprog(
            np.r_[np.zeros(width), -1.0],
            A_ub=table,
            b_ub=-gaps[active].cpu().numpy(),
            bounds=[*sides, (None, None if box is not None else 1.0)],
            method="highs-ds",
            options=options if seconds is None else options | {"time_limit": seconds},
        )
        if found.status != 0:
            return None
        point, radius = torch.as_tensor(found.x[:-1]).to(rows), float(found.x[-1])
        ahead = _ahead(away, gaps, norms, index, point)
        over = int((ahead + radius > ZERO).sum())
        fresh = ahead.topk(min(CUTS, over)).indices if over else active[:0]
        fresh = fresh[~torch.isin(fresh, active)]
        if radius <= 0 or not len(fresh):
            dual = torch.as_tensor(-found.ineqlin.marginals).to(rows).clamp_min(0)
            kept = dual > 0
            weights = dual[kept] / dual[kept].sum()
            return Decision(radius, point, active[kept], weights, round_)
        active = torch.cat((active, fresh))
    return None


def _ahead(away: Tensor, gaps: Tensor, norms: Tensor, index: int, point: Tensor) -> Tensor:
    """How far every other class is ahead of k, as a distance."""
    ahead = (away @ point + gaps) / norms
    ahead[index] = -torch.inf
    return ahead


def _sides(box: Box) -> list[tuple[float | None, float | None]]:
    return [
        (None if low == -np.inf else low, None if high == np.inf else high)
        for low, high in zip(box.lower.tolist(), box.upper.tolist(), strict=True)
    ]
