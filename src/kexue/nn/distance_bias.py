r"""按距离的偏置 — a bias by the distance of query and key, as a table or per query (S30)

    B_ij = b_{i−j}                a number per head and distance                               (1)
    B_ij = q'_i · r_{i−j}         a product with a vector per head and distance                (2)

and zero at distances that have no entry; −inf where a causal query would see a later key.

Axes: B batch, H heads, N or Q queries, K keys, W distances.
Source: (2) is Transformer-XL's (arXiv 1901.02860), used by Transformer-VQ (arXiv 2309.16354).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["RelativeBias", "check_bias", "distance_table", "minus_infinity"]


class RelativeBias(NamedTuple):
    """A bias that depends on the query too: B_i,d = query_i · key_d, as in Transformer-XL.

    Args:
        query: (B, H, N, d), one vector per query.
        key: (H, W, d), one vector per distance: 0 … W − 1 when causal, else −(W−1)/2 … (W−1)/2.
    """

    query: Float[Tensor, "B H N d"]
    key: Float[Tensor, "H W d"]


def distance_table(
    rows: int,
    columns: int,
    offset: int,
    bias: Tensor | RelativeBias | None,
    causal: bool,
    like: Tensor,
) -> Tensor | None:
    """Causal −inf and bias of query r, which stands at column offset + r, for every column."""
    if bias is None and not causal:
        return None
    at = torch.arange(rows, device=like.device)[:, None] + offset
    distance = at - torch.arange(columns, device=like.device)  # (Q, K)
    table = minus_infinity(distance < 0, like).unsqueeze(0) if causal else None
    if bias is None:
        return table
    width = bias.key.shape[1] if isinstance(bias, RelativeBias) else bias.shape[1]
    entry = distance if causal else distance + (width - 1) // 2
    inside = (entry >= 0) & (entry < width)
    entry = entry.clamp(0, width - 1)
    if isinstance(bias, RelativeBias):
        per_query = bias.query @ bias.key.mT  # (B, H, Q, W)
        picked = per_query.gather(-1, entry.expand(*per_query.shape[:2], -1, -1))
    else:
        picked = bias[:, entry]  # (H, Q, K)
    picked = picked.masked_fill(~inside, 0.0)
    return picked if table is None else picked + table


def minus_infinity(hidden: Tensor, like: Tensor) -> Tensor:
    """0 where visible, −inf where hidden."""
    return like.new_zeros(hidden.shape).masked_fill(hidden, -torch.inf)


def check_bias(bias: Tensor | RelativeBias, heads: int, block: int, causal: bool) -> None:
    """Refuse a bias of other heads, an even width without causality, or too wide a one.

    Raises:
        ValueError: naming what was given and how far a bias may reach.
    """
    relative = isinstance(bias, RelativeBias)
    shape = bias.key.shape if isinstance(bias, RelativeBias) else bias.shape
    width = shape[1]
    if shape[0] != heads:
        raise ValueError(f"bias must have one row per head, {heads}, got shape {tuple(shape)}")
    if width < 1 or (not causal and width % 2 == 0):
        need = "at least one distance" if causal else "an odd width, distances −m … m"
        raise ValueError(f"bias needs {need}, got {width}")
    back = (width - 1) if causal else (width - 1) // 2
    most = block if relative else 2 * block - 1
    if back > most:
        raise ValueError(
            f"bias reaches {back} tokens back, beyond the previous block: with block={block} "
            f"at most {most}; far tokens are known by their code alone"
        )
