r"""Repairs of an output layer after which every class can win: from a new layer to a gentle push.

    "normalise"   w'_i = ρ w_i / |w_i|,  b' = 0          k wins at z = w'_k                        (1)
    "voronoi"     w' = w,  b'_i = −|w_i|² / 2 + const    k wins at z = w_k, as the nearest row     (2)
    "raise"       w' = w,  b'_k = b_k + δ_k + e_k        for the classes k that never win, alone   (3)

(1) ρ is the mean length. Every logit changes: train on. Needs rows of different directions.
(2) l'_i(z) = (|z|² − |z − w_i|²) / 2 + const. The bias is thrown away, and with it what the layer
knew about frequencies.
(3) δ_k is what class k lacks to the roof of the others (`roof.py`; 0 where there is no bias), and

    e_k = ε (R² − |v_k|²) / 2,    R = max |v_i|,    v_i the whitened rows                          (4)

e is strictly concave in v and the roof is concave, so that every raised class stands above the roof
over all the others, raised ones included, whatever ε > 0: at z*_k + ε v_k, with z*_k of `roof.py`,
it wins by at least ε min_i |v_i − v_k|² / 2. A class j that wins by m at z keeps that place while
e_k < (1 − α_j) m for all k, α the mix under k: so some ε leaves all the others their verdict. It is
found by halving, from e_k ≤ `lift`; the smaller ε, the fewer are lost.

What it costs. With Δ = b' − b, for every input and class

    min Δ − max Δ  ≤  Δ_i − max Δ  ≤  log p'_i − log p_i  ≤  Δ_i − min Δ  ≤  max Δ − min Δ         (5)

so after (3) no other class loses more than max_k (δ_k + e_k) nats, and only a raised one gains.

Classes with the same row are beyond repair by a bias: see `twins`. What was repaired is checked as
it is returned, in the type of `weight`; what rounding has undone is in `left`.
Source: (1) and (2) restate known facts; (3) and (4) are ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kexue.analysis.unargmaxable.certificates import check_points
from kexue.analysis.unargmaxable.check import check_argmaxable
from kexue.analysis.unargmaxable.head import OutputLayer, output_layer
from kexue.analysis.unargmaxable.report import CAN, ArgmaxReport
from kexue.analysis.unargmaxable.roof import distance_to_roof

__all__ = ["HOW", "Repaired", "make_all_argmaxable"]

HOW = ("raise", "voronoi", "normalise")
HALVINGS = 60
"""Of ε at most; by then e is below the rounding of any bias that matters."""
BLOCK = 1 << 24
"""Numbers of a block of logits that is checked at once."""


@dataclass(frozen=True)
class Repaired:
    """A layer after its repair.

    Attributes:
        weight: W', (C, d), in the type of the given one, or float64 if that held whole numbers.
        bias: b', (C,).
        changed: classes whose row or bias is another.
        left: classes that still can not win, or could not be shown to: twins, or rounding.
        lift: the largest e_k that was used; 0 unless `how` is "raise".
        log_change: the smallest and the largest possible log p'_i − log p_i over all inputs and
            classes, (5); infinite where the rows changed.
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
    dtype = weight.dtype if isinstance(weight, Tensor) else torch.as_tensor(weight).dtype
    kind = dtype if dtype.is_floating_point else torch.float64
    if how == "raise":
        return _raised(layer, kind, twins, lift, report, progress)
    made = _voronoi(layer) if how == "voronoi" else _normalised(layer)
    _about_twins(made.weight, twins, "direction" if how == "normalise" else "row")
    made = _stored(made, kind)
    everyone = torch.arange(layer.classes, device=layer.weight.device)
    left = _losers(made, everyone, made.weight, progress)
    return _repaired(layer, made, kind, left, 0.0)


def _voronoi(layer: OutputLayer) -> OutputLayer:
    """(2), with the mean of the old bias; the rows may be shifted, which changes no order."""
    half = layer.weight.square().sum(dim=1) / 2
    return OutputLayer(layer.weight, half.mean() - half + layer.bias.mean(), has_bias=True)


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


