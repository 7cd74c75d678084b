r"""听说Attention与Softmax更配哦～ — the attention maps of a gated attention unit (S18)

One head, a wide value, and six ways to turn the products of queries and keys into weights.

With a_ij = q_i · k_j and n_i the number of keys that row i sees:

    softmax        A_ij = softmax_j(a_ij / sqrt(s))                                             (1)
    softmax_plus   A_ij = softmax_j(log_512(n_i) a_ij / sqrt(s)),  n_i at least min_length       (2)
    relu2_ns       A_ij = relu(a_ij / sqrt(s))² / n_i                                           (3)
    relu2_n2       A_ij = relu(a_ij / n_i + bias_ij)²                                           (4)
    laplace        A_ij = (1 + erf((a_ij / n_i − mu) / (sigma sqrt 2))) / 2                      (5)
                   mu = sqrt(1/2),  sigma = sqrt(1/(4 pi))
    relu2_norm     A_ij = relu(a_ij)² / sum_j relu(a_ij)²,   0 where no score is positive        (6)

Hidden keys weigh nothing and a row that sees none is zeros. (3) to (5) shrink when n grows although
attention is local, so a network trained at one length does worse at another; `length` freezes n.

The weights of (1) and (2) go through `scaled_dot_product_attention` and are not written out; the
others are, in float32 or better under autocast too: relu² overflows in float16 from 256 on.

Symbols: q, k, v; n counts; s key size.   Axes: B batch, Q queries, K keys, s, e value size.
Cost: O(Q K (s + e)); memory O(Q K) for (3) to (6).
Sources: (1) article 8934's ablation; (2) articles 9019, 8823; (3) 8934; (4) appendix of arXiv
2202.10447; (5) Mega, 2022; (6) 8990. We count visible keys, where FLASH-pytorch counts all.
"""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from kexue.nn.attention_mask import check_attention_mask, masked_softmax, visible_pairs
from kexue.nn.attention_scale import row_counts, scaled_queries

__all__ = ["AttentionMap", "check_attention_map", "gau_attention", "gau_weights"]

AttentionMap = Literal["softmax_plus", "softmax", "relu2_ns", "relu2_n2", "laplace", "relu2_norm"]
ROWS = 256
"""On a CPU, causal rows are worked on in parts of this size: later keys are not multiplied."""
LAPLACE_MEAN, LAPLACE_DEVIATION = math.sqrt(1 / 2), math.sqrt(1 / (4 * math.pi))


def check_attention_map(attention: str, known: tuple[str, ...] = get_args(AttentionMap)) -> None:
    """Refuse a name that is not one of the maps.

    Raises:
        ValueError: it is not; the message lists those that are.
    """
    if attention not in known:
        raise ValueError(f"attention must be one of {', '.join(known)}, got {attention!r}")


def gau_weights(
    q: Float[Tensor, "B Q s"],
    k: Float[Tensor, "B K s"],
    attention: AttentionMap = "softmax_plus",
    *,
    attention_mask: Bool[Tensor, "B K"] | None = None,
    causal: bool = False,
    offset: int = 0,
    position_bias: Float[Tensor, "#B Q K"] | None = None,
    min_length: int = 1,
    train_length: int = 512,
    length: int | None = None,
) -> Float[Tensor, "B Q K"]:
    """The matrix A, written out; in float32 or better.

    Args: as `gau_attention`.

    Example:
        >>> q = k = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> gau_weights(q, k, "relu2_ns", causal=True)
        tensor([[[0.5000, 0.0000],
                 [0.0000, 4.0000]]])
    """
    check_attention_map(attention)
    visible, counts = _seen(q, k, attention_mask, causal, offset, length)
    rows = counts.clamp(min=1).unsqueeze(-1)  # (#B, Q, 1)
    if attention_mask is not None:
        k = k.masked_fill(~attention_mask.unsqueeze(-1), 0.0)
    if attention == "softmax_plus":
        q = scaled_queries(q, counts, train_length, min_length)
    q = q / (rows if attention in ("relu2_n2", "laplace") else math.sqrt(q.shape[-1]))
    scores = q.to(k.dtype) @ k.mT  # (B, Q, K)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if position_bias is not None:
        scores = scores + position_bias
    if attention in ("softmax", "softmax_plus"):
        return masked_softmax(scores, visible)  # (1), (2)
    if attention == "laplace":
        weights = (1 + torch.erf((scores - LAPLACE_MEAN) / (LAPLACE_DEVIATION * 2**0.5))) / 2  # (5)
    else:
        weights = scores.relu().square()  # (4)
    if visible is not None:
        weights = weights.masked_fill(~visible, 0.0)
    if attention == "relu2_ns":
        return weights / rows  # (3)
    if attention == "relu2_norm":
        total = weights.sum(dim=-1, keepdim=True)
        return weights / (total + (total == 0))  # (6)
    return weights


