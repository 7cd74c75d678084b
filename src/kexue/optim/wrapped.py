"""The torch optimizer inside what Accelerate and Lightning wrap around one.

Hooks belong on the inner one, whose `step` the wrappers call.
"""

from typing import Any

from torch.optim import Optimizer

__all__ = ["unwrapped"]


def unwrapped(optimizer: Any) -> Optimizer:
    """The `torch.optim.Optimizer` that does the work.

    Raises:
        TypeError: there is none.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
        >>> unwrapped(sgd) is sgd
        True
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer)}")
    return optimizer
