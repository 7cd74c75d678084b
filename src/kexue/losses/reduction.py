"""How the losses of single terms become one: the same four ways in every loss of this folder."""

from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Reduced", "Reduction", "check_reduction", "reduced"]

Reduction = Literal["mean", "sum", "none", "sum_and_count"]
Reduced = Tensor | tuple[Tensor, Tensor]
"""A tensor, or for "sum_and_count" a pair of 0-d tensors."""


def check_reduction(reduction: str) -> None:
    """Refuses an unknown reduction.

    Raises:
        ValueError: the message names the known ones.
    """
    if reduction not in get_args(Reduction):
        known = ", ".join(map(repr, get_args(Reduction)))
        raise ValueError(f"reduction must be one of {known}, got {reduction!r}")


def reduced(values: Tensor, reduction: str, weight: Tensor | None = None) -> Reduced:
    """The losses of single terms as one.

    Gradients accumulated over micro-batches equal those of the large batch if every part's sum is
    divided by the count of all parts: hence "sum_and_count".

    Args:
        values: one loss per term, any shape.
        reduction: "mean" over the terms that count (0 if none does), "sum", "none" for the values
            as they are (0 where they do not count), or "sum_and_count" for both numbers.
        weight: how much each term counts, broadcastable to the values, such as a mask of 0 and 1;
            None: all count 1. A term of weight 0 contributes nothing, even if it is NaN.

    Raises:
        ValueError: an unknown reduction.

    Example:
        >>> import torch
        >>> reduced(torch.tensor([1.0, 2.0, 6.0]), "mean", torch.tensor([1, 1, 0]))
        tensor(1.5000)
    """
    check_reduction(reduction)
    if weight is None:
        count = torch.tensor(values.numel(), dtype=values.dtype, device=values.device)
    else:
        weight = weight.to(values.dtype).expand_as(values)
        values = torch.where(weight == 0, 0.0, values * weight)
        count = weight.sum()
    if reduction == "none":
        return values
    total = values.sum()
    if reduction == "sum":
        return total
    if reduction == "mean":
        return total / torch.where(count == 0, 1.0, count)
    return total, count
