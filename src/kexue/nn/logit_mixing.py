r"""突破瓶颈，打造更强大的Transformer — mixed logits in a fused kernel (S25)

Heads that mix their logits but not their weights are ordinary attention with wide keys:

    L_g = sum_i P_l[i, g] Q_i K_iᵀ / sqrt(d)
        = [P_l[1, g] Q_1, …, P_l[Hk, g] Q_Hk] [K_1, …, K_Hk]ᵀ / sqrt(d)                          (1)

One key of size Hk d serves all heads, and no map is ever held in memory. With mixed weights there
is no such form: O_f = sum_g P_w[g, f] W_g V_f would need a product per pair of heads.

Symbols: q, k, v; P_l `logit_mixing`.   Axes: as `talking_heads.py`.
Cost: Q K H (Hk d + e) multiply-adds; scores cost H times as much as those of `talking_heads`, which
is the faster one on a CPU.
Source: ours; (1) is exact.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kexue.nn.talking_heads import check_heads
from kexue.nn.wide_key import wide_key_attention

__all__ = ["logit_mixed_attention"]


def logit_mixed_attention(
    q: Float[Tensor, "B Hk Q d"],
    k: Float[Tensor, "B Hk K d"],
    v: Float[Tensor, "B H K e"],
    logit_mixing: Float[Tensor, "Hk H"] | Float[Tensor, "B Q Hk H"],
    attention_mask: Bool[Tensor, "B K"] | None = None,
    *,
    causal: bool = False,
    offset: int = 0,
    position_bias: Float[Tensor, "#B #H Q K"] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H Q e"]:
    """`talking_heads` without mixed weights, as attention with wide keys: (1).

    Args: as `talking_heads`.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 10, 8)
        >>> P_l = torch.randn(4, 4)
        >>> from kexue.nn.talking_heads import talking_heads
        >>> wide = logit_mixed_attention(q, k, v, P_l)
        >>> torch.allclose(wide, talking_heads(q, k, v, P_l), atol=1e-5)
        True
    """
    check_heads(q, k, v, logit_mixing, None)
    each = "ig" if logit_mixing.ndim == 2 else "bqig"
    wide_q = torch.einsum(f"biqd,{each}->bgqid", q, logit_mixing.to(q.dtype)).flatten(-2)
    wide_k = k.transpose(1, 2).flatten(2).unsqueeze(1)  # (B, 1, K, Hk d)
    return wide_key_attention(
        wide_q,
        wide_k.expand(-1, v.shape[1], -1, -1),
        v,
        attention_mask,
        causal=causal,
        offset=offset,
        position_bias=position_bias,
        scale=1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        dropout=dropout,
    )  # (1)
