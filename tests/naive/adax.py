"""AdaX as the article and its author's code write it: growing sums, one number after the other."""

import math


def adax(x, gradients, lr, beta1=0.9, beta2=1e-4, eps=1e-6, eps_mode="inside", weight_decay=0.0):
    """Lists of floats after each step: parameters, momenta, divided sums of squares."""
    m, total = [0.0] * len(x), [0.0] * len(x)
    for t, g in enumerate(gradients, start=1):
        growth = (1 + beta2) ** t - 1
        m = [beta1 * a + (1 - beta1) * b for a, b in zip(m, g, strict=True)]
        total = [(1 + beta2) * a + beta2 * b**2 for a, b in zip(total, g, strict=True)]
        mean = [a / growth for a in total]
        if eps_mode == "inside":
            steps = [lr * a / math.sqrt(b + eps) for a, b in zip(m, mean, strict=True)]
        elif eps_mode == "outside":
            steps = [lr * a / (math.sqrt(b) + eps) for a, b in zip(m, mean, strict=True)]
        else:
            lr_t = lr * math.sqrt(growth)
            steps = [lr_t * a / (math.sqrt(b) + eps) for a, b in zip(m, total, strict=True)]
        x = [a - lr * weight_decay * a - b for a, b in zip(x, steps, strict=True)]
        yield x, m, mean
