r"""Coordinates in which the rows of an output layer have mean 0 and covariance I.

With the mean m and the covariance S = U diag(e) Uᵀ of the rows, T = U diag(e)^(−1/2):

    v_i = Tᵀ (w_i − m)                          rows                                          (1)
    c_i = b_i − v_i · g + const.,  g = mean(v b)     what the rows do not explain of the bias (2)
    z = T (v − g)     ⇒     w_i · z + b_i = v_i · v + c_i + something that is the same for all i (3)

Which classes can win is the same in both coordinates; but here one step along a row meets all
competitors alike, and the bias is as small as moving the origin can make it. Directions in which no
two rows differ are left out: they change no order of logits.

T comes from the triangular factor of the centred rows with columns of one length, not from S, whose
rounding would hide all directions that are 1e-8 as wide as the widest. g is fitted to biases within
ten times their typical size: a masked class with −1e9 must not bend it.

Axes: c classes, d features, r ≤ d the rank of the centred rows.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from kexue.analysis.unargmaxable.head import OutputLayer

__all__ = ["Whitened", "whiten"]


@dataclass(frozen=True)
class Whitened:
    """(1) to (3).

    Attributes:
        rows: v_i.
        offsets: c_i.
        map: T.
        shift: g.
        slack: rounding of a difference of logits between the two coordinates, per unit of |v − g|,
            and besides.
    """

    rows: Float[Tensor, "c r"]
    offsets: Float[Tensor, " c"]
    map: Float[Tensor, "d r"]
    shift: Float[Tensor, " r"]
    slack: tuple[float, float]

    def logits(self, points: Float[Tensor, "n r"]) -> Float[Tensor, "n c"]:
        """v_i · v + c_i."""
        return torch.addmm(self.offsets, points, self.rows.mT)

    def features(self, points: Float[Tensor, "n r"]) -> Float[Tensor, "n d"]:
        """The z of every v."""
        return (points - self.shift) @ self.map.mT  # (3)

    def distances(self, index: int) -> Float[Tensor, " c"]:
        """|v_i − v_k|."""
        squares = self.squares
        apart = torch.addmv(squares + squares[index], self.rows, self.rows[index], alpha=-2)
        return apart.clamp_min(0).sqrt()

    @cached_property
    def squares(self) -> Float[Tensor, " c"]:
        """|v_i|²."""
        return self.rows.square().sum(dim=1)


def whiten(layer: OutputLayer) -> Whitened:
    """Changes coordinates.

    Example:
        >>> from kexue.analysis.unargmaxable.head import output_layer
        >>> square = whiten(output_layer(torch.tensor([[1, 2], [2, 1], [1, 0], [0, 1]])))
        >>> (square.rows.mT @ square.rows / 4).round(decimals=6).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    weight, count = layer.weight, layer.classes
    centred = weight - weight.mean(dim=0)
    columns = centred.norm(dim=0)
    columns = torch.where(columns > 0, columns, 1.0)
    triangle = torch.linalg.qr(centred / columns, mode="r").R
    _, widths, directions = torch.linalg.svd(triangle, full_matrices=False)
    eps = torch.finfo(weight.dtype).eps
    kept = widths > widths.max() * 4 * sum(weight.shape) * eps  # none where all rows are the same
    within = directions.mT[:, kept] * (math.sqrt(count) / widths[kept])
    change = within / columns[:, None]
    rows = centred @ change  # (1)
    bias = layer.bias - layer.bias.median()
    typical = 10 * bias.abs().median()
    shift = rows.mT @ bias.clamp(-typical, typical) / count
    offsets = bias - rows @ shift  # (2)
    noise = 4 * sum(weight.shape) * eps * (rows.norm(dim=1) * shift.norm() + bias.abs())
    offsets = offsets - offsets.median()
    offsets = torch.where(offsets.abs() <= noise, 0.0, offsets)
    longest = (centred / columns).norm(dim=1).max()
    per_unit = 2 * (sum(change.shape) + 8) * eps * within.norm() * longest
    slack = (float(per_unit), 4 * float(noise.max()))
    return Whitened(rows, offsets, change, shift, slack)
