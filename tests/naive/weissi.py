"""WEISSI as it is written down, entry by entry."""

import math


def norm(weight):
    return math.sqrt(sum(value**2 for value in weight))


def penalty(weights, lambda1, lambda2):
    size = sum(math.log(norm(weight)) for weight in weights)
    direction = sum(sum(map(abs, weight)) / norm(weight) for weight in weights)
    return lambda1 * size + lambda2 * direction


def gradient(weight, lambda1, lambda2):
    n, length = norm(weight), sum(map(abs, weight))
    return [
        lambda1 * value / n**2 + lambda2 * (math.copysign(1.0, value) / n - length * value / n**3)
        for value in weight
    ]
