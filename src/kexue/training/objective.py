"""What is minimised, and the wrappers that change it.

An objective is any function `(model, batch) -> scalar loss`, the mean over `batch.count`. A trick
of the loss takes an objective and returns an objective, so tricks stack in the order written:
the first one named is the innermost.

    objective = apply_tricks(task.loss, ["r_drop=4", "flooding=0.1"])   # flooding(r_drop(loss))

A trick enters the command line (`--trick name=value`) by registering a factory under its name.
"""

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import Tensor, nn

from kexue.data.batching import Batch

__all__ = ["Objective", "apply_tricks", "parse_trick", "register_trick", "tricks"]

Objective = Callable[[nn.Module, Batch], Tensor]
Factory = Callable[[Objective, float], Objective]
F = TypeVar("F", bound=Factory)

REGISTRY: dict[str, Factory] = {}


def register_trick(name: str) -> Callable[[F], F]:
    """Makes `factory(objective, value) -> objective` available as `--trick name=value`.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> @register_trick("half")
        ... def half(objective, value):
        ...     return lambda model, batch: objective(model, batch) * value
        >>> tricks()
        ('half',)
        >>> apply_tricks(lambda model, batch: 8.0, ["half=0.5"])(None, None)
        4.0
        >>> del REGISTRY["half"]
    """

    def register(factory: F) -> F:
        if name in REGISTRY:
            raise ValueError(f"a trick called {name} is registered already")
        REGISTRY[name] = factory
        return factory

    return register


def tricks() -> tuple[str, ...]:
    """The names `--trick` knows."""
    return tuple(sorted(REGISTRY))


def parse_trick(text: str) -> tuple[str, float]:
    """`name=value` as a pair.

    Raises:
        ValueError: not of that form, an unknown name, or a value that is no finite number.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--trick needs name=value, got {text!r}")
    if name not in REGISTRY:
        known = ", ".join(tricks()) or "none is installed"
        raise ValueError(f"no trick is called {name!r}; known: {known}")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"the value of --trick {name} must be a number, got {value!r}")
    return name, number


def apply_tricks(objective: Objective, named: Iterable[str]) -> Objective:
    """The objective wrapped by each `name=value` in turn, first one innermost."""
    for name, value in [parse_trick(text) for text in named]:
        objective = REGISTRY[name](objective, value)
    return objective
