r"""A covariance that can be inverted: shrinkage, and a solve that says why it cannot (for S02)

    Sigma_l = (1 − l) Sigma + l (tr Sigma / D) I,      0 ≤ l ≤ 1                              (1)

pulls the eigenvalues towards their mean. Two rules choose l from N residual rows r_i, with
mu = tr Sigma / D and a = mean of the squares of all D² elements of Sigma:

    OAS            l = (a + mu²) / ((N + 1)(a − mu²/D))                                       (2)
    Ledoit–Wolf    l = (sum_i |r_i|⁴ / N − D²a) / (N (D²a − D mu²))                           (3)

both cut at 1; equal eigenvalues give l = 1 (2) or 0 (3).
A row v times the inverse comes from a Cholesky factor of the correlations, s = sqrt(diag Sigma):

    v Sigma^-1 = ((v/s) C^-1) / s,       C = Sigma / (sᵀs) = L Lᵀ                             (4)

so units do not matter, and L_jj² is the share of feature j that the features before it leave
unexplained: zero, up to rounding, where it is a linear combination of them. Where Sigma is
singular there is no inverse; shrinkage that vanishes has a limit in its place,

    v Sigma^+ = ((v/s) V max(lambda, sqrt(eps))^-1 Vᵀ) / s,      C = V diag(lambda) Vᵀ        (5)

with the spread of the class means as s where a feature is constant within every class. It leaves
(4) as it is along all directions in which features vary, gives directions in which nothing varies
no weight, and directions in which only the classes differ a very large one.

Axes: D features, R rows.   Cost: D³/3 + 2·R·D² operations; (5) some 10·D³.
Sources: Ledoit and Wolf 2004; Chen, Wiesel, Eldar and Hero 2010.
See also: sklearn.covariance with assume_centered=True, the same l.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "Shrinkage",
    "ledoit_wolf_shrinkage",
    "oas_shrinkage",
    "shrink",
    "shrunk",
    "times_inverse",
    "times_limit",
]

Shrinkage = float | Literal["ledoit_wolf", "oas"]
ROUNDING = 1e-13
"""Relative error of a mean in float64; a feature that spreads less about it is constant."""


def shrunk(covariance: Float[Tensor, "D D"], amount: float | Tensor) -> Float[Tensor, "D D"]:
    """Sigma_l.

    Example:
        >>> shrunk(torch.tensor([[3.0, 1.0], [1.0, 1.0]]), 0.5).tolist()
        [[2.5, 0.5], [0.5, 1.5]]
    """
    mean = covariance.diagonal().mean()
    return (1 - amount) * covariance + amount * mean * torch.eye(len(covariance)).to(covariance)


def oas_shrinkage(covariance: Float[Tensor, "D D"], rows: Tensor) -> Tensor:
    """The oracle approximating shrinkage l: (2)."""
    squares, mean = covariance.square().mean(), covariance.diagonal().mean().square()
    room = (rows + 1) * (squares - mean / len(covariance))
    return torch.where(room > 0, (squares + mean) / room.where(room > 0, 1), 1).clamp(max=1)  # (2)


def ledoit_wolf_shrinkage(covariance: Float[Tensor, "D D"], rows: Tensor, fourth: Tensor) -> Tensor:
    """Ledoit and Wolf's l: (3), from `fourth`, the sum of |r_i|⁴."""
    squares, D = covariance.square().sum(), len(covariance)
    noise = (fourth / rows - squares) / rows
    spread = squares - D * covariance.diagonal().mean().square()
    return torch.where(spread > 0, noise / spread.where(spread > 0, 1), 0).clamp(0, 1)  # (3)


def shrink(covariance: Tensor, shrinkage: Shrinkage, rows: Tensor, fourth: Tensor | None) -> Tensor:
    """Sigma_l with a given or a chosen l.

    Args:
        covariance: Sigma of N rows.
        shrinkage: l, or its rule.
        rows: N.
        fourth: the sum of |r_i|⁴, which Ledoit and Wolf's rule needs.

    Raises:
        ValueError: `fourth` is needed and missing.
    """
    if shrinkage == "oas":
        return shrunk(covariance, oas_shrinkage(covariance, rows))
    if shrinkage == "ledoit_wolf":
        if fourth is None:
            raise ValueError(
                "shrinkage='ledoit_wolf' needs the rows a second time: call fit with all rows, or "
                "take 'oas' or a number for rows that come in batches"
            )
        return shrunk(covariance, ledoit_wolf_shrinkage(covariance, rows, fourth))
    return shrunk(covariance, shrinkage) if shrinkage else covariance


