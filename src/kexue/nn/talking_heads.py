r"""突破瓶颈，打造更强大的Transformer — talking heads (S25)

Attention heads that exchange their logits before the softmax and their weights after it, so that a
pattern is no longer limited to the rank of one small head.

    J_i = Q_i K_iᵀ / sqrt(d)              i = 1 … Hk                                            (1)
    L_g = sum_i P_l[i, g] J_i             g = 1 … H                                             (2)
    W_g = softmax(L_g + bias_g)           masks enter here, after the mixing: −inf · P_l is NaN  (3)
    U_f = sum_g P_w[g, f] W_g             f = 1 … Hv                                            (4)
    O_f = U_f V_f                                                                               (5)

Rank of L_g: at most Hk d, where a plain head has d.  Rows of U_f sum to sum_g P_w[g, f], and U_f
may be negative.

(2) and (4) need all heads at once, so rows are taken in blocks: exact, because a softmax needs one
whole row and no other. Where there are several blocks, the backward pass computes each again.

Symbols: q, k, v; P_l `logit_mixing`; P_w `weight_mixing`; both may differ from query to query.
Axes: B batch, Q queries, K keys, Hk key heads, H softmax heads, Hv value heads, d key and e value
size, R rows of a block.
Cost: Q K (Hk d + Hk H + H Hv + Hv e) multiply-adds, about half of it where causal; memory
O(B H R K), not O(B H Q K).
Sources: article 7325, which writes (2) only; arXiv 2003.02436 for (2) and (4). Ours: the blocks.
See also: `talking_heads_attention.py`, the layer; `logit_mixing.py`, without (4) and in fused
kernels; `wide_key.py`, the other cure.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kexue.nn.attention_mask import check_attention_mask, visible_pairs

__all__ = ["check_heads", "softmax_heads", "talking_heads"]

ENTRIES_ON_CPU, ENTRIES_ELSEWHERE, FEWEST_ROWS = 1 << 21, 1 << 26, 16
"""Entries of one block's maps (about the cache of a core; enough to fill a GPU); its least rows."""

Mixing = Float[Tensor, "inputs outputs"] | Float[Tensor, "B Q inputs outputs"]


def talking_heads(
    q: Float[Tensor, "B Hk Q d"],
    k: Float[Tensor, "B Hk K d"],
    v: Float[Tensor, "B Hv K e"],
    logit_mixing: Float[Tensor, "Hk H"] | Float[Tensor, "B Q Hk H"] | None = None,
    weight_mixing: Float[Tensor, "H Hv"] | Float[Tensor, "B Q H Hv"] | None = None,
    attention_mask: Bool[Tensor, "B K"] | None = None,
    *,
    causal: bool = False,
    offset: int = 0,
    position_bias: Float[Tensor, "#B #H Q K"] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    block: int | None = None,
) -> Float[Tensor, "B Hv Q e"]:
    """Attention with mixed logits and weights: (1) to (5).

    Args:
        q: queries, not yet scaled.
        k: keys; anything may stand where the mask hides them, and in v too.
        v: values.
        logit_mixing: P_l, one for all or one per query; None leaves the logits as they are.
        weight_mixing: P_w likewise; None leaves the weights as they are.
        attention_mask: True = visible key.
        causal: query i sees keys up to offset + i.
        offset: keys before the first query, as with a cache.
        position_bias: added to the mixed logits of every softmax head.
        scale: of the logits; default 1/sqrt(d).
        dropout: rate of zeros in W, after the softmax and before P_w.
        block: rows computed together; default by the size of the maps. Values do not depend on it.

    Returns:
        One vector per query and value head in the dtype of v; zeros where no key is visible.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: its shape does not fit, numbers of heads do not fit each other, or block < 1.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 10, 8)
        >>> P_l, P_w = torch.randn(4, 6), torch.randn(6, 4)
        >>> talking_heads(q, k, v, P_l, P_w, causal=True).shape
        torch.Size([2, 4, 10, 8])
    """
    check_attention_mask(attention_mask, k.shape[0], k.shape[2])
    heads = check_heads(q, k, v, logit_mixing, weight_mixing)
    if block is not None and block < 1:
        raise ValueError(f"block must be a positive number of rows or None, got {block}")
    if attention_mask is not None:
        k, v = (x.masked_fill(~attention_mask[:, None, :, None], 0.0) for x in (k, v))
    q_len, k_len = q.shape[2], k.shape[2]
    size = block or _block_rows(q.shape[0] * heads * k_len, q.device)
    starts = range(0, max(q_len, 1), size)
    again = len(starts) > 1 and torch.is_grad_enabled()
    found = []
    with torch.autocast(q.device.type, enabled=False):
        q = q * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        for start in starts:
            rows = slice(start, start + size)
            stop = min(offset + rows.stop, k_len) if causal else k_len  # later keys are hidden
            bias, seen = _bias(q, rows, stop, attention_mask, causal, offset, position_bias)
            given = (
                q[:, :, rows],
                k[:, :, :stop],
                v[:, :, :stop],
                _of_rows(logit_mixing, rows),
                _of_rows(weight_mixing, rows),
                bias,
                seen,
                dropout,
            )
            if again:
                out = checkpoint(
                    _attended, *given, use_reentrant=False, preserve_rng_state=dropout > 0
                )
            else:
                out = _attended(*given)
            found.append(out)
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit_mixing: Tensor | None,
    weight_mixing: Tensor | None,
    bias: Tensor | None,
    seen: Tensor | None,
    dropout: float,
) -> Tensor:
    """(1) to (5) for a block of rows, (B, Hv, R, e)."""
    weights = _weights(q, k, logit_mixing, bias, seen)
    if dropout:
        weights = F.dropout(weights, dropout)
    heads: Tensor = _mixed(weights, weight_mixing).to(v.dtype) @ v  # (4), (5)
    return heads


