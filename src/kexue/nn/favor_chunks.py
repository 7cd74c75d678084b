r"""The two sweeps over chunks behind `favor_attention`, forward and backward (S30).

Formulas (1) to (5) are those of `favor_attention.py`. With L_i the logarithm of the denominator of
(2) there, G_i = [g_i, −<g_i, o_i>] for the gradient g of the outputs, and v' = [v, 1],

    π_ijf = exp(a_if + b_jf − L_i)                        at most 1, sums to 1 over j and f
    da_if = sum_{j<=i} π_ijf <G_i, v'_j>                                                       (6)
    db_jf = sum_{i>=j} π_ijf <G_i, v'_j>                                                       (7)
    dv_j  = sum_{i>=j} sum_f π_ijf g_i                                                         (8)

Backward is one sweep from the end that carries

    R_f = sum_i exp(a_if + c_f − L_i) G_i                                                      (9)

over the rows after the chunk, with c_f the maximum over keys up to the end of the chunk: all those
rows have seen the key that attains it, so these exponentials are at most 1 too. Features are built
again chunk by chunk; the states U before each chunk come from one kept state in SEGMENT chunks.

Axes: N batch × heads, L tokens, m features, d size of a query, v size of a value, c chunk.
Registered as operators: for torch.compile they are one node each, whatever the length.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["favor_chunks"]

SEGMENT = 8
"""Chunks between two kept states: the backward pass rebuilds the seven in between."""
LARGEST = 80.0
"""Exponents stay below ln of float32's largest number; larger ones only meet products of zero."""
State = tuple[Tensor, Tensor]
"""Shift c, (N, 1, m), and sums U, (N, m, v + 1)."""


