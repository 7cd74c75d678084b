"""What AdaFactor keeps for a tensor: which averages, in which shapes, and from whom they may come.

For a parameter X whose factored axes are p (averaged away in R) and q (averaged away in C):

| name | shape                        | kept                                            |
|------|------------------------------|-------------------------------------------------|
| row  | of X, with 1 for the axis p  | R, if there are factors                         |
| col  | of X, with 1 for the axis q  | C, if there are factors                         |
| v    | of X                         | V, if there are none                            |
| m    | of X                         | M, if β1 > 0                                    |
| step | a single whole number        | t                                               |

The shapes say which axes are p and q, also where two are equally long. The state of Hugging Face's
class is the same without the 1s, for the last two axes, and with a momentum of finished steps:

    R = exp_avg_sq_row,  C = exp_avg_sq_col,  V = exp_avg_sq,  M = exp_avg / α                 (1)
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from kexue.optim.own_step import OwnStep
from kexue.optim.per_tensor import pair, parameter_name

__all__ = ["check_options", "factor_shapes", "from_hugging_face"]


def factor_shapes(
    shape: Iterable[int], axes: str = "largest", threshold: int | float = 128
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The shapes of R and C; None for a tensor that keeps the whole V.

    Example:
        >>> factor_shapes((512, 256, 3, 3)), factor_shapes((64, 3, 7, 7))
        (((1, 256, 3, 3), (512, 1, 3, 3)), None)
    """
    shape = tuple(shape)
    if len(shape) < 2:
        return None
    order = (
        range(len(shape)) if axes == "last" else sorted(range(len(shape)), key=shape.__getitem__)
    )
    q, p = order[-2], order[-1]  # equal lengths: the last axes
    if min(shape[q], shape[p]) < threshold:
        return None
    row, col = ([1 if i == gone else n for i, n in enumerate(shape)] for gone in (p, q))
    return tuple(row), tuple(col)


def check_options(group: dict[str, Any]) -> None:
    """Raises ValueError if an option of a group, or a parameter in it, cannot be used."""
    lr = None if isinstance(group["lr"], OwnStep) else group["lr"]
    beta1, beta2 = group["beta1"], group["beta2"]
    if lr is not None and not lr >= 0:
        raise ValueError(f"lr must not be negative, got {lr}; None lets AdaFactor choose")
    if lr is not None and group["warmup_init"]:
        raise ValueError(f"warmup_init shapes the steps of lr=None, but lr is {lr}; drop one")
    if not 0 <= beta1 < 1:
        raise ValueError(f"beta1 must lie in [0, 1), got {beta1}")
    if beta2 is not None and not 0 < beta2 < 1:
        raise ValueError(f"beta2 must lie in (0, 1) or be None, got {beta2}")
    for name in ("beta2_decay", "clip_threshold"):
        if not group[name] > 0:
            raise ValueError(f"{name} must be positive, got {group[name]}")
    if min(pair(group, "eps")) < 0:
        raise ValueError(f"eps must be two numbers, not negative, got {group['eps']}")
    for name in ("weight_decay", "min_dim_size_to_factor"):
        if not group[name] >= 0:
            raise ValueError(f"{name} must not be negative, got {group[name]}")
    if group["factored_axes"] not in ("largest", "last"):
        raise ValueError(
            f"factored_axes must be 'largest' or 'last', got {group['factored_axes']!r}"
        )
    dtype = group["momentum_dtype"]
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"momentum_dtype must be a floating dtype or None, got {dtype}")
    for parameter in group["params"]:
        if getattr(parameter, "_fsdp_flattened", False):
            raise ValueError(
                f"{parameter_name(group, parameter)} was flattened by FSDP and has lost its "
                "rows and columns; shard with fully_shard (FSDP2), or use another optimizer"
            )