def _weights(
    q: Tensor, k: Tensor, logit_mixing: Tensor | None, bias: Tensor | None, seen: Tensor | None
) -> Tensor:
    """(1) to (3) in float32 or better, (B, H, R, K)."""
    scores = q @ k.mT  # (1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    logits = _mixed(scores, logit_mixing)  # (2)
    if bias is not None:
        logits = logits + bias
    weights = logits.softmax(dim=-1)  # (3)
    return weights if seen is None else weights * seen


def _mixed(maps: Float[Tensor, "B I R K"], mixing: Mixing | None) -> Float[Tensor, "B O R K"]:
    """sum_i P[i, o] maps_i, as one long product per sequence: (2), (4).

    Written with bmm, because matmul and einsum copy all maps into another layout where P is learnt.
    """
    if mixing is None:
        return maps
    mixing = mixing.to(maps.dtype).mT  # (O, I)
    if mixing.ndim == 2:
        flat = torch.bmm(mixing.expand(len(maps), -1, -1), maps.flatten(2))  # (B, O, R K)
        return flat.view(len(maps), len(mixing), *maps.shape[2:])
    by_row: Tensor = mixing @ maps.transpose(1, 2)  # (B, R, O, K)
    return by_row.transpose(1, 2)


def _bias(
    q: Tensor,
    rows: slice,
    stop: int,
    mask: Tensor | None,
    causal: bool,
    offset: int,
    position_bias: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """What is added to the logits of a block, and 1 or 0 for rows with or without a key."""
    bias = None if position_bias is None else position_bias[:, :, rows, :stop]
    length = min(rows.stop, q.shape[2]) - rows.start
    visible = visible_pairs(
        length,
        stop,
        None if mask is None else mask[:, :stop],
        causal,
        offset + rows.start,
        q.device,
    )
    if visible is None:
        return bias, None
    seen: Tensor | None = None
    if mask is not None:
        row_sees = visible.any(dim=-1, keepdim=True)  # (#B, R, 1)
        visible, seen = visible | ~row_sees, row_sees.unsqueeze(1)  # an empty row is erased later
    dtype = torch.promote_types(q.dtype, torch.float32)
    hidden = torch.zeros(visible.shape, dtype=dtype, device=q.device)
    hidden = hidden.masked_fill(~visible, -torch.inf).unsqueeze(1)  # (#B, 1, R, K)
    return hidden if bias is None else hidden + bias, seen


def _of_rows(mixing: Tensor | None, rows: slice) -> Tensor | None:
    """The part of a mixing that belongs to these queries."""
    return mixing if mixing is None or mixing.ndim == 2 else mixing[:, rows]


def _block_rows(entries: int, device: torch.device) -> int:
    """Rows of a block where one row of all maps has so many entries."""
    most = ENTRIES_ON_CPU if device.type == "cpu" else ENTRIES_ELSEWHERE
    return max(FEWEST_ROWS, most // max(1, entries))


def check_heads(
    q: Tensor, k: Tensor, v: Tensor, logit_mixing: Tensor | None, weight_mixing: Tensor | None
) -> int:
    """Refuse numbers of heads that do not fit each other; returns the largest."""
    key_heads, value_heads = q.shape[1], v.shape[1]
    heads = key_heads if logit_mixing is None else logit_mixing.shape[-1]
    if logit_mixing is not None and logit_mixing.shape[-2] != key_heads:
        raise ValueError(
            f"logit_mixing must have shape (…, key heads, heads) with {key_heads} key heads as in "
            f"q, got {tuple(logit_mixing.shape)}"
        )
    wanted = (heads, value_heads)
    if weight_mixing is None and heads != value_heads:
        raise ValueError(
            f"without weight_mixing v must have {heads} heads, one per softmax, got {value_heads}"
        )
    if weight_mixing is not None and weight_mixing.shape[-2:] != wanted:
        raise ValueError(
            f"weight_mixing must have shape (…, heads, value heads) = (…, {heads}, {value_heads}), "
            f"the last as in v, got {tuple(weight_mixing.shape)}"
        )
    return max(key_heads, heads, value_heads)


def softmax_heads(
    q: Float[Tensor, "B Hk Q d"],
    k: Float[Tensor, "B Hk K d"],
    logit_mixing: Float[Tensor, "Hk H"] | Float[Tensor, "B Q Hk H"] | None = None,
    attention_mask: Bool[Tensor, "B K"] | None = None,
    *,
    causal: bool = False,
    offset: int = 0,
    position_bias: Float[Tensor, "#B #H Q K"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H Q K"]:
    """The maps W of (3), written out, to look at; in float32 or better.

    Args: as `talking_heads`.

    Example:
        >>> q = k = torch.zeros(1, 2, 3, 4)
        >>> softmax_heads(q, k, causal=True)[0, 0]
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.3333, 0.3333, 0.3333]])
    """
    check_attention_mask(attention_mask, k.shape[0], k.shape[2])
    if attention_mask is not None:
        k = k.masked_fill(~attention_mask[:, None, :, None], 0.0)
    whole, k_len = slice(0, q.shape[2]), k.shape[2]
    with torch.autocast(q.device.type, enabled=False):
        bias, seen = _bias(q, whole, k_len, attention_mask, causal, offset, position_bias)
        q = q * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        return _weights(q, k, logit_mixing, bias, seen)
