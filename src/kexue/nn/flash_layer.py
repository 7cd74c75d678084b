r"""FLASH：可能是近来最有意思的高效Transformer设计 — the gated layer with mixed chunks (S18)

A gated attention unit in linear time: FLASH, of "Transformer Quality in Linear Time".

    U = silu(X W_u),   V = silu(X W_v),   Z = silu(X W_z)                                       (1)
    Q, K, Q^lin, K^lin = gamma_r ⊙ Z + beta_r, rotated by their positions                       (2)
    O = (U ⊙ M) W_o,   M = mixed chunk attention of (2) and V, see `mixed_chunk.py`              (3)

There is no residual and no norm in here. Decoding keeps a state of s × e and the open chunk, so a
token costs the same after any number of tokens (`flash_cache.py`).

Symbols: gate U, value V, base Z, gamma, beta.   Axes: B batch, L tokens, D model, e, s key size.
Cost: 2 L (3 D e + D s) + O(L c (s + e) + L s e) operations. On a CPU, activation, gate and
attention are one pass over the chunks (`chunk_loop.py`).
Sources: arXiv 2202.10447; article 8934. See also: `gau.py`, the quadratic unit.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from kexue.nn.attention_mask import check_attention_mask
from kexue.nn.dropout import bit_dropout
from kexue.nn.flash_cache import FlashCache
from kexue.nn.mixed_chunk import (
    GlobalNormalizer,
    LocalMap,
    check_chunks,
    in_order,
    local_scale,
    mixed_chunks,
    visible_first,
)
from kexue.nn.shared_base import GatedLayer

__all__ = ["FlashLayer"]


class FlashLayer(GatedLayer):
    """Gated attention unit with mixed chunks, without residual and norm: (1) to (3).

    Args:
        d_model: D, size of input and output.
        expansion: e / D; 2 in the paper.
        key_size: s, size of queries and keys; 128 in the paper.
        attention: `relu2_ns` or `relu2_n2`; see `mixed_chunk_attention`.
        rope: rotary positions on all four maps.
        causal: tokens see earlier tokens and themselves.
        bias: of all projections, and beta.
        dropout: of the gated values before W_o, in training.
        chunk_size: c; 256 in the paper.
        global_normalizer: `count`, `chunk` or `length`; see `mixed_chunk_attention`.

    Weights start LeCun normal, sd = 1/sqrt(inputs), biases at 0.

    Raises:
        ValueError: an unknown name, a size that is not positive, an odd key_size with rope.

    Example:
        >>> layer = FlashLayer(d_model=32, key_size=16, causal=True, chunk_size=4)
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
        attention: LocalMap = "relu2_ns",
        rope: bool = True,
        causal: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        *,
        chunk_size: int = 256,
        global_normalizer: GlobalNormalizer = "count",
    ) -> None:
        super().__init__(d_model, expansion, key_size, 4, rope, bias, dropout)
        check_chunks(chunk_size, attention, global_normalizer)
        self.attention, self.causal = attention, causal
        self.chunk_size, self.global_normalizer = chunk_size, global_normalizer

    def new_cache(self) -> FlashCache:
        """An empty cache for decoding, of constant size."""
        return FlashCache()

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        attention_mask: Bool[Tensor, "B L"] | None = None,
        position_ids: Int[Tensor, "#B L"] | None = None,
        cache: FlashCache | None = None,
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
            ValueError: its shape does not fit, or a cache is given to a layer that is not causal
                or divides by the length.
        """
        check_attention_mask(attention_mask, x.shape[0], x.shape[1])
        self._check_cache(cache)
        if position_ids is None:
            offset = 0 if cache is None else cache.length
            position_ids = torch.arange(offset, offset + x.shape[1], device=x.device)[None]
        if attention_mask is None:
            output: Tensor = self.output(self._gated(x, None, position_ids, cache))  # (3)
            return output
        order = visible_first(attention_mask)
        kept = attention_mask.take_along_dim(order, dim=1)
        x = in_order(x, order).masked_fill(~kept.unsqueeze(-1), 0.0)  # whatever stood there
        position_ids = position_ids.expand(len(x), -1).take_along_dim(order, dim=1)
        output = self.output(self._gated(x, kept, position_ids, cache))
        return in_order(output, order.argsort(dim=1)).masked_fill(
            ~attention_mask.unsqueeze(-1), 0.0
        )

    def _gated(
        self, x: Tensor, kept: Tensor | None, positions: Tensor, cache: FlashCache | None
    ) -> Tensor:
        """U ⊙ M of (3), visible tokens first."""
        gate_value = self.gate_value(x)  # (B, L, 2e)  (1)
        maps = self.base(x, positions).to(gate_value.dtype).unbind(1)  # (2)
        if cache is None:
            gated = mixed_chunks(
                maps,
                gate_value,
                kept,
                self.chunk_size,
                self.causal,
                self.attention,
                self.global_normalizer,
                gated=True,
            )
        else:
            u, v = F.silu(gate_value).chunk(2, dim=-1)
            scale = local_scale(self.attention, maps[0].shape[-1], self.chunk_size)
            mean = self.global_normalizer == "count"
            gated = u * cache.extend(maps, v, kept, self.chunk_size, scale, mean)
        return bit_dropout(gated, self.dropout, self.training)

    def _check_cache(self, cache: FlashCache | None) -> None:
        if cache is not None and not self.causal:
            raise ValueError("a cache needs a causal layer: FlashLayer(..., causal=True)")
        if cache is not None and self.global_normalizer == "length":
            raise ValueError(
                "a cache cannot divide by a length not yet known: use global_normalizer='count'"
            )

    def extra_repr(self) -> str:
        return (
            f"attention={self.attention!r}, causal={self.causal}, chunk_size={self.chunk_size}, "
            f"global_normalizer={self.global_normalizer!r}"
        )
