"""Kernel attention with the n × n matrix, straight from the formulas (S30)."""

import torch


def visible(q_len, k_len, causal=False, key_mask=None, offset=0):
    """(B or 1, 1, Q, K): who sees whom."""
    pairs = torch.ones(q_len, k_len, dtype=torch.bool)
    if causal:
        pairs = pairs.tril(offset)
    pairs = pairs[None, None]
    return pairs if key_mask is None else pairs & key_mask[:, None, None, :]


def attention(kernel, v, pairs):
    """Rows of the kernel over the visible keys, divided by their sum; zeros where it is zero."""
    kernel = kernel.masked_fill(~pairs, 0.0)
    total = kernel.sum(-1, keepdim=True)
    return (kernel / total.masked_fill(total == 0, 1.0)) @ v


def linear_attention(phi_q, phi_k, v, causal=False, key_mask=None):
    pairs = visible(phi_q.shape[-2], phi_k.shape[-2], causal, key_mask)
    return attention(phi_q @ phi_k.mT, v, pairs)


def favor_logits(q, k, omega):
    """ln of sum_f exp(<w_f, q>) exp(<w_f, k> − |k|²/2), for every pair, without splitting it."""
    a = q @ omega.mT
    b = k @ omega.mT - k.square().sum(-1, keepdim=True) / 2
    return (a.unsqueeze(-2) + b.unsqueeze(-3)).logsumexp(-1)


def favor_attention(q, k, v, omega, causal=False, key_mask=None):
    pairs = visible(q.shape[-2], k.shape[-2], causal, key_mask)
    seen = pairs.any(-1, keepdim=True)
    logits = favor_logits(q, k, omega).masked_fill(~pairs & seen, -torch.inf)
    return logits.softmax(-1).masked_fill(~seen, 0.0) @ v