def times_inverse(
    rows: Float[Tensor, "R D"],
    covariance: Float[Tensor, "D D"],
    *,
    means: Float[Tensor, "K D"] | None = None,
    precision: torch.dtype = torch.float64,
) -> Float[Tensor, "R D"]:
    """rows · covariance^-1: (4), differentiable in both.

    Args:
        rows: what is multiplied.
        covariance: symmetric and positive definite.
        means: of the classes; a spread within their rounding error counts as zero.
        precision: in which the covariance was gathered; says what counts as zero.

    Raises:
        ValueError: the covariance is singular; the message names columns.

    Example:
        >>> times_inverse(torch.tensor([[2.0, 3.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([[1., 3.]])
    """
    spread = _spread(covariance)
    if (constant := spread <= _rounding(covariance, means, precision)).any():
        raise ValueError(
            f"the covariance within classes is singular: {_columns(constant)} constant within "
            "every class up to rounding; drop them or give shrinkage, such as 0.1 or 'oas'"
        )
    factor, dependent = _factor(covariance / torch.outer(spread, spread), precision)
    if dependent.any():
        raise ValueError(
            f"the covariance within classes is singular: {_columns(dependent)} a linear "
            "combination of the columns before, or there are fewer rows than features; drop "
            "columns or give shrinkage, such as 0.1 or 'oas'"
        )
    return torch.cholesky_solve((rows / spread).T, factor).T / spread  # (4)


@torch.no_grad()
def times_limit(
    rows: Float[Tensor, "R D"],
    covariance: Float[Tensor, "D D"],
    *,
    means: Float[Tensor, "K D"],
    between: Float[Tensor, " D"],
    precision: torch.dtype = torch.float64,
) -> tuple[Float[Tensor, "R D"], bool]:
    """`times_inverse` where it exists, else (5); and whether the covariance is singular.

    Args:
        rows: what is multiplied: class means about the overall mean, so that nothing is left of
            them along directions in which nothing varies.
        covariance: within classes.
        means: of the classes.
        between: variance of the class means, per feature: s² of features that are constant within
            every class.
        precision: in which the covariance was gathered.

    Example:
        >>> twice = torch.tensor([[2.0, 2.0], [2.0, 2.0]])
        >>> means = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> found, singular = times_limit(means, twice, means=means, between=torch.ones(2))
        >>> found.sum(1).round(decimals=4), singular
        (tensor([ 0.5000, -0.5000]), True)
    """
    spread, rounding = _spread(covariance), _rounding(covariance, means, precision)
    if bool((spread > rounding).all()):
        factor, dependent = _factor(covariance / torch.outer(spread, spread), precision)
        if not dependent.any():
            return torch.cholesky_solve((rows / spread).T, factor).T / spread, False  # (4)
    spread = torch.where(spread > rounding, spread, between.sqrt())
    varies = spread > rounding
    spread = spread.where(varies, 1)
    correlations = covariance / torch.outer(spread, spread) * torch.outer(varies, varies)
    eigenvalues, V = torch.linalg.eigh(correlations)
    least = torch.finfo(precision).eps ** 0.5
    inverse = 1 / eigenvalues.clamp(min=least)
    return ((rows * varies / spread) @ V * inverse) @ V.T / spread, True  # (5)


def _spread(covariance: Tensor) -> Tensor:
    """s: the standard deviation of every feature."""
    return covariance.diagonal().detach().clamp(min=0).sqrt()


def _rounding(covariance: Tensor, means: Tensor | None, precision: torch.dtype) -> Tensor:
    """How much of s may be rounding: of the means, and of products of what is left of them."""
    if means is None:
        return torch.zeros_like(covariance.diagonal())
    m = means.detach()
    apart = (m - m.mean(dim=0)).abs().amax(dim=0)
    return ROUNDING * m.abs().amax(dim=0) + 8 * torch.finfo(precision).eps * apart


def _factor(correlations: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """L of (4), and which features the others explain up to rounding.

    A pivot can hide that: its rounding error grows with the condition of the features before. So
    the smallest eigenvalue is looked at too, after three steps of inverse iteration.
    """
    factor, failed = torch.linalg.cholesky_ex(correlations)
    D, L = len(correlations), factor.detach()
    zero, unexplained = D * torch.finfo(precision).eps, L.diagonal().square()
    dependent = unexplained <= 10 * zero
    if failed:
        dependent[int(failed) - 1] = True
        dependent[int(failed) :] = False
    elif not dependent.any():
        worst = int(unexplained.argmin())
        v = torch.zeros_like(L[:, :1])
        v[worst] = 1
        for _ in range(3):
            v = torch.cholesky_solve(v / torch.linalg.vector_norm(v), L)
        dependent[worst] = 1 / torch.linalg.vector_norm(v) <= zero
    return factor, dependent


def _columns(chosen: Tensor, most: int = 8) -> str:
    names = [str(j) for j in chosen.nonzero().flatten().tolist()]
    if len(names) == 1:
        return f"column {names[0]} is"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"columns {', '.join(names[:most])}{more} are"
