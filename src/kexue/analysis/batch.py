"""A batch for any model: its arguments, its floating tensors, its tokens that are no padding.

a mapping        model(**batch)
tuple or list    model(*batch)
anything else    model(batch)
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["arguments_of", "first_tensor", "run", "visible_rows"]


def arguments_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments.

    Example:
        >>> arguments_of({"x": 1}), arguments_of((1, 2)), arguments_of(1)
        (((), {'x': 1}), ((1, 2), {}), ((1,), {}))
    """
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, tuple | list) else ((batch,), {})


def run(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch."""
    args, kwargs = arguments_of(batch)
    return model(*args, **kwargs)


def first_tensor(*values: Any) -> Tensor | None:
    """The first floating tensor in arguments, outputs, tuples and mappings; None without one."""
    for one in _flat(values):
        if one.is_floating_point():
            return one
    return None


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _flat(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _flat(one)


def visible_rows(x: Tensor, batch: Any) -> Tensor:
    """The tokens that are no padding, by the batch's `attention_mask` of shape (B, L)."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is None or x.dim() < 3 or x.shape[:2] != mask.shape:
        return x
    return x[mask.to(x.device).bool()]