def gau_attention(
    q: Float[Tensor, "B Q s"],
    k: Float[Tensor, "B K s"],
    v: Float[Tensor, "B K e"],
    attention: AttentionMap = "softmax_plus",
    *,
    attention_mask: Bool[Tensor, "B K"] | None = None,
    causal: bool = False,
    offset: int = 0,
    position_bias: Float[Tensor, "#B Q K"] | None = None,
    min_length: int = 1,
    train_length: int = 512,
    length: int | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B Q e"]:
    """A V with any of the maps (1) to (6).

    Args:
        q: queries, not yet scaled.
        k: keys; anything may stand where the mask hides them, and in v too.
        v: values.
        attention: name of the map; `softmax_plus` is the author's later choice, `relu2_ns` that of
            the first article.
        attention_mask: True = visible key.
        causal: query i sees keys up to offset + i.
        offset: keys before the first query, as with a cache.
        position_bias: added to the scaled scores, such as a table of relative distances.
        min_length: floor of n in (2); 1 as in the released GAU-α, 16 in today's bert4keras.
        train_length: base of the logarithm in (2), where the scale is that of (1); 512.
        length: n for every row in place of the count, to keep (3) to (5) at the length of training.
        dropout: rate of zeros in A.

    Returns:
        One vector per query, in the dtype of v; zeros where no key is visible.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: an unknown map, a mask of another shape, or a length below 1.

    Example:
        >>> q, k, v = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 16)
        >>> gau_attention(q, k, v, "relu2_ns", causal=True).shape
        torch.Size([2, 5, 16])
    """
    check_attention_map(attention)
    check_attention_mask(attention_mask, k.shape[0], k.shape[1])
    if (
        causal
        and q.shape[1] > ROWS
        and v.device.type == "cpu"
        and not torch.compiler.is_compiling()
    ):
        parts = []
        for start in range(0, q.shape[1], ROWS):
            end = offset + min(start + ROWS, q.shape[1])  # keys that a row of this part may see
            part = gau_attention(
                q[:, start : start + ROWS],
                k[:, :end],
                v[:, :end],
                attention,
                attention_mask=None if attention_mask is None else attention_mask[:, :end],
                causal=True,
                offset=offset + start,
                position_bias=_block(position_bias, start, end),
                min_length=min_length,
                train_length=train_length,
                length=length,
                dropout=dropout,
            )
            parts.append(part)
        return torch.cat(parts, dim=1)
    if attention_mask is not None:
        v = v.masked_fill(~attention_mask.unsqueeze(-1), 0.0)
    if attention not in ("softmax", "softmax_plus"):
        weights = gau_weights(
            q,
            k,
            attention,
            attention_mask=attention_mask,
            causal=causal,
            offset=offset,
            position_bias=position_bias,
            length=length,
        ).to(v.dtype)
        return F.dropout(weights, dropout) @ v if dropout else weights @ v
    visible, counts = _seen(q, k, attention_mask, causal, offset, length)
    if attention == "softmax_plus":
        q = scaled_queries(q, counts, train_length, min_length)
    if attention_mask is not None:
        k = k.masked_fill(~attention_mask.unsqueeze(-1), 0.0)
    seen = counts.unsqueeze(-1) > 0  # an empty row is scored as if it saw all, then erased
    plain_causal = causal and attention_mask is None and offset == 0 and position_bias is None
    bias: Tensor | None = None
    if not plain_causal and visible is not None:
        bias = visible if attention_mask is None else visible | ~seen
    if position_bias is not None:
        full = position_bias.to(v.dtype)
        bias = full if bias is None else full.masked_fill(~bias, -torch.inf)
    attended = F.scaled_dot_product_attention(
        q.to(v.dtype).unsqueeze(1),
        k.to(v.dtype).unsqueeze(1),
        v.unsqueeze(1),
        attn_mask=None if bias is None else bias.unsqueeze(1),
        dropout_p=dropout,
        is_causal=plain_causal,
    ).squeeze(1)  # (1), (2)
    return attended if attention_mask is None else attended.masked_fill(~seen, 0.0)


def _block(bias: Tensor | None, start: int, end: int) -> Tensor | None:
    return None if bias is None else bias[:, start : start + ROWS, :end]


def _seen(
    q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, offset: int, length: int | None
) -> tuple[Tensor | None, Tensor]:
    """The visible pairs, (#B, Q, K) or None for all, and n of every row, (#B, Q)."""
    if length is not None and length < 1:
        raise ValueError(f"length must be positive, got {length}")
    check_attention_mask(mask, k.shape[0], k.shape[1])
    visible = visible_pairs(q.shape[1], k.shape[1], mask, causal, offset, q.device)
    counts = row_counts(
        mask, causal, q_len=q.shape[1], k_len=k.shape[1], cache_offset=offset, device=q.device
    )
    if length is not None:
        counts = torch.where(counts > 0, length, 0)
    return visible, counts
