r"""How far a class is below the roof that the others form over it, and where it would come nearest.

The rows with their biases are points (w_i, b_i); the roof over a row w_k is the highest mix of all,
max Σ α_i b_i with Σ α_i w_i = w_k. The class lacks δ = roof − b_k, and by duality

    δ = min over z of max_{i≠k} l_i(z) − l_k(z)                                                (1)

Raised by δ it ties for the first place at that z; raised by more it wins there; by less it wins
nowhere. Any mix says that the class lacks at least its own δ; the roof is the largest such δ.

Cutting planes as in `linear_program.py`, beginning with the classes of the mix that forbids the
class to win: on these alone the program is bounded already. Solver: HiGHS, dual simplex.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["distance_to_roof"]

CUTS = 128
"""Classes added per round."""
ZERO = 1e-10
"""Of the largest gap of bias: a class ahead by less than this does not count as overlooked."""
LOWEST = -1.0
"""δ where the classes at hand leave it free; more of them, and it rises to at least 0."""


def distance_to_roof(
    rows: Float[Tensor, "c r"],
    offsets: Float[Tensor, " c"],
    index: int,
    mixed: Int[Tensor, " m"],
    most: int = 200,
) -> tuple[float, Float[Tensor, " r"]] | None:
    """δ of (1) and its z; None where the solver gave up.

    Args:
        rows: w_i, or whitened rows.
        offsets: b_i.
        index: k, a class that never wins.
        mixed: classes of the mix that forbids it, the heaviest first.
        most: rounds.

    Example:
        >>> rows = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
        >>> offsets = torch.tensor([0.0, -1.0, 1.0], dtype=torch.float64)
        >>> lacks, point = distance_to_roof(rows, offsets, 1, torch.tensor([0, 2]))
        >>> round(lacks, 9), point.round(decimals=9).tolist()
        (1.5, [-0.5])
    """
    from scipy.optimize import linprog

    away, gaps = rows - rows[index], offsets - offsets[index]
    width, unit = rows.shape[1], float(gaps.abs().max()) or 1.0
    gaps = gaps / unit  # the solver's tolerances are absolute
    near = torch.addmv(gaps, away, rows[index])
    near[index] = -torch.inf
    nearest = near.topk(min(2 * width + 2, len(rows) - 1)).indices
    active = torch.unique(torch.cat((mixed[: 4 * width + 4], nearest)))
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    for _ in range(most):
        table = torch.cat((away[active], -torch.ones_like(gaps[active, None])), dim=1)
        found = linprog(
            np.r_[np.zeros(width), 1.0],
            A_ub=table.cpu().numpy(),
            b_ub=-gaps[active].cpu().numpy(),
            bounds=[*[(None, None)] * width, (LOWEST, None)],
            method="highs-ds",
            options=options,
        )
        if found.status != 0:
            return None
        point, lacks = torch.as_tensor(found.x[:-1]).to(rows), float(found.x[-1])
        ahead = torch.addmv(gaps, away, point) - lacks
        ahead[index] = -torch.inf
        fresh = ahead.topk(min(CUTS, int((ahead > ZERO).sum()))).indices
        fresh = fresh[~torch.isin(fresh, active)]
        if not len(fresh):
            return lacks * unit, point * unit
        active = torch.cat((active, fresh))
    return None
