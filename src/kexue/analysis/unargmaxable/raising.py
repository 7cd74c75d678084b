r"""Raises the bias of the classes that never win, by just enough, and of no other.

Over the rows the other classes form a roof (`roof.py`), and class k lacks δ_k to it; where there is
no bias the roof is flat and δ_k = 0. The new bias is

    b'_k = b_k + δ_k + e_k                                                                       (1)
    e_k = ε (R² − |v_k|²) / 2,    R = max |v_i|,    v_i the whitened rows                        (2)

Why all of them win, whatever ε > 0. The roof is concave and e strictly so; hence with z*_k of
`roof.py`, at z = z*_k + ε v_k class k is ahead of every other, raised ones included, by

    l_k − l_i ≥ ε |v_i − v_k|² / 2                                                               (3)

Why no other class loses, for a small ε. If j wins by m at z, and α is the mix under k, then there
l'_k = Σ α_i l_i + e_k ≤ l_j − (1 − α_j) m + e_k: j keeps winning while e_k < (1 − α_j) m. ε begins
where the largest e_k is the `lift` that is asked for, and is halved until nobody loses. A class
that loses nothing at some ε loses nothing at a smaller one, so only the losers are tried again.

Cost: one small linear program per raised class, none without bias; then one product of matrices.
Source: ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kexue.analysis.unargmaxable.certificates import check_points
from kexue.analysis.unargmaxable.check import check_argmaxable
from kexue.analysis.unargmaxable.head import OutputLayer
from kexue.analysis.unargmaxable.report import CAN, CANNOT, ArgmaxReport
from kexue.analysis.unargmaxable.roof import distance_to_roof

__all__ = ["Kinds", "Raised", "losers", "raised", "stored"]

HALVINGS = 60
"""Of ε at most; by then e is below the rounding of any bias that matters."""
BLOCK = 1 << 24
"""Numbers of a block of logits that is checked at once."""

Kinds = tuple[torch.dtype, torch.dtype]
"""Of weight and bias."""
Progress = Callable[[str, int, int], None] | None


@dataclass(frozen=True)
class Raised:
    """A repaired layer.

    Attributes:
        layer: W' and b', as their types keep them.
        left: classes that were not shown to win.
        lift: the largest e_k.
    """

    layer: OutputLayer
    left: Int[np.ndarray, " m"]
    lift: float


def raised(report: ArgmaxReport, kinds: Kinds, lift: float, progress: Progress = None) -> Raised:
    """(1) for the classes that a report of all classes does not show to win; twins stay.

    Args:
        report: of the layer.
        kinds: in which types weight and bias are kept.
        lift: the largest e_k to begin with.
        progress: as for `check_argmaxable`.
    """
    layer, twin = report.layer, report.twin >= 0
    low = np.flatnonzero((report.verdict != CAN) & ~twin)
    if not len(low):
        return Raised(stored(layer, kinds), np.flatnonzero(twin), 0.0)
    index, others = (torch.as_tensor(k).to(layer.weight.device) for k in (low, report.argmaxable))
    rows = report.white.rows
    own = rows[[report.number[k] for k in low.tolist()]]
    lacks, touch = _to_the_roof(report, low, progress)
    room = (rows.square().sum(dim=1).max() - own.square().sum(dim=1)) / 2
    places = layer.weight.new_zeros(len(others), layer.weight.shape[1])
    for n, k in enumerate(others.tolist()):
        places[n] = report.point(k)
    curve = 2 * lift / max(float(room.max()), 1e-300)
    suffer = np.zeros(0, np.int64)
    for _ in range(HALVINGS):
        curve /= 2
        height = curve * room  # (2)
        bias = layer.bias.index_add(0, index, lacks + height)  # (1)
        made = stored(OutputLayer(layer.weight, bias, has_bias=True), kinds)
        suffer = losers(made, others, places, progress)
        if not len(suffer):
            break
        kept = torch.isin(others, torch.as_tensor(suffer).to(others.device))
        others, places = others[kept], places[kept]
    points = report.white.features(touch + curve * own)  # (3)
    left = np.concatenate((losers(made, index, points, progress), suffer, np.flatnonzero(twin)))
    return Raised(made, np.unique(left), float(height.max()))


def _to_the_roof(
    report: ArgmaxReport, low: Int[np.ndarray, " n"], progress: Progress
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n r"]]:
    """δ and z* of every class that never wins; both are 0 where there is no bias."""
    white, number = report.white, report.number
    lacks = white.rows.new_zeros(len(low))
    touch = white.rows.new_zeros(len(low), white.rows.shape[1])
    if bool((report.layer.bias == report.layer.bias[0]).all()):
        return lacks, touch
    for n, k in enumerate(low.tolist()):
        mixed = report.mix(k).index.tolist() if report.verdict[k] == CANNOT else []
        among = torch.tensor([number[i] for i in mixed], dtype=torch.int64).to(lacks.device)
        found = distance_to_roof(white.rows, white.offsets, number[k], among)
        if found is None:
            raise ValueError(f"the linear program of class {k} failed; use how='voronoi'")
        lacks[n], touch[n] = max(found[0], 0.0), found[1]
        if progress is not None:
            progress("roof", n + 1, len(low))
    return lacks, touch


def losers(
    layer: OutputLayer,
    index: Int[Tensor, " n"],
    points: Float[Tensor, "n d"],
    progress: Progress = None,
) -> Int[np.ndarray, " m"]:
    """Classes that win neither at their points nor, after a full search, elsewhere."""
    wins = torch.zeros_like(index, dtype=torch.bool)
    for here in torch.arange(len(index)).split(max(1, BLOCK // layer.classes)):
        wins[here] = check_points(layer, index[here], points[here]).proven
    if bool(wins.all()):
        return np.zeros(0, np.int64)
    found = check_argmaxable(layer.weight, layer.bias, index[~wins], progress=progress)
    lost: np.ndarray = found.index[found.verdict != CAN]
    return lost


def stored(layer: OutputLayer, kinds: Kinds) -> OutputLayer:
    """The layer as its types keep it."""
    rows, bias = layer.weight.to(kinds[0]).double(), layer.bias.to(kinds[1]).double()
    return OutputLayer(rows, bias, layer.has_bias)
