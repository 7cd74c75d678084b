"""What labelled rows must look like, and what is said when they do not (for S02)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = [
    "Prior",
    "check_rows",
    "check_settings",
    "log_prior",
    "refuse_few",
    "refuse_non_finite",
    "refuse_overflow",
]

Prior = Sequence[float] | Tensor | Literal["uniform"] | None


def check_settings(num_classes: int, shrinkage: Any, prior: Any) -> None:
    """Refuse settings out of range.

    Raises:
        TypeError: num_classes is not a whole number, shrinkage no number, prior no sequence.
        ValueError: the setting that is wrong, by name.

    Example:
        >>> check_settings(3, 0.1, "uniform")
    """
    if not isinstance(num_classes, int) or isinstance(num_classes, bool):
        raise TypeError(f"num_classes must be a whole number, got {num_classes!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if isinstance(shrinkage, str):
        if shrinkage not in ("ledoit_wolf", "oas"):
            raise ValueError(
                f"shrinkage must be a number from 0 to 1, 'ledoit_wolf' or 'oas', got {shrinkage!r}"
            )
    elif isinstance(shrinkage, bool) or not isinstance(shrinkage, Real):
        raise TypeError(
            f"shrinkage must be a number from 0 to 1, 'ledoit_wolf' or 'oas', got {shrinkage!r}"
        )
    elif not 0 <= float(shrinkage) <= 1:
        raise ValueError(f"shrinkage must be between 0 and 1, got {shrinkage}")
    if prior is None or (isinstance(prior, str) and prior == "uniform"):
        return
    if isinstance(prior, str):
        raise ValueError(f"prior must be None, 'uniform' or probabilities, got {prior!r}")
    if isinstance(prior, Mapping) or not isinstance(prior, Iterable):
        raise TypeError(
            f"prior must be None, 'uniform' or {num_classes} probabilities in the order of the "
            f"classes, got {prior!r}"
        )
    p = [float(one) for one in prior]
    if len(p) != num_classes or not all(one > 0 for one in p) or abs(math.fsum(p) - 1) > 1e-6:
        raise ValueError(
            f"prior must be {num_classes} positive probabilities that sum to 1, got {p[:8]}"
            f"{' …' * (len(p) > 8)}, {len(p)} numbers with sum {math.fsum(p):g}"
        )


def check_rows(
    features: Tensor,
    labels: Tensor | None,
    weight: Tensor | None,
    num_classes: int,
    width: int | None = None,
) -> None:
    """Refuse rows, labels and weights of a wrong type, shape or range; empty ones are right.

    Args:
        features: (N, D), floating.
        labels: (N), whole numbers below num_classes; None where there are none.
        weight: (N), finite and not negative, or None.
        num_classes: K.
        width: D of the rows before, where there were any.

    Raises:
        TypeError: not a tensor, or a wrong dtype.
        ValueError: a wrong shape or value.

    Example:
        >>> check_rows(torch.zeros(2, 3), torch.tensor([0, 1]), None, 2)
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise TypeError(f"features must be a floating tensor, got {_kind(features)}")
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"features must be (rows, features), got shape {tuple(features.shape)}")
    if width is not None and features.shape[1] != width:
        raise ValueError(f"features have {features.shape[1]} columns, those before had {width}")
    if labels is not None:
        whole = isinstance(labels, Tensor) and not (
            labels.is_floating_point() or labels.is_complex()
        )
        if not whole:
            raise TypeError(
                f"labels must be a tensor of whole numbers, got {_kind(labels)}; names of classes "
                "are understood by ClosedFormLogisticRegression"
            )
        if labels.shape != features.shape[:1]:
            raise ValueError(
                f"labels must have shape ({len(features)},), one per row of features, got "
                f"{tuple(labels.shape)}"
            )
        if labels.device != features.device:
            raise ValueError(
                f"labels are on {labels.device}, features on {features.device}: move one of them"
            )
        if len(labels):
            low, high = (int(one) for one in labels.long().aminmax())
            if low < 0 or high >= num_classes:
                raise ValueError(
                    f"labels must be between 0 and {num_classes - 1}, got {low} to {high}"
                )
    if weight is not None:
        if not isinstance(weight, Tensor) or weight.is_complex():
            raise TypeError(f"sample_weight must be a tensor of numbers, got {_kind(weight)}")
        if weight.shape != features.shape[:1]:
            raise ValueError(
                f"sample_weight must have shape ({len(features)},), one per row of features, got "
                f"{tuple(weight.shape)}"
            )
        if not bool(((weight >= 0) & weight.isfinite()).all()):
            raise ValueError("sample_weight must be finite and not negative")


def refuse_non_finite(features: Tensor) -> None:
    """Refuse rows with NaN or infinity, and count them.

    Raises:
        ValueError: there is such a row.

    Example:
        >>> refuse_non_finite(torch.zeros(2, 3))
    """
    bad = ~features.isfinite().all(dim=1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"{int(bad.sum())} of {len(features)} rows of features hold NaN or infinity, first "
            f"row {first}: drop or repair them"
        )


def refuse_overflow(scatter: Tensor) -> None:
    """Refuse a scatter of finite rows that is not finite itself.

    Raises:
        ValueError: a square or a sum of squares was too large a number.

    Example:
        >>> refuse_overflow(torch.eye(2))
    """
    if not scatter.isfinite().all():
        raise ValueError("features overflow when they are squared: divide them by a constant")


def refuse_few(rows: int, num_classes: int) -> None:
    """Refuse rows too few for a covariance within classes.

    Raises:
        ValueError: fewer than K + 1 rows.

    Example:
        >>> refuse_few(4, 3)
    """
    if rows < num_classes + 1:
        raise ValueError(
            f"{rows} rows for {num_classes} classes: a covariance within classes needs at least "
            f"{num_classes + 1}"
        )


def log_prior(prior: Prior, counts: Tensor) -> Tensor:
    """ln p: given, or the shares of the classes.

    Raises:
        ValueError: a class has no row; the message names it.

    Example:
        >>> log_prior(None, torch.tensor([1.0, 1.0])).exp().tolist()
        [0.5, 0.5]
    """
    if (missing := counts == 0).any():
        names = missing.nonzero().flatten().tolist()
        raise ValueError(
            f"no row of class {', '.join(map(str, names[:8]))}{' …' * (len(names) > 8)}: every one "
            f"of the {len(counts)} classes needs rows; renumber the labels or lower num_classes"
        )
    if prior is None:
        return (counts / counts.sum()).log()
    if isinstance(prior, str):
        return torch.full_like(counts, 1 / len(counts)).log()
    return torch.as_tensor(prior).to(counts).log()


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__