class _Chunks:
    """One problem: what forward and backward compute from the same chunk of tokens."""

    def __init__(
        self, q: Tensor, k: Tensor, values: Tensor, omega: Tensor, masked: bool, chunk: int
    ) -> None:
        self.q, self.k, self.values = q, k, values
        self.down = omega.expand(k.shape[0], *omega.shape)  # (N, m, d)
        self.up = self.down.mT  # (N, d, m)
        self.half = k.square().sum(-1, keepdim=True).mul_(-0.5)  # (N, K, 1)
        self.hidden = values[..., -1:] == 0 if masked else None
        self.queries, self.keys = _parts(q.shape[1], chunk), _parts(k.shape[1], chunk)

    def near(self, part: slice, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Queries exp(a + c − e) and their e: (4)."""
        return _exp(torch.baddbmm(shift, self.q[:, part], self.up))  # (N, c, m)

    def logs(self, part: slice) -> Tensor:
        return torch.baddbmm(self.half[:, part], self.k[:, part], self.up)  # (N, c, m)  # (1)

    def hide(self, logs: Tensor, part: slice) -> Tensor:
        """−inf for masked keys."""
        return logs if self.hidden is None else logs.masked_fill(self.hidden[:, part], -torch.inf)

    def own(self, logs: Tensor, part: slice, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Keys exp(b − c − s), and s as a row, −inf for masked keys: (5)."""
        own, scale = _exp(logs - shift)
        return own, self.hide(scale, part).mT  # (N, c, m), (N, 1, c)

    def absorb(self, logs: Tensor, part: slice, state: State) -> State:
        """The state after these keys: (3)."""
        shift, sums = state
        logs = self.hide(logs, part)
        most = torch.maximum(shift, logs.amax(dim=1, keepdim=True))  # (N, 1, m)
        kept = sums * (shift - most).exp_().mT
        return most, kept.baddbmm_((logs - most).exp_().mT, self.values[:, part])

    def to_inputs(self, part: slice, of_logs: Tensor) -> Tensor:
        """Gradient of the keys from that of their log-features: (1)."""
        total = of_logs.sum(-1, keepdim=True)
        return torch.bmm(of_logs, self.down).addcmul_(self.k[:, part], total, value=-1)


def _exp(logs: Tensor) -> tuple[Tensor, Tensor]:
    """Exponentials relative to the largest of each row, in place, and that largest."""
    most = logs.amax(dim=-1, keepdim=True)
    return logs.sub_(most).exp_(), most


def _parts(length: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


@torch.library.custom_op("kexue::favor", mutates_args=())
def favor_chunks(
    q: Tensor,
    k: Tensor,
    values: Tensor,
    omega: Tensor,
    shift: Tensor,
    sums: Tensor,
    causal: bool,
    masked: bool,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs, L of (6), the state after all keys, and the states before each segment."""
    with torch.autocast(q.device.type, enabled=False):
        it = _Chunks(q, k, values, omega, masked, chunk)
        out = values.new_empty(*q.shape[:2], values.shape[-1] - 1)
        lse = q.new_empty(*q.shape[:2], 1)
        later = torch.full((chunk, chunk), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
        state, kept = (shift, sums), []
        if not causal:
            for part in it.keys:
                state = it.absorb(it.logs(part), part, state)
        for index, part in enumerate(it.queries):
            if causal and index % SEGMENT == 0:
                kept.append(state)
            near, top = it.near(part, state[0])
            read = near @ state[1]  # (N, c, v + 1)  # (4)
            if causal:
                logs = it.logs(part)
                own, scale = it.own(logs, part, state[0])
                pair = torch.bmm(near, own.mT).log_().add_(scale)  # (N, c, c)  # (5)
                pair += later[: pair.shape[1], : pair.shape[1]]
                most = pair.amax(dim=-1, keepdim=True).clamp_(min=0)
                read = read.mul_((-most).exp()).baddbmm_(pair.sub_(most).exp_(), values[:, part])
                top = top + most
                state = it.absorb(logs, part, state)
            total = read[..., -1:]
            total = total.masked_fill(total == 0, torch.inf)  # a row that sees nothing: 0, not 0/0
            torch.div(read[..., :-1], total, out=out[:, part])  # (2)
            torch.add(top, total.log_(), out=lse[:, part])
        shifts, states = zip(*(kept or [state]), strict=True)
        if not it.keys:  # an operator may not return what it was given
            state = (shift.clone(), sums.clone())
        return (out, lse, *state, torch.stack(shifts), torch.stack(states))


@favor_chunks.register_fake
def _(
    q: Tensor,
    k: Tensor,
    values: Tensor,
    omega: Tensor,
    shift: Tensor,
    sums: Tensor,
    causal: bool,
    masked: bool,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    kept = max(1, -(-q.shape[1] // (SEGMENT * chunk))) if causal else 1
    return (
        q.new_empty(*q.shape[:2], values.shape[-1] - 1),
        q.new_empty(*q.shape[:2], 1),
        torch.empty_like(shift),
        torch.empty_like(sums),
        shift.new_empty(kept, *shift.shape),
        sums.new_empty(kept, *sums.shape),
    )


@torch.library.custom_op("kexue::favor_backward", mutates_args=())
def favor_chunks_backward(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    values: Tensor,
    omega: Tensor,
    out: Tensor,
    lse: Tensor,
    last: Tensor,
    shifts: Tensor,
    states: Tensor,
    causal: bool,
    masked: bool,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and [v, 1]: (6)."""
    with torch.autocast(q.device.type, enabled=False):
        it = _Chunks(q, k, values, omega, masked, chunk)
        G = torch.cat([g, (g * out).sum(-1, keepdim=True).neg_()], dim=-1)  # (N, L, v + 1)
        dq, dk = torch.empty_like(q), torch.empty_like(k)
        dv = torch.zeros_like(values)
        R = torch.zeros_like(states[0])  # (N, m, v + 1)
        if not causal:
            shift, sums = shifts[0], states[0]
            for part in it.queries:
                near, top = it.near(part, shift)
                g_near = G[:, part] * (top - lse[:, part]).exp_()
                dq[:, part] = (g_near @ sums.mT).mul_(near) @ it.down
                R.baddbmm_(near.mT, g_near)
            for part in it.keys:
                far = it.hide(it.logs(part), part).sub_(shift).exp_()  # (N, c, m)
                dk[:, part] = it.to_inputs(part, (values[:, part] @ R.mT).mul_(far))
                dv[:, part, :-1] = far @ R[..., :-1]
            return dq, dk, dv
        earlier = torch.ones(chunk, chunk, dtype=q.dtype, device=q.device).tril_()
        for segment in reversed(range(len(shifts))):
            parts = it.keys[segment * SEGMENT : (segment + 1) * SEGMENT]
            before, logs = [(shifts[segment], states[segment])], [it.logs(part) for part in parts]
            for part, log in zip(parts[:-1], logs, strict=False):
                before.append(it.absorb(log, part, before[-1]))
            for part, log, (shift, sums) in zip(
                reversed(parts), reversed(logs), reversed(before[: len(parts)]), strict=True
            ):
                near, top = it.near(part, shift)
                own, scale = it.own(log, part, shift)
                far = it.hide(log, part).sub(last).exp_()  # c after the chunk: as R is
                top = top.sub_(lse[:, part])
                weight = (top + scale).clamp_(max=LARGEST).exp_()  # (N, c, c)
                weight *= earlier[: weight.shape[1], : weight.shape[1]]
                g_near = G[:, part] * top.exp_()
                pair = torch.bmm(G[:, part], values[:, part].mT).mul_(weight)
                of_q = torch.bmm(g_near, sums.mT).baddbmm_(pair, own).mul_(near)
                of_k = torch.bmm(values[:, part], R.mT).mul_(far)
                of_k.addcmul_(torch.bmm(pair.mT, near), own)
                pair = torch.bmm(near, own.mT).mul_(weight)
                dq[:, part] = of_q @ it.down
                dk[:, part] = it.to_inputs(part, of_k)
                dv[:, part, :-1] = torch.bmm(pair.mT, g[:, part]).baddbmm_(far, R[..., :-1])
                R.mul_((shift - last).exp_().mT).baddbmm_(near.mT, g_near)
                last = shift
        return dq, dk, dv


@favor_chunks_backward.register_fake
def _(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    values: Tensor,
    omega: Tensor,
    out: Tensor,
    lse: Tensor,
    last: Tensor,
    shifts: Tensor,
    states: Tensor,
    causal: bool,
    masked: bool,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(values)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, _, ctx.causal, ctx.masked, ctx.chunk = inputs
    out, lse, last, _, shifts, states = output
    ctx.save_for_backward(*tensors, out, lse, last, shifts, states)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, g: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 6
    if g is None:
        return (None, None, None, *nothing)
    found = favor_chunks_backward(
        g.contiguous(), *ctx.saved_tensors, ctx.causal, ctx.masked, ctx.chunk
    )
    return (*found, *nothing)


favor_chunks.register_autograd(_gradients, setup_context=_save)
