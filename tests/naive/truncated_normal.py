"""The truncated normal as it is defined: draw again what falls outside."""

import torch
from torch import Tensor

__all__ = ["by_rejection"]


def by_rejection(count: int, a: float, b: float, generator: torch.Generator) -> Tensor:
    """Samples of a standard normal variable cut to [a, b], one after the other."""
    kept: list[float] = []
    while len(kept) < count:
        z = torch.randn((), generator=generator, dtype=torch.float64).item()
        if a <= z <= b:
            kept.append(z)
    return torch.tensor(kept, dtype=torch.float64)
