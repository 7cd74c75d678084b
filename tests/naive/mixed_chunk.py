"""Slow and obvious: mixed chunk attention of S18, token by token."""

import math

import torch

from naive.gau import naive_base, naive_gate_value, naive_output


def naive_mixed(
    q, k, q_lin, k_lin, v, chunk, causal, mask=None, attention="relu2_ns", normalizer="count"
):
    """(B, L, s) four times, (B, L, e) -> local and global part, (B, L, e) each; visible tokens are
    numbered, and number p stands in chunk p // c."""
    batch, tokens, size = q.shape
    local, across = torch.zeros_like(v), torch.zeros_like(v)
    for b in range(batch):
        kept = [t for t in range(tokens) if mask is None or mask[b, t]]
        for p, i in enumerate(kept):
            for r, j in enumerate(kept):
                if causal and r > p:
                    continue
                if p // chunk == r // chunk:
                    a = q[b, i] @ k[b, j]
                    if attention == "relu2_ns":
                        weight = torch.relu(a / math.sqrt(size)) ** 2 / chunk
                    else:
                        weight = torch.relu(a / chunk) ** 2
                    local[b, i] = local[b, i] + weight * v[b, j]
                if not causal or r // chunk < p // chunk:
                    n = {
                        "count": p // chunk * chunk if causal else len(kept),
                        "chunk": chunk,
                        "length": len(kept),
                    }[normalizer]
                    across[b, i] = across[b, i] + q_lin[b, i] @ k_lin[b, j] / n * v[b, j]
    return local, across


def naive_flash(layer, x, mask=None):
    """The layer as the formulas say, for x without surprises at masked places."""
    u, v = naive_gate_value(layer, x)
    local, across = naive_mixed(
        *naive_base(layer, x),
        v,
        layer.chunk_size,
        layer.causal,
        mask,
        layer.attention,
        layer.global_normalizer,
    )
    return naive_output(layer, u * (local + across))
