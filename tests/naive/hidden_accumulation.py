"""Adam and SGD with the accumulation in their moments, for one number and its micro-gradients."""

import math


def naive_adam(x, gradients, *, lr, betas, eps, k, weight_decay=0.0, decoupled=True):
    """(x, m, v) after every group of k."""
    m = v = 0.0
    found = []
    for t, g in enumerate(gradients, start=1):
        chi = 1 if (t - 1) % k == 0 else 0
        if not decoupled:
            g = g + weight_decay * x
        m = ((betas[0] - 1) * chi + 1) * m + (1 - betas[0]) / k * g
        v = ((betas[1] - 1) * chi + 1) * v + (1 - betas[1]) / k * g * g
        if t % k == 0:
            m_hat = m / (1 - betas[0] ** (t / k))
            v_hat = v / (1 - betas[1] ** (t / k))
            if decoupled:
                x = x - lr * weight_decay * x
            x = x - lr * m_hat / (math.sqrt(v_hat) + eps)
            found.append((x, m, v))
    return found
