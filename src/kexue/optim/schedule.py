"""Tiger — 一个“抠”到极致的优化器 (S29): the learning-rate schedule that goes with it.

Factors of the learning rate as a polygon through given points, as in the author's optimizers:

    f(t) = f_i + (t − t_i) (f_{i+1} − f_i) / (t_{i+1} − t_i)   for t_i ≤ t ≤ t_{i+1},            (1)
    from (0, 0) unless a point at 0 is given, constant f_n after the last point t_n.

A schedule is a picklable function of the step, for `torch.optim.lr_scheduler.LambdaLR`. Steps
are counted from 0, so the first step of a warm-up from (0, 0) has rate 0. With k-fold accumulation
hidden in the momentum, a step is a micro-batch: "warm up for 40,000" at k = 4 is 10,000 updates.

Cost: one binary search. Source: article 9512 and the author's code (`lr_schedule`).
"""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PiecewiseLinear", "constant_with_warmup", "piecewise_linear", "warmup_linear"]


@dataclass(frozen=True)
class PiecewiseLinear:
    """The polygon (1) through `points`, pairs (step, factor) in rising order of the step.

    Made by `piecewise_linear`, which sorts and checks.
    """

    points: tuple[tuple[float, float], ...]

    def __call__(self, step: int | float) -> float:
        """The factor at a step ≥ 0."""
        after = bisect_right(self.points, (step, math.inf))
        if after == len(self.points):
            return self.points[-1][1]
        (t0, f0), (t1, f1) = self.points[max(after - 1, 0)], self.points[after]
        return f0 + (max(step, t0) - t0) * (f1 - f0) / (t1 - t0)  # (1)


def piecewise_linear(
    points: Mapping[int, int | float] | Mapping[float, int | float],
) -> PiecewiseLinear:
    """The factor of the learning rate as a polygon: (1).

    Args:
        points: step → factor. A point at 0 is the start; without one the start is (0, 0).

    Returns:
        A picklable function of the step, from 0.

    Raises:
        ValueError: no points, a negative step, or a number that is not finite.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> factor = piecewise_linear({1000: 1.0, 5000: 0.1})
        >>> scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        >>> [round(factor(step), 6) for step in (0, 500, 1000, 3000, 9000)]
        [0.0, 0.5, 1.0, 0.55, 0.1]
    """
    if not points:
        raise ValueError("points must not be empty: give {step: factor}, such as {1000: 1.0}")
    for step, factor in points.items():
        if not (math.isfinite(step) and math.isfinite(factor) and step >= 0):
            raise ValueError(
                f"points must map steps >= 0 to finite factors, got {{{step}: {factor}}}"
            )
    start = {} if 0 in points else {0.0: 0.0}
    given = {float(step): float(factor) for step, factor in points.items()}
    return PiecewiseLinear(tuple(sorted((start | given).items())))


def warmup_linear(warmup: int, total: int, *, end: int | float = 0.0) -> PiecewiseLinear:
    """From 0 to 1 in `warmup` steps, then straight to `end` at step `total`.

    Args:
        warmup: steps of the rise; 0 starts at 1.
        total: the step at which `end` is reached, more than `warmup`.
        end: the last factor; it stays.

    Raises:
        ValueError: not 0 ≤ warmup < total.

    Example:
        >>> factor = warmup_linear(10, 110)
        >>> [factor(step) for step in (0, 5, 10, 60, 110, 500)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """
    if not 0 <= warmup < total:
        raise ValueError(f"need 0 <= warmup < total, got warmup={warmup}, total={total}")
    return piecewise_linear({warmup: 1.0, total: end})


def constant_with_warmup(warmup: int) -> PiecewiseLinear:
    """From 0 to 1 in `warmup` steps, then 1 for ever.

    Args:
        warmup: steps of the rise; 0 is the constant 1.

    Raises:
        ValueError: a negative number of steps.

    Example:
        >>> [constant_with_warmup(4)(step) for step in (0, 1, 4, 100)]
        [0.0, 0.25, 1.0, 1.0]
    """
    if warmup < 0:
        raise ValueError(f"warmup must not be negative, got {warmup}")
    return piecewise_linear({warmup: 1.0})
