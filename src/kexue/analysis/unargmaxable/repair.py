r"""Repairs of an output layer after which every class can win: from a new layer to a gentle push.

    "normalise"   w'_i = ρ w_i / |w_i|,  b' = 0          k wins at z = w'_k                      (1)
    "voronoi"     w' = w,  b'_i = −|w_i|² / 2 + const    k wins at z = w_k, as the nearest row   (2)
    "raise"       w' = w,  b'_k = b_k + δ_k + e_k        only for classes k that never win       (3)

(1) ρ is the mean length. Every logit changes: train on. Needs rows of different directions.
(2) l'_i(z) = (|z|² − |z − w_i|²) / 2 + const. The bias is thrown away, and with it what the layer
knew about frequencies. Rows far off the origin get biases far apart.
(3) δ_k and e_k: see `raising.py`. No other bias changes, and no other class loses its place.

What it costs. With Δ = b' − b, for every input and class

    min Δ − max Δ  ≤  Δ_i − max Δ  ≤  log p'_i − log p_i  ≤  Δ_i − min Δ  ≤  max Δ − min Δ       (4)

so after (3) no other class loses more than max_k (δ_k + e_k) nats, and only a raised one gains.

Classes with the same row are beyond repair by a bias: see `twins`. What was repaired is checked as
it is returned, in the type of `weight`; what rounding has undone is in `left`.
Source: (1) is the article's remark on equal norms, (2) the nearest row; (3) is ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kexue.analysis.unargmaxable.check import check_argmaxable
from kexue.analysis.unargmaxable.head import OutputLayer, output_layer
from kexue.analysis.unargmaxable.raising import Kinds, Raised, losers, raised, stored
from kexue.analysis.unargmaxable.report import ArgmaxReport

__all__ = ["HOW", "Repaired", "make_all_argmaxable"]

HOW = ("raise", "voronoi", "normalise")


@dataclass(frozen=True)
class Repaired:
    """A layer after its repair.

    Attributes:
        weight: W', (C, d), in the type of the given one, or float64 if that held whole numbers.
        bias: b', (C,), in the type of the given one, or of `weight` if there was none.
        changed: classes whose row or bias is another.
        left: classes that still can not win, or could not be shown to: twins, or rounding.
        lift: the largest e_k that was used; 0 unless `how` is "raise".
        log_change: the smallest and the largest possible log p'_i − log p_i over all inputs and
            classes, (4); infinite where the rows changed.
    """

    weight: Tensor
    bias: Tensor
    changed: Int[np.ndarray, " n"]
    left: Int[np.ndarray, " m"]
    lift: float
    log_change: tuple[float, float]


def make_all_argmaxable(
    weight: Tensor | np.ndarray,
    bias: Tensor | np.ndarray | None = None,
    how: str = "raise",
    *,
    twins: str = "refuse",
    lift: float = 1.0,
    report: ArgmaxReport | None = None,
    device: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Repaired:
    """Changes a layer as little as `how` allows so that each of its classes wins somewhere.

    Args:
        weight: W, one row per class, (C, d).
        bias: b, (C,).
        how: "raise" changes the bias of the classes that never win, and nothing else; "voronoi"
            sets all biases; "normalise" gives all rows one length and drops the bias.
        twins: "refuse" stops where classes have the same row (for "normalise": the same
            direction), which no bias can help; "leave" repairs the others and lists these.
        lift: for "raise": how far above the roof a class is put at most, in logits. Halved until
            no other class loses its place.
        report: of `check_argmaxable` on this layer, all classes, no box, to save that work.
        device: where to compute; default: where `weight` is.
        progress: is told (stage, classes done, classes in all).

    Raises:
        ValueError: twins, a row of zeros to normalise, a report of another layer, or no numbers
            within range.
        TypeError: no numbers.

    Example:
        >>> square = torch.tensor([[1., 2.], [2., 1.], [1., 0.], [0., 1.], [1., 1.]])
        >>> fixed = make_all_argmaxable(square, lift=0.5)
        >>> fixed.changed.tolist(), fixed.bias.tolist(), check_argmaxable(square).unargmaxable
        ([4], [0.0, 0.0, 0.0, 0.0, 0.5], array([4]))
        >>> check_argmaxable(fixed.weight, fixed.bias).unargmaxable.tolist()
        []
    """
    if how not in HOW:
        raise ValueError(f"how must be one of {', '.join(HOW)}, got {how!r}")
    if twins not in ("refuse", "leave"):
        raise ValueError(f"twins must be 'refuse' or 'leave', got {twins!r}")
    if not 0 < lift < math.inf:
        raise ValueError(f"lift must be positive, in logits, got {lift}")
    layer = output_layer(weight, bias, device)
    kinds = _kinds(weight, bias)
    if how == "raise":
        _about_twins(layer.weight, twins, "row")
        if report is None:
            report = check_argmaxable(layer.weight, layer.bias, progress=progress)
        _fits(report, layer)
        return _repaired(layer, kinds, raised(report, kinds, lift, progress))
    made = _voronoi(layer) if how == "voronoi" else _normalised(layer)
    _about_twins(made.weight, twins, "direction" if how == "normalise" else "row")
    made = stored(made, kinds)
    everyone = torch.arange(layer.classes, device=layer.weight.device)
    left = losers(made, everyone, made.weight, progress)
    return _repaired(layer, kinds, Raised(made, left, 0.0))


def _voronoi(layer: OutputLayer) -> OutputLayer:
    """(2), with the mean of the old bias."""
    half = layer.weight.square().sum(dim=1) / 2
    return OutputLayer(layer.weight, half.mean() - half + layer.bias.mean(), has_bias=True)  # (2)


def _normalised(layer: OutputLayer) -> OutputLayer:
    """(1)."""
    length = layer.weight.norm(dim=1, keepdim=True)
    if not bool((length > 0).all()):
        zero = (length[:, 0] == 0).nonzero()[:, 0].tolist()
        raise ValueError(
            f"rows of zeros have no direction to keep: class {_some(zero)}; "
            "take them out, or repair with how='raise' or 'voronoi'"
        )
    rows = layer.weight / length * length.mean()  # (1)
    return OutputLayer(rows, torch.zeros_like(layer.bias), has_bias=False)


def _about_twins(rows: Float[Tensor, "c d"], twins: str, what: str) -> None:
    """Refuses equal rows, if asked to; normalised ones count as equal up to rounding."""
    same = rows if what == "row" else (rows / rows.norm(dim=1, keepdim=True)).float()
    _, group, count = torch.unique(same + 0.0, dim=0, return_inverse=True, return_counts=True)
    if twins == "leave" or bool((count == 1).all()):
        return
    many = (count[group] > 1).nonzero()[:, 0].tolist()
    raise ValueError(
        f"{len(many)} classes have the same {what} as another and cannot all win, whatever the "
        f"bias: class {_some(many)}; take all but one of each out, or pass twins='leave'"
    )


def _fits(report: ArgmaxReport, layer: OutputLayer) -> None:
    if report.box is not None or len(report.index) != layer.classes:
        raise ValueError("report must be of all classes and without a box")
    same = torch.equal(report.layer.weight, layer.weight)
    if not (same and torch.equal(report.layer.bias, layer.bias)):
        raise ValueError("report is of another layer than weight and bias")


def _kinds(weight: Tensor | np.ndarray, bias: Tensor | np.ndarray | None) -> Kinds:
    """In which types weight and bias are returned: in those given, if they have a fraction."""
    rows = torch.as_tensor(weight).dtype
    rows = rows if rows.is_floating_point else torch.float64
    offsets = rows if bias is None else torch.as_tensor(bias).dtype
    return rows, offsets if offsets.is_floating_point else rows


def _repaired(before: OutputLayer, kinds: Kinds, found: Raised) -> Repaired:
    made = found.layer
    moved = (made.weight != before.weight).any(dim=1)
    change = made.bias - before.bias
    changed = (moved | (change != 0)).nonzero()[:, 0].cpu().numpy()
    most = math.inf if bool(moved.any()) else float(change.max() - change.min())  # (4)
    weight, bias = made.weight.to(kinds[0]), made.bias.to(kinds[1])
    return Repaired(weight, bias, changed, found.left, found.lift, (-most, most))


def _some(classes: list[int]) -> str:
    return ", ".join(map(str, classes[:8])) + (" …" if len(classes) > 8 else "")
