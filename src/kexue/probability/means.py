r"""榜单的算术平均、几何平均与调和平均 — power means, weighted, over many weights at once (S13)

One number for several scores: arithmetic, geometric, harmonic, and all between and beyond.

For scores x_t >= 0 and weights w_t >= 0 with sum 1:

    M_1 = sum_t w_t x_t                   arithmetic                                            (1)
    M_0 = exp(sum_t w_t log x_t)          geometric, the limit p -> 0                           (2)
    M_p = (sum_t w_t x_t^p)^(1/p)         M_{-1} = 1 / sum_t (w_t / x_t) is the harmonic        (3)

M_p does not decrease in p; it stays between the smallest and the largest score. A score of zero
with a weight makes every mean with p <= 0 zero, their limit. Scores without a weight do not count.
(3) is computed on x_t / m, m the largest score (the smallest for p < 0), so nothing overflows; for
p near 0 as m · exp(log1p(sum_t w_t expm1(p log(x_t / m))) / p), which keeps its digits.

Symbols: values x, weights w, p.   Axes: T scores of one mean, B sets of weights.
Cost: one product of weights (B, T) with transformed values (…, T).
Source: article 8783. See also: scipy.stats.pmean, which has one set of weights per call.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["MEANS", "power_mean", "power_of"]

MEANS: Mapping[str, float] = {"arithmetic": 1.0, "geometric": 0.0, "harmonic": -1.0}
"""The named means and their p."""
NEAR_ZERO = 1e-2
"""Below this |p|, x^p is so close to 1 that only its distance from 1 has digits."""


def power_of(mean: str | float | int) -> float:
    """The p of a named mean, or the number itself.

    Raises:
        ValueError: no such name, or NaN.

    Example:
        >>> power_of("harmonic"), power_of(3)
        (-1.0, 3.0)
    """
    if isinstance(mean, str):
        if mean not in MEANS:
            raise ValueError(f"mean must be one of {', '.join(MEANS)}, or a power, got {mean!r}")
        return MEANS[mean]
    if math.isnan(mean):
        raise ValueError(f"the power of a mean must be a number, got {mean}")
    return float(mean)


def power_mean(
    values: ArrayLike, p: str | float | int = "arithmetic", weights: ArrayLike | None = None
) -> np.ndarray:
    """M_p over the last axis.

    Args:
        values: scores, (…, T).
        p: a power, ±inf included, or "arithmetic", "geometric", "harmonic".
        weights: (T,), or (B, T) for B means at once; scaled to sum 1. Equal when None.

    Returns:
        (…) in float64, or (B, …).

    Raises:
        ValueError: no score; a score that is not finite, or negative where p is not 1; weights of
            another length, negative, or all zero.

    Example:
        >>> [round(float(power_mean([40, 90], p)), 2) for p in (1, 0, -1)]
        [65.0, 60.0, 55.38]
    """
    x, p = np.asarray(values, dtype=np.float64), power_of(p)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"a mean needs at least one score, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"scores must be finite, got {_first(x, ~np.isfinite(x))}")
    if p != 1 and (x < 0).any():
        raise ValueError(
            f"a mean of power {p:g} needs scores >= 0, got {_first(x, x < 0)}; only the "
            "arithmetic mean takes negative scores"
        )
    w = _weights(weights, x.shape[-1])
    if p == 1:
        return _product(w, x)  # (1)
    if math.isinf(p):
        seen = np.where(w.reshape(*w.shape[:-1], *[1] * (x.ndim - 1), -1) > 0, x, -p)
        return np.asarray(seen.max(-1) if p > 0 else seen.min(-1))
    zero = x == 0
    positive = np.where(zero, 1.0, x)
    lost = _product(w, zero) > 0  # (…): a zero counts
    if p == 0:
        return np.where(lost, 0.0, np.exp(_product(w, np.log(positive))))  # (2)
    m = (x.max(-1) if p > 0 else positive.min(-1))[..., None]
    m = np.where(m > 0, m, 1.0)
    logs = p * np.log(positive / m)
    with np.errstate(divide="ignore"):
        if abs(p) < NEAR_ZERO:
            sums = np.log1p(_product(w, np.where(zero, -1.0, np.expm1(logs))))
        else:
            sums = np.log(_product(w, np.where(zero, 0.0, np.exp(logs))))
        mean = m[..., 0] * np.exp(sums / p)  # (3)
    return np.where(lost, 0.0, mean) if p < 0 else np.asarray(mean)


def _product(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """sum_t w_t x_t for every set of weights and every row, (B, …)."""
    return np.asarray(np.tensordot(w, x, axes=(-1, -1)))


def _weights(weights: ArrayLike | None, count: int) -> np.ndarray:
    if weights is None:
        return np.full(count, 1.0 / count)
    w = np.asarray(weights, dtype=np.float64)
    if w.ndim not in (1, 2) or w.shape[-1] != count:
        raise ValueError(f"weights must have shape ({count},) or (B, {count}), got {w.shape}")
    total = w.sum(-1, keepdims=True)
    if not np.isfinite(w).all() or (w < 0).any() or (total <= 0).any():
        raise ValueError("weights must be finite, >= 0 and not all zero")
    return np.asarray(w / total)


def _first(x: np.ndarray, bad: np.ndarray) -> str:
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"{x[place]} at index {place if len(place) > 1 else place[0]}"
