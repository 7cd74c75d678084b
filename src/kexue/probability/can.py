r"""CAN：借助先验分布提升分类性能的简单后处理技巧 — classification with the class prior (S11)

Corrects predictions that a classifier is unsure of with what is known: how frequent classes are.

How unsure a row p of m probabilities is, from its k largest, renormalised to p^:

    u = −sum_{i<=k} p^_i ln p^_i / ln k,   in [0, 1]                                           (1)

Rows with u < tau are trusted, H of them, and never change. Every other row p is put below the
trusted ones, alone, and the (H + 1) × m matrix Y is normalised by columns and by rows, d times:

    Y <- Y^alpha                                                                               (2)
    Y_c <- Y_c · pi_c / D_c,   D_c = mean of column c, prior pi                                (3)
    Y_i <- Y_i / (sum of row i)                                                                (4)

The last row is the new p. For d = 1 no matrix is needed, with S_c = sum of Y_c over trusted rows:

    p'_c proportional to p_c^alpha · pi_c / (S_c + p_c^alpha)                                  (5)

in logarithms, so that no power underflows. With alpha = 1 the trusted rows at step t are
r_i H_ic c_c for a vector c of each p: two matrix products per step, no copy of H.               (6)

Symbols: p `rows`, H `confident`, pi `prior`, tau `tau`, alpha `alpha`, d `steps`, ln S `total`.
Axes: N rows, H trusted rows, C classes.
Cost: (5) O(C) per row; (6) 4 · H · C per row and step; alpha != 1 with d > 1 copies H per row,
and works on logarithms too.
Source: arXiv 2109.13449; article 8728. With alpha = 1 this is Sinkhorn's iteration.
What we do differently: zeros keep probability 0 (the published snippet gives NaN); (5) and (6).
Article: uncertainty "topk", trusted rows from the predictions themselves (`fit_transform` of
`kexue.probability.can_estimator.CAN`). Paper: "paper", from validation data; its code: "any_topk".
"""

import warnings
from numbers import Integral, Real
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kexue.probability.prediction_rows import as_given, checked_prior, checked_rows

__all__ = [
    "Uncertainty",
    "can_correct",
    "check_count",
    "check_power",
    "clipped",
    "closed_form",
    "log_sum",
    "topk_uncertainty",
    "uncertainty_of",
]

Uncertainty = Literal["topk", "any_topk", "paper"]
CELLS = 1 << 22
"""Numbers held at a time where the trusted rows are copied: 32 MB."""


def topk_uncertainty(
    p: Float[Tensor, "N C"] | np.ndarray, k: int = 3, kind: Uncertainty = "topk"
) -> Tensor | np.ndarray:
    """(1): 0 for a one-hot row, 1 where the k largest are equal; deaf to all others.

    Args:
        p: a distribution per row.
        k: 2 to C; more is cut to C with a warning. Article: 3.
        kind: "topk", or "any_topk" for the largest u over 2 … k, or "paper": the k largest without
            renormalising, over ln C, which stays well below 1.

    Raises:
        ValueError: k below 2, an unknown kind, rows that are no distributions.

    Example:
        >>> import torch
        >>> topk_uncertainty(torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]), k=2)
        tensor([1.0000, 0.9183])
    """
    if kind not in get_args(Uncertainty):
        raise ValueError(f'uncertainty must be "topk", "any_topk" or "paper", got {kind!r}')
    rows = checked_rows(p, "p")
    return as_given(uncertainty_of(rows, clipped(k, rows.shape[1]), kind), p)


def uncertainty_of(rows: Tensor, k: int, kind: str) -> Tensor:
    """(1) of checked rows."""
    top = rows.topk(k, dim=1).values  # (N, k)
    if kind == "paper":
        paper: Tensor = torch.special.entr(top).sum(1) / np.log(rows.shape[1])
        return paper
    found = []
    for size in range(2, k + 1) if kind == "any_topk" else (k,):
        share = top[:, :size] / top[:, :size].sum(1, keepdim=True)
        found.append(torch.special.entr(share).sum(1) / np.log(size))  # (1)
    return torch.stack(found).amax(0).clamp(0, 1)


