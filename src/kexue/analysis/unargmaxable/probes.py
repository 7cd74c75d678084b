r"""Points at which a class is likely to win: one product of matrices settles nearly all classes.

    whitened probe     v = t v_k,  where v_i are the whitened rows                             (1)
    reflection         z₀ = w_k; while another class j wins: mirror z across {l_k = l_j}       (2)

In whitened coordinates (`whitening.py`) the row itself is the direction that stands out most from
the cloud of the others. On an off-centre, anisotropic layer of 20,000 × 128 the plain z = w_k finds
83 classes, the whitened probe 17,662. With a bias t > 0 matters: if the class wins without bias,
t need only exceed

    t* = max_i (c_i − c_k) / (v_k · v_k − v_k · v_i)                                           (3)

The logits come in float32. A probe counts at once if its margin exceeds what rounding can do to
such products, (r + 8) 2⁻²⁴ |v_k| |v_i| each, and what the change of coordinates adds; the margin
itself is computed anew in float64 against the runner-up, in the layer's own coordinates. What is
closer goes through the full check.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kexue.analysis.unargmaxable.head import OutputLayer
from kexue.analysis.unargmaxable.whitening import Whitened

__all__ = ["Probed", "reflected", "same_rows", "whitened_probe"]

CHUNK = 1 << 27
"""Numbers of a block of logits: 512 MB in float32."""
UNIT = 2.0**-24


def same_rows(layer: OutputLayer) -> Int[Tensor, " c"]:
    """For every class the class with the same row and the largest bias; the first of equals.

    Example:
        >>> from kexue.analysis.unargmaxable.head import output_layer
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> same_rows(output_layer(rows, torch.tensor([0.0, 0.0, 0.5]))).tolist()
        [2, 1, 2]
    """
    rows = layer.weight + 0.0  # −0 becomes 0
    _, group = torch.unique(rows, dim=0, return_inverse=True)
    order = torch.arange(layer.classes, device=rows.device)
    by_bias = torch.argsort(layer.bias, descending=True, stable=True)
    first = torch.full_like(order, layer.classes)
    place = torch.empty_like(order)
    place[by_bias] = order
    first.scatter_reduce_(0, group, place, "amin")
    return by_bias[first[group]]


class Probed:
    """A block of classes after the whitened probe.

    Attributes:
        index: the classes.
        wins: proven to win at `scale` times their whitened row.
        scale: t.
        rival: the runner-up there.
        close: won or lost by less than rounding in float32, or won only for a large t: to check.
    """

    def __init__(
        self,
        index: Int[Tensor, " n"],
        wins: Bool[Tensor, " n"],
        scale: Float[Tensor, " n"],
        rival: Int[Tensor, " n"],
        close: Bool[Tensor, " n"],
    ) -> None:
        self.index, self.wins, self.scale, self.rival, self.close = index, wins, scale, rival, close


def whitened_probe(white: Whitened, todo: Int[Tensor, " m"]) -> Iterator[Probed]:
    """(1) for the classes of `todo`, block by block."""
    rows, offsets = white.rows.float(), white.offsets.float()
    norms = rows.norm(dim=1)
    per_unit, level = white.slack
    error = 2 * (rows.shape[1] + 8) * UNIT * norms.max() + per_unit
    tilt = 8 * UNIT * offsets.abs().max() + level + per_unit * white.shift.norm().float()
    for index in todo.split(max(1, CHUNK // len(rows))):
        number = torch.arange(len(index), device=rows.device)
        with full_float32(rows.device.type):
            logits = rows[index] @ rows.mT
        own = logits[number, index]
        far = own[:, None] - logits
        far[number, index] = math.inf  # without the bias: how far all others are behind
        doubt = error * norms[index]
        ahead = logits.neg_().add_((own + offsets[index])[:, None]).sub_(offsets)
        ahead[number, index] = math.inf
        margin, rival = ahead.min(dim=1)
        scale = torch.ones_like(own)
        wins = margin > doubt + tilt
        late = ~wins & (far.amin(dim=1) > doubt)
        if bool(late.any()):
            needed = ((offsets - offsets[index[late], None]) / far[late]).amax(dim=1)  # (3)
            scale[late] = 2 * needed.clamp_min(0.5)
        yield Probed(index, wins, scale.double(), rival, late | (margin.abs() <= doubt + tilt))


@contextmanager
def full_float32(device: str) -> Iterator[None]:
    """Products of matrices in float32 proper, whatever autocast or TensorFloat-32 settings say."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def reflected(
    layer: OutputLayer, index: Int[Tensor, " n"], patience: int = 2500
) -> Float[Tensor, "n d"]:
    """Points after (2), at which the classes win or patience ended.

    Args:
        layer: the layer.
        index: the classes.
        patience: mirror images at most, as in the paper's program.
    """
    points = layer.weight[index].clone()
    on = torch.arange(len(index), device=index.device)
    for _ in range(patience):
        best = layer.logits(points[on]).argmax(dim=1)
        lost = best != index[on]
        on, best = on[lost], best[lost]
        if not len(on):
            break
        away = layer.weight[best] - layer.weight[index[on]]
        gap = (points[on] * away).sum(dim=1) + layer.bias[best] - layer.bias[index[on]]
        size = away.square().sum(dim=1)
        step = torch.where(size > 0, 2 * gap / size.clamp_min(1e-300), 0.0)
        points[on] -= step[:, None] * away  # (2)
    return points
