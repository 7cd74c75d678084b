r"""我在Performer中发现了Transformer-VQ的踪迹 — soft vector quantisation of keys (S30)

Spread every key over the codes by a temperature: at 0 this is Transformer-VQ, and every positive
temperature has gradients where VQ has none.

Start from e^{q·k} = ∫ e^{q·w} δ(w − k) dw and replace the point mass by a mixture over codes:

    p_js = softmax_s(−|k_j − c_s|² / (2 T))                                                     (1)
    o_i = sum_j κ_ij v_j / sum_j κ_ij,   κ_ij = sum_s e^{q_i·c_s} p_js                           (2)
        = sum_s w_is U_s,   U_s = sum_j p_js v_j,   N_s = sum_j p_js                             (3)
    w_is = softmax_s(q_i·c_s + ln N_s) / N_s                                                   (4)

FAVOR+ with features w_s of one common length has κ_ij = sum_s e^{q_i·w_s} exp(−|k_j − w_s|²/2):
(2) without the normalisation over s in (1). The two are not equal, because the sum over s that (1)
divides by differs from key to key and reweighs the keys.

T → 0 is `vq_attention` wherever no key is equally near to two codes; T → ∞ gives every key the same
weights, so the output is the mean of the values.

Symbols: queries q, keys k, codebook c_s, temperature T (σ² of the mixture).
Axes: B batch, H heads, N tokens, c codes.   Cost: n c (2 d_k + 2 d_v) per head; causal: n·chunk
(c + d_v) more. All in the log domain, float32 or better: (4) neither overflows nor divides by zero.
Source: article 9862; the normalised form and its limits are worked out by us.
See also: `vq_attention.py`, `performer.py`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from kexue.nn.attention_mask import check_attention_mask

__all__ = ["soft_assignment", "soft_vq_attention"]


def soft_assignment(
    k: Float[Tensor, "B H N k"], codebook: Float[Tensor, "H c k"], temperature: float
) -> Float[Tensor, "B H N c"]:
    """ln p of (1), in float32 or better.

    Raises:
        ValueError: temperature not positive, or a codebook of another width.
    """
    if not temperature > 0:
        raise ValueError(
            f"temperature must be positive, got {temperature}: its limit 0 is vq_attention"
        )
    H, d = k.shape[1], k.shape[3]
    if codebook.shape[0] != H or codebook.shape[2] != d:
        raise ValueError(
            f"codebook must have shape (heads, codes, head_dim) = ({H}, c, {d}) to match the "
            f"keys, got {tuple(codebook.shape)}"
        )
    wide = torch.promote_types(k.dtype, torch.float32)
    k, codebook = k.to(wide), codebook.to(wide)
    scores = k @ codebook.mT - codebook.square().sum(-1).unsqueeze(1) / 2  # |k|² cancels
    return F.log_softmax(scores / temperature, dim=-1)  # (1)


def soft_vq_attention(
    q: Float[Tensor, "B H N k"],
    k: Float[Tensor, "B H N k"],
    v: Float[Tensor, "B H N v"],
    codebook: Float[Tensor, "H c k"],
    temperature: float,
    causal: bool = False,
    key_mask: Bool[Tensor, "B N"] | None = None,
    chunk: int = 128,
) -> Float[Tensor, "B H N v"]:
    """Linear attention through softly assigned codes: (2), computed as (3) and (4).

    Differentiable in everything, the codebook included.

    Args:
        q: queries; no further scale is applied to q · c.
        k: keys, not quantised.
        v: values.
        codebook: c codewords per head.
        temperature: T of (1); the keys' squared distance to their codes is the yardstick.
        causal: query i sees keys up to i.
        key_mask: True = visible; hidden keys and values may hold anything.
        chunk: tokens handled together when causal; the result does not depend on it.

    Returns:
        Outputs in the dtype of q; zeros for a row that sees no key.

    Raises:
        ValueError: temperature not positive, chunk < 1, a codebook or mask of the wrong shape.
        TypeError: the mask is not boolean.

    Example:
        >>> import torch
        >>> k = torch.tensor([[[[0.9, 0.2], [0.1, 0.7], [0.6, 0.5], [0.2, 0.9]]]])
        >>> q = torch.tensor([[[[1.0, 0], [0, 1], [1, 1], [2, -1]]]])
        >>> v = torch.tensor([[[[1.0], [2], [3], [4]]]])
        >>> soft_vq_attention(q, k, v, torch.eye(2)[None], temperature=1e-3).flatten()
        tensor([2.2689, 2.7311, 2.5000, 2.0474])
    """
    check_attention_mask(key_mask, q.shape[0], q.shape[2], "key_mask")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if key_mask is not None:
        hidden = ~key_mask[:, None, :, None]
        k, v = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
    with torch.autocast(q.device.type, enabled=False):
        log_p = soft_assignment(k, codebook, temperature)  # (B, H, N, c)
        if key_mask is not None:
            log_p = log_p.masked_fill(hidden, -torch.inf)
        wide = log_p.dtype
        logits = q.to(wide) @ codebook.to(wide).mT  # (B, H, N, c)
        if causal:
            out = _causal(logits, log_p, v.to(wide), chunk)
        else:
            out = _weights(logits, log_p.exp().sum(2, keepdim=True)) @ (log_p.exp().mT @ v.to(wide))
    return out.to(q.dtype)


def _weights(logits: Tensor, N: Tensor) -> Tensor:
    """(4), with zeros for codes without mass and for rows that see nothing."""
    has = N > 0
    count = N.masked_fill(~has, 1.0)
    scores = (logits + count.log()).masked_fill(~has, -torch.inf)
    seen = has.any(-1, keepdim=True)
    share = scores.masked_fill(~seen, 0.0).softmax(dim=-1)
    return share.masked_fill(~(has & seen), 0.0) / count  # (4)


def _causal(logits: Tensor, log_p: Tensor, v: Tensor, chunk: int) -> Tensor:
    """(3) with running sums: whole chunks through U, the own chunk pair by pair."""
    p = log_p.exp()
    weights = _weights(logits, p.cumsum(2))  # (B, H, N, c)
    U = v.new_zeros(*v.shape[:2], p.shape[3], v.shape[3])
    parts = []
    for w, own, value in zip(
        weights.split(chunk, 2), p.split(chunk, 2), v.split(chunk, 2), strict=True
    ):
        parts.append(w @ U + (w @ own.mT).tril() @ value)  # (3)
        U = U + own.mT @ value
    return torch.cat(parts, dim=2)
