"""Slow and obvious: a step of S26 with a copy of the model per candidate, densities as written.

Also what the closed forms of the sampling view come from: log Z of a linear loss in a ball.
"""

import math
from copy import deepcopy

import numpy as np
import torch
from numpy.random import SFC64
from scipy.special import ive, ndtri


def naive_normal(shape, bits):
    """Each number the normal quantile in the middle of one of 2^16 shares; four per 64-bit word."""
    levels, words = 1 << 16, []
    scale = math.sqrt((ndtri((np.arange(levels) + 0.5) / levels) ** 2).mean())
    for _ in range(math.ceil(math.prod(shape) / 4)):
        word = int(bits.random_raw())
        words += [word >> shift & (levels - 1) for shift in (0, 16, 32, 48)]
    numbers = [ndtri((word + 0.5) / levels) / scale for word in words[: math.prod(shape)]]
    return torch.tensor(numbers, dtype=torch.float64).view(shape)


def naive_log_q(kind, delta, mean, noise, scale, at_zero, pi):
    """log of what a weight is divided by; all tensors flat, `scale` one entry per coordinate."""
    if kind == "none":
        return torch.zeros((), dtype=delta.dtype)
    if kind == "unit":
        scale = torch.ones_like(scale)
    zero = torch.exp(-((delta / scale) ** 2).sum() / 2)
    shifted = torch.exp(-(((delta - mean) / scale) ** 2).sum() / 2)
    q = torch.log(pi * zero + (1 - pi) * shifted)
    if kind == "mixture":
        q = q + ((noise / scale) ** 2).sum() / 2
    return q


def naive_step(model, loss_fn, batch, candidates, *, sigma, noise, pi, alpha, density, eta, clip):
    """Parameter name → Δ, from the gradients in `p.grad`, and the losses and weights."""
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    factor = min(1.0, clip / norm)
    mean = {name: -eta * factor * p.grad for name, p in model.named_parameters()}
    losses, updates, log_qs = [], [], []
    for candidate in candidates:
        copy, bits = deepcopy(model), SFC64(candidate.seed)
        delta, flat = {}, {"delta": [], "mean": [], "noise": [], "scale": []}
        with torch.no_grad():
            for name, p in copy.named_parameters():
                s = sigma * (mean[name].abs().mean().item() if noise == "relative" else 1.0)
                n = candidate.sign * s * naive_normal(p.shape, bits)
                delta[name] = n if candidate.at_zero else mean[name] + n
                p += delta[name]
                parts = (delta[name], mean[name], n, torch.full_like(n, s))
                for key, part in zip(flat, parts, strict=True):
                    flat[key].append(part.flatten())
            losses.append(float(loss_fn(copy.eval(), batch)))
        joined = {key: torch.cat(parts) for key, parts in flat.items()}
        own = pi if candidate.at_zero else 1 - pi
        assert own > 0
        log_qs.append(naive_log_q(density, **joined, at_zero=candidate.at_zero, pi=pi))
        updates.append(delta)
    raw = [math.exp(-loss / alpha - float(q)) for loss, q in zip(losses, log_qs, strict=True)]
    weights = [w / sum(raw) for w in raw]
    total = {
        name: sum(w * delta[name] for w, delta in zip(weights, updates, strict=True))
        for name in mean
    }
    return total, losses, weights


def naive_log_z(grad, radius, temperature):
    """log of ∫ exp(−g·Δ/α) over the ball of this radius, up to a constant that g does not move."""
    d, kappa = len(grad), radius * math.sqrt(sum(g * g for g in grad)) / temperature
    return math.log(ive(d / 2, kappa)) + kappa - d / 2 * math.log(kappa)
