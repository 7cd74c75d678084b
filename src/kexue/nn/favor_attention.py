r"""Attention with positive random features, in logarithms: exact shifts, no ε (S30).

FAVOR+ replaces exp(<q, k>) by a sum over random directions w_f. With the log-features

    a_if = <w_f, q_i>,   b_jf = <w_f, k_j> − |k_j|²/2                                          (1)

(−|q_i|²/2 and the number of features cancel) the attention over the visible keys j of row i is

    o_i = sum_jf exp(a_if + b_jf) v_j / sum_jf exp(a_if + b_jf).                               (2)

Any shift of b_f can be taken back in a_f. Kept relative to the running maximum c_f over keys,

    c_f = max_j b_jf,   U_f = sum_j exp(b_jf − c_f) [v_j, 1],                                  (3)
    o_i ∝ sum_f exp(a_if + c_f − e_i) U_f,   e_i = max_f (a_if + c_f),                         (4)

every exponential is at most 1 and the denominator at least 1: nothing over- or underflows at any
norm of q and k, and no ε is needed, which would draw the result towards the mean of all values.
Read the other way round, (3) and (4) are a softmax over features of a_if + ln N_f, with N_f the
soft number of keys at w_f, applied to the mean value there: Transformer-VQ, softly assigned.

Causal: keys of earlier chunks come through (4). The pairs of the own chunk are taken relative to
the same c_f, which knows no later key,

    t_ij = ln sum_f exp(a_if + c_f − e_i) exp(b_jf − c_f − s_j) + s_j,
    s_j = max_f (b_jf − c_f),                                                                  (5)

and one softmax over (4) and the t_ij with j <= i joins the two, again with a denominator of at
least 1. A later key enters an earlier row not even by its shift. Before the first key, c is that
key's b; no earlier row sees anything.

Axes: N batch × heads, L tokens, m features, d size of a query, v size of a value, c chunk.
Cost: O(L m (d + v)) time, O(L (d + v)) memory in a training step: features exist for one chunk at
a time, forward and backward (`favor_chunks.py`). No double backward.
Source: arXiv 2009.14794; article 9862. What can still be lost: a pair of the same chunk whose sum
in (5) is below exp(−87) in float32. That takes |q| and |k| near 20, where FAVOR+ estimates nothing;
the row stays a convex combination of values.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from kexue.nn.favor_chunks import favor_chunks

__all__ = ["FavorState", "favor_attention"]


class FavorState(NamedTuple):
    """What a row of the batch has seen: the c and the U of (3), of constant size."""

    shift: Float[Tensor, "B H m"]
    sums: Float[Tensor, "B H m v1"]


def favor_attention(
    q: Float[Tensor, "B H L d"],
    k: Float[Tensor, "B H K d"],
    v: Float[Tensor, "B H K v"],
    omega: Float[Tensor, "m d"],
    *,
    causal: bool = False,
    key_mask: Bool[Tensor, "B K"] | None = None,
    chunk: int = 64,
    state: FavorState | None = None,
) -> tuple[Float[Tensor, "B H L v"], FavorState]:
    """Attention (2): FAVOR+ with positive features of any number of directions.

    Args:
        q: queries, already multiplied by d^(−1/4), as the keys.
        k: keys.
        v: values.
        omega: directions w_f; append −w_f for the hyperbolic variant. Gets no gradient.
        causal: query i sees keys up to i of this call, and all that the state has seen.
        key_mask: True = visible; masked keys and values may hold anything, NaN included.
        chunk: tokens per step; 64 was faster than 32, 128 and 256 on a CPU.
        state: what came before, from an earlier call; for inference, it carries no gradient.

    Returns:
        The outputs in the dtype of v, zeros in a row that sees no key, and the state after these
        keys.

    Raises:
        ValueError: omega or the keys do not fit the queries, or omega requires a gradient.

    Example:
        >>> import torch
        >>> q = k = torch.zeros(1, 1, 3, 4)
        >>> v = torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 3, 1)
        >>> favor_attention(q, k, v, torch.eye(4), causal=True)[0].flatten().tolist()
        [1.0, 1.5, 3.0]
    """
    _check(q, k, omega, causal, chunk)
    heads, dtype = q.shape[1], torch.promote_types(q.dtype, torch.float32)
    causal = causal and q.shape[-2] > 1  # one token sees all that was absorbed
    with torch.autocast(q.device.type, enabled=False):
        values = F.pad(v.to(dtype), (0, 1), value=1.0)  # (B, H, K, v + 1)
        if key_mask is not None:
            hidden = ~key_mask[:, None, :, None]
            k, values = k.masked_fill(hidden, 0.0), values.masked_fill(hidden, 0.0)
        flat = [one.to(dtype).flatten(0, 1).contiguous() for one in (q, k, values)]  # (N, ·, ·)
        omega = omega.to(dtype)
        shift = _first_shift(flat[1], omega, key_mask, heads)  # (N, 1, m)
        if state is None:
            sums = shift.new_zeros(shift.shape[0], omega.shape[0], values.shape[-1])
        else:
            sums = state.sums.to(dtype).flatten(0, 1)
            seen = sums[..., -1].amax(dim=-1) > 0
            before = state.shift.to(dtype).flatten(0, 1).unsqueeze(1)
            shift = torch.where(seen[:, None, None], before, shift)
        out, _, shift, sums, _, _ = favor_chunks(
            *flat, omega, shift, sums, causal, key_mask is not None, chunk
        )
    after = FavorState(shift.detach().squeeze(1), sums.detach())
    after = FavorState(*(one.unflatten(0, (-1, heads)) for one in after))
    return out.unflatten(0, (-1, heads)).to(v.dtype), after


def _first_shift(k: Tensor, omega: Tensor, key_mask: Tensor | None, heads: int) -> Tensor:
    """The log-features of the first visible key of every row, (N, 1, m)."""
    with torch.no_grad():
        if not k.shape[1]:  # no key: any shift will do
            return k.new_zeros(len(k), 1, len(omega))
        first = k[:, :1]  # (N, 1, d)
        if key_mask is not None:
            index = key_mask.to(torch.uint8).argmax(dim=1).repeat_interleave(heads)
            first = k.take_along_dim(index[:, None, None], dim=1)
        return first @ omega.mT - first.square().sum(-1, keepdim=True) / 2  # (1)


def _check(q: Tensor, k: Tensor, omega: Tensor, causal: bool, chunk: int) -> None:
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if omega.shape[-1] != q.shape[-1] or k.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"omega and k must have the size of the queries, {q.shape[-1]} in their last axis, got "
            f"{tuple(omega.shape)} and {tuple(k.shape)}"
        )
    if omega.requires_grad:
        raise ValueError("omega gets no gradient: pass omega.detach()")
    if causal and q.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"causal attention needs as many queries as keys, got {q.shape[-2]} and "
            f"{k.shape[-2]}: give earlier keys through state"
        )
