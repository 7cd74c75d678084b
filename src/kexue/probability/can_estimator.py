"""CAN with a reference: fitted once, batch by batch, or on the predictions themselves (S11).

The formulas and their numbers are those of `kexue.probability.can`. What is kept of the trusted
rows is ln S, one number per class, for one step, and the rows themselves for more.
"""

import warnings
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kexue.probability.can import (
    Uncertainty,
    can_correct,
    check_count,
    check_power,
    clipped,
    closed_form,
    log_sum,
    uncertainty_of,
)
from kexue.probability.prediction_rows import (
    Rows,
    as_given,
    as_tensor,
    checked_prior,
    checked_rows,
)

__all__ = ["CAN", "can_multilabel"]

NoConfident = Literal["unchanged", "identity"]


class CAN:
    """CAN with its reference: which rows are trusted and how frequent the classes are.

    Args:
        k: how many probabilities (1) looks at; article: 3.
        tau: rows with u < tau are trusted; article: 0.9, for k = 3. Paper: on validation data.
            0 trusts no row, more than 1 all.
        alpha: see `can_correct`.
        steps: see `can_correct`.
        prior: frequency of each class, "uniform", or None: counted from the labels given to `fit`.
        uncertainty: see `topk_uncertainty`.
        chunk: see `can_correct`.
        no_confident: where no row is trusted: "unchanged" returns the predictions with a warning,
            "identity" trusts a one-hot row per class instead, as the paper's code.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> import torch
        >>> p = torch.tensor([[0.05, 0.95], [0.1, 0.9]] * 5 + [[0.5, 0.5]])
        >>> CAN(k=2, prior="uniform").fit_transform(p)[-1]
        tensor([0.8864, 0.1136])
    """

    def __init__(
        self,
        k: int = 3,
        tau: float = 0.9,
        alpha: float = 1.0,
        steps: int = 1,
        prior: Tensor | np.ndarray | Literal["uniform"] | None = None,
        uncertainty: Uncertainty = "topk",
        chunk: int = 4096,
        no_confident: NoConfident = "unchanged",
    ) -> None:
        check_power(alpha, steps, chunk)
        check_count("k", k, 2, ", since ln 1 = 0 divides (1)")
        if not tau >= 0:
            raise ValueError(f"tau must be 0 or more, got {tau}")
        if uncertainty not in get_args(Uncertainty):
            raise ValueError(f"uncertainty must be one of {get_args(Uncertainty)}: {uncertainty!r}")
        if no_confident not in get_args(NoConfident):
            raise ValueError(f"no_confident must be one of {get_args(NoConfident)}")
        if isinstance(prior, str) and prior != "uniform":
            raise ValueError(f'prior must be numbers, "uniform" or None, got {prior!r}')
        self.k, self.tau, self.alpha, self.steps = k, tau, alpha, steps
        self.prior, self.uncertainty = prior, uncertainty
        self.chunk, self.no_confident = chunk, no_confident
        self.classes: int | None = None
        self.counts: Tensor | None = None
        self.total: Tensor | None = None
        self.trusted: list[Tensor] = []
        self.confident_rows = 0
        self._about = ""

    def fit(
        self, p: Rows | None = None, labels: Rows | None = None, *, logits: Rows | None = None
    ) -> "CAN":
        """Take the trusted rows of p as the reference, and the prior from labels if need be.

        Args:
            p: predictions, (N, C).
            labels: true class numbers, of these rows or of any others; used if `prior` is None.
            logits: in place of p.

        Raises:
            ValueError: as `can_correct`; no prior and no labels; labels out of range.
        """
        self._forget()
        return self.partial_fit(p, labels, logits=logits)

    def partial_fit(
        self, p: Rows | None = None, labels: Rows | None = None, *, logits: Rows | None = None
    ) -> "CAN":
        """`fit` batch by batch: every call adds its trusted rows and its labels.

        With steps = 1 only the sum of the trusted rows is kept, else the rows.
        """
        rows = _probabilities(p, logits)
        classes = rows.shape[1]
        if self.classes not in (None, classes):
            raise ValueError(f"p has {classes} classes; the batches before had {self.classes}")
        if labels is None and self.counts is None and self.prior is None:
            raise ValueError('no prior: give prior=…, prior="uniform" or the labels of these rows')
        if self.prior is not None and not isinstance(self.prior, str):
            checked_prior(self.prior, rows[:0])
        self.classes = classes
        if labels is not None and self.prior is None:
            counts = _counted(labels, classes)
            self.counts = counts if self.counts is None else self.counts + counts
        trusted = rows[self._unsure(rows) < self.tau].double()
        self.confident_rows += len(trusted)
        if self.steps > 1:
            self.trusted.append(trusted)
        elif len(trusted):
            added = log_sum(trusted, self.alpha)
            self.total = added if self.total is None else torch.logaddexp(self.total, added)
        return self

    def transform(self, p: Rows | None = None, *, logits: Rows | None = None) -> Rows:
        """The predictions with every unsure row corrected; trusted rows come back bit for bit."""
        if self.classes is None:
            raise ValueError("fit this CAN first, or call fit_transform")
        given = p if logits is None else logits
        rows = _probabilities(p, logits)
        if rows.shape[1] != self.classes:
            raise ValueError(f"p has {rows.shape[1]} classes; the reference has {self.classes}")
        low = self._unsure(rows) >= self.tau
        if self.confident_rows == 0 and self.no_confident == "unchanged":
            self._warn("no row is trusted (u < tau), so nothing is corrected; raise tau")
            return as_given(rows, given)
        few = self.confident_rows < 5 * self.classes
        if few and self.confident_rows and bool(low.any()):
            self._warn(
                f"only {self.confident_rows} trusted rows for {self.classes} classes; classes that "
                f"they hardly hold get large weights. {5 * self.classes} rows or more are safe"
            )
        corrected = rows.clone()
        corrected[low] = self._corrected(rows[low])
        return as_given(corrected, given)

    def fit_transform(
        self, p: Rows | None = None, labels: Rows | None = None, *, logits: Rows | None = None
    ) -> Rows:
        """The article's form: the trusted rows of p itself are the reference."""
        return self.fit(p, labels, logits=logits).transform(p, logits=logits)

    def _corrected(self, low: Tensor) -> Tensor:
        eye = torch.eye(low.shape[1], dtype=low.dtype, device=low.device)
        counted = self.counts if self.prior is None else self.prior
        if counted is None:
            raise ValueError("no prior is known: fit with labels, or give prior=")
        prior = torch.ones(low.shape[1]) if isinstance(counted, str) else counted
        pi = checked_prior(prior, low)
        if self.total is not None:
            never = (pi == 0) & (self.total.to(pi) > -torch.inf)
            if bool(never.any()):
                raise ValueError(
                    f"the prior of class {int(never.nonzero()[0])} is 0, yet a trusted row "
                    "predicts it; add a pseudo-count to the frequencies"
                )
        if self.steps == 1 and self.total is not None:
            return closed_form(low, self.total.to(low), pi, self.alpha)
        trusted = torch.cat(self.trusted).to(low) if self.confident_rows else eye[pi > 0]
        options = {"alpha": self.alpha, "steps": self.steps, "chunk": self.chunk}
        return torch.as_tensor(can_correct(low, trusted, pi, **options))  # type: ignore[arg-type]

    def _unsure(self, rows: Tensor) -> Tensor:
        return uncertainty_of(rows, clipped(self.k, rows.shape[1]), self.uncertainty)

    def _warn(self, message: str) -> None:
        warnings.warn(self._about + message, stacklevel=3)

    def _forget(self) -> None:
        self.classes = self.counts = self.total = None
        self.trusted, self.confident_rows = [], 0


