r"""再谈类别不平衡问题 — what the counts of the classes say: priors and weights (S37)

    pi_k = (n_k + s) / (N + K s)                                          prior, smoothed      (1)
    w_k  = (N / (K n_k))^a                   a = 1: every class weighs the same in the sum     (2)
    w_k  proportional to (1 − b) / (1 − b^{n_k}), with sum K              class-balanced       (3)

(3) counts not examples but the volume that n_k overlapping examples cover: b = 0 weighs all
classes alike, b → 1 is (2) up to a factor. a = 1/2 in (2) is the usual cure where 1/n spans more
than two orders of magnitude and the first steps of Adam become wild.

Count what the training sampler shows, not what the data set holds: oversampling changes both.

Symbols: counts n, their sum N, smoothing s, power a, beta b.   Axes: K classes.
Computed in float64; 1 − b^n as −expm1(n log b), which keeps all digits where b^n is close to 1.
Source: arXiv 1901.05555 for (3).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kexue.losses.imbalance.inputs import Numbers, as_numbers

__all__ = [
    "checked_counts",
    "class_balanced_weights",
    "class_counts",
    "inverse_frequency_weights",
    "prior_from_counts",
]


def class_counts(
    labels: Int[Tensor, "..."], num_classes: int, ignore_index: int = -100
) -> Int[Tensor, " K"]:
    """How often every class occurs among the labels.

    Raises:
        ValueError: a label outside 0 … num_classes − 1 that is not `ignore_index`.

    Example:
        >>> import torch
        >>> class_counts(torch.tensor([0, 2, 2, -100]), num_classes=3)
        tensor([1, 0, 2])
    """
    labels = labels[labels != ignore_index].long()
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        bad = int(labels[outside][0])
        raise ValueError(f"label {bad} is outside 0 … {num_classes - 1} (num_classes − 1)")
    return torch.bincount(labels, minlength=num_classes)


def prior_from_counts(counts: Numbers, smoothing: float = 1.0) -> Float[Tensor, " K"]:
    """Class priors (1), float64.

    Args:
        counts: how often every class occurs in training.
        smoothing: s, added to every count, so that a class never seen keeps a finite logarithm.

    Raises:
        ValueError: negative counts, nothing counted, negative smoothing, or a class without
            examples while smoothing is 0.

    Example:
        >>> [round(p, 4) for p in prior_from_counts([79, 14, 4]).tolist()]
        [0.8, 0.15, 0.05]
    """
    if not (math.isfinite(smoothing) and smoothing >= 0):
        raise ValueError(f"smoothing must be finite and >= 0, got {smoothing}")
    n = checked_counts(counts, allow_zero=smoothing > 0) + smoothing
    return n / n.sum()  # (1)


def inverse_frequency_weights(counts: Numbers, power: float = 1.0) -> Float[Tensor, " K"]:
    """Weights (2), float64: rare classes weigh more.

    Args:
        counts: how often every class occurs in training.
        power: a; 1 gives every class the same total, 1/2 is the square root, 0 no weights.

    Raises:
        ValueError: a class without examples, or a negative power.

    Example:
        >>> inverse_frequency_weights([90, 10]).tolist()
        [0.5555555555555556, 5.0]
    """
    if not (math.isfinite(power) and power >= 0):
        raise ValueError(f"power must be finite and >= 0, got {power}")
    n = checked_counts(counts)
    return (n.sum() / (len(n) * n)) ** power  # (2)


def class_balanced_weights(counts: Numbers, beta: float = 0.999) -> Float[Tensor, " K"]:
    """Weights (3), float64, with sum K.

    Args:
        counts: how often every class occurs in training.
        beta: b; the paper searches 0.9, 0.99, 0.999 and 0.9999.

    Raises:
        ValueError: a class without examples, or beta outside [0, 1).

    Example:
        >>> [round(w, 4) for w in class_balanced_weights([100, 10]).tolist()]
        [0.1893, 1.8107]
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), got {beta}; inverse_frequency_weights is beta 1")
    n = checked_counts(counts)
    volume = torch.ones_like(n) if beta == 0 else -torch.expm1(n * math.log(beta))  # 1 − b^n
    w = 1 / volume
    return w * (len(w) / w.sum())  # (3)


def checked_counts(counts: Numbers, *, allow_zero: bool = False) -> Float[Tensor, " K"]:
    """The counts in float64.

    Raises:
        ValueError: not one number per class, a negative or infinite one, none at all, or a 0.
    """
    n = as_numbers(counts).to(torch.float64)
    if n.dim() != 1 or len(n) < 2:
        raise ValueError(f"counts need one number for each of at least 2 classes, got {counts}")
    bad = ~(n.isfinite() & (n >= 0))
    if bad.any():
        k = int(bad.nonzero()[0])
        raise ValueError(f"counts must be finite and >= 0, got {n[k].item():g} of class {k}")
    if not allow_zero and (n == 0).any():
        k = int((n == 0).nonzero()[0])
        raise ValueError(
            f"class {k} has no examples, so its weight would be infinite: smooth the counts "
            "(add 1 to each, or smoothing=1 for a prior) or drop the class"
        )
    if not n.any():
        raise ValueError("all counts are 0: count the labels of the training set first")
    return n
