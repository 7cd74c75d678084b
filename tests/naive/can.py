"""CAN the slow way: the matrix of confident rows and one unsure row, normalised in turns."""

import math


def naive_uncertainty(row, k):
    top = sorted((float(x) for x in row), reverse=True)[:k]
    total = sum(top)
    return -sum(x / total * math.log(x / total) for x in top if x > 0) / math.log(k)


def naive_can(row, confident, prior, alpha=1.0, steps=1):
    """The corrected row as a list; all-zero columns stay zero."""
    y = [[float(x) for x in one] for one in [*confident, row]]
    classes = range(len(y[0]))
    for _ in range(steps):
        y = [[x**alpha for x in one] for one in y]
        means = [sum(one[c] for one in y) / len(y) for c in classes]
        y = [
            [one[c] / means[c] * float(prior[c]) if means[c] else 0.0 for c in classes] for one in y
        ]
        y = [[x / sum(one) for x in one] for one in y]
    return y[-1]