def can_multilabel(
    p: Float[Tensor, "N L"] | np.ndarray,
    prior: Float[Tensor, " L"] | np.ndarray,
    *,
    tau: float = 0.9,
    no_confident: NoConfident = "unchanged",
) -> Rows:
    """CAN for labels that do not exclude each other: a problem of two classes, [p, 1 − p], each.

    Our extension; neither paper nor article has it.

    Args:
        p: probability of each label.
        prior: frequency of each label, between 0 and 1.
        tau: see `CAN`.
        no_confident: see `CAN`.

    Example:
        >>> import torch
        >>> p = torch.tensor([[0.05, 0.9]] * 10 + [[0.5, 0.9]])
        >>> can_multilabel(p, torch.tensor([0.5, 0.9]))[-1]
        tensor([0.9091, 0.9000])
    """
    given, shares = as_tensor(p, "p"), as_tensor(prior, "prior").double()
    given = given if isinstance(p, Tensor) else given.double()
    if given.ndim != 2 or shares.shape != given.shape[1:]:
        raise ValueError(
            "p must be (rows, labels) and prior one number per label, got shapes "
            f"{(*given.shape,)} and {(*shares.shape,)}"
        )
    outside = ~((given >= 0) & (given <= 1))
    if bool(outside.any()):
        row, label = outside.nonzero()[0].tolist()
        raise ValueError(
            f"p must hold probabilities, got {float(given[row, label])} in row {row}, label {label}"
        )
    columns = [given[:, :0]]
    for label, (column, share) in enumerate(zip(given.unbind(1), shares, strict=True)):
        both = torch.stack((share, 1 - share))
        can = CAN(k=2, tau=tau, prior=both, no_confident=no_confident)
        can._about = f"label {label}: "
        try:
            pair = can.fit_transform(torch.stack((column, 1 - column), dim=1))
        except ValueError as error:
            raise ValueError(f"label {label}: {error}") from error
        columns.append(torch.as_tensor(pair)[:, :1])
    return as_given(torch.cat(columns, dim=1), p)


def _probabilities(p: Rows | None, logits: Rows | None) -> Tensor:
    if p is not None and logits is None:
        return checked_rows(p, "p")
    if p is not None or logits is None:
        raise ValueError("give exactly one of p and logits")
    raw = as_tensor(logits, "logits")
    if raw.ndim != 2:
        raise ValueError(f"logits must be (rows, classes), got shape {(*raw.shape,)}")
    wide = torch.float32 if isinstance(logits, Tensor) else torch.float64
    found = raw.to(torch.promote_types(raw.dtype, wide)).softmax(1)
    wrong = ~found.isfinite().all(1)
    if bool(wrong.any()):
        raise ValueError(
            f"logits of row {int(wrong.nonzero()[0])} hold NaN, infinity or nothing but -infinity"
        )
    return checked_rows(found, "softmax(logits)")


def _counted(labels: Rows, classes: int) -> Tensor:
    numbers = as_tensor(labels, "labels").cpu()
    if numbers.ndim != 1 or numbers.is_floating_point():
        raise ValueError(f"labels must be a list of class numbers, got {numbers.dtype}")
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < classes:
        raise ValueError(f"labels must be 0 to {classes - 1}, got {numbers.unique().tolist()}")
    return torch.bincount(numbers.long(), minlength=classes)
