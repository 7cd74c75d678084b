r"""Class means and the covariance within classes, gathered batch by batch (for S02)

All that a Gaussian model with one shared covariance needs to know about labelled data, in a form
that can be extended by a batch, merged with another part's and summed over processes.

    n_k = sum_{i in k} c_i                 weight of class k (c_i = 1: its number of rows)    (1)
    m_k = sum_{i in k} c_i x_i / n_k       its mean                                           (2)
    S = sum_k sum_{i in k} c_i (x_i − m_k)ᵀ(x_i − m_k)        scatter within classes, (D, D)  (3)

Two parts a and b of the data have together, with δ_k = m_k^b − m_k^a and n_k = n_k^a + n_k^b,

    m_k = m_k^a + (n_k^b / n_k) δ_k,       S = S^a + S^b + sum_k (n_k^a n_k^b / n_k) δ_kᵀδ_k  (4)

and any number of parts a, with δ_k^a = m_k^a − m_k about the common means,

    n_k m_k = sum_a n_k^a m_k^a,           S = sum_a [S^a + sum_k n_k^a (δ_k^a)ᵀδ_k^a]        (5)

Every product is taken of residuals: xᵀx − n mᵀm would lose all digits where the mean is large
against the spread. Of rows that come in blocks the residuals are about points near the means, those
known so far or of the first block of a class; (5) then moves S to the means, once for all blocks.

Symbols: counts n, means m, scatter S.   Axes: N rows, D features, K classes.
Cost: one read of the rows, N·D² operations (twice that with several threads, on accelerators and
under autograd), D² + K·D numbers kept.
Sources: article 8578; (4) is Chan, Golub and LeVeque's update, 1983, per class.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch import distributed as dist

__all__ = ["ClassStatistics", "blocks", "class_statistics"]

ROWS = 2048
"""Rows taken at a time: their residuals stay in the cache."""


def class_statistics(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    weight: Float[Tensor, " N"] | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Float[Tensor, " K"], Float[Tensor, "K D"], Float[Tensor, "D D"]]:
    """(1), (2) and (3) of N ≥ 1 rows, differentiable in the features.

    Args:
        features: one row per example.
        labels: 0 … K − 1.
        num_classes: K; a class without a row has count 0 and an arbitrary mean.
        weight: c; all ones if None.
        dtype: in which the products (3) are computed; sums are float64.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [5.0]])
        >>> counts, means, scatter = class_statistics(x, torch.tensor([0, 0, 1]), 2)
        >>> counts.tolist(), means.tolist(), scatter.tolist()
        ([2.0, 1.0], [[1.0], [5.0]], [[2.0]])
    """
    with torch.autocast(features.device.type, enabled=False):
        wide = torch.promote_types(features.dtype, dtype)
        centre = features.detach().mean(dim=0, dtype=wide)
        x = (features - centre).to(dtype)
        c = torch.ones_like(labels, dtype=torch.float64) if weight is None else weight.double()
        counts = c.new_zeros(num_classes).index_add(0, labels, c)  # (1)
        weighted = x.double() if weight is None else x * c[:, None]
        sums = weighted.new_zeros(num_classes, x.shape[1]).index_add(0, labels, weighted)
        means = sums / counts.where(counts > 0, 1)[:, None]  # (2)
        residuals = x - means.to(dtype).index_select(0, labels)
        weighted = residuals if weight is None else residuals * c.sqrt().to(dtype)[:, None]
        scatter = _gram(weighted)  # (3)
    return counts, means + centre.double(), scatter.double()


def _gram(rows: Float[Tensor, "N D"]) -> Float[Tensor, "D D"]:
    """rowsᵀ rows. NumPy's BLAS computes a symmetric product at half the cost of a general one.

    With several threads its own and torch's would wait for each other, ten times as long.
    """
    alone = torch.get_num_threads() == 1
    if alone and rows.device.type == "cpu" and not rows.requires_grad:
        array = rows.numpy()
        with np.errstate(all="ignore"):  # infinity and NaN are found by the caller
            return torch.from_numpy(array.T @ array)
    return rows.T @ rows


def _first_means(
    x: Tensor, y: Tensor, weights: Tensor, means: Tensor, known: Tensor
) -> tuple[Tensor, Tensor]:
    """For classes not seen before, points near their rows: their means in this block."""
    fresh = weights.new_zeros(len(means)).index_add(0, y, weights)
    sums = torch.zeros_like(means).index_add(0, y, x.double() * weights[:, None])
    found = ~known & (fresh > 0)
    return torch.where(found[:, None], sums / fresh.where(found, 1)[:, None], means), known | found


def blocks(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """The same rows of every tensor, a cache's worth at a time; None stays None."""
    rows = next(len(one) for one in tensors if one is not None)
    for start in range(0, rows, ROWS):
        part = slice(start, start + ROWS)
        yield tuple(None if one is None else one[part] for one in tensors)


