"""Slow and obvious: the gated attention unit of S18, pair by pair."""

import math

import torch

from naive.global_pointer import naive_rotate


def sees(mask, i, j, causal):
    return bool(mask[j]) and (not causal or j <= i)


def naive_weights(q, k, name, mask=None, causal=False, bias=None, min_length=1, length=None):
    """(B, L, s) twice -> (B, L, L)."""
    batch, tokens, size = q.shape
    rows = []
    for b in range(batch):
        seen_by = mask[b].tolist() if mask is not None else [True] * tokens
        for i in range(tokens):
            keys = [j for j in range(tokens) if sees(seen_by, i, j, causal)]
            n = len(keys) if length is None else length
            row = [q.new_zeros(())] * tokens
            scores = {}
            for j in keys:
                a = sum(q[b, i, d] * k[b, j, d] for d in range(size))
                shift = 0 if bias is None else bias[0, i, j]
                if name in ("softmax", "relu2_ns", "relu2_norm"):
                    scores[j] = a / math.sqrt(size) + shift
                elif name == "softmax_plus":
                    factor = math.log(max(n, min_length)) / math.log(512)
                    scores[j] = factor * a / math.sqrt(size) + shift
                else:
                    scores[j] = a / n + shift
            relu2 = {j: torch.relu(a) ** 2 for j, a in scores.items()}
            powers = {j: torch.exp(a - max(scores.values())) for j, a in scores.items()}
            for j, a in scores.items():
                if name in ("softmax", "softmax_plus"):
                    row[j] = powers[j] / sum(powers.values())
                elif name == "relu2_ns":
                    row[j] = relu2[j] / n
                elif name == "relu2_n2":
                    row[j] = relu2[j]
                elif name == "laplace":
                    mu, sigma = math.sqrt(1 / 2), math.sqrt(1 / (4 * math.pi))
                    row[j] = 0.5 * (1 + torch.erf((a - mu) / (sigma * math.sqrt(2))))
                elif name == "relu2_norm" and sum(relu2.values()) > 0:
                    row[j] = relu2[j] / sum(relu2.values())
            rows.append(torch.stack(row))
    return torch.stack(rows).view(batch, tokens, tokens)


def silu(x):
    return x / (1 + torch.exp(-x))


def naive_base(layer, x, positions=None):
    """The maps of the shared base, token by token: a list of (B, L, s)."""
    base = layer.base
    z = silu(x @ base.projection.weight.T + (0 if base.beta is None else base.projection.bias))
    maps = []
    for r in range(len(base.gamma)):
        shift = 0 if base.beta is None else base.beta[r]
        one = base.gamma[r] * z + shift
        if base.rope:
            where = range(x.shape[1]) if positions is None else positions
            one = torch.stack(
                [
                    torch.stack([naive_rotate(t, p) for t, p in zip(row, where, strict=True)])
                    for row in one
                ]
            )
        maps.append(one)
    return maps


def naive_gate_value(layer, x):
    bias = 0 if layer.gate_value.bias is None else layer.gate_value.bias
    return silu(x @ layer.gate_value.weight.T + bias).chunk(2, dim=-1)


def naive_output(layer, gated):
    bias = 0 if layer.output.bias is None else layer.output.bias
    return gated @ layer.output.weight.T + bias


def naive_gau(layer, x, mask=None):
    """The layer as the formulas say, for x without surprises at masked places."""
    u, v = naive_gate_value(layer, x)
    q, k = naive_base(layer, x)
    weights = naive_weights(
        q, k, layer.attention, mask, layer.causal, min_length=layer.min_length, length=layer.length
    )
    return naive_output(layer, u * (weights @ v))
