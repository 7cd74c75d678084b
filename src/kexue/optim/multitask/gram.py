r"""Multi-task weights from a Gram matrix — 多任务学习漫谈（二、三）：行梯度之事、分主次之序 (S16)

n tasks share parameters; their gradients enter only through K_ij = ⟨g_i, g_j⟩, so the best step
u = Σ w_i g_i (the update is −u) is found on an n × n matrix. Some tasks P are *primary* and must
fall, the others only must not rise. One problem covers every case:

    w = argmin ‖Σ w_i g_i‖²    over  w ≥ 0  with  Σ_{i∈P} w_i = 1                              (1)

| primaries P | (1) is | what holds for u |
| all tasks | the point of the convex hull nearest to 0 (MGDA) | ⟨u,g_i⟩ ≥ ‖u‖² |
| one task 0 | g_0 projected on {u: ⟨u,g_i⟩ ≥ 0}, the veto of the auxiliaries | ⟨u,g_0⟩ = ‖u‖² |
| some | both at once | ⟨u,p_i⟩ ≥ ‖u‖² and ⟨u,g_j⟩ ≥ 0 |

Scaling w by s > 0 scales the norm, so the equality constraint may move into the objective:

    x = argmin_{x ≥ 0} ‖Σ x_i g_i‖² + (eᵀx − 1)²,   e_i = 1 for i ∈ P else 0,     w = x / eᵀx   (2)

exactly, for every weight of the second term: for eᵀx = s the first is s² times the value of (1).
(2) is non-negative least squares with the matrix K + eeᵀ, solved by Lawson and Hanson's active
sets. Two tasks have closed forms, which are evaluated where the matrix lies:

    min-norm   w_1 = clip(⟨g_2 − g_1, g_2⟩ / ‖g_1 − g_2‖², 0, 1)                              (3)
    veto       λ = relu(−⟨g_0,g_1⟩) / ‖g_1‖²,   u = g_0 + λ g_1                                (4)

Auxiliaries under a veto help only by objecting: where all agree, u = g_0. To use their signal, take
s = g_0 + Σ ω_i g_i and protect the primary instead (our addition):

    u = s + relu(c ‖g_0‖² − ⟨s,g_0⟩) / ‖g_0‖² · g_0,   so that ⟨u,g_0⟩ ≥ c ‖g_0‖²              (5)

Cost: under a millisecond for n ≤ 10. Limit: to K, two gradients within an angle of 1e-7 are one.
Sources: articles 8896, 8907; MGDA arXiv 1810.04650, PCGrad 2001.06782, GEM 1706.08840. The article
solves the veto by one constraint at a time, which can stop at a wrong point, even one where the
primary rises; (2) cannot. It solves (1) by Frank–Wolfe, kept here as an option, and leaves several
primaries to the reader. See also: kexue.optim.multitask; TorchJD's weightings.
"""

import operator
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from kexue.optim.multitask.solvers import Array, frank_wolfe, nonnegative_least_squares

__all__ = [
    "checked_gram",
    "equal_lengths",
    "min_norm_weights",
    "primary_auxiliary_weights",
]

FLOOR = 1e-30
"""An auxiliary gradient this much shorter than the shortest primary one counts as zero."""


