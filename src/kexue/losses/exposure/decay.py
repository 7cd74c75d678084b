"""How the share of gold tokens falls with the updates i (S31).

    eps_i = max(floor, start − slope i)      linear                                              (1)
    eps_i = k^i,  k < 1                      exponential                                         (2)
    eps_i = k / (k + e^{i/k}),  k >= 1       inverse sigmoid                                     (3)

Source: scheduled sampling, arXiv 1506.03099, section 2.4.
"""

import math
from dataclasses import dataclass

__all__ = ["ExponentialDecay", "InverseSigmoidDecay", "LinearDecay"]


@dataclass(frozen=True)
class LinearDecay:
    """max(floor, start − slope · i): (1).

    Example:
        >>> LinearDecay(slope=0.001, floor=0.1)(500)
        0.5
    """

    slope: float
    start: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.slope < 0 or not 0 <= self.floor <= self.start <= 1:
            raise ValueError(f"needs slope >= 0 and 0 <= floor <= start <= 1, got {self}")

    def __call__(self, update: int) -> float:
        return max(self.floor, self.start - self.slope * update)  # (1)


@dataclass(frozen=True)
class ExponentialDecay:
    """k^i: (2)."""

    k: float

    def __post_init__(self) -> None:
        if not 0 <= self.k <= 1:
            raise ValueError(f"k must be between 0 and 1, got {self.k}")

    def __call__(self, update: int) -> float:
        return float(self.k**update)  # (2)


@dataclass(frozen=True)
class InverseSigmoidDecay:
    """k / (k + e^{i/k}): (3); near 1 for a while, half at i = k log k, then falling to 0.

    Example:
        >>> round(InverseSigmoidDecay(100.0)(500), 6)
        0.402555
    """

    k: float

    def __post_init__(self) -> None:
        if not self.k >= 1:
            raise ValueError(f"k must be at least 1, got {self.k}")

    def __call__(self, update: int) -> float:
        return 1 / (1 + math.exp(min(update / self.k - math.log(self.k), 700.0)))  # (3)
