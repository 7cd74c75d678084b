"""Predictions as they come from users: numpy or torch, checked once, with the place of an error."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["Rows", "as_given", "as_tensor", "checked_prior", "checked_rows"]

Rows = Tensor | np.ndarray
TOLERANCE = 1e-3
"""How far the sum of a row may be from 1; in half precision, two of its rounding units."""


def as_tensor(given: Rows, name: str) -> Tensor:
    """Numbers as a tensor; an array that torch cannot share (read-only, reversed) is copied.

    Raises:
        TypeError: no numbers.
    """
    if isinstance(given, Tensor):
        return given
    array = np.asarray(given)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be numbers, got {array.dtype}")
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def checked_rows(p: Rows, name: str) -> Tensor:
    """Rows of distributions as a tensor: float64 for numpy, float32 or float64 for torch.

    Raises:
        TypeError: no floating numbers.
        ValueError: not two axes, fewer than two classes, NaN, a negative entry, another sum than 1.
    """
    rows = as_tensor(p, name)
    if not rows.is_floating_point():
        raise TypeError(f"{name} must hold floating numbers, got {rows.dtype}")
    if rows.ndim != 2 or rows.shape[1] < 2:
        raise ValueError(f"{name} must be (rows, classes ≥ 2), got shape {(*rows.shape,)}")
    wide = torch.float32 if isinstance(p, Tensor) else torch.float64
    given = rows.dtype
    rows = rows.to(torch.promote_types(given, wide))
    sums = rows.sum(1)
    room = max(TOLERANCE, 2 * torch.finfo(given).eps)
    if bool(((sums - 1).abs() <= room).logical_and(rows.amin(1) >= 0).all()):
        return rows
    wrong = ~(rows >= 0)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{name} must hold probabilities, got {float(rows[row, column])} in row {row}, "
            f"column {column}; pass scores as logits"
        )
    row = int((~((sums - 1).abs() <= room)).nonzero()[0])
    raise ValueError(
        f"{name} must sum to 1 in every row, row {row} sums to {float(sums[row]):.6g}; normalise "
        "it, or pass scores as logits"
    )


def checked_prior(prior: Rows, *rows: Tensor) -> Tensor:
    """The prior as one number per class, like the rows; its sum does not matter.

    Raises:
        ValueError: another number of classes, a negative number, 0 for a class that is predicted.
    """
    pi = as_tensor(prior, "prior").to(rows[0])
    classes = rows[0].shape[1]
    if pi.shape != (classes,):
        raise ValueError(f"prior must hold {classes} numbers, got shape {(*pi.shape,)}")
    if not bool(((pi >= 0) & pi.isfinite()).all()) or not bool((pi > 0).any()):
        raise ValueError(f"prior must be frequencies ≥ 0, not all 0, got {pi.tolist()}")
    for one in rows:
        missing = (pi == 0) & (one > 0).any(0)
        if bool(missing.any()):
            column = int(missing.nonzero()[0])
            row = int((one[:, column] > 0).nonzero()[0])
            raise ValueError(
                f"the prior of class {column} is 0, yet row {row} gives it "
                f"{float(one[row, column]):.4g}; add a pseudo-count to the frequencies"
            )
    return pi / pi.sum()


def as_given(found: Tensor, given: Rows | None) -> Rows:
    """A result as torch, or numpy for anything else that came in.

    Half precision becomes float32, and whole numbers float64.
    """
    if given is None or isinstance(given, Tensor):
        return found
    dtype = np.asarray(given).dtype
    wide = np.promote_types(dtype, np.float32) if dtype.kind == "f" else np.float64
    return found.detach().cpu().numpy().astype(wide)