def min_norm_weights(
    gram: Float[Tensor, "n n"],
    method: Literal["exact", "frank_wolfe"] = "exact",
    *,
    normalise: bool = False,
    steps: int = 1000,
) -> Float[Tensor, " n"]:
    """Weights of the common descent direction of n equal tasks: (1) with every task primary.

    Args:
        gram: inner products of the gradients.
        method: "exact", or the article's Frank–Wolfe with error O(1/steps).
        normalise: first give every gradient the same length, their mean; without it the shortest
            gradient dominates. A zero gradient then gets weight 0.
        steps: at most so many Frank–Wolfe steps.

    Returns:
        float64 weights ≥ 0 where `gram` lies; they sum to 1 unless `normalise`. Unique if the
        gradients are independent; u = Σ w_i g_i is always unique.

    Raises:
        ValueError: `gram` is no finite Gram matrix (a bad task is named), or the method is unknown.

    Example:
        >>> g = torch.tensor([[3.0, 1.0], [-1.0, 1.0]])
        >>> w = min_norm_weights(g @ g.T)
        >>> w.tolist(), (w.float() @ g).tolist()
        ([0.25, 0.75], [0.0, 1.0])
    """
    if method not in ("exact", "frank_wolfe"):
        raise ValueError(f"method must be 'exact' or 'frank_wolfe', got {method!r}")
    if method == "exact":
        return primary_auxiliary_weights(gram, range(len(gram)), normalise=normalise)
    K = checked_gram(gram)
    length = equal_lengths(K, list(range(len(K)))) if normalise else torch.ones_like(K[0])
    kept = length.cpu().numpy() > 0
    weights = np.zeros(len(K))
    scaled = (K * length.outer(length)).cpu().numpy()[np.ix_(kept, kept)]
    weights[kept] = frank_wolfe(scaled, steps)
    return torch.from_numpy(weights).to(K.device) * length


def primary_auxiliary_weights(
    gram: Float[Tensor, "n n"],
    primary: int | Sequence[int] = 0,
    mode: Literal["veto", "protect_primary"] = "veto",
    *,
    normalise: bool = False,
    auxiliary_weights: Sequence[float] | None = None,
    protection: float = 1.0,
) -> Float[Tensor, " n"]:
    """Weights of u = Σ w_i g_i when some tasks are primary and the others auxiliary.

    Args:
        gram: inner products of the gradients of all tasks.
        primary: index of the primary task, or of several, which then all have to fall.
        mode: "veto", (1): the step nearest to the primary gradient that raises no auxiliary;
            "protect_primary", (5): the sum of all, unless it slows the primary.
        normalise: first give every gradient the mean length of the primary ones. It changes how
            several primaries, or the sum in (5), are mixed, and nothing else.
        auxiliary_weights: ω in (5), one per auxiliary in order; default all 1.
        protection: c in (5), between 0 (the primary must not rise) and 1 (it falls as fast as
            alone).

    Returns:
        float64 weights for the gradients as given, where `gram` lies. In "veto" the weight of a
        single primary is 1 and those of the auxiliaries are λ ≥ 0.

    Raises:
        ValueError: `gram` is no finite Gram matrix (a bad task is named), an index or option is
            out of range, or an option belongs to the other mode.

    Example:
        >>> g = torch.tensor([[3.0, 1.0], [-1.0, 1.0]])
        >>> w = primary_auxiliary_weights(g @ g.T)
        >>> w.tolist(), (w.float() @ g).tolist()
        ([1.0, 1.0], [2.0, 2.0])
    """
    K = checked_gram(gram)
    first = _indices(primary, len(K))
    length = equal_lengths(K, first) if normalise else torch.ones_like(K[0])
    K = K * length.outer(length)
    if mode == "protect_primary":
        return _protected(K, first, auxiliary_weights, protection) * length
    if mode != "veto":
        raise ValueError(f"mode must be 'veto' or 'protect_primary', got {mode!r}")
    if auxiliary_weights is not None or protection != 1:
        raise ValueError("auxiliary_weights and protection belong to mode='protect_primary'")
    kept = length.cpu().numpy() > 0 if normalise and len(first) > 1 else np.full(len(K), True)
    if len(K) == 2 and kept.all():
        return _of_two(K, first) * length
    weights, is_primary = np.zeros(len(K)), np.isin(np.arange(len(K)), first)
    if kept.any() and (is_primary & kept).any():
        weights[kept] = _cone(K.cpu().numpy()[np.ix_(kept, kept)], is_primary[kept])
    return torch.from_numpy(weights).to(K.device) * length


def _cone(K: Array, primary: NDArray[np.bool_]) -> Array:
    """(2) in the units of each gradient's own length, which makes it blind to their scales."""
    norm, weights = np.sqrt(np.diag(K)), np.zeros(len(K))
    shortest = float(norm[primary].min())
    if shortest == 0:  # u = 0 is in reach: a zero gradient is a stationary task
        weights[int(np.flatnonzero(primary & (norm == 0))[0])] = 1
        return weights
    kept = np.flatnonzero(primary | (norm > FLOOR * shortest))
    d = norm[kept]
    e = np.where(primary[kept], shortest / d, 0.0)
    cosines = K[np.ix_(kept, kept)] / d[:, None] / d
    x = nonnegative_least_squares(cosines + np.outer(e, e), e)  # (2)
    weights[kept] = x * (shortest / d) / (e @ x)
    return weights


