"""Log n attention the slow way: a dense mask, counted and used pair by pair."""

import math

import torch


def dense_visible(
    q_len,
    k_len,
    mask=None,
    causal=False,
    offset=0,
    prefix=None,
    window=None,
    documents=None,
    batch=1,
):
    """True where a query sees a key, one pair at a time: (batch, q_len, k_len)."""
    seen = torch.zeros(batch, q_len, k_len, dtype=torch.bool)
    for b in range(batch):
        for i in range(q_len):
            own = offset + i
            for j in range(k_len):
                ok = mask is None or bool(mask[b, j])
                if causal:
                    start = 0 if prefix is None else int(torch.as_tensor(prefix).expand(batch)[b])
                    ok = ok and (j <= own or (own < start and j < start))
                if window is not None:
                    ok = ok and j > own - window
                if documents is not None:
                    row = documents.expand(batch, -1)[b].tolist()
                    low, high = min(j, own), max(j, own)
                    ok = ok and len(set(row[low : high + 1])) == 1
                seen[b, i, j] = ok
    return seen


def naive_factor(n, base=512, min_len=1, clip=False):
    factor = math.log(max(n, min_len)) / math.log(base)
    return max(factor, 1.0) if clip else factor


def naive_log_n_attention(q, k, v, visible, *, base=512, min_len=1, clip=False, scaling=None):
    """softmax over the visible keys, row by row; q (B, H, Q, d), visible (B, Q, K)."""
    batch, heads, q_len, size = q.shape
    shared = heads // k.shape[1]
    scaling = size**-0.5 if scaling is None else scaling
    rows = []
    for b in range(batch):
        for h in range(heads):
            for i in range(q_len):
                keys = visible[b, i].nonzero().flatten().tolist()
                if not keys:
                    rows.append(torch.zeros_like(v[0, 0, 0]))
                    continue
                factor = 1.0 if base is None else naive_factor(len(keys), base, min_len, clip)
                logits = [
                    (q[b, h, i] * k[b, h // shared, j]).sum() * scaling * factor for j in keys
                ]
                weights = torch.stack(logits).softmax(dim=0)
                rows.append(
                    sum(w * v[b, h // shared, j] for w, j in zip(weights, keys, strict=True))
                )
    return torch.stack(rows).view(batch, heads, q_len, -1)


def entropy(p):
    return -torch.special.xlogy(p, p).sum(dim=-1)
