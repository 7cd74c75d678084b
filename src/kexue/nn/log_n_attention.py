r"""从熵不变性看Attention的Scale操作 — multi-head attention with a log n scale (S07)

Multi-head self-attention whose sharpness does not depend on the length; with `base=None` it is
plain attention, for comparisons.

    z_ij = q_i · k_j / sqrt(d)                                                                  (1)
    plain      softmax_j(z_ij)                                                                  (2)
    log n      softmax_j(f_i z_ij),   f_i = ln n_i / ln base                                    (3)
    SSMax      softmax_j(f_ih z_ij),  f_ih = s_h ln n_i + b_h,   s, b learnt per head h          (4)

n_i is the number of keys that row i sees (`attention_scale.row_counts`); the factors are modules of
`row_scale.py`.

Padding costs no (L, L) mask. Without `causal`, all rows share one mask over keys. With it, masked
tokens are moved behind the others before attention and back afterwards: order and distances of the
visible ones stay, causality hides the rest, and the fast causal kernel does the work.

Symbols: f factor, n counts, d head_dim.   Axes: B batch, L tokens of the call, T keys with cached
ones, H heads, G key/value heads, D model size.
Cost: that of `scaled_dot_product_attention`; the factor is multiplied into the queries in place.
Source: articles 8823, 9019; SSMax arXiv 2501.19399.
See also: `attention_scale.py` for the numbers; `models.log_n` for Hugging Face models.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.nn.attention_mask import check_attention_mask, visible_pairs
from kexue.nn.attention_scale import row_counts
from kexue.nn.key_value_cache import KeyValueCache
from kexue.nn.rotary import apply_rotary
from kexue.nn.row_scale import LogNScale, SSMaxScale

__all__ = ["LogNAttention"]


class LogNAttention(nn.Module):
    """Multi-head self-attention with the scale (3), plain (2), or any other (4).

    Args:
        d_model: D, size of the input and output.
        num_heads: H, query heads.
        num_kv_heads: G, key and value heads, each shared by H / G query heads; default H.
        head_dim: d; default D / H.
        causal: row i sees keys up to itself.
        base: of log n, 512 in the article; None is plain attention.
        scale: a module from counts (B, L) to factors (B, L, 1 or H) in place of `base`, such as
            `SSMaxScale(num_heads)` or `LogNScale(512, min_len=16)`.
        rope: turn queries and keys by their positions; without, the layer knows no order.
        rope_base: of the rotary embedding, 10000 in its paper.
        bias: of the projections.
        dropout: of the weights, in training.

    Weights start Glorot uniform as in `torch.nn.MultiheadAttention`, biases at 0.

    Raises:
        ValueError: sizes that do not divide, are not positive, or an odd head_dim with rope.

    Example:
        >>> layer = LogNAttention(d_model=32, num_heads=4, causal=True)
        >>> x = torch.randn(2, 10, 32)
        >>> cache = layer.new_cache()
        >>> with torch.no_grad():
        ...     parts = [layer(x[:, :7], cache=cache), layer(x[:, 7:], cache=cache)]
        >>> torch.allclose(torch.cat(parts, dim=1), layer(x), atol=1e-6)
        True
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        head_dim: int | None = None,
        causal: bool = False,
        base: float | int | None = 512,
        scale: nn.Module | None = None,
        rope: bool = False,
        rope_base: float = 10000.0,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        groups = num_heads if num_kv_heads is None else num_kv_heads
        for name, size in (
            ("d_model", d_model),
            ("num_heads", num_heads),
            ("num_kv_heads", groups),
            ("head_dim", 1 if head_dim is None else head_dim),
        ):
            if size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        if head_dim is None and d_model % num_heads:
            raise ValueError(
                "d_model must be a multiple of num_heads, or head_dim given, got "
                f"d_model={d_model} and num_heads={num_heads}"
            )
        if num_heads % groups:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {num_heads} and {groups}"
            )
        size = d_model // num_heads if head_dim is None else head_dim
        if rope and size % 2:
            raise ValueError(f"head_dim must be even with rope (it turns pairs), got {size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, groups, size
        self.causal, self.dropout = causal, dropout
        self.rope, self.rope_base = rope, rope_base
        self.query = nn.Linear(d_model, num_heads * size, bias=bias)
        self.key_value = nn.Linear(d_model, 2 * groups * size, bias=bias)
        self.output = nn.Linear(num_heads * size, d_model, bias=bias)
        self.scale = LogNScale(base) if scale is None and base is not None else scale
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot uniform per projection, biases 0."""
        nn.init.xavier_uniform_(self.query.weight)
        for part in self.key_value.weight.data.chunk(2):
            nn.init.xavier_uniform_(part)
        nn.init.xavier_uniform_(self.output.weight)
        for layer in (self.query, self.key_value, self.output):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if isinstance(self.scale, SSMaxScale):
            self.scale.reset_parameters()

    def new_cache(self) -> KeyValueCache:
        """An empty cache for decoding."""
        return KeyValueCache()

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        attention_mask: Bool[Tensor, "B L"] | None = None,
        position_ids: Int[Tensor, "#B L"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Attend.

        Args:
            x: any content where masked.
            attention_mask: True = visible, over the tokens of this call.
            position_ids: for the rotary embedding; default 0, 1, … after what the cache has seen.
            cache: of `new_cache`, filled by this call; gradients do not pass through it.

        Returns:
            One vector per token, zeros where masked.

        Raises:
            TypeError: the mask is not boolean.
            ValueError: its shape does not fit, or a cache is given to a layer that is not causal.
        """
        check_attention_mask(attention_mask, x.shape[0], x.shape[1])
        if cache is not None and not self.causal:
            raise ValueError("a cache needs a causal layer: LogNAttention(..., causal=True)")
        offset, length = (0 if cache is None else cache.length), x.shape[1]
        if position_ids is None:
            position_ids = torch.arange(offset, offset + length, device=x.device)[None]  # (1, L)
        if attention_mask is None:
            plain: Tensor = self.output(self._heads(x, None, position_ids, cache))
            return plain
        x = x.masked_fill(~attention_mask.unsqueeze(-1), 0.0)  # whatever stood there
        if self.causal and offset == 0:  # masked tokens to the end, where no visible row looks
            order = attention_mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
            heads = self._heads(
                x.take_along_dim(order.unsqueeze(-1), dim=1),
                attention_mask.take_along_dim(order, dim=1),
                position_ids.take_along_dim(order, dim=1),
                cache,
            ).take_along_dim(order.argsort(dim=1).unsqueeze(-1), dim=1)
        else:
            heads = self._heads(x, attention_mask, position_ids, cache)
        out: Tensor = self.output(heads)
        return out.masked_fill(~attention_mask.unsqueeze(-1), 0.0)

    def _heads(
        self,
        x: Float[Tensor, "B L D"],
        kept: Bool[Tensor, "B L"] | None,
        positions: Int[Tensor, "#B L"],
        cache: KeyValueCache | None,
    ) -> Float[Tensor, "B L inner"]:
        """All heads side by side; causal rows see the kept keys before them."""
        length, offset = x.shape[1], 0 if cache is None else cache.length
        q, kv = self.query(x), self.key_value(x)  # (B, L, H d), (B, L, 2 G d)
        k, v = kv.unflatten(-1, (2, self.num_kv_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, G, L, d)
        if self.rope:
            k = apply_rotary(k, positions.unsqueeze(1), self.rope_base)
        if cache is not None:
            seen = cache.append(k, v, kept)
            k, v, kept = seen if offset else (k, v, kept)
        if self.scale is not None:
            n = self._counts(kept, length, k.shape[2], offset, x.device)
            n = n.to(torch.promote_types(q.dtype, torch.float32))  # bf16 has no 257
            q = _times(q, self.scale(n).to(q.dtype))
        q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, L, d)
        if self.rope:
            q = apply_rotary(q, positions.unsqueeze(1), self.rope_base)
        visible = self._visible(kept, length, k.shape[2], offset, x.device)
        shared = self.num_heads // self.num_kv_heads
        if visible is not None and shared > 1:  # grouped heads with a mask have no fast kernel
            k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        heads = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=visible,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal and offset == 0,
            enable_gqa=k.shape[1] < self.num_heads,
        )  # (1), (2), (3), (4)
        return heads.transpose(1, 2).flatten(2)  # (B, L, H d)

    def _counts(
        self, kept: Tensor | None, q_len: int, k_len: int, offset: int, device: torch.device
    ) -> Int[Tensor, "#B Q"]:
        """n of each row; kept keys stand first in a call without cached keys."""
        if self.causal and offset == 0:
            kept = None
        return row_counts(
            kept, self.causal, q_len=q_len, k_len=k_len, cache_offset=offset, device=device
        )

    def _visible(
        self, kept: Tensor | None, q_len: int, k_len: int, offset: int, device: torch.device
    ) -> Bool[Tensor, "#B 1 #Q K"] | None:
        """The mask that attention needs besides causality."""
        if not self.causal:
            if kept is None:
                return None
            kept = kept | ~kept.any(dim=1, keepdim=True)  # an empty row is erased afterwards
            return kept[:, None, None, :]  # (B, 1, 1, K)
        if offset == 0 or (q_len == 1 and kept is None):
            return None
        pairs = visible_pairs(q_len, k_len, kept, causal=True, offset=offset, device=device)
        return None if pairs is None else pairs.unsqueeze(1)  # (B, 1, Q, K)

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"head_dim={self.head_dim}, causal={self.causal}, rope={self.rope}"
        )


def _times(
    q: Float[Tensor, "B L inner"], factor: Float[Tensor, "#B #L H"]
) -> Float[Tensor, "B L inner"]:
    """Queries times their factor: in place, unless the factor is learnt or differs by head."""
    if factor.shape[-1] == 1 and not factor.requires_grad:
        q.mul_(factor)  # q is the fresh output of a linear layer, which saves its input only
        return q
    if q.shape[-1] % factor.shape[-1]:
        raise ValueError(
            f"scale gives factors for {factor.shape[-1]} heads; the layer's queries have "
            f"{q.shape[-1]} numbers, which do not divide into as many"
        )
    heads: Tensor = q.unflatten(-1, (factor.shape[-1], -1))  # (B, L, H, d)
    return (heads * factor.unsqueeze(-1)).flatten(-2)