def _of_two(K: Tensor, primary: list[int]) -> Tensor:
    """The closed forms, in tensors: nothing is copied to the host."""
    ones, poison = torch.ones_like(K[0]), 0 * K.sum()  # NaN if anything in K is not finite
    if len(primary) == 2:
        pull = (K.diagonal().flip(0) - K[0, 1]).relu()  # ⟨g_2 − g_1, g_2⟩ and its mirror
        total = pull.sum()  # ‖g_1 − g_2‖², or the other pull where one of them is clipped
        return torch.where(total > 0, pull / torch.where(total > 0, total, 1), 0.5) + poison  # (3)
    aid = 1 - primary[0]
    real = K[aid, aid] > FLOOR**2 * K[primary[0], primary[0]]
    lam = (-K[0, 1]).relu() / torch.where(real, K[aid, aid], torch.inf)  # (4)
    return torch.where(torch.arange(2, device=K.device) == aid, lam, ones) + poison


def _protected(
    K: Tensor, primary: list[int], omega: Sequence[float] | None, protection: float
) -> Tensor:
    if len(primary) != 1:
        raise ValueError(f"mode='protect_primary' takes one primary task, got {primary}")
    if not 0 <= protection <= 1:
        raise ValueError(f"protection must be between 0 and 1, got {protection}")
    omega = [1.0] * (len(K) - 1) if omega is None else [float(one) for one in omega]
    if len(omega) != len(K) - 1 or min(omega, default=0.0) < 0:
        need = f"{len(K) - 1} numbers >= 0, one per auxiliary task"
        raise ValueError(f"auxiliary_weights must be {need}, got {omega}")
    omega.insert(primary[0], 1.0)
    sum_ = torch.tensor(omega, dtype=K.dtype, device=K.device)
    square = K[primary[0], primary[0]]
    missing = (protection * square - K[primary[0]] @ sum_).relu()
    extra = torch.where(square > 0, missing / torch.where(square > 0, square, 1), 0)  # (5)
    at = torch.arange(len(K), device=K.device) == primary[0]
    return torch.where(at, sum_ + extra, sum_) + 0 * K.sum()


def equal_lengths(K: Tensor, primary: list[int]) -> Tensor:
    """Factors that give every gradient the mean length of the primary ones; 0 for a zero one."""
    norm = K.diagonal().sqrt()
    mean = norm[primary].sum() / (norm[primary] > 0).sum().clamp(min=1)
    return torch.where(norm > 0, mean / torch.where(norm > 0, norm, 1), 0)


def _indices(primary: int | Sequence[int], n: int) -> list[int]:
    several: list[Any] = [primary] if not isinstance(primary, Sequence) else list(primary)
    first = sorted({operator.index(one) for one in several})
    if not first or len(first) != len(several) or not 0 <= first[0] <= first[-1] < n:
        need = f"an index, or several different ones, between 0 and {n - 1}"
        raise ValueError(f"primary must be {need}, got {primary!r}")
    return first


def checked_gram(gram: Tensor) -> Tensor:
    """float64, detached; the values are checked where reading them is free."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) == 0:
        raise ValueError(f"gram must be an n x n matrix, got shape {tuple(gram.shape)}")
    K = gram.detach().to(torch.float64)
    if K.device.type != "cpu":
        return K
    length = K.diagonal()
    bad = (~length.isfinite() | (length < 0)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"the gradient of task {bad[0]} has the square length {float(length[bad[0]])}: it must "
            "be finite; skip this step, or look for the NaN with torch.autograd.set_detect_anomaly"
        )
    if not torch.allclose(K, K.T, rtol=1e-4, atol=1e-6 * float(length.max())):
        raise ValueError("gram must be symmetric: compute it as G @ G.T, one gradient per row of G")
    return (K + K.T) / 2
