"""A step on trial: whatever happens to a model and its optimizer inside is undone behind it.

    with untouched(model, optimizer):
        loss.backward()
        optimizer.step()

Parameters, buffers, gradients, modes, the optimizer's state and options and the random numbers
afterwards are the very tensors from before, with the same bits. What lies elsewhere is not known
and not put back: plain attributes that a module changes in `forward`, what hooks remember.

Cost: one copy of the parameters, the buffers and the optimizer's state.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kexue.losses.same_noise import SameNoise

__all__ = ["restore_buffers", "saved_buffers", "untouched"]

Buffers = list[tuple[nn.Module, str, Tensor, Tensor]]
"""Each buffer's module and name, the buffer itself, and a copy of what it held."""


@contextmanager
def untouched(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Undo everything that the block does to `model` and `optimizer`, also when it raises.

    Args:
        model: the network.
        optimizer: a torch optimizer; its state may be empty and is then empty again.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> before = layer.weight.clone()
        >>> adam = torch.optim.Adam(layer.parameters())
        >>> with untouched(layer, adam):
        ...     layer(torch.ones(2)).sum().backward()
        ...     adam.step()
        >>> torch.equal(layer.weight, before), layer.weight.grad, len(adam.state)
        (True, None, 0)
    """
    held = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = list({id(p): p for p in [*model.parameters(), *held]}.values())
    values = [p.detach().clone() for p in parameters]
    gradients = [(p, p.grad) for p in parameters]
    buffers, modes = saved_buffers(model), [(m, m.training) for m in model.modules()]
    attributes = dict(vars(optimizer))
    same: dict[int, Any] = {id(p): p for p in parameters}  # copies of dicts keep their parameters
    noise = SameNoise(values[0].device if values else torch.device("cpu"))
    try:
        for p in parameters:
            p.grad = None
        for name in ("state", "param_groups"):  # the block works on copies
            setattr(optimizer, name, copy.deepcopy(attributes[name], dict(same)))
        with noise.replay():
            yield
    finally:
        vars(optimizer).clear()
        vars(optimizer).update(attributes)
        with torch.no_grad():
            for p, value in zip(parameters, values, strict=True):
                p.copy_(value)
        for p, gradient in gradients:
            p.grad = gradient
        restore_buffers(buffers)
        for module, mode in modes:
            module.training = mode


def saved_buffers(model: nn.Module) -> Buffers:
    """The buffers of a model with copies of their values, for `restore_buffers`."""
    return [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


def restore_buffers(saved: Buffers) -> None:
    """Put the buffers back, also those that were replaced by other tensors."""
    with torch.no_grad():
        for module, name, buffer, value in saved:
            buffer.copy_(value)
            module._buffers[name] = buffer
