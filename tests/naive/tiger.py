"""Tiger number by number: one tensor, its history of micro-gradients, Python floats."""

import math

STEADY = ("bias", "gain", "shift")


def sign(value):
    return (value > 0) - (value < 0)


def root_mean_square(values, floor):
    return max(math.sqrt(sum(v * v for v in values) / len(values)), floor)


def naive_tiger(
    x,
    gradients,
    *,
    kind,
    lr,
    beta=0.965,
    weight_decay=0.01,
    k=1,
    lazy=True,
    shrink=0.99,
    nan_decay="deferred",
    min_rms=1e-3,
):
    """All values of x (rows) after each micro-gradient (rows, or None), and the last m."""
    x = [list(row) for row in x]
    m = [[0.0] * len(row) for row in x]
    centre = 1.0 if kind == "gain" else 0.0
    decay = 0.0 if kind in STEADY else weight_decay
    taken = [False] * len(x)  # per row: has a gradient arrived in this group, and m forgotten?
    history = []
    for t, g in enumerate(gradients, start=1):
        first, last = (t - 1) % k == 0, t % k == 0
        if first:
            taken = [False] * len(x)
        broken = g is not None and any(not math.isfinite(v) for row in g for v in row)
        if broken:
            x = [[centre + shrink * (v - centre) for v in row] for row in x]
            if nan_decay == "author":
                taken = [True] * len(x)
        elif g is not None:
            for r, row in enumerate(g):
                if kind == "embedding" and lazy and all(v == 0 for v in row):
                    continue
                keep = 1.0 if taken[r] else beta
                m[r] = [keep * a + (1 - beta) / k * b for a, b in zip(m[r], row, strict=True)]
                taken[r] = True
        if last and not broken:
            whole = root_mean_square([v for row in x for v in row], min_rms)
            for r in range(len(x)):
                if not taken[r]:
                    continue
                if kind in STEADY:
                    eta = 0.5 * lr
                elif kind == "embedding":
                    eta = lr * root_mean_square(x[r], min_rms)
                else:
                    eta = lr * whole
                x[r] = [v - eta * (sign(u) + decay * v) for v, u in zip(x[r], m[r], strict=True)]
        history.append([list(row) for row in x])
    return history, m