class ClassStatistics:
    """n, m and S of all rows seen so far, in float64.

    Args:
        num_classes: K.
        num_features: D.
        device: where the numbers are kept; where the features are.
    """

    def __init__(
        self, num_classes: int, num_features: int, device: torch.device | str = "cpu"
    ) -> None:
        empty = torch.zeros((), dtype=torch.float64, device=device)
        self.counts: Tensor = empty.new_zeros(num_classes)
        self.means: Tensor = empty.new_zeros(num_classes, num_features)
        self.scatter: Tensor = empty.new_zeros(num_features, num_features)

    @property
    def total(self) -> Tensor:
        """N, or the sum of the weights."""
        return self.counts.sum()

    @property
    def covariance(self) -> Float[Tensor, "D D"]:
        """Sigma = S / N, the covariance within classes."""
        return self.scatter / self.total

    @torch.no_grad()
    def add(
        self,
        features: Float[Tensor, "N D"],
        labels: Int[Tensor, " N"],
        weight: Float[Tensor, " N"] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        """Take in more rows. Of many classes only those that occur among them cost anything."""
        present = labels.unique()
        place = torch.zeros_like(self.counts, dtype=torch.int64)
        place[present] = torch.arange(len(present), device=place.device)
        local = place[labels]
        about, known = self.means[present], self.counts[present] > 0
        counts, sums = torch.zeros_like(about[:, 0]), torch.zeros_like(about)
        scatter = torch.zeros_like(self.scatter)
        with torch.autocast(features.device.type, enabled=False):
            for x, y, c in blocks(features, local, weight):
                weights = torch.ones_like(y, dtype=torch.float64) if c is None else c.double()
                counts.index_add_(0, y, weights)
                if not bool(known.all()):
                    about, known = _first_means(x, y, weights, about, known)
                wide = torch.promote_types(x.dtype, dtype)
                residuals = (x - about.to(wide).index_select(0, y)).to(dtype)
                if c is not None:
                    sums.index_add_(0, y, residuals * c[:, None])
                    residuals = residuals * c.sqrt().to(dtype)[:, None]
                else:
                    sums.index_add_(0, y, residuals.double())
                scatter += _gram(residuals)
        apart = sums / counts.where(counts > 0, 1)[:, None]
        scatter -= (apart * counts[:, None]).T @ apart  # (5): about other points than the means
        self._join(present, counts, about + apart, scatter)

    @torch.no_grad()
    def merge(self, other: "ClassStatistics") -> None:
        """Take in what another has seen."""
        counts, means, scatter = (one.to(self.counts) for one in other.tensors())
        present = counts.nonzero().flatten()
        self._join(present, counts[present], means[present], scatter)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """n, m and S."""
        return self.counts, self.means, self.scatter

    def copy(self) -> "ClassStatistics":
        """The same numbers in tensors of their own."""
        K, D = self.means.shape
        twin = ClassStatistics(K, D, self.counts.device)
        twin.counts, twin.means, twin.scatter = (one.clone() for one in self.tensors())
        return twin

    def _join(self, classes: Tensor, counts: Tensor, means: Tensor, scatter: Tensor) -> None:
        before = self.counts[classes]
        total = before + counts
        share = counts / total.where(total > 0, 1)
        delta = means - self.means[classes]
        self.scatter += scatter + (delta * (before * share)[:, None]).T @ delta  # (4)
        self.means.index_add_(0, classes, delta * share[:, None])  # (4)
        self.counts.index_add_(0, classes, counts)

    @torch.no_grad()
    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """The statistics of all processes' rows, on each of them."""
        sums = torch.cat((self.counts[:, None], self.counts[:, None] * self.means), dim=1)
        dist.all_reduce(sums, group=group)
        total = sums[:, 0]
        means = sums[:, 1:] / total.where(total > 0, 1)[:, None]
        delta = self.means - means
        self.scatter += (delta * self.counts[:, None]).T @ delta  # (5)
        dist.all_reduce(self.scatter, group=group)
        self.counts, self.means = total.clone(), means
