r"""Coordinates in which the rows of an output layer have mean 0 and covariance I.

With the mean m and the covariance S = U diag(e) Uᵀ of the rows, T = U diag(e)^(−1/2):

    v_i = Tᵀ (w_i − m)                          rows                                          (1)
    c_i = b_i − mean(b) − v_i · g,  g = mean(v b)    what the rows do not explain of the bias (2)
    z = T (v − g)     ⇒     w_i · z + b_i = v_i · v + c_i + something that is the same for all i (3)

Which classes can win is the same in both coordinates; but here one step along a row meets all
competitors alike, and the bias is as small as moving the origin can make it. Directions in which no
two rows differ are left out: they change no order of logits.

Axes: c classes, d features, r ≤ d the rank of the centred rows.
"""

from dataclasses import dataclass

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
    """

    rows: Float[Tensor, "c r"]
    offsets: Float[Tensor, " c"]
    map: Float[Tensor, "d r"]
    shift: Float[Tensor, " r"]

    def logits(self, points: Float[Tensor, "n r"]) -> Float[Tensor, "n c"]:
        """v_i · v + c_i."""
        return torch.addmm(self.offsets, points, self.rows.mT)

    def features(self, points: Float[Tensor, "n r"]) -> Float[Tensor, "n d"]:
        """The z of every v."""
        return (points - self.shift) @ self.map.mT  # (3)


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
    values, vectors = torch.linalg.eigh(centred.mT @ centred / count)
    least = values.max() * count * torch.finfo(weight.dtype).eps
    kept = values > least  # none where all rows are the same
    change = vectors[:, kept] * values[kept].rsqrt()
    rows = centred @ change  # (1)
    bias = layer.bias - layer.bias.mean()
    shift = rows.mT @ bias / count
    return Whitened(rows, bias - rows @ shift, change, shift)  # (2)
