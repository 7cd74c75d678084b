r"""FLASH：可能是近来最有意思的高效Transformer设计 — gated attention unit, GAU (S18)

Attention and feed-forward network merged into one gated layer that works with a single head.

    U = silu(X W_u),   V = silu(X W_v),   Z = silu(X W_z)                                       (1)
    Q = gamma_q ⊙ Z + beta_q,   K = gamma_k ⊙ Z + beta_k,   both rotated by their positions      (2)
    O = (U ⊙ (A V)) W_o,   A from Q and K: six maps in `gau_attention.py`                       (3)

A = I makes it a gated feed-forward network (GLU), U = 1 makes it attention. Two units have about
the parameters of one Transformer block: 3 d e + d s each, 12 d² for two at e = 2d.

There is no residual and no norm in here. At the start, with LeCun initialisation, O is of the order
s nu^6 / n of X (nu² = E silu² = 0.3558 under a standard normal; 0.011 at s = 128, n = 512) for
`relu2_ns`, so x + O is close to x, and no warm-up is needed.

Symbols: gate U, value V, base Z, gamma, beta.   Axes: B batch, L tokens, D model, e, s key size.
Cost: 2 L (3 D e + D s) + 2 L² (s + e) operations: quadratic, and with today's fused attention
kernels no faster than a Transformer block. `flash_layer.FlashLayer` is the linear-time form.
Sources: arXiv 2202.10447, 2002.05202 (GLU), 2109.08668 (relu²); articles 8934, 8990, 9019.
Ours: positions are rotary alone, as the author advises; the paper adds two other kinds to it.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from kexue.nn.attention_mask import check_attention_mask
from kexue.nn.gau_attention import AttentionMap, check_attention_map, gau_attention
from kexue.nn.key_value_cache import KeyValueCache
from kexue.nn.shared_base import GatedLayer

__all__ = ["GatedAttentionUnit"]


class GatedAttentionUnit(GatedLayer):
    """One gated attention unit, without residual and norm: (1) to (3).

    Args:
        d_model: D, size of input and output.
        expansion: e / D; 2 in the paper.
        key_size: s, size of queries and keys; 128 in the paper.
        attention: name of the map; see `gau_attention.py`.
        rope: rotary positions on queries and keys.
        causal: row i sees keys up to itself.
        bias: of all projections, and beta; the released GAU-α has none.
        dropout: of the attention weights, in training.
        min_length: floor of n in `softmax_plus`; 1 as in the released GAU-α, 16 in bert4keras.
        train_length: where the scale of `softmax_plus` is that of `softmax`.
        length: frozen n of the maps that divide by n; None counts the visible keys.

    Weights start LeCun normal, sd = 1/sqrt(inputs), biases at 0.

    Raises:
        ValueError: an unknown map, a size that is not positive, an odd key_size with rope.

    Example:
        >>> layer = GatedAttentionUnit(d_model=32, key_size=16, causal=True)
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
        expansion: float | int = 2.0,
        key_size: int = 128,
        attention: AttentionMap = "softmax_plus",
        rope: bool = True,
        causal: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        *,
        min_length: int = 1,
        train_length: int = 512,
        length: int | None = None,
    ) -> None:
        super().__init__(d_model, expansion, key_size, 2, rope, bias, dropout)
        check_attention_map(attention)
        if length is not None and length < 1:
            raise ValueError(f"length must be positive or None, got {length}")
        self.attention, self.causal = attention, causal
        self.min_length, self.train_length, self.length = min_length, train_length, length

    def new_cache(self) -> KeyValueCache:
        """An empty cache for decoding; it grows with the tokens seen."""
        return KeyValueCache()

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        attention_mask: Bool[Tensor, "B L"] | None = None,
        position_ids: Int[Tensor, "#B L"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Attend and gate.

        Args:
            x: any content where masked.
            attention_mask: True = visible, over the tokens of this call.
            position_ids: for the rotation; default 0, 1, … after what the cache has seen.
            cache: of `new_cache`, filled by this call; gradients do not pass through it.

        Returns:
            One vector per token, zeros where masked.

        Raises:
            TypeError: the mask is not boolean.
            ValueError: its shape does not fit, or a cache is given to a layer that is not causal.
        """
        check_attention_mask(attention_mask, x.shape[0], x.shape[1])
        if cache is not None and not self.causal:
            raise ValueError("a cache needs a causal layer: GatedAttentionUnit(..., causal=True)")
        offset = 0 if cache is None else cache.length
        masked = None if attention_mask is None else ~attention_mask.unsqueeze(-1)  # (B, L, 1)
        if masked is not None:
            x = x.masked_fill(masked, 0.0)  # whatever stood there
        if position_ids is None:
            position_ids = torch.arange(offset, offset + x.shape[1], device=x.device)[None]
        u, v = F.silu(self.gate_value(x)).chunk(2, dim=-1)  # (1)
        q, k = self.base(x, position_ids).unbind(1)  # (2)
        if cache is not None:
            k, v, attention_mask = cache.append(k, v, attention_mask)
        attended = gau_attention(
            q,
            k,
            v,
            self.attention,
            attention_mask=attention_mask,
            causal=self.causal,
            offset=offset,
            min_length=self.min_length,
            train_length=self.train_length,
            length=self.length,
            dropout=self.dropout if self.training else 0.0,
        )
        output: Tensor = self.output(u * attended)  # (3)
        return output if masked is None else output.masked_fill(masked, 0.0)

    def extra_repr(self) -> str:
        return f"attention={self.attention!r}, causal={self.causal}"
