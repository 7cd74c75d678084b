r"""Linear attention: prefix sums in place of the n × n matrix (S30).

For non-negative features φ(q), φ(k) the kernel attention

    o_i = sum_j <φ(q_i), φ(k_j)> v_j / sum_j <φ(q_i), φ(k_j)>                                    (1)

needs only two sums over keys,

    U = sum_j φ(k_j) v_j^T,   z = sum_j φ(k_j),      o_i = U^T φ(q_i) / <z, φ(q_i)>              (2)

over all visible keys, or over j <= i in a causal model. There the sequence is cut into chunks: keys
of earlier chunks come through the prefix sums U, z, those of the own chunk through a small masked
product,

    o_i ∝ U_before^T φ(q_i) + sum over j <= i of the chunk of <φ(q_i), φ(k_j)> v_j               (3)

Symbols: features phi_q, phi_k, values v, chunk c, U and z the `LinearState`.
Axes: B batch, H heads, L tokens, m features, d size of a value.
Cost: O(L m d) instead of O(L² d). Causal: O(L c (m + d)) more, and L m d / c numbers of memory
for the prefix sums, half the features at c = 128 and d = 64; never L m d. Sums are in float32
or better.
Source: arXiv 2009.14794; article 9862. A row whose denominator is 0, because it sees no key or
because all products vanish, gives zeros. See also: `favor_attention` for exponential features,
whose logarithms are kept so that nothing under- or overflows.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LinearState", "linear_attention"]


class LinearState(NamedTuple):
    """What linear attention remembers of the keys it has seen: (2)."""

    sums: Float[Tensor, "B H m d"]
    normaliser: Float[Tensor, "B H m"]


def linear_attention(
    phi_q: Float[Tensor, "B H L m"],
    phi_k: Float[Tensor, "B H K m"],
    v: Float[Tensor, "B H K d"],
    *,
    causal: bool = False,
    key_mask: Bool[Tensor, "B K"] | None = None,
    chunk: int = 128,
    state: LinearState | None = None,
) -> tuple[Float[Tensor, "B H L d"], LinearState]:
    """Kernel attention (1) in linear time.

    Args:
        phi_q: non-negative features of the queries.
        phi_k: non-negative features of the keys.
        v: values.
        causal: query i sees keys up to i of this call, and all that the state has seen.
        key_mask: True = visible; masked keys and values may hold anything, NaN included.
        chunk: tokens per chunk of (3); changes time and memory, not the result.
        state: what came before, from an earlier call.

    Returns:
        The outputs in the dtype of v, and the state after these keys.

    Raises:
        ValueError: chunk below 1, or a causal call with other numbers of queries and keys.

    Example:
        >>> import torch
        >>> ones, v = torch.ones(1, 1, 3, 2), torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 3, 1)
        >>> linear_attention(ones, ones, v)[0].flatten().tolist()
        [3.0, 3.0, 3.0]
        >>> linear_attention(ones, ones, v, causal=True)[0].flatten().tolist()
        [1.0, 1.5, 3.0]
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if causal and phi_q.shape[-2] != phi_k.shape[-2]:
        raise ValueError(
            f"causal attention needs as many queries as keys, got {phi_q.shape[-2]} and "
            f"{phi_k.shape[-2]}: give earlier keys through state"
        )
    dtype = torch.promote_types(torch.promote_types(phi_q.dtype, v.dtype), torch.float32)
    out_dtype = v.dtype
    with torch.autocast(v.device.type, enabled=False):
        phi_q, phi_k = phi_q.to(dtype), phi_k.to(dtype)
        values = F.pad(v.to(dtype), (0, 1), value=1.0)  # (B, H, K, d + 1): v, and 1 for z
        if key_mask is not None:
            hidden = ~key_mask[:, None, :, None]
            phi_k, values = phi_k.masked_fill(hidden, 0.0), values.masked_fill(hidden, 0.0)
        before = None
        if state is not None:
            before = torch.cat([state.sums, state.normaliser.unsqueeze(-1)], dim=-1).to(dtype)
        if causal:
            read, after = _causal(phi_q, phi_k, values, chunk, before)
        else:
            after = phi_k.mT @ values  # (B, H, m, d + 1)
            after = after if before is None else before + after
            read = phi_q @ after  # (B, H, L, d + 1)  # (2)
        total = read[..., -1:]
        out = read[..., :-1] / total.masked_fill(total == 0, 1.0)  # (B, H, L, d)  # (1)
    return out.to(out_dtype), LinearState(after[..., :-1], after[..., -1])


def _causal(
    phi_q: Tensor, phi_k: Tensor, values: Tensor, chunk: int, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Numerators and denominators of (3), and the sums over all keys."""
    length = phi_q.shape[-2]
    chunk = min(chunk, max(length, 1))
    missing = -length % chunk
    phi_q, phi_k, values = (
        F.pad(one, (0, 0, 0, missing)).unflatten(-2, (-1, chunk)) for one in (phi_q, phi_k, values)
    )  # (B, H, C, c, ·)
    sums = phi_k.mT @ values  # (B, H, C, m, d + 1), of every chunk
    if before is None:
        before = sums.new_zeros(*sums.shape[:2], *sums.shape[3:])
    prefix = torch.cat([before.unsqueeze(2), sums], dim=2).cumsum(dim=2)  # (B, H, C + 1, m, d + 1)
    inside = (phi_q @ phi_k.mT).tril() @ values  # (B, H, C, c, d + 1)
    read = phi_q @ prefix[:, :, :-1] + inside  # (3)
    return read.flatten(2, 3)[:, :, :length], prefix[:, :, -1]
