r"""Which keys a query may see: checks, pairs, and a softmax that knows empty rows.

Every attention layer of kexue takes the same mask, `attention_mask` of shape (B, K), True =
visible, and none returns NaN: a row that sees no key is a row of zeros, and so is its gradient.

    visible_ij = mask_j  and  (j <= offset + i  where causal)                                   (1)
    p_ij = exp(s_ij) / sum over visible j of exp(s_ij),   0 where nothing is visible             (2)

`offset` is the number of keys that stand before the first query, as with a cache in decoding.

Axes: B batch, Q queries, K keys.
Cost: one pass over the scores; the pairs of (1) without a mask are (1, Q, K), shared by the batch.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["check_attention_mask", "masked_softmax", "visible_pairs"]


def check_attention_mask(
    mask: Tensor | None, batch: int, length: int, name: str = "attention_mask"
) -> None:
    """Refuse anything but None or a boolean (batch, length) tensor.

    Args:
        mask: what the user gave.
        batch: rows it must have.
        length: columns it must have.
        name: of the argument, for the message.

    Raises:
        TypeError: not boolean; 0 and 1 of a tokenizer want `.bool()`, and an additive mask of 0
            and −inf is the opposite convention.
        ValueError: another shape.

    Example:
        >>> import torch
        >>> check_attention_mask(torch.tensor([[True, False]]), batch=1, length=2)
        >>> check_attention_mask(torch.tensor([[1, 0]]), batch=1, length=2)
        Traceback (most recent call last):
        ...
        TypeError: attention_mask must be bool, True = visible, got torch.int64: pass mask.bool()
    """
    if mask is None:
        return
    if mask.dtype != torch.bool:
        way_out = "mask == 0" if mask.is_floating_point() else "mask.bool()"
        raise TypeError(f"{name} must be bool, True = visible, got {mask.dtype}: pass {way_out}")
    if mask.shape != (batch, length):
        raise ValueError(
            f"{name} must have shape (batch, length) = ({batch}, {length}), got {tuple(mask.shape)}"
        )


def visible_pairs(
    q_len: int,
    k_len: int,
    attention_mask: Bool[Tensor, "B K"] | None = None,
    causal: bool = False,
    offset: int = 0,
    device: torch.device | None = None,
) -> Bool[Tensor, "#B Q K"] | None:
    """The pairs of (1), or None where every query sees every key.

    Args:
        q_len: Q.
        k_len: K; with a cache, cached keys included.
        attention_mask: True = visible key.
        causal: query i sees keys up to offset + i.
        offset: keys before the first query.
        device: where to build the pairs; default that of the mask.

    Example:
        >>> import torch
        >>> visible_pairs(2, 3, causal=True, offset=1)
        tensor([[[ True,  True, False],
                 [ True,  True,  True]]])
    """
    keys = None if attention_mask is None else attention_mask[:, None, :]  # (B, 1, K)
    if not causal:
        return keys if keys is None else keys.expand(-1, q_len, -1)  # (B, Q, K)
    if attention_mask is not None:
        device = attention_mask.device
    row = torch.arange(offset, offset + q_len, device=device)
    past = (torch.arange(k_len, device=device) <= row[:, None]).unsqueeze(0)  # (1, Q, K)
    return past if keys is None else past & keys  # (1)


def masked_softmax(
    scores: Float[Tensor, "*batch K"], visible: Bool[Tensor, "*#batch K"] | None = None
) -> Float[Tensor, "*batch K"]:
    """Softmax over the visible keys, in float32 or better: (2).

    Args:
        scores: logits of the last axis, any dtype.
        visible: True where a key may be seen, broadcast against the scores; None: everywhere.

    Returns:
        Weights in float32, or float64 for float64 scores; they sum to 1, or to 0 in an empty row.

    Example:
        >>> import torch
        >>> masked_softmax(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
        tensor([[1., 0.],
                [0., 0.]])
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if visible is None:
        return scores.softmax(dim=-1, dtype=dtype)
    seen = visible.any(dim=-1, keepdim=True)  # an empty row is scored as if it saw all, then erased
    hidden = scores.masked_fill(~visible & seen, -torch.inf)
    return hidden.softmax(dim=-1, dtype=dtype).masked_fill(~seen, 0.0)  # (2)
