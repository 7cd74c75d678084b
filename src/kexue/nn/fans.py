r"""浅谈Transformer的初始化、参数化与标准化 — fan-in and fan-out of any weight (S04)

How many inputs feed an output, and how many outputs an input feeds. Both depend on the layout, on
the K positions of a kernel and on the product s of the strides:

    layout              shape                       fan-in               fan-out
    linear              (out, in)                   in                   out / parts
    linear_transposed   (in, out)                   in                   out / parts
    conv                (out, in / groups, *k)      in / groups K        out / groups K / s
    conv_transposed     (in, out / groups, *k)      in / groups K / s    out / groups K        (1)

A matrix that packs query, key and value has parts = 3: three matrices of fan-out d, not one of 3d.

What we do differently: torch's initialisers take 3d there, forget groups in the fan-out and the
stride everywhere, and count a transposed convolution the wrong way round. Fans are averages over
positions, so a stride can make them fractions; positions at the border have fewer.

Source: article 8620. See also: `kexue.nn.init`, which turns fans into a variance.
"""

import math
from collections.abc import Sequence
from typing import TypedDict

__all__ = ["LAYOUTS", "Axes", "fan_in_out"]

LAYOUTS = ("linear", "linear_transposed", "conv", "conv_transposed")


class Axes(TypedDict, total=False):
    """The options of `fan_in_out`, for functions that hand them on."""

    layout: str | None
    groups: int
    stride: int | Sequence[int]
    parts: int


def fan_in_out(
    shape: Sequence[int],
    *,
    layout: str | None = None,
    groups: int = 1,
    stride: int | Sequence[int] = 1,
    parts: int = 1,
) -> tuple[float, float]:
    """How many inputs feed an output, and how many outputs an input feeds: (1).

    Args:
        shape: of the weight.
        layout: what the axes are; a shape of two axes is "linear" unless said otherwise.
        groups: of a convolution.
        stride: of a convolution, one number or one per spatial axis.
        parts: how many matrices lie side by side along the outputs; 3 for packed query, key, value.

    Raises:
        ValueError: fewer than two axes, three or more without a layout, an axis of length 0, a
            division into groups or parts with a rest.

    Example:
        >>> fan_in_out((3072, 768)), fan_in_out((2304, 768), parts=3)
        ((768.0, 3072.0), (768.0, 768.0))
        >>> fan_in_out((64, 16, 3, 3), layout="conv", groups=2)
        (144.0, 288.0)
        >>> fan_in_out((64, 32, 4, 4), layout="conv_transposed", stride=2)
        (256.0, 512.0)
    """
    shape = tuple(shape)
    if len(shape) < 2:
        raise ValueError(f"fans need a weight of two axes or more, got shape {shape}")
    if layout is None and len(shape) > 2:
        raise ValueError(
            f"shape {shape} may belong to a convolution or a transposed one: declare layout='conv' "
            "or layout='conv_transposed'"
        )
    layout = layout or "linear"
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")
    linear = layout.startswith("linear")
    if linear and len(shape) != 2:
        raise ValueError(f"layout {layout!r} has two axes, got shape {shape}: pass one matrix")
    if min(shape) < 1:
        raise ValueError(f"shape {shape} holds no weights")
    strides = [stride] * (len(shape) - 2) if isinstance(stride, int) else list(stride)
    if min(groups, parts, *strides, 1) < 1 or len(strides) != len(shape) - 2:
        raise ValueError(
            f"groups, parts and stride must be positive, with one stride per spatial axis; got "
            f"groups={groups}, parts={parts}, stride={stride} for shape {shape}"
        )
    if linear and groups != 1:
        raise ValueError(f"layout {layout!r} has no groups, got groups={groups}; try parts")
    kernel, skipped = math.prod(shape[2:]), math.prod(strides)
    if layout in ("linear", "conv"):
        ins, outs = shape[1], shape[0]
        _divides(outs, groups * parts, "outputs", "groups × parts")
        return float(ins * kernel), outs / groups / parts * kernel / skipped  # (1)
    ins, outs = shape[0], shape[1]
    _divides(ins, groups, "inputs", "groups")
    _divides(outs, parts, "outputs", "parts")
    return ins / groups * kernel / skipped, float(outs / parts * kernel)  # (1)


def _divides(size: int, into: int, what: str, name: str) -> None:
    if size % into:
        raise ValueError(f"{size} {what} do not divide into {name} = {into}")
