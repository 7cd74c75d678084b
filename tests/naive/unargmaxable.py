"""Which classes can win, the slow ways: exactly in fractions, and as the whole linear program."""

import itertools
from fractions import Fraction

import numpy as np
from scipy.optimize import linprog


def fractions(values):
    """Numbers as they are stored, without rounding; nested lists stay nested."""
    values = np.asarray(values, dtype=np.float64).tolist()
    if isinstance(values, list):
        return [fractions(one) if isinstance(one, list) else Fraction(one) for one in values]
    return Fraction(values)


def naive_mix(weight, bias, k):
    """A mix {class: weight} that forbids class k to win, exactly, or None where it can win.

    If there is a mix, there is one of at most d + 1 classes whose rows (w, 1) are independent.
    """
    rows = [[*row, Fraction(1)] for row in fractions(weight)]
    bias, others = fractions(bias), [i for i in range(len(rows)) if i != k]
    for size in range(1, min(len(rows[0]), len(others)) + 1):
        for among in itertools.combinations(others, size):
            weights = solved([rows[i] for i in among], rows[k])
            if (
                weights is not None
                and min(weights) >= 0
                and sum(a * bias[i] for a, i in zip(weights, among, strict=True)) >= bias[k]
            ):
                return dict(zip(among, weights, strict=True))
    return None


def solved(rows, target):
    """x with Σ x_i rows_i = target, by elimination; None if there is none, or more than one."""
    table = [[*column, t] for column, t in zip(zip(*rows, strict=True), target, strict=True)]
    for n in range(len(rows)):
        pivot = next((m for m in range(n, len(table)) if table[m][n] != 0), None)
        if pivot is None:
            return None
        table[n], table[pivot] = table[pivot], table[n]
        table[n] = [x / table[n][n] for x in table[n]]
        for m in range(len(table)):
            if m != n and table[m][n] != 0:
                table[m] = [x - table[m][n] * y for x, y in zip(table[m], table[n], strict=True)]
    if any(line[-1] != 0 for line in table[len(rows) :]):
        return None
    return [line[-1] for line in table[: len(rows)]]


def naive_verdicts(weight, bias):
    """True for every class that can win."""
    return np.array([naive_mix(weight, bias, k) is None for k in range(len(weight))])


def wins_exactly(weight, bias, k, point):
    """Whether l_k(z) is above all others, in fractions."""
    point = fractions(point)
    logits = [
        sum(w * z for w, z in zip(row, point, strict=True)) + b
        for row, b in zip(fractions(weight), fractions(bias), strict=True)
    ]
    return all(logits[k] > one for i, one in enumerate(logits) if i != k)


def naive_radius(weight, bias, k, lower=None, upper=None):
    """The largest ball of features in which k wins: the whole program, one row per class.

    The box confines the centre; the radius is free, at most 1 where there is no box.
    """
    weight, bias = np.asarray(weight, float), np.asarray(bias, float)
    others = np.arange(len(weight)) != k
    away, gaps = (weight - weight[k])[others], (bias[k] - bias)[others]
    table = np.hstack([away, np.linalg.norm(away, axis=1, keepdims=True)])
    sides = [(lower, upper)] * weight.shape[1] + [(None, 1.0 if lower is None else None)]
    found = linprog(np.r_[np.zeros(weight.shape[1]), -1.0], table, gaps, bounds=sides)
    return float(-found.fun)
