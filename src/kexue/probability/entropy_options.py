"""What a caller may ask of entropy normalisation, checked before any row is looked at (S08)."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Method", "Unreachable", "checked", "mask_of_entries", "target_of_rows"]

Method = Literal["newton", "article"]
Unreachable = Literal["raise", "clamp"]


def target_of_rows(
    entropy: float | int | Tensor | None,
    perplexity: float | int | Tensor | None,
    bits: bool,
    x: Tensor,
) -> Tensor:
    """H* in nats, one number per row.

    Args:
        entropy: in nats, or in bits; None where there is a perplexity.
        perplexity: exp(H*).
        bits: the entropy is in bits.
        x: the distributions along the last axis; they give shape, dtype and device.

    Raises:
        ValueError: the shape does not fit.
    """
    wanted = torch.as_tensor(
        entropy if perplexity is None else perplexity, dtype=x.dtype, device=x.device
    )
    if perplexity is not None:
        wanted = wanted.log()
    elif bits:
        wanted = wanted * math.log(2)
    return _broadcast(wanted, x.shape[:-1], "the target must be a number or broadcast to the rows")


def mask_of_entries(mask: Tensor, given: Tensor) -> Tensor:
    """The mask, broadcast to the distributions.

    Raises:
        TypeError: it is not boolean.
        ValueError: its shape does not fit.
    """
    if mask.dtype is not torch.bool:
        raise TypeError(f"mask must be of torch.bool (True = visible), got {mask.dtype}")
    return _broadcast(mask, given.shape, "mask must broadcast to the distributions")


def _broadcast(tensor: Tensor, shape: torch.Size, need: str) -> Tensor:
    try:
        return tensor.broadcast_to(shape)
    except RuntimeError:
        raise ValueError(f"{need}, {(*shape,)}, got shape {(*tensor.shape,)}") from None


def checked(
    p: Tensor | None,
    logits: Tensor | None,
    target_entropy: float | int | Tensor | None,
    perplexity: float | int | Tensor | None,
    tol: float,
    max_iter: int,
    on_unreachable: str,
    method: str,
) -> Tensor:
    """The one of p and logits that was given, once all options are good.

    Raises:
        TypeError: it is no floating tensor.
        ValueError: not exactly one of each pair, or an option that makes no sense.
    """
    given = p if logits is None else logits
    if given is None or (p is not None and logits is not None):
        raise ValueError("give exactly one of p and logits")
    if (target_entropy is None) == (perplexity is None):
        raise ValueError("give exactly one of target_entropy and perplexity")
    if not isinstance(given, Tensor) or not given.is_floating_point():
        got = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"p or logits must be a floating tensor, got {got}")
    if given.ndim == 0:
        raise ValueError("a distribution needs at least one axis, got a single number")
    if isinstance(perplexity, float | int) and not 1 <= perplexity < math.inf:
        raise ValueError(f"perplexity is exp(entropy), at least 1, got {perplexity}")
    if not tol >= 0 or not isinstance(max_iter, int) or max_iter < 1:
        raise ValueError(
            f"tol must be ≥ 0 and max_iter ≥ 1, a whole number, got {tol} and {max_iter}"
        )
    if on_unreachable not in get_args(Unreachable):
        raise ValueError(f'on_unreachable must be "raise" or "clamp", got {on_unreachable!r}')
    if method not in get_args(Method):
        raise ValueError(f'method must be "newton" or "article", got {method!r}')
    return given
