r"""FLASH：可能是近来最有意思的高效Transformer设计 — mixed chunk attention (S18)

Attention in linear time: exact inside chunks of c tokens, linear across them. The FLASH of
"Transformer Quality in Linear Time", not the FlashAttention kernel.

    V̂_g = A(Q_g, K_g) V_g,   A = relu(Q K^T / sqrt(s))² / c                                     (1)
    V̄_g = Q^lin_g (1/n) sum_h K^lin_h^T V_h                    every chunk h; not causal         (2)
    V̄_g = Q^lin_g (1/N_g) sum_(h<g) K^lin_h^T V_h              strictly earlier chunks; causal   (3)

Token i of a causal layer sees its own chunk up to i exactly, all earlier chunks through a matrix of
s × e, and in the first chunk there is nothing else. N_g = (g − 1) c counts the tokens that were
summed up; article 8934 prints (g − 1) n / c, a misprint. FLASH-pytorch divides every summand by c,
so its (3) grows with g.

Chunks count visible tokens: masked ones are moved behind the others and back afterwards, so padding
on either side changes nothing. The chunk grid starts at the first visible token of a sequence; cut
a text elsewhere and the outputs differ. The last chunk may be short; the divisor of (1) stays c.

Symbols: c chunk, s key size, e value size, n visible tokens.   Axes: B batch, L tokens, G chunks.
Cost: O(L c (s + e) + L s e). On a CPU chunk by chunk (`chunk_loop.py`); elsewhere, and under
torch.compile, all chunks at once with G states of s × e.
Sources: arXiv 2202.10447; article 8934. See also: `flash_layer.py`, the layer around it.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from kexue.nn.attention_mask import check_attention_mask
from kexue.nn.chunk_loop import ChunkLoop
from kexue.nn.gau_attention import check_attention_map

__all__ = [
    "GlobalNormalizer",
    "LocalMap",
    "check_chunks",
    "in_order",
    "local_scale",
    "mixed_chunk_attention",
    "mixed_chunks",
    "visible_first",
]

GlobalNormalizer = Literal["count", "chunk", "length"]
LocalMap = Literal["relu2_ns", "relu2_n2"]


def mixed_chunk_attention(
    q_quad: Float[Tensor, "B L s"],
    k_quad: Float[Tensor, "B L s"],
    q_lin: Float[Tensor, "B L s"],
    k_lin: Float[Tensor, "B L s"],
    v: Float[Tensor, "B L e"],
    chunk: int = 256,
    causal: bool = False,
    mask: Bool[Tensor, "B L"] | None = None,
    *,
    attention: LocalMap = "relu2_ns",
    global_normalizer: GlobalNormalizer = "count",
) -> Float[Tensor, "B L e"]:
    """V̂ + V̄: exact inside chunks, linear across them; (1) and (2) or (3).

    Args:
        q_quad: queries inside chunks, not yet scaled.
        k_quad: keys inside chunks.
        q_lin: queries across chunks.
        k_lin: keys across chunks.
        v: values; masked tokens may hold anything, here and in the four others.
        chunk: c, tokens per chunk; 256 in the paper.
        causal: tokens see earlier tokens and themselves.
        mask: True = visible.
        attention: `relu2_ns` is (1); `relu2_n2`, of the paper's code, is relu(Q K^T / c)².
        global_normalizer: `count`, as in (2) and (3); `chunk`: N = c; `length`: N = n, also where
            causal, which then depends on the number of later tokens.

    Returns:
        One vector per token in the dtype of v, zeros where masked.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: its shape does not fit, chunk is below 1, or an unknown name.

    Example:
        >>> q, k, q_lin, k_lin = torch.randn(4, 2, 10, 8)
        >>> v = torch.randn(2, 10, 16)
        >>> mixed_chunk_attention(q, k, q_lin, k_lin, v, chunk=4, causal=True).shape
        torch.Size([2, 10, 16])
    """
    check_chunks(chunk, attention, global_normalizer)
    check_attention_mask(mask, v.shape[0], v.shape[1])
    maps = [one.to(v.dtype) for one in (q_quad, k_quad, q_lin, k_lin)]
    options = (chunk, causal, attention, global_normalizer)
    if mask is None:
        return mixed_chunks(maps, v, None, *options)
    order = visible_first(mask)
    kept = mask.take_along_dim(order, dim=1)
    *maps, v = (in_order(one, order).masked_fill(~kept.unsqueeze(-1), 0.0) for one in (*maps, v))
    mixed = mixed_chunks(maps, v, kept, *options)
    return in_order(mixed, order.argsort(dim=1)).masked_fill(~mask.unsqueeze(-1), 0.0)


def visible_first(mask: Tensor) -> Tensor:
    """The order that moves masked tokens behind the others: (B, L) indices."""
    return mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)


def in_order(x: Tensor, order: Tensor) -> Tensor:
    """The tokens of x, (B, L, …), in this order."""
    return x.take_along_dim(order.unsqueeze(-1), dim=1)


def check_chunks(chunk: int, attention: str, global_normalizer: str) -> None:
    """Refuse a chunk without tokens and unknown names.

    Raises:
        ValueError: as said.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}")
    check_attention_map(attention, get_args(LocalMap))
    if global_normalizer not in get_args(GlobalNormalizer):
        names = ", ".join(get_args(GlobalNormalizer))
        raise ValueError(f"global_normalizer must be one of {names}, got {global_normalizer!r}")


