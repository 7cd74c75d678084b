"""What is minimised, and the wrappers that change it.

An objective is any function `(model, batch) -> scalar loss`, the mean over `batch.count`. A trick
of the loss takes an objective and returns an objective, so tricks stack in the order written:
the first one named is the innermost.

    objective = apply_tricks(task.loss, ["r_drop=4", "flooding=0.1"])   # flooding(r_drop(loss))

A trick enters the command line (`--trick name=value`) by registering a factory under its name.
What the innermost objective gave is kept as `raw` and logged beside the loss that was minimised.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from kexue.data.batching import Batch

__all__ = [
    "Objective",
    "TaskFacts",
    "Tricked",
    "apply_tricks",
    "parse_trick",
    "register_trick",
    "tricks",
]

Objective = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class TaskFacts:
    """What a trick may need to know of the task whose loss it changes.

    Args:
        name: of the task, for messages.
        distribution: what the model's outputs are the scores of: "softmax" over the last axis with
            the right class in `batch.targets["label"]`, "spans" (softmax over all cells),
            "multilabel" (each cell for itself), or "" for none of these.
        label_counts: counts how often each class occurs in the training data; None: no classes.
    """

    name: str = "this task"
    distribution: str = ""
    label_counts: Callable[[], Tensor] | None = None


Factory = Callable[[Objective, float, TaskFacts], Objective]
F = TypeVar("F", bound=Factory)

REGISTRY: dict[str, Factory] = {}


def register_trick(name: str) -> Callable[[F], F]:
    """Makes `factory(objective, value, facts) -> objective` available as `--trick name=value`.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> @register_trick("half")
        ... def half(objective, value, facts):
        ...     return lambda model, batch: objective(model, batch) * value
        >>> "half" in tricks()
        True
        >>> import torch
        >>> objective = apply_tricks(lambda model, batch: torch.tensor(8.0), ["half=0.5"])
        >>> objective(nn.Identity(), Batch({})), objective.raw
        (tensor(4.), tensor(8.))
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


class Tricked:
    """An objective with tricks around it; `raw` is what the innermost one gave in the last call.

    Args:
        objective: the innermost one.
        named: (name, value) of each trick, innermost first.
        facts: what the tricks may need to know.
    """

    def __init__(
        self, objective: Objective, named: list[tuple[str, float]], facts: TaskFacts
    ) -> None:
        self.objective = objective
        self.raw: Tensor | None = None
        self.outer: Objective = self.remember
        for name, value in named:
            self.outer = REGISTRY[name](self.outer, value, facts)

    def remember(self, model: nn.Module, batch: Batch) -> Tensor:
        """The innermost loss; of several in one call the first is kept."""
        loss = self.objective(model, batch)
        if self.raw is None:
            self.raw = loss.detach()
        return loss

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        self.raw = None
        return self.outer(model, batch)


def apply_tricks(
    objective: Objective, named: Iterable[str], facts: TaskFacts | None = None
) -> Objective:
    """The objective wrapped by each `name=value` in turn, first one innermost.

    Args:
        objective: mean loss over a batch's count.
        named: the tricks as text.
        facts: of the task; some tricks need them.

    Raises:
        ValueError: an unknown trick, a value out of range, or a task the trick is not for.
    """
    pairs = [parse_trick(text) for text in named]
    return Tricked(objective, pairs, facts or TaskFacts()) if pairs else objective
