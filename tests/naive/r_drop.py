"""Slow twin of R-Drop: probabilities and logarithms, class by class."""

import math


def softmax(row):
    top = max(row)
    weights = [math.exp(one - top) for one in row]
    return [one / sum(weights) for one in weights]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def symmetric(row_p, row_q, kind):
    if kind == "softmax":
        p, q = softmax(row_p), softmax(row_q)
        return kl(p, q) + kl(q, p)
    total = 0.0
    for a, b in zip(row_p, row_q, strict=True):
        p, q = softmax([a, 0.0]), softmax([b, 0.0])
        total += kl(p, q) + kl(q, p)
    return total
