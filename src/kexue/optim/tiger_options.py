"""What Tiger's options may be, and the messages where they are not."""

import re
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["check_options", "refuse_small_tensors"]

SMALL = re.compile(r"(^|[._])(bias|beta|gamma)$|[Nn]orm|(^|\.)ln_?\w*\.")
"""Names that biases and normalisations usually have."""


def refuse_small_tensors(group: dict[str, Any]) -> None:
    """A group that names no kind must not hold what is known by name to be no matrix.

    Raises:
        ValueError: a name looks like that of a bias or a normalisation.
    """
    for name in group.get("param_names") or ():
        if SMALL.search(name):
            raise ValueError(
                f"{name} looks like a bias or a normalisation, but its group names no kind, and "
                "Tiger would give it the step length of a matrix; build from the module, "
                'Tiger(model), or from tiger_param_groups(model), or set "kind" in the group '
                '("matrix" if it is meant)'
            )


def check_options(group: dict[str, Any], kinds: Sequence[str]) -> None:
    """All options of a group.

    Raises:
        ValueError: one is out of range.
    """
    for name in ("lr", "weight_decay", "min_rms"):
        if not group[name] >= 0:
            raise ValueError(f"{name} must not be negative, got {group[name]}")
    if not 0 <= group["beta"] < 1:
        raise ValueError(f"beta must lie in [0, 1), got {group['beta']}")
    if not (isinstance(group["accum_steps"], int) and group["accum_steps"] >= 1):
        raise ValueError(
            f"accum_steps must be a whole number from 1, got {group['accum_steps']!r}; it counts "
            "the micro-batches of one update"
        )
    if not 0 < group["shrink"] <= 1:
        raise ValueError(f"shrink must lie in (0, 1], got {group['shrink']}")
    if group["scale"] is not None and not group["scale"] > 0:
        raise ValueError(
            f"scale must be positive, got {group['scale']}; None takes the RMS of each tensor"
        )
    for name, allowed in (("kind", tuple(kinds)), ("nan_decay", ("deferred", "author"))):
        if group[name] not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {group[name]!r}")
    if group["momentum_dtype"] not in (None, torch.float32, torch.bfloat16):
        raise ValueError(
            "momentum_dtype must be None, torch.float32 or torch.bfloat16, got "
            f"{group['momentum_dtype']}"
        )
    if group["average_momentum"] and group["nonfinite"] == "shrink":
        raise ValueError(
            "average_momentum cannot shrink weights, because the gradients of the processes differ "
            "and so would their weights; give nonfinite='skip'"
        )