def _raised(
    layer: OutputLayer,
    kind: torch.dtype,
    twins: str,
    lift: float,
    report: ArgmaxReport | None,
    progress: Callable[[str, int, int], None] | None,
) -> Repaired:
    _about_twins(layer.weight, twins, "row")
    if report is None:
        report = check_argmaxable(layer.weight, layer.bias, progress=progress)
    _fits(report, layer)
    low = np.flatnonzero((report.verdict != CAN) & (report.twin < 0))
    if not len(low):
        left = np.flatnonzero(report.verdict != CAN)
        return _repaired(layer, _stored(layer, kind), kind, left, 0.0)
    number = torch.tensor([report.number[k] for k in low.tolist()], device=layer.weight.device)
    rows, raised = report.white.rows, torch.as_tensor(low, device=layer.weight.device)
    lacks, touch = _to_the_roof(report, low, progress)
    room = (rows.square().sum(dim=1).max() - rows[number].square().sum(dim=1)) / 2
    others = torch.as_tensor(report.argmaxable, device=layer.weight.device)
    places = torch.stack([report.point(k) for k in others.tolist()])
    curve, suffer = lift / float(room.max()), others
    for _ in range(HALVINGS):
        height = curve * room.clamp_min(0)  # (4)
        bias = layer.bias.index_add(0, raised, lacks + height)  # (3)
        made = _stored(OutputLayer(layer.weight, bias, has_bias=True), kind)
        kept = torch.isin(others, suffer)
        suffer = torch.as_tensor(_losers(made, others[kept], places[kept], progress))
        suffer = suffer.to(others.device)
        if not len(suffer):
            break
        curve /= 2  # the fewer it pushes aside, the smaller: only these can still suffer
    points = report.white.features(touch + curve * rows[number])
    lost = np.union1d(_losers(made, raised, points, progress), suffer.cpu().numpy())
    left = np.union1d(lost, np.flatnonzero(report.twin >= 0))
    return _repaired(layer, made, kind, left, float(height.max()))


def _to_the_roof(
    report: ArgmaxReport, low: np.ndarray, progress: Callable[[str, int, int], None] | None
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n r"]]:
    """δ and z* of every class that never wins; both are 0 where there is no bias."""
    white, number = report.white, report.number
    lacks = white.rows.new_zeros(len(low))
    touch = white.rows.new_zeros(len(low), white.rows.shape[1])
    if bool((report.layer.bias == report.layer.bias[0]).all()):
        return lacks, touch
    for n, k in enumerate(low.tolist()):
        mixed = report.mix(k).index.tolist() if k in report.unargmaxable else []
        among = torch.tensor([number[i] for i in mixed], dtype=torch.int64).to(lacks.device)
        found = distance_to_roof(white.rows, white.offsets, number[k], among)
        if found is None:
            raise ValueError(f"the linear program of class {k} failed; use how='voronoi'")
        lacks[n], touch[n] = max(found[0], 0.0), found[1]
        if progress is not None:
            progress("roof", n + 1, len(low))
    return lacks, touch


def _losers(
    layer: OutputLayer,
    index: Int[Tensor, " n"],
    points: Float[Tensor, "n d"],
    progress: Callable[[str, int, int], None] | None,
) -> np.ndarray:
    """Classes that win neither at their points nor, after a full search, elsewhere."""
    size = max(1, BLOCK // layer.classes)
    check = partial(check_points, layer)
    parts = zip(index.split(size), points.split(size), strict=True)
    wins = [check(some, at).proven for some, at in parts]
    open_ = index[~torch.cat(wins)] if wins else index
    if not len(open_):
        return np.zeros(0, np.int64)
    found = check_argmaxable(layer.weight, layer.bias, open_, progress=progress)
    return found.index[found.verdict != CAN]


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


def _stored(layer: OutputLayer, kind: torch.dtype) -> OutputLayer:
    """The layer as its type keeps it."""
    rows, bias = (part.to(kind).double() for part in (layer.weight, layer.bias))
    return OutputLayer(rows, bias, layer.has_bias)


def _repaired(
    before: OutputLayer, made: OutputLayer, kind: torch.dtype, left: np.ndarray, lift: float
) -> Repaired:
    moved = (made.weight != before.weight).any(dim=1)
    change = made.bias - before.bias
    changed = (moved | (change != 0)).nonzero()[:, 0].cpu().numpy()
    most = math.inf if bool(moved.any()) else float(change.max() - change.min())
    weight, bias = made.weight.to(kind), made.bias.to(kind)
    return Repaired(weight, bias, changed, left, lift, (-most, most))


def _some(classes: list[int]) -> str:
    return ", ".join(map(str, classes[:8])) + (" …" if len(classes) > 8 else "")