def local_scale(attention: str, key_size: int, chunk: int) -> float:
    """The factor whose square makes relu(factor · q k^T)² the local map."""
    return 1 / chunk if attention == "relu2_n2" else (key_size * chunk) ** -0.5


def mixed_chunks(
    maps: Sequence[Tensor],
    x: Tensor,
    kept: Tensor | None,
    chunk: int,
    causal: bool,
    attention: str,
    global_normalizer: str,
    gated: bool = False,
) -> Tensor:
    """(1) to (3) for tokens in order, the visible ones first; with silu and gate where `gated`.

    Args:
        maps: queries and keys inside chunks, queries and keys across them, in the dtype of x.
        x: values; where gated, gate and value side by side, before their activation.
        kept: (B, L), True for the visible tokens, which stand first in every row.
        chunk: c.
        causal: tokens see earlier tokens and themselves.
        attention: the local map.
        global_normalizer: N.
        gated: the result is silu(gate) ⊙ (V̂ + V̄) with V = silu(value).
    """
    q, k, q_lin, k_lin = maps
    length = x.shape[1]
    start = torch.arange(0, length, chunk, device=x.device)[None]  # (1, G)
    if global_normalizer == "chunk":
        count = torch.full_like(start, chunk)
    elif global_normalizer == "count" and causal:
        count = start  # all tokens of earlier chunks are visible, or chunk g has none
    elif kept is None:
        count = torch.full_like(start, length)
    else:
        count = kept.sum(dim=1, keepdim=True).expand(-1, start.shape[1])  # (B, G)
    inverse = 1 / count.clamp(min=1).to(torch.promote_types(x.dtype, torch.float32))
    keep = None if kept is None else kept.unsqueeze(-1).to(x.dtype)  # (B, L, 1)
    scale = local_scale(attention, q.shape[-1], chunk)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        done = ChunkLoop.apply(q, k, q_lin, k_lin, x, keep, inverse, chunk, scale, causal, gated)
        mixed: Tensor = done[0]
        return mixed
    u, v = F.silu(x).chunk(2, dim=-1) if gated else (None, x)
    v = v if keep is None else v * keep
    with torch.autocast(x.device.type, enabled=False):
        mixed = _all_chunks(q, k, q_lin, k_lin, v, inverse, chunk, scale, causal)
    return mixed if u is None else u * mixed


def _all_chunks(
    q: Tensor,
    k: Tensor,
    q_lin: Tensor,
    k_lin: Tensor,
    v: Tensor,
    inverse: Tensor,
    chunk: int,
    scale: float,
    causal: bool,
) -> Tensor:
    """(1) and (2) or (3), all chunks at once and with torch's own gradients."""
    length, fill = v.shape[1], -v.shape[1] % chunk
    if fill:
        q, k, q_lin, k_lin, v = (F.pad(one, (0, 0, 0, fill)) for one in (q, k, q_lin, k_lin, v))
    q, k, q_lin, k_lin, v = (one.unflatten(1, (-1, chunk)) for one in (q, k, q_lin, k_lin, v))
    wide = torch.promote_types(v.dtype, torch.float32)
    scores = (q * scale) @ k.mT  # (B, G, c, c)
    roots = scores.to(wide).relu()
    local = (roots.tril() if causal else roots).square().to(v.dtype) @ v  # (1)
    sums = (k_lin.mT @ v).to(wide)  # (B, G, s, e)
    if causal:
        states = F.pad(sums[:, :-1].cumsum(dim=1), (0, 0, 0, 0, 1, 0))
    else:
        states = sums.sum(dim=1, keepdim=True)
    mean = (states * inverse[:, :, None, None]).to(v.dtype)
    return (local + q_lin @ mean).flatten(1, 2)[:, :length]  # (2), (3)
