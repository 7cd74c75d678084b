r"""文本情感分类(四)：更好的损失函数 — truncated cross-entropy, hard and softened (S37)

Update only on what is not right yet; binary, elementwise.

    hard:     −λ log sigmoid(m),  λ = 1 where sigmoid(m) <= threshold, else 0                  (1)
    softened: −sigmoid(−K m) log sigmoid(m)                                                    (2)
    m = z for y = 1, −z for y = 0: the logit of being right

(1) is the author's of 2017. λ is a constant for the gradient, but nothing keeps what is above the
threshold there: it falls back, is pulled up again, and training is slow. (2) replaces the step by a
sigmoid, through which the gradient flows: K → ∞ is (1) with threshold 0.5, and K = 1 is focal loss
with gamma 1, because sigmoid(−m) = 1 − p.

**Not for several classes.** The author's −softmax(−K z)_y log softmax(z)_y is no generalisation:
its factor goes to 0 as soon as z_y is above *some* other logit, whichever it is, so that pushing
one wrong class down makes any answer cheap. z = (0, 1, −1000), y = 0, K = 1 costs 0 while class 1
is predicted. `softmax_focal_loss` is the sound one and is what this package offers.

Symbols: logits z, threshold, sharpness K.   Axes: *shape any, elementwise.
Cost: about two temporaries. Source: articles 4293 (threshold 0.6 and 0.5), 4733 (softened, hard).
"""

import math

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.losses.imbalance.inputs import element_inputs, two_sided
from kexue.losses.reduction import Reduced, Reduction, reduced

__all__ = [
    "HardTruncatedLoss",
    "SoftTruncatedLoss",
    "sigmoid_hard_truncated_loss",
    "sigmoid_soft_truncated_loss",
]


def sigmoid_hard_truncated_loss(
    logits: Float[Tensor, "*shape"],
    targets: Shaped[Tensor, "*shape"],
    threshold: float = 0.5,
    *,
    ignore_index: int = -100,
    mask: Bool[Tensor, "..."] | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    """Cross-entropy of the elements that are not right yet: (1), in float32 or better.

    Args:
        logits: no sigmoid before.
        targets: boolean, 0/1, or soft in [0, 1], which mix the losses of both answers.
        threshold: elements whose right answer has a higher probability cost nothing.
        ignore_index: target of elements that do not count.
        mask: True where an element counts; without the last axis, where a row counts.
        reduction: "mean" over all elements, also those that cost nothing, "sum", "none" or
            "sum_and_count".

    Raises:
        ValueError: threshold outside (0, 1), shapes or targets that do not fit.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([1.5, -0.5, 0.5]), torch.tensor([1, 1, 0])
        >>> [round(x, 4) for x in sigmoid_hard_truncated_loss(z, y, reduction="none").tolist()]
        [0.0, 0.9741, 0.9741]
    """
    limit = _limit(threshold)
    z, y, kept = element_inputs(logits, targets, ignore_index, mask)
    values = two_sided(lambda m: torch.where(m <= limit, -F.logsigmoid(m), 0.0), z, y)  # (1)
    return reduced(values, reduction, kept)


def sigmoid_soft_truncated_loss(
    logits: Float[Tensor, "*shape"],
    targets: Shaped[Tensor, "*shape"],
    sharpness: float = 1.0,
    *,
    ignore_index: int = -100,
    mask: Bool[Tensor, "..."] | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    """The softened truncation (2), in float32 or better.

    Args:
        logits: no sigmoid before.
        targets: boolean, 0/1, or soft in [0, 1], which mix the losses of both answers.
        sharpness: K; 1 is focal loss with gamma 1.
        ignore_index: target of elements that do not count.
        mask: True where an element counts; without the last axis, where a row counts.
        reduction: "mean" over elements, "sum", "none" or "sum_and_count".

    Raises:
        ValueError: sharpness not positive, shapes or targets that do not fit.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([1.5, -0.5]), torch.tensor([1, 0])
        >>> values = sigmoid_soft_truncated_loss(z, y, sharpness=3.0, reduction="none")
        >>> [round(x, 4) for x in values.tolist()]
        [0.0022, 0.0865]
    """
    _check_sharpness(sharpness)
    z, y, kept = element_inputs(logits, targets, ignore_index, mask)
    values = two_sided(lambda m: torch.sigmoid(-sharpness * m) * -F.logsigmoid(m), z, y)  # (2)
    return reduced(values, reduction, kept)


class HardTruncatedLoss(nn.Module):
    """`sigmoid_hard_truncated_loss` with its settings.

    Args:
        threshold: elements whose right answer has a higher probability cost nothing.
        ignore_index: target of elements that do not count.
        reduction: "mean", "sum", "none" or "sum_and_count".

    Raises:
        ValueError: threshold outside (0, 1).
    """

    def __init__(
        self, threshold: float = 0.5, *, ignore_index: int = -100, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        _limit(threshold)
        self.threshold, self.ignore_index, self.reduction = threshold, ignore_index, reduction

    def forward(
        self,
        logits: Float[Tensor, "*shape"],
        targets: Shaped[Tensor, "*shape"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Reduced:
        return sigmoid_hard_truncated_loss(
            logits,
            targets,
            self.threshold,
            ignore_index=self.ignore_index,
            mask=mask,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"


class SoftTruncatedLoss(nn.Module):
    """`sigmoid_soft_truncated_loss` with its settings.

    Args:
        sharpness: K; 1 is focal loss with gamma 1.
        ignore_index: target of elements that do not count.
        reduction: "mean", "sum", "none" or "sum_and_count".

    Raises:
        ValueError: sharpness not positive.
    """

    def __init__(
        self, sharpness: float = 1.0, *, ignore_index: int = -100, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        _check_sharpness(sharpness)
        self.sharpness, self.ignore_index, self.reduction = sharpness, ignore_index, reduction

    def forward(
        self,
        logits: Float[Tensor, "*shape"],
        targets: Shaped[Tensor, "*shape"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Reduced:
        return sigmoid_soft_truncated_loss(
            logits,
            targets,
            self.sharpness,
            ignore_index=self.ignore_index,
            mask=mask,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"sharpness={self.sharpness}"


def _limit(threshold: float) -> float:
    """The logit of the threshold."""
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
    return math.log(threshold) - math.log1p(-threshold)


def _check_sharpness(sharpness: float) -> None:
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise ValueError(
            f"sharpness must be finite and positive, got {sharpness}; "
            "its limit at infinity is sigmoid_hard_truncated_loss"
        )
