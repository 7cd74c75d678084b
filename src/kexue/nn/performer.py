r"""我在Performer中发现了Transformer-VQ的踪迹 — Performer: softmax attention in linear time (S30)

Replace exp(<q, k>) by an inner product of random positive features, so that attention costs O(n)
and stays a convex combination of the values:

    o_i = sum_j <φ(q_i), φ(k_j)> v_j / sum_j <φ(q_i), φ(k_j)>                                  (1)
    φ_f(x) ∝ exp(<w_f, x> − |x|²/2),   w_f ~ N(0, I),   E<φ(q), φ(k)> = exp(<q, k>)            (2)

with q and k multiplied by d^(−1/4) first. Where all |w_f| are equal, factors that cancel turn (1)
into exp(<w_f, q>) on one side and exp(−|k − w_f|²/2) on the other: queries attend to m random
codewords to which keys belong softly. That is Transformer-VQ (`vq_attention.py`) with a soft
assignment, up to one factor per key, because the assignments of a key do not sum to 1.

Symbols: directions w omega, their number m num_features, d head_dim.
Axes: B batch, H heads, L tokens, D size of the layer, d size of a head.
Cost: O(L m d) per head instead of O(L² d); a cache of constant size in decoding.
Source: arXiv 2009.14794; article 9862. See also: `random_features.py` for (2) and its relatives,
`favor_attention.py` for (1) in logarithms, `linear_attention.py` for any other features.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kexue.nn.attention_mask import check_attention_mask
from kexue.nn.favor_attention import FavorState, favor_attention
from kexue.nn.linear_attention import LinearState, linear_attention
from kexue.nn.random_features import (
    Kind,
    Norm,
    check_kind,
    directions,
    favor_features,
    orthogonal_gaussian,
)
from kexue.nn.rotary import apply_rotary

__all__ = ["PerformerAttention", "PerformerCache"]

RELU_EPS = 1e-3
"""The ε of the relu features in the paper's code."""


class PerformerCache:
    """What a causal `PerformerAttention` has seen: constant size, whatever the length.

    Attributes:
        length: tokens seen per row, masked ones included.
    """

    def __init__(self) -> None:
        self.length = 0
        self.state: LinearState | FavorState | None = None

    def reorder(self, rows: Int[Tensor, " B"]) -> None:
        """Keep these rows of the batch, in this order: a step of beam search."""
        if self.state is not None:
            self.state = type(self.state)(*(one.index_select(0, rows) for one in self.state))


