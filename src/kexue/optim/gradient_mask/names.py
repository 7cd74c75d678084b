"""Which parameters a method of `kexue.optim` works on: by patterns of their names.

A `torch.optim.Optimizer` knows names only if it was built from `named_parameters()`; otherwise the
model tells them. Wrappers (DDP, torch.compile) put words before a name that are no part of it.
"""

import re
from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

__all__ = ["NUMBERED_BLOCKS", "choose", "plain_name", "trained_parameters"]

NUMBERED_BLOCKS = r"(layers?|blocks?|(^|\.)h)\.\d+\."
"""Names such as `encoder.layer.3.…`: the stack of blocks, without embeddings, pooler and head."""


def choose(names: Iterable[str], include: str, exclude: str | None) -> list[str]:
    """The names in which the expression `include` is found and `exclude` is not.

    Raises:
        ValueError: there is none; the message shows names to write an expression for.

    Example:
        >>> choose(["encoder.layer.0.weight", "head.weight"], NUMBERED_BLOCKS, None)
        ['encoder.layer.0.weight']
    """
    names = list(names)
    found = [
        name
        for name in names
        if re.search(include, name) and not (exclude is not None and re.search(exclude, name))
    ]
    if not found:
        some = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        raise ValueError(
            f"no trainable parameter matches include={include!r}, exclude={exclude!r}; the names "
            f"are {some or 'unknown'}. Give a regular expression of the pretrained ones, or "
            "include='' for all, and exclude a new head, which must learn freely"
        )
    return found


def plain_name(name: str) -> str:
    """A parameter's name without what DDP and torch.compile put before it.

    Example:
        >>> plain_name("module._orig_mod.encoder.layer.0.weight")
        'encoder.layer.0.weight'
    """
    return name.replace("_orig_mod.", "").removeprefix("module.")


def trained_parameters(
    optimizer: Optimizer, model: nn.Module | None = None, *, anonymous: bool = False
) -> dict[str, nn.Parameter]:
    """Name → parameter, for what an optimizer trains; parameters without a name are left out.

    Args:
        optimizer: any; names of its own are used where `model` has none.
        model: whose `named_parameters()` are names.
        anonymous: if no parameter has a name, call them `parameter 0`, `parameter 1`, …

    Raises:
        ValueError: no parameter has a name, and they may not be anonymous; two have the same one.
    """
    names = {} if model is None else {p: plain_name(n) for n, p in model.named_parameters()}
    every: list[tuple[str | None, nn.Parameter]] = []
    for group in optimizer.param_groups:
        own = group.get("param_names") or [None] * len(group["params"])
        for parameter, name in zip(group["params"], own, strict=True):
            every.append((names.get(parameter, name and plain_name(name)), parameter))
    if not any(name for name, _ in every):
        if not anonymous:
            shapes = ", ".join(str(tuple(parameter.shape)) for _, parameter in every[:4])
            raise ValueError(
                f"the optimizer's parameters (shapes {shapes}, …) have no names; give model= the "
                "module they belong to, or build the optimizer from model.named_parameters()"
            )
        every = [(f"parameter {index}", parameter) for index, (_, parameter) in enumerate(every)]
    found: dict[str, nn.Parameter] = {}
    for name, parameter in every:
        if not (name and parameter.requires_grad):
            continue
        if found.setdefault(name, parameter) is not parameter:
            raise ValueError(
                f"two parameters of the optimizer are called {name}; give model= a module that "
                'holds both models, such as nn.ModuleDict({"first": …, "second": …})'
            )
    return found
