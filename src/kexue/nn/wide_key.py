r"""突破瓶颈，打造更强大的Transformer — keys wider than the values (S25)

Multi-head attention whose query/key size is free of d_model / num_heads.

    W_h = softmax(Q_h K_hᵀ / sqrt(d))         O_h = W_h V_h                                     (1)

The logits of a head have rank d at most. With d = D/H a head of a small model has 16 or 32 numbers
for a pattern of n × n; more heads make it worse. A larger d costs parameters of the queries and
keys only: values of size e = D/H lose nothing, since the output projection mixes them anyway.
`head_rank.required_key_size` says how wide a given pattern needs the keys to be.

Fused kernels on a CPU want d = e; the smaller of the two is padded with zeros, which changes no
product. Elsewhere torch picks a kernel that takes both sizes.

Symbols: d key_size, e value_size.   Axes: B batch, Q queries, K keys, H heads, D model size.
Cost: parameters 2 D H d + 2 D H e; Q K H (d + e) multiply-adds per sequence.
Sources: article 7325 (key_size); arXiv 2002.07028 (keys and values both of a fixed size).
See also: `talking_heads.py`, the other cure, at the size of before.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from kexue.nn.attention_mask import check_attention_mask, visible_pairs
from kexue.nn.sized_heads import Projected, SizedHeadsAttention
from kexue.nn.talking_heads import softmax_heads

__all__ = ["WideKeyAttention", "wide_key_attention"]

MOST_PADDING = 4
"""On a CPU, sizes further apart than this are left to torch's unfused path."""


def wide_key_attention(
    q: Float[Tensor, "B H Q d"],
    k: Float[Tensor, "B H K d"],
    v: Float[Tensor, "B H K e"],
    attention_mask: Bool[Tensor, "B K"] | None = None,
    *,
    causal: bool = False,
    offset: int = 0,
    position_bias: Float[Tensor, "#B #H Q K"] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H Q e"]:
    """Attention with keys and values of different sizes: (1), in fused kernels.

    Args:
        q: queries, not yet scaled.
        k: keys; anything may stand where the mask hides them, and in v too.
        v: values.
        attention_mask: True = visible key.
        causal: query i sees keys up to offset + i.
        offset: keys before the first query, as with a cache.
        position_bias: added to the logits.
        scale: of the logits; default 1/sqrt(d).
        dropout: rate of zeros in the weights.

    Returns:
        One vector per query and head in the dtype of v; zeros where no key is visible.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: its shape does not fit.

    Example:
        >>> q, k, v = torch.randn(1, 2, 5, 32), torch.randn(1, 2, 5, 32), torch.randn(1, 2, 5, 8)
        >>> wide_key_attention(q, k, v, causal=True).shape
        torch.Size([1, 2, 5, 8])
    """
    check_attention_mask(attention_mask, k.shape[0], k.shape[2])
    q_len, k_len, size = q.shape[2], k.shape[2], v.shape[3]
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    if attention_mask is not None:
        k, v = (x.masked_fill(~attention_mask[:, None, :, None], 0.0) for x in (k, v))
    plain = causal and offset == 0 and attention_mask is None and position_bias is None
    visible = None
    if not plain and not (q_len == 1 and k_len == offset + 1 and attention_mask is None):
        visible = visible_pairs(q_len, k_len, attention_mask, causal, offset, q.device)
    seen: Tensor | None = None
    bias = position_bias
    if visible is not None:
        visible = visible.unsqueeze(1)  # (#B, 1, Q, K)
        if attention_mask is not None:
            seen = visible.any(dim=-1, keepdim=True)  # an empty row is erased afterwards
            visible = visible | ~seen
        bias = visible if bias is None else bias.masked_fill(~visible, -torch.inf)
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(q.dtype).expand(q.shape[0], q.shape[1], -1, -1)
    short, wide = sorted((q.shape[3], size))
    if q.device.type == "cpu" and wide <= MOST_PADDING * short:
        q, k, v = (F.pad(x, (0, wide - x.shape[3])) for x in (q, k, v))
    heads = F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, dropout_p=dropout, is_causal=plain, scale=scale
    )  # (1)
    heads = heads[..., :size]
    return heads if seen is None else heads.masked_fill(~seen, 0.0)


class WideKeyAttention(SizedHeadsAttention):
    """Multi-head attention with a key size of its own: (1) between projections.

    Args:
        d_model: D, size of the input and output.
        num_heads: H.
        key_size: d, of queries and keys; default D / H. The paper's advice is 128, or the length
            of the sequences where that is less.
        value_size: e; default D / H.
        bias: of the projections.
        causal: row i sees keys up to itself.
        rope: turn queries and keys by their positions; needs an even key_size.
        rope_base: of the rotary embedding, 10000 in its paper.
        dropout: of the weights, in training.

    Weights start Glorot uniform as in `torch.nn.MultiheadAttention`, biases at 0.

    Raises:
        ValueError: sizes that do not divide, are not positive, or an odd key_size with rope.

    Example:
        >>> layer = WideKeyAttention(d_model=64, num_heads=16, key_size=32)
        >>> layer(torch.randn(2, 10, 64)).shape
        torch.Size([2, 10, 64])
        >>> layer.query.weight.shape, layer.value.weight.shape
        (torch.Size([512, 64]), torch.Size([64, 64]))
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        key_size: int | None = None,
        value_size: int | None = None,
        bias: bool = True,
        *,
        causal: bool = False,
        rope: bool = False,
        rope_base: float = 10000.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            d_model,
            num_heads,
            num_heads,
            key_size,
            value_size,
            bias=bias,
            causal=causal,
            rope=rope,
            rope_base=rope_base,
            dropout=dropout,
        )
        self.num_heads = num_heads
        self.reset_parameters()

    def attend(self, given: Projected) -> Float[Tensor, "B H L e"]:
        return wide_key_attention(
            given.q,
            given.k,
            given.v,
            given.visible,
            causal=self.causal,
            offset=given.offset,
            position_bias=given.position_bias,
            dropout=self.dropout if self.training else 0.0,
        )

    def maps(self, given: Projected) -> Float[Tensor, "B H L K"]:
        return softmax_heads(
            given.q,
            given.k,
            None,
            given.visible,
            causal=self.causal,
            offset=given.offset,
            position_bias=given.position_bias,
        )

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, key_size={self.key_size}, "
            f"value_size={self.value_size}, causal={self.causal}, rope={self.rope}"
        )
