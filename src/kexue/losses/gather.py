"""Rows of all processes in one tensor, with the gradient that DDP needs.

A loss that compares examples with each other, such as a contrastive one (S03), wants those of
every process. Process r holds rows x_r and computes the loss L_r of its own anchors:

    gathered = (x_0, …, x_{R−1})                                                               (1)
    the gradient that arrives at x_r:   d(L_0 + … + L_{R−1}) / d x_r                           (2)

DDP divides by R, which makes (2) the gradient of the mean loss. `torch.distributed.all_gather`
alone has no gradient: what other processes' anchors say about x_r would be lost.

Cost: one all-gather forward, one all-reduce of the same size backward, and the sizes.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["gather_with_gradient"]


def gather_with_gradient(x: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes in the order of ranks, and where this process's rows start.

    The backward pass adds up what all processes' losses say about a row. With DDP's average over
    processes this is the gradient of the mean over all anchors. Without processes it is x itself.

    Raises:
        ValueError: the processes hold different numbers of rows; every process raises.
    """
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return x, 0
    size = torch.tensor([len(x)], device=x.device)
    sizes = size.new_empty(distributed.get_world_size())
    distributed.all_gather_into_tensor(sizes, size)
    if (sizes != sizes[0]).any():
        raise ValueError(
            f"processes hold {sizes.tolist()} rows; gathering needs equal batches: set drop_last"
        )
    gathered: Tensor = _Gather.apply(x)
    return gathered, distributed.get_rank() * len(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        everything = x.new_empty(torch.distributed.get_world_size() * len(x), *x.shape[1:])
        torch.distributed.all_gather_into_tensor(everything, x.contiguous())
        return everything  # (1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)  # (2); unlike reduce_scatter, gloo has it too
        start = torch.distributed.get_rank() * ctx.rows
        return total[start : start + ctx.rows]