class PerformerAttention(nn.Module):
    """Multi-head attention with random features, in linear time.

    Directions are a buffer that all heads share. In training they are drawn anew every
    `redraw_every` calls, from (seed, number of the draw): equal on all ranks, the same after a
    resume, untouched in evaluation, in decoding and when a checkpointed layer is recomputed.

    Args:
        dim: D.
        heads: H.
        num_features: m per head; default d ln d rounded down, as in the public code.
        redraw_every: training calls between two draws, 1000 in the public code; None: never.
        causal: a token sees itself and what stands before it.
        kind: of the features; "hyperbolic" has 2m of them.
        norm: length of the directions.
        rope: turn queries and keys by their positions; without it the layer knows no order but the
            causal one.
        bias: of queries, keys and values. The output has none, so that a row that sees nothing
            stays zero.
        chunk: tokens per step of the linear form.
        seed: of the directions; default drawn from torch's generator.

    Raises:
        ValueError: a size below 1, dim not divisible by heads, odd heads with rope; or a kind.

    Example:
        >>> import torch
        >>> layer = PerformerAttention(dim=32, heads=4, causal=True).eval()
        >>> x = torch.randn(2, 10, 32)
        >>> cache = layer.new_cache()
        >>> parts = [layer(part, cache=cache) for part in x.split(3, dim=1)]
        >>> torch.allclose(torch.cat(parts, dim=1), layer(x), atol=1e-5)
        True
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        num_features: int | None = None,
        redraw_every: int | None = 1000,
        causal: bool = False,
        kind: Kind = "positive",
        *,
        norm: Norm = "chi",
        rope: bool = False,
        bias: bool = False,
        chunk: int = 64,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_kind(kind)
        if dim < 1 or heads < 1 or dim % heads:
            raise ValueError(f"dim must be a positive multiple of heads, got {dim} and {heads}")
        head_dim = dim // heads
        if rope and head_dim % 2:
            raise ValueError(f"dim / heads must be even with rope, got {head_dim}")
        if num_features is None:
            num_features = max(1, int(head_dim * math.log(head_dim)))
        if redraw_every is not None and redraw_every < 1:
            raise ValueError(f"redraw_every must be at least 1, or None, got {redraw_every}")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        self.dim, self.heads, self.head_dim, self.num_features = dim, heads, head_dim, num_features
        self.redraw_every, self.causal, self.kind = redraw_every, causal, kind
        self.norm, self.rope, self.chunk = norm, rope, chunk
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=False)
        self.omega: Tensor
        self.seed: Tensor
        self.calls: Tensor
        self.first_seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
        self.register_buffer("omega", self.out.weight.new_empty(num_features, head_dim))
        self.register_buffer("seed", torch.tensor(0))
        self.register_buffer("calls", torch.tensor(0))
        self._clock = torch.full((), -1, dtype=torch.long, device="cpu")  # calls, on the host
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices: Xavier's uniform, as in torch's MultiheadAttention; biases: zero.

        The directions are the first ones of the layer's seed again.
        """
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.xavier_uniform_(self.out.weight)
        if self.qkv.bias is not None:
            nn.init.zeros_(self.qkv.bias)
        self.redraw(self.first_seed)
        with torch.no_grad():
            self.calls.zero_()
        self._clock.fill_(-1)  # unknown: read from `calls` at the next training call

    def new_cache(self) -> PerformerCache:
        """An empty cache for decoding; only a causal layer has one."""
        if not self.causal:
            raise ValueError("a layer that is not causal has no cache: build it with causal=True")
        return PerformerCache()

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        attention_mask: Bool[Tensor, "B L"] | None = None,
        position_ids: Int[Tensor, "#B L"] | None = None,
        cache: PerformerCache | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Attend.

        Args:
            x: hidden states; where the mask is False they may hold anything.
            attention_mask: True = visible, over the tokens of this call.
            position_ids: for rope; default 0, 1, … after what the cache has seen.
            cache: of `new_cache`, moved on in place; no gradient goes through it.
        """
        check_attention_mask(attention_mask, x.shape[0], x.shape[1])
        if cache is not None and not self.causal:
            raise ValueError("a layer that is not causal takes no cache: build it with causal=True")
        if attention_mask is not None:
            x = x.masked_fill(~attention_mask.unsqueeze(-1), 0.0)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B,H,L,d)
        if self.rope:
            if position_ids is None:
                start = 0 if cache is None else cache.length
                position_ids = torch.arange(start, start + x.shape[1], device=x.device)[None]
            at = position_ids.unsqueeze(1)  # (B, 1, L)
            q, k = apply_rotary(q, at), apply_rotary(k, at)
        omega = self._directions(cache)
        scale = self.head_dim**-0.25
        q, k = q * scale, k * scale
        options: dict[str, Any] = {
            "causal": self.causal,
            "key_mask": attention_mask,
            "chunk": self.chunk,
            "state": None if cache is None else cache.state,
        }
        state: LinearState | FavorState
        if self.kind == "relu":
            phi_q, phi_k = (favor_features(one, omega, "relu", eps=RELU_EPS) for one in (q, k))
            mixed, state = linear_attention(phi_q, phi_k, v, **options)
        else:
            mixed, state = favor_attention(q, k, v, omega, **options)
        if cache is not None:
            cache.length += x.shape[1]
            cache.state = type(state)(*(one.detach() for one in state))
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    @torch.no_grad()
    def redraw(self, seed: int | None = None) -> None:
        """Other directions from now on: from this seed, or one of torch's generator."""
        seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
        fresh = orthogonal_gaussian(
            self.num_features, self.head_dim, self.norm, _generator(seed, 0)
        )
        self.omega.copy_(fresh)
        self.seed.fill_(seed)

    def _directions(self, cache: PerformerCache | None) -> Tensor:
        """The directions of this call, a copy where a later redraw could touch them."""
        omega = self.omega
        if self.training and self.redraw_every is not None and cache is None:
            _count(omega, self.calls, self._clock, self.seed, self.redraw_every, self.norm)
            omega = omega.clone()
        return directions(omega, self.kind)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._clock.fill_(-1)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, heads={self.heads}, num_features={self.num_features}, "
            f"causal={self.causal}, kind={self.kind}, redraw_every={self.redraw_every}"
        )


def _generator(seed: int, draw: int) -> torch.Generator:
    """The generator of one draw; no draw depends on the ones before it."""
    mixed = (seed + draw * 0x9E3779B97F4A7C15) % 2**63
    return torch.Generator().manual_seed(mixed)


@torch.library.custom_op("kexue::count_and_redraw", mutates_args=("omega", "calls", "clock"))
def _count(
    omega: Tensor, calls: Tensor, clock: Tensor, seed: Tensor, every: int, norm: str
) -> None:
    """Count a training call and draw new directions before every `every`-th one.

    `clock` holds the number of calls on the host, so that a device is asked at a redraw only. An
    operator, because a compiled graph could not count.
    """
    if torch._C._current_graph_task_id() != -1:  # recomputed in a backward pass: not a new call
        return
    if int(clock) < 0:
        clock.copy_(calls)
    draw, rest = divmod(int(clock), every)
    if draw and not rest:
        m, d = omega.shape
        fresh = orthogonal_gaussian(m, d, norm, _generator(int(seed), draw))  # type: ignore[arg-type]
        omega.copy_(fresh)
    clock.add_(1)
    calls.add_(1)


@_count.register_fake
def _(omega: Tensor, calls: Tensor, clock: Tensor, seed: Tensor, every: int, norm: str) -> None:
    return None
