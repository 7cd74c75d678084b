"""Two solvers on a small positive semidefinite matrix, in numpy (S16).

    x = argmin_{x ≥ 0} xᵀAx/2 − bᵀx          non-negative least squares, exact              (1)
    a = argmin_{a ≥ 0, Σa = 1} aᵀKa           Frank–Wolfe, error O(1/steps)                  (2)

(1) follows Lawson and Hanson (Solving Least Squares Problems, 1974) with A = GGᵀ and b = Gy in the
place of the factors. scipy.optimize.nnls does the same on the factors, which nobody here has: they
are gradients with millions of entries. (2) is the article's (8896), with exact line search.

Symbols: A, K matrices, n their side.   Cost: n systems of O(n³) for (1); O(n²) a step for (2).
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "frank_wolfe", "nonnegative_least_squares"]

Array = NDArray[np.float64]


def nonnegative_least_squares(A: Array, b: Array) -> Array:
    """argmin_{x ≥ 0} xᵀAx/2 − bᵀx for a positive semidefinite A: Lawson and Hanson's active sets.

    Indices whose x may be positive join one by one, the one with the steepest descent first; an
    index that A cannot tell from those already in is passed over, so A may be singular. Descents
    below their own rounding error count as zero.

    Example:
        >>> nonnegative_least_squares(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([2.0, -3.0]))
        array([1., 0.])
    """
    n, eps = len(b), float(np.finfo(np.float64).eps)
    x, free, passed = np.zeros(n), np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    for _ in range(20 * n + 20):  # Lawson and Hanson need about n; rounding must not go on for ever
        descent = b - A @ x
        noise = 8 * eps * (np.abs(A) @ x + np.abs(b))
        open_ = ~free & ~passed & (descent > noise)
        if not open_.any():
            break
        new = int(np.argmax(np.where(open_, descent, -np.inf)))
        trial = free.copy()
        trial[new] = True
        z = _solve(A, b, trial)
        if z is None or z[new] <= 0:
            passed[new] = True
            continue
        y = x
        while z is not None and (z[trial] <= 0).any():  # walk until the first one reaches zero
            out = trial & (z <= 0)
            step = float(np.min(y[out] / (y[out] - z[out])))
            y = y + step * (z - y)
            trial &= y > eps * np.abs(y).max()
            y = np.where(trial, y, 0.0)
            z = _solve(A, b, trial)
        if z is None:
            passed[new] = True
            continue
        x, free = z, trial
        passed[:] = False
    return x


def frank_wolfe(K: Array, steps: int = 1000) -> Array:
    """argmin aᵀKa over the simplex: steps towards one vertex with exact line search, from 1/n.

    Stops when the duality gap aᵀKa − min_i (Ka)_i, which bounds the error, is at rounding level.

    Example:
        >>> frank_wolfe(np.array([[10.0, -2.0], [-2.0, 2.0]])).round(6)
        array([0.25, 0.75])
    """
    a = np.full(len(K), 1 / max(len(K), 1))
    for _ in range(steps if len(K) else 0):
        Ka = K @ a
        vertex = int(np.argmin(Ka))
        square = float(a @ Ka)
        gap = square - float(Ka[vertex])
        if gap <= 1e-15 * float(np.diag(K).max()):
            break
        step = min(gap / (square - 2 * float(Ka[vertex]) + float(K[vertex, vertex])), 1.0)
        a *= 1 - step
        a[vertex] += step
    return a


def _solve(A: Array, b: Array, free: NDArray[np.bool_]) -> Array | None:
    """A x = b on the free indices, or None where A is singular there to rounding."""
    index = np.flatnonzero(free)
    part = A[np.ix_(index, index)]
    try:
        root = np.linalg.cholesky(part)
    except np.linalg.LinAlgError:
        return None
    if (np.diag(root) ** 2 <= 4 * len(index) * np.finfo(np.float64).eps * np.diag(part)).any():
        return None
    z = np.linalg.solve(part, b[index])
    x = np.zeros_like(b)
    x[index] = z + np.linalg.solve(part, b[index] - part @ z)  # one refinement
    return x
