"""Optimizers by name, and the learning rate's way through a run."""

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from kexue.training.settings import FitSettings

__all__ = ["make_optimizer", "optimizer_class", "scale"]


def make_optimizer(model: nn.Module, settings: "FitSettings") -> torch.optim.Optimizer:
    """The named optimizer; matrices decay, vectors (biases, norms) do not.

    Raises:
        ValueError: `torch.optim` has no such class.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    name = optimizer_class(settings.optimizer)
    fused = {"fused": True} if name in ("Adam", "AdamW") else {}  # the others cannot be sharded
    optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(
        groups, lr=settings.learning_rate, **fused
    )
    return optimizer


NOT_FOR_FIT = ("Optimizer", "LBFGS", "SparseAdam", "Muon")
"""The base class, and those that need a closure, sparse gradients, or matrices only."""


def optimizer_class(name: str) -> str:
    """The class in `torch.optim` that a name stands for, in any case of letters.

    Raises:
        ValueError: there is none.
    """
    classes = [n for n in torch.optim.__all__ if isinstance(getattr(torch.optim, n), type)]
    names = {n.lower(): n for n in classes if n not in NOT_FOR_FIT}
    if name.lower() not in names:
        raise ValueError(f"no optimizer is called {name!r}; known: {', '.join(sorted(names))}")
    return names[name.lower()]


def scale(settings: "FitSettings", taken: int, steps: int) -> float:
    """The schedule as a factor of the peak rate, after `taken` of `steps` steps."""
    warm = math.ceil(settings.warmup * steps)
    if taken < warm:
        return (taken + 1) / warm
    if settings.schedule == "constant":
        return 1.0
    return (steps - taken) / max(1, steps - warm)
