"""Statistics of batches that a loss keeps: averaged over time, summed over processes (S37)."""

import torch
from torch import Tensor, distributed

__all__ = ["follow", "sum_over_processes"]


@torch.no_grad()
def follow(average: Tensor, new: Tensor, momentum: float, *, started: Tensor) -> None:
    """average ← momentum·average + (1 − momentum)·new in place, or new where it has not started."""
    keep = momentum * started.to(new.dtype)
    average.copy_(torch.lerp(new, average.to(new.dtype), keep.expand_as(new)))


def sum_over_processes(statistics: Tensor) -> Tensor:
    """The sum over all processes of torch.distributed; the tensor itself where there is one.

    Equal on all of them, so that all weigh alike.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return statistics
    statistics = statistics.clone()
    distributed.all_reduce(statistics)
    return statistics
