"""A softmax layer from statistics that are gathered batch by batch (S02)

`ClosedFormSoftmax` keeps counts, means and scatter (see `kexue.probability.class_statistics`) while
rows come in, and solves for the layer at the end:

    w_k = m_k Sigma^-1,            b_k = ln p_k − ½ w_k m_kᵀ                                  (2, 3)
    w'_k = (m_k − m) Sigma^-1,     b'_k = ln p_k − ½ w'_k (m_k − m)ᵀ,
    logits (x − m) w'_kᵀ + b'_k                                                               (6)

Formulas, symbols and sources are those of `kexue.probability.logistic`.

Cost: one read of the rows; D² + K·D numbers kept, and as many sent by `all_reduce`.
"""

import torch
from torch import Tensor, nn
from torch import distributed as dist

from kexue.probability.class_statistics import ClassStatistics, blocks
from kexue.probability.labelled_rows import (
    Prior,
    check_rows,
    check_settings,
    log_prior,
    refuse_few,
    refuse_non_finite,
    refuse_overflow,
)
from kexue.probability.shrunk_covariance import Shrinkage, shrink, times_inverse

__all__ = ["ClosedFormSoftmax"]


class ClosedFormSoftmax:
    """The softmax layer from one pass over the data, in one call or batch by batch.

    Args:
        num_classes: K, at least 2.
        shrinkage: l between 0 and 1, "ledoit_wolf" or "oas". 0 as in the article.
        prior: p, K positive numbers that sum to 1; "uniform"; None for the shares of the classes.
        dtype: in which products of rows are computed, float64 or float32; sums are kept and the
            equations solved in float64 either way.

    Attributes:
        weight: (K, D) of (2), float64, after `fit` or `finalize`.
        bias: (K) of (3), float64.
        solved: whether they are those of all that was taken in.

    Raises:
        TypeError: num_classes, shrinkage or prior of a wrong type.
        ValueError: one of them or dtype out of range.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1])
        >>> model = ClosedFormSoftmax(2)
        >>> for rows in (slice(0, 2), slice(2, 4)):
        ...     _ = model.partial_fit(x[rows], y[rows])
        >>> model.finalize().predict(x).tolist()
        [0, 0, 1, 1]
        >>> model.to_linear()
        Linear(in_features=1, out_features=2, bias=True)
    """

    weight: Tensor
    bias: Tensor
    _weight: Tensor
    _bias: Tensor
    _centre: Tensor

    def __init__(
        self,
        num_classes: int,
        shrinkage: Shrinkage = 0.0,
        prior: Prior = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        check_settings(num_classes, shrinkage, prior)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.num_classes, self.shrinkage = num_classes, shrinkage
        self.prior, self.dtype = prior, dtype
        self.statistics: ClassStatistics | None = None
        self._everywhere = self.solved = False

    def fit(
        self, features: Tensor, labels: Tensor, sample_weight: Tensor | None = None
    ) -> "ClosedFormSoftmax":
        """Forget what was seen, take in all rows and solve.

        Args:
            features: (N, D), floating.
            labels: (N), whole numbers 0 … K − 1.
            sample_weight: (N), not negative; 2 counts a row twice.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: a wrong shape or value; see `closed_form_softmax`.
        """
        check_rows(features, labels, sample_weight, self.num_classes)
        refuse_few(len(features), self.num_classes)
        self.statistics, self._everywhere, self.solved = None, False, False
        self.partial_fit(features, labels, sample_weight)
        fourth = None
        if self.shrinkage == "ledoit_wolf" and self.statistics is not None:
            with torch.no_grad():
                fourth = self._fourth(self.statistics.means, features, labels, sample_weight)
        return self._solve(fourth)

    @torch.inference_mode(False)  # what is gathered stays usable outside inference mode
    @torch.no_grad()
    def partial_fit(
        self, features: Tensor, labels: Tensor, sample_weight: Tensor | None = None
    ) -> "ClosedFormSoftmax":
        """Take in a batch; an empty one changes nothing. Call `finalize` after the last.

        A batch that is refused leaves what was gathered before as it was.
        """
        if self._everywhere:
            raise ValueError(
                "these statistics are already those of all processes: take in every batch before "
                "all_reduce, or start a new ClosedFormSoftmax"
            )
        width = None if self.statistics is None else self.statistics.means.shape[1]
        check_rows(features, labels, sample_weight, self.num_classes, width)
        if not len(features):
            return self
        shape = (self.num_classes, features.shape[1])
        batch = ClassStatistics(*shape, features.device)
        weight = None if sample_weight is None else sample_weight.double()
        batch.add(features, labels.long(), weight, self.dtype)
        if not batch.scatter.isfinite().all():
            refuse_non_finite(features)
            refuse_overflow(batch.scatter)
        self.solved = False
        if self.statistics is None:
            self.statistics = batch
        else:
            self.statistics.merge(batch)
        return self

    @torch.inference_mode(False)
    @torch.no_grad()
    def merge(self, other: "ClosedFormSoftmax") -> "ClosedFormSoftmax":
        """Take in what another has gathered, such as that of another part of the data."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot merge {other.num_classes} classes into {self.num_classes}")
        if self._everywhere or other._everywhere:
            raise ValueError("merge before all_reduce: after it, rows would count several times")
        if other.statistics is None:
            return self
        if self.statistics is None:
            self.statistics = other.statistics.copy()
        elif (mine := self.statistics.means.shape[1]) != (its := other.statistics.means.shape[1]):
            raise ValueError(f"cannot merge rows of {its} features into rows of {mine}")
        else:
            self.statistics.merge(other.statistics)
        self.solved = False
        return self

    @torch.inference_mode(False)
    @torch.no_grad()
    def all_reduce(self, group: dist.ProcessGroup | None = None) -> "ClosedFormSoftmax":
        """Sum over all processes, each of which has seen its own rows; alone, nothing happens.

        Every process must call it once, also one that has seen no row.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return self
        if self._everywhere:
            raise ValueError("all_reduce was called before: rows would count several times")
        widths: list[int | None] = [None] * dist.get_world_size(group)
        mine = 0 if self.statistics is None else self.statistics.means.shape[1]
        dist.all_gather_object(widths, mine, group=group)
        if len(known := {width for width in widths if width}) > 1:
            raise ValueError(f"the processes hold rows of {widths} features; give all the same")
        if not known:
            return self
        if self.statistics is None:
            nccl = dist.get_backend(group) == "nccl"
            device = torch.device("cuda", torch.cuda.current_device()) if nccl else "cpu"
            self.statistics = ClassStatistics(self.num_classes, known.pop() or 0, device)
        self.statistics.all_reduce(group)
        self._everywhere, self.solved = True, False
        return self

    def finalize(self) -> "ClosedFormSoftmax":
        """Solve for weight and bias from what was gathered.

        Raises:
            ValueError: nothing was gathered, a class has no row, the covariance is singular, or
                shrinkage is "ledoit_wolf", which needs `fit`.
        """
        return self._solve(None)

    def decision_function(self, features: Tensor) -> Tensor:
        """Logits (N, K) in float64, up to a number common to the classes: (6)."""
        if not self.solved:
            raise ValueError("call fit, or partial_fit and then finalize, before predicting")
        check_rows(features, None, None, self.num_classes, self.weight.shape[1])
        return (features.double() - self._centre) @ self._weight.T + self._bias  # (6)

    def log_prob(self, features: Tensor) -> Tensor:
        """Logarithms of the probabilities, (N, K)."""
        return self.decision_function(features).log_softmax(dim=1)

    def predict_proba(self, features: Tensor) -> Tensor:
        """Probabilities (N, K): (4)."""
        return self.decision_function(features).softmax(dim=1)

    def predict(self, features: Tensor) -> Tensor:
        """The most probable class of every row, (N)."""
        return self.decision_function(features).argmax(dim=1)

    def to_linear(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """A new layer with these probabilities: w' of (6), with b' − m w'ᵀ as its bias.

        Args:
            dtype: of the layer; torch's default dtype if None.
        """
        if not self.solved:
            raise ValueError("call fit, or partial_fit and then finalize, before to_linear")
        K, D = self._weight.shape
        layer: nn.Linear = nn.utils.skip_init(
            nn.Linear, D, K, device=self._weight.device, dtype=dtype
        )
        with torch.no_grad():
            layer.weight.copy_(self._weight)
            layer.bias.copy_(self._bias - self._weight @ self._centre)
        return layer

    @torch.inference_mode(False)
    @torch.no_grad()
    def _solve(self, fourth: Tensor | None) -> "ClosedFormSoftmax":
        if (seen := self.statistics) is None:
            raise ValueError("no row was given: call partial_fit before finalize")
        ln_p = log_prior(self.prior, seen.counts)
        refuse_overflow(seen.scatter)
        covariance = shrink(seen.covariance, self.shrinkage, seen.total, fourth)
        m, centre = seen.means, seen.counts @ seen.means / seen.total
        both = self._times_inverse(torch.cat((m, m - centre)), covariance, seen)
        self.weight, self._weight = both.chunk(2)  # (2), (6)
        self.bias = ln_p - (self.weight * m).sum(dim=1) / 2  # (3)
        self._bias = ln_p - (self._weight * (m - centre)).sum(dim=1) / 2  # (6)
        self._centre, self.solved = centre, True
        return self

    def _times_inverse(self, rows: Tensor, covariance: Tensor, seen: ClassStatistics) -> Tensor:
        """rows · covariance^-1; a singular covariance is refused."""
        return times_inverse(rows, covariance, means=seen.means, precision=self.dtype)

    @staticmethod
    def _fourth(means: Tensor, x: Tensor, y: Tensor, c: Tensor | None) -> Tensor:
        """The sum of |x_i − m_k|⁴, read block by block."""
        total = means.new_zeros(())
        for rows, classes, weight in blocks(x, y, c):
            fourth = (rows.double() - means[classes.long()]).square().sum(dim=1).square()
            total += fourth.sum() if weight is None else fourth @ weight.double()
        return total
