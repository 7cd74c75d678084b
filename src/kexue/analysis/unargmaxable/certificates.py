r"""Proofs that a class can win, or that it cannot, checked in the layer's own coordinates.

Class k wins strictly at some z, or there are weights α ≥ 0, Σ α = 1, over the other classes with

    Σ α_i w_i = w_k,    δ = Σ α_i b_i − b_k ≥ 0                                                 (1)

never both. Where z is confined to a box, the second is, with u = Σ α_i w_i − w_k,

    δ = Σ α_i b_i − b_k + min over z in the box of u · z ≥ 0                                    (2)

Why (1) forbids winning: for every z, Σ α_i (l_i − l_k) = δ ≥ 0, so some l_i ≥ l_k. It bounds the
probability, too, with the entropy H(α):

    p_k = e^{−δ} Π p_i^{α_i}    ⇒    p_k ≤ 1 / (1 + e^{δ + H(α)})                               (3)

and the margin of class k, and the largest ball of features in which k wins:

    min_i (l_k − l_i) ≤ −δ,     radius ≤ −δ / Σ α_i |w_i − w_k|                                 (4)

A point counts if every difference of logits is above its rounding error; a mix if the sum
Σ α (w_i − w_k) cancels but for 1e-8 of Σ α |w_i − w_k|, and δ is negative by no more than `tol` of
Σ α |b_i − b_k|. Neither moving nor scaling the layer changes what counts; nor does scaling single
features, as `ledger.py` asks the same of whitened coordinates.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kexue.analysis.unargmaxable.head import Box, OutputLayer, rounding

__all__ = [
    "RESIDUAL",
    "CheckedMixes",
    "CheckedPoints",
    "check_mixes",
    "check_points",
    "probability_bound",
]

RESIDUAL = 1e-8
"""Of the mean distance Σ α |w_i − w_k|: how far Σ α w may be from w_k."""


@dataclass(frozen=True)
class CheckedPoints:
    """What n points prove for their classes.

    Attributes:
        proven: class k wins there, by more than rounding.
        margin: l_k less the largest other logit.
        radius: of the largest ball around z in which k wins.
    """

    proven: Tensor
    margin: Float[Tensor, " n"]
    radius: Float[Tensor, " n"]


@dataclass(frozen=True)
class CheckedMixes:
    """What n mixes prove for their classes.

    Attributes:
        proven: (1) holds, or in a box (2).
        residual: |Σ α w − w_k| / Σ α |w_i − w_k|, rounding included.
        gap: δ; in a box the left side of (2).
        entropy: H(α), in nats.
        radius: (4).
    """

    proven: Tensor
    residual: Float[Tensor, " n"]
    gap: Float[Tensor, " n"]
    entropy: Float[Tensor, " n"]
    radius: Float[Tensor, " n"]

    @property
    def bound(self) -> Float[Tensor, " n"]:
        """(3)."""
        return probability_bound(self.gap, self.entropy)


def probability_bound(gap: Tensor, entropy: Tensor) -> Tensor:
    """The most that a softmax can give to a class with such a mix: (3).

    Example:
        >>> four = torch.tensor(4.0, dtype=torch.float64).log()
        >>> round(probability_bound(torch.zeros_like(four), four).item(), 12)
        0.2
    """
    return torch.sigmoid(-(gap.clamp_min(0) + entropy))  # (3)


def check_points(
    layer: OutputLayer, index: Int[Tensor, " n"], points: Float[Tensor, "n d"]
) -> CheckedPoints:
    """Whether each class wins at its point."""
    logits = layer.logits(points)
    own = logits.gather(1, index[:, None])
    ahead = (own - logits).scatter_(1, index[:, None], math.inf)
    margin = ahead.amin(dim=1)
    radius = (ahead / layer.distances(index)).amin(dim=1)
    proven = (ahead > rounding(layer, points, index)).all(dim=1)
    return CheckedPoints(proven, margin, radius)


def check_mixes(
    layer: OutputLayer,
    index: Int[Tensor, " n"],
    mixes: Float[Tensor, "n c"],
    tol: float,
    box: Box | None = None,
) -> CheckedMixes:
    """Whether each mix forbids its class to win.

    Args:
        layer: the layer.
        index: the classes k.
        mixes: α, rows that sum to one; the weight of the class itself is 0.
        tol: δ may be below 0 by this much of Σ α |b_i − b_k|.
        box: where z lies; default: anywhere.
    """
    weight, norms, count = layer.weight, layer.norms, layer.classes
    away = mixes @ weight - weight[index]
    reach = (mixes * layer.distances(index)).sum(dim=1)
    noise = (count + 4) * torch.finfo(torch.float64).eps * (mixes @ norms + norms[index])
    residual = (away.norm(dim=1) + noise) / reach
    levels = layer.bias - layer.bias[index, None]
    gap, size = (mixes * levels).sum(dim=1), (mixes * levels.abs()).sum(dim=1)
    sound = (mixes >= 0).all(dim=1) & ((mixes.sum(dim=1) - 1).abs() < 1e-9)
    sound &= mixes.gather(1, index[:, None])[:, 0] == 0
    if box is None:
        sound &= residual <= RESIDUAL  # (1)
    else:
        support = box.support(-away)
        gap, size = gap - support, size + support.abs()  # (2)
    proven = sound & (gap >= -tol * size)
    entropy = torch.special.entr(mixes).sum(dim=1)
    return CheckedMixes(proven, residual, gap, entropy, -gap / reach)  # (4)
