"""Entropy normalisation the slow way: bisection of one row at a time, and the article's rounds."""

import math

import torch


def naive_entropy(p):
    """−sum p ln p, entry by entry."""
    return -sum(float(x) * math.log(float(x)) for x in p if x > 0)


def powered(p, g):
    """p^g / sum p^g in float64, from logarithms; zeros stay."""
    logs = [math.log(float(x)) if x > 0 else -math.inf for x in p]
    top = max(logs)
    raw = [math.exp(g * (x - top)) if x > -math.inf else 0.0 for x in logs]
    return [x / sum(raw) for x in raw]


def naive_gamma(p, target, rounds=80):
    """The power with that entropy, by bisection in ln g."""
    low, high = -40.0, 40.0
    for _ in range(rounds):
        middle = (low + high) / 2
        if naive_entropy(powered(p, math.exp(middle))) > target:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def naive_normalize(p, target):
    """One row with that entropy."""
    return torch.tensor(powered(p, naive_gamma(p, target)), dtype=torch.float64)


def article_rounds(p, target, rounds):
    """The article's iteration as written: every p on the way, NaN and all."""
    p, found = p.double(), []
    for _ in range(rounds):
        log = p.log()
        entropy = -(p * log).sum(-1, keepdim=True)
        power = 1 + (target - entropy) / (entropy**2 - (p * log**2).sum(-1, keepdim=True))
        p = p**power
        p = p / p.sum(-1, keepdim=True)
        found.append(p)
    return found
