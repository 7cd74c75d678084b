r"""Mixed chunk attention on a CPU: one chunk after the other, with a backward of its own (S18).

With P = scale · Q K^T inside a chunk and R = relu(P), lower triangle where causal, chunk g computes

    V̂_g = R² V_g + Q^lin_g S_g / N_g                                                            (1)
    S_(g+1) = S_g + K^lin_g^T V_g      where causal; else S is the sum over all chunks           (2)
    O_g = silu(X^u_g) ⊙ V̂_g,  V_g = silu(X^v_g)      where gated, X = [X^u | X^v]; else O = V̂  (3)

and, with the gradients D of V̂ and T of S, T_(g-1) = T_g + Q^lin_g^T D_g / N_g where causal,

    dP = 2 scale R ⊙ (D V^T),   dQ = dP K,   dK = dP^T Q                                        (4)
    dV = (R²)^T D + K^lin T,   dQ^lin = D S^T / N,   dK^lin = V T^T                             (5)

A chunk fits the cache of a core: its activation, attention and gate are done while it is there, and
no activation is ever written out. In lower triangles, only tiles that reach the diagonal are
multiplied. Kept for the backward: the inputs, V̂ where gated, and the states S. Storing S costs
s e / c numbers per token, 768 at the paper's sizes beside 6,272 for inputs, V̂ and O; summing it up
again would cost an eleventh product of a chunk beside ten.

Symbols: roots R, states S, inverse 1/N.   Axes: B batch, L tokens, s key size, e value size.
Cost: O(L c (s + e) + L s e); memory O(L (s + e) + (L / c) s e). States and R: float32 or better.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["ChunkLoop", "add_product", "chunk_spans", "local_roots"]

_silu_backward = torch.ops.aten.silu_backward.grad_input
TILE = 64
"""Rows of a lower triangle that are multiplied at once."""


def chunk_spans(length: int, chunk: int) -> list[slice]:
    """The chunks of a sequence; the last one may be short."""
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def local_roots(q: Tensor, k: Tensor, scale: float, causal: bool, offset: int = 0) -> Tensor:
    """R = relu(scale · q k^T), whose square is the local attention; in float32 or better.

    Args:
        q: (B, Q, s) queries of a chunk.
        k: (B, K, s) keys of the chunk.
        scale: the product is scaled before it is rounded: float16 would overflow.
        causal: query i sees keys up to offset + i.
        offset: keys before the first query.
    """
    scores = torch.baddbmm(q.new_zeros(1, 1, 1), q, k.mT, beta=0, alpha=scale)  # (B, Q, K)
    roots = scores.to(torch.promote_types(scores.dtype, torch.float32)).relu_()
    return roots.tril_(offset) if causal else roots


class ChunkLoop(torch.autograd.Function):
    """(1) to (5); `apply(…)[0]` is O. Once differentiable."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        q_lin: Tensor,
        k_lin: Tensor,
        x: Tensor,
        keep: Tensor | None,
        inverse: Tensor,
        chunk: int,
        scale: float,
        causal: bool,
        gated: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """O, V̂ (empty where it is O) and the states.

        Args:
            q: (B, L, s) queries inside chunks.
            k: (B, L, s) keys inside chunks.
            q_lin: (B, L, s) queries across chunks.
            k_lin: (B, L, s) keys across chunks.
            x: (B, L, e) values, or (B, L, 2e) gate and value before their activation.
            keep: (B, L, 1), 0 where a key is masked, else 1.
            inverse: (B, G) or (1, G), 1/N_g.
            chunk: c.
            scale: of the product q k^T.
            causal: chunks see earlier chunks, tokens see earlier tokens.
            gated: what x is.
        """
        spans = chunk_spans(x.shape[1], chunk)
        width = x.shape[2] // 2 if gated else x.shape[2]
        output = x.new_empty(*x.shape[:2], width)  # (B, L, e)
        attended = torch.empty_like(output) if gated else x.new_empty(0)
        sizes = (max(len(spans), 1) if causal else 1, len(x), q.shape[2], width)
        states = x.new_zeros(sizes, dtype=torch.promote_types(x.dtype, torch.float32))

        def across_and_gate(g: int, span: slice) -> None:
            here = (attended if gated else output)[:, span]
            if g or not causal:
                mean = _mean_state(states, inverse, g, causal).to(x.dtype)
                here.baddbmm_(q_lin[:, span], mean)  # (1)
            if gated:
                torch.mul(_gate(x, span), here, out=output[:, span])  # (3)

        with torch.autocast(x.device.type, enabled=False):
            for g, span in enumerate(spans):
                v = _value(x, keep, span, gated)
                weights = local_roots(q[:, span], k[:, span], scale, causal).square_().to(v.dtype)
                _lower_times(weights, v, causal, out=(attended if gated else output)[:, span])
                if causal:
                    across_and_gate(g, span)
                if causal and g + 1 < len(spans):
                    states[g + 1] = states[g]
                if not causal or g + 1 < len(spans):
                    add_product(states[g + 1 if causal else 0], k_lin[:, span].mT, v)  # (2)
            for g, span in [] if causal else list(enumerate(spans)):
                across_and_gate(g, span)
        return output, attended, states

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the backward reads."""
        *tensors, ctx.chunk, ctx.scale, ctx.causal, ctx.gated = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_output: Tensor | None, *unused: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """(4) and (5), from the last chunk to the first."""
        if d_output is None:
            return (None,) * 11
        q, k, q_lin, k_lin, x, keep, inverse, attended, states = ctx.saved_tensors
        causal, gated = ctx.causal, ctx.gated
        spans = list(enumerate(chunk_spans(x.shape[1], ctx.chunk)))
        first, last = (1, len(spans) - 1) if causal else (0, len(spans))  # with S ≠ 0, with T ≠ 0
        dq, dk, dx = (torch.empty_like(one) for one in (q, k, x))
        dq_lin, dk_lin = torch.zeros_like(q_lin), torch.zeros_like(k_lin)
        t = torch.zeros_like(states[0])  # (B, s, e)
        d_value = dx.chunk(2, dim=-1)[1] if gated else dx

        def through_gate(span: slice) -> Tensor:
            """D of the chunk, and the gradient of X^u into its place."""
            if not gated:
                return d_output[:, span]
            gate, into = (one[:, span].chunk(2, dim=-1)[0] for one in (x, dx))
            _silu_backward(d_output[:, span] * attended[:, span], gate, grad_input=into)
            return d_output[:, span] * _gate(x, span)

        with torch.autocast(x.device.type, enabled=False):
            for g, span in [] if causal else spans:
                d = through_gate(span)
                if gated:
                    d_value[:, span] = d  # waits there until the next loop reads it
                add_product(t, _share(q_lin, inverse, g, span).mT, d)
            for g, span in reversed(spans):
                v = _value(x, keep, span, gated)
                d = through_gate(span) if causal or not gated else d_value[:, span]
                roots = local_roots(q[:, span], k[:, span], ctx.scale, causal)
                slope = _lower_outer(d, v, causal).to(roots.dtype).mul_(roots)
                dp = slope.mul_(2 * ctx.scale).to(v.dtype)  # (4)
                torch.bmm(dp, k[:, span], out=dq[:, span])  # (4)
                torch.bmm(dp.mT, q[:, span], out=dk[:, span])  # (4)
                dv = torch.empty_like(v)
                _upper_times(roots.square_().to(v.dtype).mT, d, causal, out=dv)
                if g < last:
                    t_low = t.to(v.dtype)
                    dv.baddbmm_(k_lin[:, span], t_low)  # (5)
                    torch.bmm(v, t_low.mT, out=dk_lin[:, span])  # (5)
                if g >= first:
                    mean = _mean_state(states, inverse, g, causal).to(v.dtype)
                    torch.bmm(d, mean.mT, out=dq_lin[:, span])  # (5)
                if causal and g >= first:
                    add_product(t, _share(q_lin, inverse, g, span).mT, d)
                if keep is not None:
                    dv.mul_(keep[:, span])
                if gated:
                    before = x[:, span].chunk(2, dim=-1)[1]
                    _silu_backward(dv, before, grad_input=d_value[:, span])
                else:
                    dx[:, span] = dv
        return dq, dk, dq_lin, dk_lin, dx, None, None, None, None, None, None


def _gate(x: Tensor, span: slice) -> Tensor:
    """silu(X^u) of a chunk."""
    return F.silu(x[:, span].chunk(2, dim=-1)[0])


def _value(x: Tensor, keep: Tensor | None, span: slice, gated: bool) -> Tensor:
    """The values of a chunk, silu(X^v) where gated; zero at masked keys."""
    v = F.silu(x[:, span].chunk(2, dim=-1)[1]) if gated else x[:, span]
    return v if keep is None else v * keep[:, span]


def _mean_state(states: Tensor, inverse: Tensor, g: int, causal: bool) -> Tensor:
    """S / N of chunk g."""
    return states[g if causal else 0] * inverse[:, g, None, None]  # (B, s, e)


def _share(q_lin: Tensor, inverse: Tensor, g: int, span: slice) -> Tensor:
    """Q^lin / N of chunk g."""
    return (q_lin[:, span] * inverse[:, g, None, None]).to(q_lin.dtype)  # (B, c, s)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b; in the precision of the total when the factors have less."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b)
    else:
        total += torch.bmm(a, b)


def _tiles(size: int, triangular: bool) -> list[slice]:
    return chunk_spans(size, TILE if triangular else size)


def _lower_times(a: Tensor, b: Tensor, triangular: bool, out: Tensor) -> None:
    """out = a b, where a may be a lower triangle."""
    for rows in _tiles(a.shape[1], triangular):
        end = rows.stop if triangular else a.shape[2]
        torch.bmm(a[:, rows, :end], b[:, :end], out=out[:, rows])


def _upper_times(a: Tensor, b: Tensor, triangular: bool, out: Tensor) -> None:
    """out = a b, where a may be an upper triangle."""
    for rows in _tiles(a.shape[1], triangular):
        start = rows.start if triangular else 0
        torch.bmm(a[:, rows, start:], b[:, start:], out=out[:, rows])


def _lower_outer(a: Tensor, b: Tensor, triangular: bool) -> Tensor:
    """a b^T, zero in tiles right of the diagonal where only the lower triangle is wanted."""
    out = a.new_zeros(a.shape[0], a.shape[1], b.shape[1])
    for rows in _tiles(a.shape[1], triangular):
        end = rows.stop if triangular else b.shape[1]
        torch.bmm(a[:, rows], b[:, :end].mT, out=out[:, rows, :end])
    return out
