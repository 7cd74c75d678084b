"""Talking heads, query by query and head by head, as the formulas are written."""

import math

import torch


def naive_talking_heads(q, k, v, P_l, P_w, visible, *, bias=None, scale=None):
    """P_l, P_w: (B, Q, inputs, outputs); visible: (B, Q, K) bool; returns the output and U."""
    batch, key_heads, q_len, size = q.shape
    heads, value_heads, k_len = P_l.shape[-1], v.shape[1], k.shape[2]
    scale = 1 / math.sqrt(size) if scale is None else scale
    out, maps = [], []
    for b in range(batch):
        for i in range(q_len):
            keys = [j for j in range(k_len) if visible[b, i, j]]
            if not keys:
                out.append(v.new_zeros(value_heads, v.shape[3]))
                maps.append(v.new_zeros(value_heads, k_len))
                continue
            weights = []
            for g in range(heads):
                logits = []
                for j in keys:
                    logit = sum(
                        P_l[b, i, h, g] * (q[b, h, i] @ k[b, h, j]) * scale
                        for h in range(key_heads)
                    )
                    logits.append(logit if bias is None else logit + bias[b, g, i, j])
                exp = [(x - max(y.detach() for y in logits)).exp() for x in logits]
                weights.append([x / sum(exp) for x in exp])
            row, mixed = [], []
            for f in range(value_heads):
                u = [
                    sum(P_w[b, i, g, f] * weights[g][n] for g in range(heads))
                    for n in range(len(keys))
                ]
                row.append(sum(u[n] * v[b, f, j] for n, j in enumerate(keys)))
                spread = v.new_zeros(k_len)
                mixed.append(spread.index_put((torch.tensor(keys),), torch.stack(u)))
            out.append(torch.stack(row))
            maps.append(torch.stack(mixed))
    out = torch.stack(out).unflatten(0, (batch, q_len)).transpose(1, 2)
    return out, torch.stack(maps).unflatten(0, (batch, q_len)).transpose(1, 2)
