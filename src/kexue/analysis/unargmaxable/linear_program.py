r"""The exact decision for one class: the largest ball of features in which it wins.

    maximise r   subject to   (w_i − w_k) · z + |w_i − w_k| r ≤ b_k − b_i   for all i ≠ k       (1)
                              lower ≤ z ≤ upper,   r bounded where z is not

The box confines z alone, not the ball. r > 0: class k wins at z. r ≤ 0: the multipliers λ ≥ 0 of
(1), scaled to sum one, are the mix of the dual certificate (`certificates.py`).

The solver's tolerances are absolute, so it is given directions and distances instead: row i over
|w_i − w_k|, and lengths in units of the largest |b_k − b_i| / |w_i − w_k|.

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
"""Of the unit of length; HiGHS works to 1e-7 by default and is asked for 1e-10."""


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
        box: where z lies; default: anywhere, and then r is at most 1 or the largest distance.
        start: a point at which the first rows are chosen; default w_k.
        most: rounds.
        seconds: limit of one program.
    """
    from scipy.optimize import linprog

    away, gaps = rows - rows[index], offsets - offsets[index]
    norms = away.norm(dim=1)
    norms[index] = 1.0  # never used
    width, length = rows.shape[1], float((gaps / norms).abs().max()) or 1.0
    near = _ahead(away, gaps, norms, index, rows[index] if start is None else start)
    active = near.topk(min(4 * width + 4, len(rows) - 1)).indices
    sides = [(None, None)] * width if box is None else _sides(box, length)
    bounded = all(side is not None for pair in sides for side in pair)
    most_r = None if bounded else min(max(1.0, 1 / length), 1e6)
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    for round_ in range(1, most + 1):
        size = norms[active]
        found = linprog(
            np.r_[np.zeros(width), -1.0],
            A_ub=np.c_[(away[active] / size[:, None]).cpu().numpy(), np.ones(len(active))],
            b_ub=(-gaps[active] / size / length).cpu().numpy(),
            bounds=[*sides, (None, most_r)],
            method="highs-ds",
            options=options if seconds is None else options | {"time_limit": seconds},
        )
        if found.status != 0:
            return None
        point, radius = torch.as_tensor(found.x[:-1]).to(rows) * length, float(found.x[-1])
        ahead = _ahead(away, gaps, norms, index, point) / length + radius
        ahead[active] = -torch.inf
        over = int((ahead > ZERO).sum())
        if radius <= 0 or not over:
            dual = torch.as_tensor(-found.ineqlin.marginals).to(rows).clamp_min(0) / size
            kept = dual > 0
            weights = dual[kept] / dual[kept].sum()
            return Decision(radius * length, point, active[kept], weights, round_)
        active = torch.cat((active, ahead.topk(min(CUTS, over)).indices))
    return None


def _ahead(away: Tensor, gaps: Tensor, norms: Tensor, index: int, point: Tensor) -> Tensor:
    """How far every other class is ahead of k, as a distance."""
    ahead = (away @ point + gaps) / norms
    ahead[index] = -torch.inf
    return ahead


def _sides(box: Box, length: float) -> list[tuple[float | None, float | None]]:
    return [
        (None if low == -np.inf else low / length, None if high == np.inf else high / length)
        for low, high in zip(box.lower.tolist(), box.upper.tolist(), strict=True)
    ]