def from_hugging_face(state_dict: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """A state_dict of `transformers.Adafactor` as one of ours; any other comes back as it is.

    The training goes on as it would have gone on there; settings with which it would not are
    refused. A momentum is divided by the step size that belongs to the saved learning rate. That is
    exact if the steps have one size, without `scale_parameter`; else the momentum's old part is off
    by as much as the step size has changed since.

    Args:
        state_dict: of either class.
        groups: those of the optimizer that loads it.

    Raises:
        ValueError: this optimizer factors other axes or has other groups; or the saved one has a
            weight decay relative to RMS(X), relative steps without `scale_parameter`, or a momentum
            of steps of length 0.
    """
    saved_groups = state_dict["param_groups"]
    if not all("decay_rate" in group and "relative_step" in group for group in saved_groups):
        return state_dict
    if len(saved_groups) != len(groups):
        raise ValueError(
            f"this transformers.Adafactor had {len(saved_groups)} parameter groups, the optimizer "
            f"that loads it has {len(groups)}; build it with the same groups"
        )
    both = list(zip(saved_groups, groups, strict=True))
    for i, (saved, group) in enumerate(both):
        refuse_differences(i, saved, group)
    state = {
        key: state_from_hugging_face(state_dict["state"][key], saved)
        for saved in saved_groups
        for key in saved["params"]
        if state_dict["state"].get(key)
    }
    translated = [group | options_from_hugging_face(saved) for saved, group in both]
    return state_dict | {"state": state, "param_groups": translated}


def refuse_differences(i: int, saved: dict[str, Any], group: dict[str, Any]) -> None:
    """Raises ValueError where the same numbers would mean another training."""
    if group["factored_axes"] != "last":
        raise ValueError(
            f"a state of transformers.Adafactor averages the last two axes, but group {i} here "
            f"has factored_axes={group['factored_axes']!r}; build it with factored_axes='last'"
        )
    if saved["weight_decay"] and saved["scale_parameter"]:
        raise ValueError(
            f"group {i} of this transformers.Adafactor decays by {saved['weight_decay']} times "
            "RMS(X), which AdaFactor does not; set its 'weight_decay' to 0 in the state_dict"
        )
    if saved["relative_step"] and not saved["scale_parameter"]:
        raise ValueError(
            f"group {i} of this transformers.Adafactor has relative steps without "
            "scale_parameter, which are 20 times shorter here; give it an 'lr' and set "
            "'relative_step' to False in the state_dict"
        )


def options_from_hugging_face(saved: dict[str, Any]) -> dict[str, Any]:
    """The options of a group under our names."""
    same = ("params", "param_names", "eps", "clip_threshold", "weight_decay", "scale_parameter")
    ours = {name: saved[name] for name in (*same, "warmup_init", "initial_lr") if name in saved}
    return {
        **ours,
        "lr": None if saved["relative_step"] else saved["lr"],
        "beta1": saved["beta1"] or 0.0,
        "beta2": None,
        "beta2_decay": -saved["decay_rate"],
        "min_dim_size_to_factor": 0,
    }


def state_from_hugging_face(kept: dict[str, Any], saved: dict[str, Any]) -> dict[str, Tensor]:
    """The state of one parameter: (1)."""
    t, state = int(kept["step"]), {"step": torch.tensor(int(kept["step"]))}
    if "exp_avg_sq" in kept:
        state["v"] = at_least_float(kept["exp_avg_sq"])
    else:
        state["row"] = at_least_float(kept["exp_avg_sq_row"]).unsqueeze(-1)
        state["col"] = at_least_float(kept["exp_avg_sq_col"]).unsqueeze(-2)
    if saved["beta1"]:
        rate = saved["lr"]
        if saved["relative_step"]:
            rate = min(1e-6 * t if saved["warmup_init"] else 1e-2, t**-0.5)
        alpha = rate * max(saved["eps"][1], kept["RMS"]) if saved["scale_parameter"] else rate
        if not alpha > 0:
            raise ValueError(
                f"the momentum of this transformers.Adafactor holds steps of length {alpha}; set "
                "'lr' in the state_dict to the learning rate of its last step"
            )
        state["m"] = at_least_float(kept["exp_avg"]) / alpha  # (1)
    return state


def at_least_float(kept: Tensor) -> Tensor:
    """In float32 or better."""
    return kept.to(torch.promote_types(kept.dtype, torch.float32))
