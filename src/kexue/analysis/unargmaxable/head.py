"""An output layer with its bias, checked, in float64, and where its features can lie."""

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Box", "OutputLayer", "as_box", "output_layer", "rounding"]


@dataclass(frozen=True)
class OutputLayer:
    """Logits l(z) = W z + b.

    Attributes:
        weight: W, float64.
        bias: b, float64; zeros where the layer has none.
        has_bias: b was given.
    """

    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, " c"]
    has_bias: bool

    @property
    def classes(self) -> int:
        """C."""
        return self.weight.shape[0]

    @cached_property
    def norms(self) -> Float[Tensor, " c"]:
        """|w_i|."""
        norms: Tensor = self.weight.norm(dim=1)
        return norms

    def centred(self) -> "OutputLayer":
        """Rows and biases less their medians: the same differences of logits.

        What all share would only cost digits. Not the mean, as one bias of −1e9 (a masked class) or
        one row that dwarfs the others must not cost theirs.
        """
        rows = self.weight - self.weight.median(dim=0).values
        return OutputLayer(rows, self.bias - self.bias.median(), self.has_bias)

    def logits(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """W z + b for every point."""
        return torch.addmm(self.bias, points, self.weight.mT)

    def distances(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
        """|w_i − w_k| for every class k of `index`, never too small by rounding."""
        squares = self.norms.square()
        both = squares[index, None] + squares
        apart = torch.addmm(both, self.weight[index], self.weight.mT, alpha=-2).clamp_min_(0)
        return apart.add_(both, alpha=_unit(self)).sqrt_()


@dataclass(frozen=True)
class Box:
    """lower ≤ z ≤ upper, elementwise; sides may be infinite."""

    lower: Float[Tensor, " d"]
    upper: Float[Tensor, " d"]

    def holds(self, points: Float[Tensor, "n d"]) -> Tensor:
        """Which points lie in it."""
        return ((points >= self.lower) & (points <= self.upper)).all(dim=1)

    def moved_in(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Points outside, along the line to the middle of the box, to just within its sides."""
        middle = ((self.lower + self.upper) / 2).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        middle = middle.clamp(self.lower, self.upper)
        away = points - middle
        room = torch.where(away > 0, self.upper - middle, middle - self.lower)
        share = torch.where(away == 0, math.inf, room / away.abs()).amin(dim=1).clamp_max(1.0)
        inside = middle + (1 - 1e-12) * share[:, None] * away
        return torch.where((share < 1)[:, None], inside, points).clamp(self.lower, self.upper)

    def support(self, direction: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """max over z in the box of direction · z."""
        sides = torch.where(direction > 0, self.upper, self.lower)
        return torch.where(direction == 0, 0.0, direction * sides).sum(dim=1)


def output_layer(
    weight: Tensor | np.ndarray, bias: Tensor | np.ndarray | None = None, device: str | None = None
) -> OutputLayer:
    """Checks a layer.

    Args:
        weight: one row per class, (C, d), of any floating or integer type.
        bias: (C,).
        device: where to compute; default: where `weight` is.

    Raises:
        ValueError: fewer than two classes, shapes that do not fit, NaN or infinite values.
        TypeError: no array or tensor of real numbers.
    """
    rows = _real("weight", weight, device)
    if rows.ndim != 2 or rows.shape[0] < 2 or rows.shape[1] < 1:
        raise ValueError(
            "weight must have one row per class, shape (C, d) with C >= 2 and d >= 1, "
            f"got {tuple(rows.shape)}"
        )
    if bias is None:
        return OutputLayer(rows, rows.new_zeros(rows.shape[0]), has_bias=False)
    offsets = _real("bias", bias, str(rows.device))
    if offsets.shape != rows.shape[:1]:
        raise ValueError(
            f"bias must have shape ({rows.shape[0]},) as weight has {rows.shape[0]} rows, "
            f"got {tuple(offsets.shape)}"
        )
    return OutputLayer(rows, offsets, has_bias=True)


def as_box(box: float | tuple[object, object] | None, layer: OutputLayer) -> Box | None:
    """A number r for |z_j| ≤ r, or lower and upper bounds as numbers or (d,) arrays.

    Raises:
        ValueError: an empty box, NaN, or a wrong shape.
    """
    if box is None:
        return None
    if isinstance(box, tuple):
        if len(box) != 2:
            raise ValueError(f"box must be a number or (lower, upper), got {len(box)} items")
        lower, upper = box
    else:
        if isinstance(box, bool) or not isinstance(box, Real):
            raise TypeError(f"box must be a number or a tuple (lower, upper), got {box!r}")
        if not box > 0:
            raise ValueError(f"box must be positive, got {box}")
        lower, upper = -box, box
    like, width = layer.weight, layer.weight.shape[1]
    sides = []
    for name, side in (("lower", lower), ("upper", upper)):
        try:
            made = torch.as_tensor(side, dtype=like.dtype, device=like.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"box: {name} must be a number or numbers: {error}") from None
        if made.shape not in ((), (width,)):
            raise ValueError(
                f"box: {name} must be a number or have shape ({width},), got {tuple(made.shape)}"
            )
        sides.append(made.expand(width))
    if not bool((sides[0] <= sides[1]).all()):  # false for NaN, too
        raise ValueError("box: lower must be at most upper in every component, and not NaN")
    return Box(*sides)


def _real(name: str, given: Tensor | np.ndarray, device: str | None) -> Tensor:
    try:
        made = torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor or array of numbers: {error}") from None
    if made.is_complex() or made.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {made.dtype}")
    made = made.to(device=device, dtype=torch.float64)
    finite = torch.isfinite(made)
    if not bool(finite.all()):
        first = [int(i) for i in (~finite).nonzero()[0]]
        at = ", ".join(map(str, first))
        raise ValueError(
            f"{name} holds {int((~finite).sum())} values that are not finite, the first at [{at}]: "
            f"{float(made[tuple(first)])}"
        )
    return made


def rounding(
    layer: OutputLayer, points: Float[Tensor, "n d"], index: Int[Tensor, " n"]
) -> Float[Tensor, "n c"]:
    """A bound of the rounding error of l_k(z) − l_i(z), for every point, its class k, and all i."""
    norms, levels = layer.norms, layer.bias.abs()
    far = points.norm(dim=1)[:, None]
    size: Tensor = far * (norms[index, None] + norms) + (levels[index, None] + levels)
    return _unit(layer) * size


def _unit(layer: OutputLayer) -> float:
    """Twice what rounding can do to a product of two vectors, against their norms."""
    return (layer.weight.shape[1] + 4) * torch.finfo(torch.float64).eps
