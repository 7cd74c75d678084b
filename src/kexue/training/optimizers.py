"""The optimizer of a run, and the learning rate's way through it."""

import math
from typing import Any

import torch
from torch import nn

from kexue.optim import Tiger, tiger_param_groups
from kexue.training.recipes import build, optimizer_class
from kexue.training.settings import FitSettings

__all__ = ["make_optimizer", "scale"]


def make_optimizer(model: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    """The named optimizer; matrices decay, vectors (biases, norms) do not.

    Raises:
        ValueError: there is no such optimizer, or it has no such option.
    """
    kind = optimizer_class(settings.optimizer)
    options: dict[str, Any] = {"lr": settings.learning_rate, **settings.options}
    if kind is Tiger:  # its groups say which tensors decay
        options["weight_decay"] = settings.weight_decay
        return build(settings.optimizer, tiger_param_groups(model), options)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {
            "params": [(name, p) for name, p in trained if p.ndim > 1],
            "weight_decay": settings.weight_decay,
        },
        {"params": [(name, p) for name, p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return build(settings.optimizer, [group for group in groups if group["params"]], options)


def scale(settings: FitSettings, taken: int, steps: int) -> float:
    """The schedule as a factor of the peak rate, after `taken` of `steps` steps."""
    warm = math.ceil(settings.warmup * steps)
    if taken < warm:
        return (taken + 1) / warm
    if settings.schedule == "constant":
        return 1.0
    return (steps - taken) / max(1, steps - warm)
