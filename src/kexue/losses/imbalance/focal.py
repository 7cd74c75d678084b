r"""从loss的硬截断、软化到focal loss — focal loss, binary and multi-class (S37)

Cross-entropy that loses interest in what is already right.

    loss = −a_t (1 − p_t)^g log p_t,    p_t the probability of the truth                       (1)
    1 − p_t = sigmoid(−m),              m = log p_t / (1 − p_t)                                (2)
    sigmoid: m = z for y = 1, −z for y = 0        a_t = a for y = 1, 1 − a for y = 0           (3)
    softmax: m = z_y − log sum_{i≠y} e^{z_i}      a_t = a_y, one number per class              (4)

(2) makes one formula of both: (1 − p_t)^g = exp(g log sigmoid(−m)). No power of a difference, so
nothing is lost for p_t near 1 and the slope stays finite for g < 1, where that of (1 − p)^g is not.

g = 0 is cross-entropy. Binary, g = 1 is the author's softened truncation with K = 1. For several
classes (4) is the generalisation to use: see `truncated` why the author's own is unsound.

Symbols: logits z, gamma g, alpha a, m `target_log_odds`.   Axes: *batch, *shape; K classes.
Cost: sigmoid elementwise, about three temporaries; softmax one log-sum-exp over a masked copy.
Source: arXiv 1708.02002 (g = 2, a = 0.25, divided by the number of positives); article 4733, which
advises a = 0.5 unless tuned. See also: torchvision's `sigmoid_focal_loss`, equal for hard targets.
"""

import math

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.losses.imbalance.inputs import (
    Numbers,
    as_numbers,
    class_inputs,
    class_vector,
    element_inputs,
    target_log_odds,
    two_sided,
)
from kexue.losses.reduction import Reduced, Reduction, reduced

__all__ = ["SigmoidFocalLoss", "SoftmaxFocalLoss", "sigmoid_focal_loss", "softmax_focal_loss"]


def sigmoid_focal_loss(
    logits: Float[Tensor, "*shape"],
    targets: Shaped[Tensor, "*shape"],
    gamma: float = 2.0,
    *,
    alpha: float | Numbers | None = None,
    ignore_index: int = -100,
    mask: Bool[Tensor, "..."] | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    """Focal loss of every element: (1) with (3), in float32 or better.

    Args:
        logits: no sigmoid before.
        targets: boolean, 0/1, or soft in [0, 1], which mix the losses of both answers.
        gamma: g, how fast the interest fades; 2 in the paper.
        alpha: a, weight of the positives, the negatives getting 1 − a (0.25 in the paper), or one
            such number per class, the last axis; None: all weigh 1.
        ignore_index: target of elements that do not count.
        mask: True where an element counts; without the last axis, where a row counts.
        reduction: "mean" over elements, "sum" (the paper divides it by the number of positives),
            "none" or "sum_and_count".

    Raises:
        ValueError: gamma negative, alpha outside [0, 1] or not one per class, shapes or targets
            that do not fit.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([1.5, -0.5]), torch.tensor([1, 0])
        >>> [round(x, 4) for x in sigmoid_focal_loss(z, y, reduction="none").tolist()]
        [0.0067, 0.0676]
    """
    _check_gamma(gamma)
    z, y, kept = element_inputs(logits, targets, ignore_index, mask)
    positive, negative = _sides(alpha, z)
    values = two_sided(lambda m: focal_term(m, gamma), z, y, positive, negative)  # (3)
    return reduced(values, reduction, kept)


def softmax_focal_loss(
    logits: Float[Tensor, "*batch K"],
    labels: Int[Tensor, "*batch"],
    gamma: float = 2.0,
    *,
    alpha: Numbers | None = None,
    ignore_index: int = -100,
    mask: Bool[Tensor, "*batch"] | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    """Focal loss of every row: (1) with (4), in float32 or better.

    Args:
        logits: no softmax before; the classes are the last axis.
        labels: the class of each row.
        gamma: g, how fast the interest fades.
        alpha: one weight per class, any scale; None: all weigh 1.
        ignore_index: label of rows that do not count.
        mask: True where a row counts.
        reduction: "mean" over rows (not over weights), "sum", "none" or "sum_and_count".

    Raises:
        ValueError: gamma negative, alpha not one number per class, shapes or labels that do not
            fit.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([1])
        >>> [round(softmax_focal_loss(z, y, gamma).item(), 4) for gamma in (0.0, 2.0)]
        [0.4076, 0.0457]
    """
    _check_gamma(gamma)
    z, y, kept = class_inputs(logits, labels, ignore_index, mask)
    values = focal_term(target_log_odds(z, y), gamma)  # (4)
    if alpha is not None:
        values = values * class_vector(alpha, z.shape[-1], "alpha", z)[y]
    return reduced(values, reduction, kept)


def focal_term(m: Tensor, gamma: float) -> Tensor:
    """(1) of the log-odds of the truth."""
    return (gamma * F.logsigmoid(-m)).exp() * -F.logsigmoid(m)  # (1), (2)


class SigmoidFocalLoss(nn.Module):
    """`sigmoid_focal_loss` with its settings.

    Args:
        gamma: how fast the interest fades.
        alpha: weight of the positives, or one per class.
        ignore_index: target of elements that do not count.
        reduction: "mean", "sum", "none" or "sum_and_count".

    Raises:
        ValueError: gamma negative.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | Numbers | None = None,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        _check_gamma(gamma)
        self.gamma, self.ignore_index, self.reduction = gamma, ignore_index, reduction
        self.alpha: Tensor | float | None
        if alpha is None or isinstance(alpha, int | float):
            self.alpha = alpha
        else:
            self.register_buffer("alpha", as_numbers(alpha).float())

    def forward(
        self,
        logits: Float[Tensor, "*shape"],
        targets: Shaped[Tensor, "*shape"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Reduced:
        return sigmoid_focal_loss(
            logits,
            targets,
            self.gamma,
            alpha=self.alpha,
            ignore_index=self.ignore_index,
            mask=mask,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}"


class SoftmaxFocalLoss(nn.Module):
    """`softmax_focal_loss` with its settings.

    Args:
        gamma: how fast the interest fades.
        alpha: one weight per class.
        ignore_index: label of rows that do not count.
        reduction: "mean", "sum", "none" or "sum_and_count".

    Raises:
        ValueError: gamma negative.
    """

    alpha: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: Numbers | None = None,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        _check_gamma(gamma)
        self.gamma, self.ignore_index, self.reduction = gamma, ignore_index, reduction
        weights = None if alpha is None else as_numbers(alpha).float()
        self.register_buffer("alpha", weights)

    def forward(
        self,
        logits: Float[Tensor, "*batch K"],
        labels: Int[Tensor, "*batch"],
        mask: Bool[Tensor, "*batch"] | None = None,
    ) -> Reduced:
        return softmax_focal_loss(
            logits,
            labels,
            self.gamma,
            alpha=self.alpha,
            ignore_index=self.ignore_index,
            mask=mask,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}"


def _sides(alpha: float | Numbers | None, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
    if alpha is None:
        return 1.0, 1.0
    if isinstance(alpha, int | float):
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        return float(alpha), 1.0 - alpha
    a = class_vector(alpha, z.shape[-1] if z.dim() else 1, "alpha", z)
    if not torch.compiler.is_compiling() and (a > 1).any():
        raise ValueError(f"alpha must be in [0, 1], got {a.max().item():g}")
    return a, 1 - a


def _check_gamma(gamma: float) -> None:
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma must be finite and >= 0, got {gamma}")
