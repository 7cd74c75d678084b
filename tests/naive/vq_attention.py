"""Slow and obvious: quantised attention of S30, key by key and pair by pair."""

import math

import torch


def naive_codes(keys, codebook):
    """(B, H, N, d) and (H, c, d) -> nearest codewords, the lowest index on ties."""
    batch, heads, length, _ = keys.shape
    codes = torch.zeros(batch, heads, length, dtype=torch.long)
    for b in range(batch):
        for h in range(heads):
            for j in range(length):
                far = [((keys[b, h, j] - code) ** 2).sum().item() for code in codebook[h]]
                codes[b, h, j] = far.index(min(far))
    return codes


def naive_vq_attention(
    q, k_hat, v, block, bias=None, causal=True, mask=None, *, rel=None, cache_gradient=False
):
    """The quadratic softmax(Q K^^T + B) V; keys, and values on demand, far away are constants."""
    batch, heads, length, _ = q.shape
    out = []
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                logits, values = [], []
                for j in range(length):
                    if (causal and j > i) or (mask is not None and not mask[b, j]):
                        continue
                    key, value = k_hat[b, h, j], v[b, h, j]
                    apart = i // block - j // block
                    near = apart in (0, 1) if causal else abs(apart) <= 1
                    logit = (q[b, h, i] * (key if near else key.detach())).sum()
                    if near and bias is not None:
                        at = i - j if causal else i - j + (bias.shape[1] - 1) // 2
                        if 0 <= at < bias.shape[1]:
                            logit = logit + bias[h, at]
                    if near and rel is not None:
                        at = i - j if causal else i - j + (rel[1].shape[1] - 1) // 2
                        if 0 <= at < rel[1].shape[1]:
                            logit = logit + (rel[0][b, h, i] * rel[1][h, at]).sum()
                    logits.append(logit)
                    values.append(value if near or cache_gradient else value.detach())
                if not logits:
                    out.append(torch.zeros_like(v[b, h, i]))
                    continue
                weights = torch.stack(logits).softmax(0)
                out.append((weights[:, None] * torch.stack(values)).sum(0))
    return torch.stack(out).view(*v.shape)


def naive_soft_vq(q, k, v, codebook, temperature, causal=False):
    """One head: every key is spread over the codes, every sum written out."""
    out = []
    spread = []
    for key in k:
        weights = [
            math.exp(-((key - code) ** 2).sum().item() / (2 * temperature)) for code in codebook
        ]
        spread.append([weight / sum(weights) for weight in weights])
    for i, query in enumerate(q):
        top, bottom = torch.zeros_like(v[0]), 0.0
        for j in range(i + 1 if causal else len(k)):
            kernel = sum(
                math.exp((query * code).sum().item()) * share
                for code, share in zip(codebook, spread[j], strict=True)
            )
            top, bottom = top + kernel * v[j], bottom + kernel
        out.append(top / bottom)
    return torch.stack(out)
