"""Rounding to half precision at random, so that small steps survive on average.

    Pr[round(x) = up] = (x − down) / (up − down),        down ≤ x ≤ up neighbours in half      (1)

Round-to-nearest loses every step shorter than half the gap between neighbouring numbers: weights in
bfloat16 that should move by a thousandth of their size mostly stay where they are. With (1) the
expected value of the rounded number is x itself.

For bfloat16, whose bits are the upper half of a float32's, (1) is: add 16 random bits to the lower
half, then cut it off. For float16 the two neighbours are compared explicitly.
"""

import torch
from torch import Tensor

__all__ = ["round_stochastically_"]


def round_stochastically_(
    target: Tensor, source: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Writes `source` (float32) into `target` (bfloat16 or float16) by (1); returns target.

    Values that are no finite number, or beyond the range of the target, are rounded as torch does.

    Raises:
        TypeError: another pair of dtypes.

    Example:
        >>> import torch
        >>> half = torch.empty(10_000, dtype=torch.bfloat16)
        >>> exact = torch.full((10_000,), 1.001)
        >>> _ = round_stochastically_(half, exact, torch.Generator().manual_seed(0))
        >>> sorted(set(half.tolist())), round(half.float().mean().item(), 3)
        ([1.0, 1.0078125], 1.001)
    """
    halves = (torch.bfloat16, torch.float16)
    if target.dtype not in halves or source.dtype != torch.float32:
        raise TypeError(
            f"needs a float32 source and a half target, got {source.dtype} and {target.dtype}"
        )
    nearest = source.to(target.dtype)
    if target.dtype == torch.bfloat16:
        noise = torch.randint(
            0, 1 << 16, source.shape, dtype=torch.int32, device=source.device, generator=generator
        )
        bits = (source.view(torch.int32) + noise) & -(1 << 16)
        drawn = bits.view(torch.float32).to(torch.bfloat16)
    else:
        drawn = _between_neighbours(nearest, source, generator)
    usual = nearest.isfinite() & drawn.isfinite()
    return target.copy_(torch.where(usual, drawn, nearest))


def _between_neighbours(
    nearest: Tensor, source: Tensor, generator: torch.Generator | None
) -> Tensor:
    """One of the two numbers around the source, with the probabilities of (1).

    The bits of a half, read as an integer, count its magnitude in steps between neighbours.
    """
    step = torch.where(source.abs() > nearest.float().abs(), 1, -1).to(torch.int16)
    other = (nearest.view(torch.int16) + step).view(torch.float16)
    share = (source - nearest.float()) / (other.float() - nearest.float())
    u = torch.rand(source.shape, device=source.device, generator=generator)
    return torch.where(u < share, other, nearest)