def can_correct(
    rows: Float[Tensor, "N C"] | np.ndarray,
    confident: Float[Tensor, "H C"] | np.ndarray,
    prior: Float[Tensor, " C"] | np.ndarray,
    *,
    alpha: float = 1.0,
    steps: int = 1,
    chunk: int = 4096,
) -> Tensor | np.ndarray:
    """Every row, corrected alone beside the confident ones: (2) to (4), `steps` times.

    Args:
        rows: the predictions to correct.
        confident: the rows to trust; one at least.
        prior: frequency of each class, up to a factor.
        alpha: power (2); the article found nothing but 1 useful.
        steps: d; the article found 1 best.
        chunk: rows corrected together when steps > 1.

    Returns:
        Corrected rows, of the kind and dtype of `rows` (half precision becomes float32).

    Raises:
        ValueError: rows that are no distributions, by row and column; a prior that is 0 for a class
            that some row predicts; classes that do not match.

    Example:
        >>> import torch
        >>> undecided, sure = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.05, 0.95]])
        >>> can_correct(undecided, sure, torch.tensor([0.5, 0.5]))
        tensor([[0.7250, 0.2750]])
    """
    check_power(alpha, steps, chunk)
    low, high = checked_rows(rows, "rows"), checked_rows(confident, "confident")
    if len(high) == 0:
        raise ValueError("confident holds no row; give at least one row to trust")
    if low.shape[1] != high.shape[1]:
        raise ValueError(f"rows have {low.shape[1]} classes and confident {high.shape[1]}")
    high = high.to(low)
    pi = checked_prior(prior, low, high)
    if steps == 1:
        return as_given(closed_form(low, log_sum(high, alpha), pi, alpha), rows)
    found = torch.full_like(low, torch.nan)
    if alpha == 1:
        size = max(1, min(chunk, CELLS // len(high)))
        found = torch.cat([_products(part, high, pi, steps) for part in low.split(size)])
    left = ~found.isfinite().all(1)  # with alpha = 1 rows of which a factor c underflowed
    size = max(1, min(chunk, CELLS // high.numel()))
    copies = [_copies(part, high, pi, alpha, steps) for part in low[left].split(size)]
    return as_given(found.index_put((left,), torch.cat(copies)), rows)


def log_sum(confident: Tensor, alpha: float) -> Tensor:
    """ln S_c of the trusted rows."""
    return (alpha * confident.log()).logsumexp(0)


def closed_form(low: Tensor, total: Tensor, prior: Tensor, alpha: float) -> Tensor:
    """(5) for every row, from total = ln S."""
    powered = alpha * low.log()  # (N, C)
    weight = prior.log() - torch.logaddexp(total.expand_as(powered), powered)
    return (powered + weight).masked_fill(low == 0, -torch.inf).softmax(1)  # (5)


def _products(y: Tensor, h: Tensor, prior: Tensor, steps: int) -> Tensor:
    """(2) to (4) by (6): the trusted rows are r_i h_ic c_c, with one c per row of y.

    Where a trusted row keeps nothing of its mass, since c underflows, the result is NaN.
    """
    c, r = torch.ones_like(y), y.new_ones(len(y), len(h))  # (N, C), (N, H)
    for _ in range(steps):
        mean = (c * (r @ h) + y) / (len(h) + 1)  # (N, C)
        scale = torch.where(mean > 0, prior / torch.where(mean > 0, mean, 1), 0)
        c, y = c * scale, y * scale  # (3)
        c = c / c.amax(1, keepdim=True)  # r takes the factor back
        r = 1 / (c @ h.T)
        y = y / y.sum(1, keepdim=True)  # (4), (6)
    return y


def _copies(low: Tensor, high: Tensor, prior: Tensor, alpha: float, steps: int) -> Tensor:
    """(2) to (4) as written but in logarithms, the trusted rows copied for every row."""
    y = torch.cat((high.expand(len(low), -1, -1), low.unsqueeze(1)), dim=1).log()  # (N, H + 1, C)
    for _ in range(steps):
        y = alpha * y  # (2)
        total = y.logsumexp(1, keepdim=True)  # in place of the mean: (4) takes the factor back
        y = y + (prior.log() - total).where(total > -torch.inf, 0)  # (3)
        y = y - y.logsumexp(2, keepdim=True)  # (4)
    return y[:, -1].exp()


def clipped(k: int, classes: int) -> int:
    """k, cut to the number of classes with a warning."""
    check_count("k", k, 2, ", since ln 1 = 0 divides (1)")
    if k > classes:
        warnings.warn(f"k = {k} is more than the {classes} classes; taking {classes}", stacklevel=3)
    return min(k, classes)


def check_power(alpha: float, steps: int, chunk: int) -> None:
    """Complain about a power or a number of steps that makes no sense."""
    if not isinstance(alpha, Real) or not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be positive and finite, got {alpha!r}")
    check_count("steps", steps)
    check_count("chunk", chunk)


def check_count(name: str, given: int, least: int = 1, why: str = "") -> None:
    """Complain about a number that is not whole or too small."""
    if not isinstance(given, Integral) or given < least:
        raise ValueError(f"{name} must be a whole number of at least {least}{why}, got {given!r}")
