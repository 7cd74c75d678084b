"""Which optimizer a name stands for, and the settings that go with it.

kexue's own come first: adafactor, adax, lion, tiger
then every class of torch.optim that fits the loop, in any case of letters: adamw, sgd, …
torch.NAME is torch's where kexue has one of the same name: torch.adafactor
"""

import inspect
import json
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from kexue.optim import AdaFactor, AdaX, Lion, Tiger

__all__ = [
    "OURS",
    "Recipe",
    "build",
    "check_options",
    "known_optimizers",
    "optimizer_class",
    "parse_option",
    "recipe_of",
]

OURS: MappingProxyType[str, type[torch.optim.Optimizer]] = MappingProxyType(
    {"adafactor": AdaFactor, "adax": AdaX, "lion": Lion, "tiger": Tiger}
)
NOT_FOR_FIT = ("Optimizer", "LBFGS", "SparseAdam", "Muon")
"""The base class, and those that need a closure, sparse gradients, or matrices only."""


def known_optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """Every name and its class."""
    found = {name: getattr(torch.optim, name) for name in torch.optim.__all__}
    torchs = {
        name.lower(): kind
        for name, kind in found.items()
        if isinstance(kind, type) and name not in NOT_FOR_FIT
    }
    shadowed = {f"torch.{name}": torchs[name] for name in OURS if name in torchs}
    return dict(sorted((torchs | shadowed | OURS).items()))


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class that a name stands for.

    Raises:
        ValueError: there is none.
    """
    known = known_optimizers()
    plain = name.lower()
    torchs = plain.removeprefix("torch.")
    if plain not in known and torchs in known and torchs not in OURS:
        plain = torchs
    if plain not in known:
        raise ValueError(f"no optimizer is called {name!r}; known: {', '.join(known)}")
    return known[plain]


TAKEN = ("params", "lr", "weight_decay", "fused", "self")


def check_options(name: str, options: dict[str, Any]) -> None:
    """Refuses options that the optimizer of this name does not have, or not with these values.

    Raises:
        ValueError: the message names those it has, or says what is wrong with a value.
    """
    has = [o for o in inspect.signature(optimizer_class(name)).parameters if o not in TAKEN]
    for option in options:
        if option not in has:
            raise ValueError(f"{name} has no option {option!r}; known: {', '.join(has)}")
    build(name, [torch.nn.Parameter(torch.zeros(1))], options)


def build(name: str, groups: list[Any], options: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of this name.

    Raises:
        ValueError: it does not take these options.
    """
    kind = optimizer_class(name)
    chosen = dict(options)
    if kind in (torch.optim.Adam, torch.optim.AdamW):  # the others cannot be sharded
        chosen["fused"] = True
    try:
        return kind(groups, **chosen)
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        own = {option: value for option, value in options.items() if option not in TAKEN}
        raise ValueError(f"{name} does not take the options {own}: {error}") from error


def parse_option(text: str) -> tuple[str, Any]:
    """`name=value` as a pair; the value is read as JSON where it can be, else taken as text.

    Raises:
        ValueError: not of that form.

    Example:
        >>> parse_option("betas=[0.95, 0.98]"), parse_option("nonfinite=raise")
        (('betas', (0.95, 0.98)), ('nonfinite', 'raise'))
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--option needs name=value, got {text!r}")
    try:
        read = json.loads(value)
    except ValueError:
        read = value
    return name, tuple(read) if isinstance(read, list) else read


@dataclass(frozen=True)
class Recipe:
    """The settings that go with an optimizer.

    Args:
        learning_rate: for a pretrained encoder.
        from_scratch: the rate for a small network with random weights.
        schedule, warmup, weight_decay, max_grad_norm: as in `FitSettings`.
        options: of the optimizer itself.
    """

    learning_rate: float
    from_scratch: float
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0
    options: dict[str, Any] = field(default_factory=dict)


ADAM = Recipe(2e-5, 1e-3)
RECIPES = {
    # the author's for CLUE: rates relative to each tensor, nothing but a constant
    "adafactor": Recipe(
        5e-4,
        4e-2,
        schedule="constant",
        warmup=0.0,
        weight_decay=0.0,
        max_grad_norm=None,
        options={"beta1": 0.9, "min_dim_size_to_factor": 1_000_000},
    ),
    "adax": Recipe(2e-5, 5e-3),
    # a fifth of Adam's rate, five times its decay (2302.06675, section 5); scale-free: no clipping
    "lion": Recipe(4e-6, 5e-4, weight_decay=0.05, max_grad_norm=None),
    # rates relative to each tensor, as AdaFactor's; scale-free: no clipping
    "tiger": Recipe(5e-4, 1e-2, max_grad_norm=None),
    "sgd": Recipe(1e-2, 1e-1, options={"momentum": 0.9}),
}


def recipe_of(name: str) -> Recipe:
    """The settings for an optimizer; Adam's where it has none of its own."""
    return RECIPES.get(name.lower(), ADAM)
