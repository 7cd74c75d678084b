r"""The frame of an attention layer whose key heads and value heads have sizes of their own.

    Q, K = X W_q, C W_k   in Hk heads of d        V = C W_v   in Hv heads of e                   (1)
    Y = [O_1, …, O_Hv] W_o,   O = attend(Q, K, V)                                                (2)

C is X, or a context for cross attention. What happens in (2) is the subclass's. The frame does what
all of them need: checks, rotary positions, the cache, padding.

Padding of a causal layer makes no (B, L, L) mask: masked tokens are moved behind the others before
attention and back afterwards; order of the visible ones stays and causality hides the rest.

Axes: B batch, L tokens of the call, M tokens of the context, D model size, Hk key heads of size d,
Hv value heads of size e, H heads of the softmax.
See also: `wide_key.py`, `talking_heads_attention.py`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kexue.nn.attention_mask import check_attention_mask
from kexue.nn.key_value_cache import KeyValueCache
from kexue.nn.rotary import apply_rotary

__all__ = ["Projected", "SizedHeadsAttention"]


class Projected(NamedTuple):
    """What `attend` is given.

    Attributes:
        x: (B, L, D), the tokens that ask, zero where masked.
        q: (B, Hk, L, d).
        k: (B, Hk, K, d), cached keys before those of the call.
        v: (B, Hv, K, e).
        visible: (B, K), True where a key may be seen; None where all may.
        offset: keys before the first query.
        position_bias: (#B, #H, L, K), added to the logits.
    """

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    visible: Tensor | None
    offset: int
    position_bias: Tensor | None


class SizedHeadsAttention(nn.Module):
    """(1) and (2); subclasses write `attend` and `maps`.

    Args: as the subclasses, with `key_heads` and `value_heads`.
    """

    def __init__(
        self,
        d_model: int,
        key_heads: int,
        value_heads: int,
        key_size: int | None,
        value_size: int | None,
        *,
        bias: bool,
        causal: bool,
        rope: bool,
        rope_base: float,
        dropout: float,
    ) -> None:
        super().__init__()
        key_size = _size("key", d_model, key_heads, key_size)
        value_size = _size("value", d_model, value_heads, value_size)
        if rope and key_size % 2:
            raise ValueError(f"key_size must be even with rope (it turns pairs), got {key_size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.key_heads, self.value_heads = key_heads, value_heads
        self.key_size, self.value_size = key_size, value_size
        self.causal, self.dropout = causal, dropout
        self.rope, self.rope_base = rope, rope_base
        self.query = nn.Linear(d_model, key_heads * key_size, bias=bias)
        self.key = nn.Linear(d_model, key_heads * key_size, bias=bias)
        self.value = nn.Linear(d_model, value_heads * value_size, bias=bias)
        self.output = nn.Linear(value_heads * value_size, d_model, bias=bias)

    def reset_parameters(self) -> None:
        """Glorot uniform per projection as in `torch.nn.MultiheadAttention`, biases 0."""
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def new_cache(self) -> KeyValueCache:
        """An empty cache for decoding."""
        return KeyValueCache()

    def attend(self, given: Projected) -> Float[Tensor, "B Hv L e"]:
        """The heads' outputs; rows without a visible key are zeros."""
        raise NotImplementedError

    def maps(self, given: Projected) -> Float[Tensor, "B H L K"]:
        """The softmax weights, written out."""
        raise NotImplementedError

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        attention_mask: Bool[Tensor, "B K"] | None = None,
        position_ids: Int[Tensor, "#B L"] | None = None,
        cache: KeyValueCache | None = None,
        *,
        context: Float[Tensor, "B M D"] | None = None,
        position_bias: Float[Tensor, "#B #H L T"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Attend.

        Args:
            x: any content where masked.
            attention_mask: True = visible, over the tokens of this call, or over the context.
            position_ids: for the rotary embedding; default 0, 1, … after what the cache has seen.
            cache: of `new_cache`, filled by this call; gradients do not pass through it.
            context: keys and values come from here in place of x.
            position_bias: added to the logits of the softmax heads, before masks; cached keys
                included.

        Returns:
            One vector per token; zeros where the token is masked, or sees no key.

        Raises:
            TypeError: the mask is not boolean.
            ValueError: its shape does not fit; a cache or a causal layer meets what it cannot use.
        """
        self._check(x, attention_mask, cache, context)
        offset = 0 if cache is None else cache.length
        if position_ids is None:
            length = x.shape[1]
            position_ids = torch.arange(offset, offset + length, device=x.device)[None]  # (1, L)
        if attention_mask is None:
            given = self._project(x, context, None, position_ids, cache, position_bias)
            return self._merged(self.attend(given))
        blank = ~attention_mask.unsqueeze(-1)  # (B, K, 1)
        if context is not None:
            context = context.masked_fill(blank, 0.0)  # whatever stood there
            blank = ~attention_mask.any(dim=1)[:, None, None]
        else:
            x = x.masked_fill(blank, 0.0)
        if self.causal and offset == 0 and position_bias is None:
            order = attention_mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
            given = self._project(
                x.take_along_dim(order.unsqueeze(-1), dim=1),
                None,
                attention_mask.take_along_dim(order, dim=1),
                position_ids.take_along_dim(order, dim=1),
                cache,
                None,
            )
            out = self._merged(self.attend(given._replace(visible=None)))
            out = out.take_along_dim(order.argsort(dim=1).unsqueeze(-1), dim=1)
        else:
            given = self._project(x, context, attention_mask, position_ids, cache, position_bias)
            out = self._merged(self.attend(given))
        return out.masked_fill(blank, 0.0)

    @torch.no_grad()
    def attention_weights(
        self,
        x: Float[Tensor, "B L D"],
        attention_mask: Bool[Tensor, "B K"] | None = None,
        position_ids: Int[Tensor, "#B L"] | None = None,
        cache: KeyValueCache | None = None,
        *,
        context: Float[Tensor, "B M D"] | None = None,
        position_bias: Float[Tensor, "#B #H L T"] | None = None,
    ) -> Float[Tensor, "B H L T"]:
        """The softmax weights that `forward` uses with these arguments, to look at.

        Raises:
            ValueError: a cache is given; weights are those of a whole pass.
        """
        if cache is not None:
            raise ValueError("attention_weights needs a whole pass: call it without a cache")
        self._check(x, attention_mask, cache, context)
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        if attention_mask is not None and context is None:
            x = x.masked_fill(~attention_mask.unsqueeze(-1), 0.0)
        elif attention_mask is not None and context is not None:
            context = context.masked_fill(~attention_mask.unsqueeze(-1), 0.0)
        given = self._project(x, context, attention_mask, position_ids, None, position_bias)
        return self.maps(given)

    def _project(
        self,
        x: Tensor,
        context: Tensor | None,
        kept: Tensor | None,
        positions: Tensor,
        cache: KeyValueCache | None,
        position_bias: Tensor | None,
    ) -> Projected:
        """(1), with the keys and values of the cache."""
        source = x if context is None else context
        q = _split(self.query(x), self.key_heads)  # (B, Hk, L, d)
        k = _split(self.key(source), self.key_heads)
        v = _split(self.value(source), self.value_heads)
        if self.rope:
            q, k = (apply_rotary(one, positions.unsqueeze(1), self.rope_base) for one in (q, k))
        offset = 0 if cache is None else cache.length
        if cache is not None:
            seen = cache.append(k, v, kept)
            k, v, kept = seen if offset else (k, v, kept)
        return Projected(x, q, k, v, kept, offset, position_bias)

    def _merged(self, heads: Float[Tensor, "B Hv L e"]) -> Tensor:
        out: Tensor = self.output(heads.transpose(1, 2).flatten(2))  # (2)
        return out

    def _check(
        self, x: Tensor, mask: Tensor | None, cache: KeyValueCache | None, context: Tensor | None
    ) -> None:
        source = x if context is None else context
        check_attention_mask(mask, source.shape[0], source.shape[1])
        if cache is not None and not self.causal:
            raise ValueError("a cache needs a causal layer: build it with causal=True")
        if context is not None and (self.causal or self.rope):
            raise ValueError(
                "cross attention knows no common order: build the layer with causal=False and "
                "rope=False to give a context"
            )


def _split(flat: Tensor, heads: int) -> Tensor:
    by_head: Tensor = flat.unflatten(-1, (heads, -1))
    return by_head.transpose(1, 2)


def _size(name: str, d_model: int, heads: int, size: int | None) -> int:
    """A head size; d_model shared out where none is given."""
    for what, number in (("d_model", d_model), (f"number of {name} heads", heads)):
        if number < 1:
            raise ValueError(f"{what} must be positive, got {number}")
    if size is None and d_model % heads:
        raise ValueError(
            f"d_model must be a multiple of the number of {name} heads, or {name}_size given, got "
            f"d_model={d_model} and {heads} heads"
        )
    size = d_model // heads if size is None else size
    if size < 1:
        raise ValueError(f"{name}_size must be positive, got {size}")
    return size
