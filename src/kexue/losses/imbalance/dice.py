r"""再谈类别不平衡问题 — Dice loss, the smooth F1 as it is (S37)

    Dice = 1 − (2 sum y p + s) / (sum (y + p) + s),  p = sigmoid(z)                            (1)

A score of a set, not a mean over elements: the sums run over the batch, or over every example (an
image, a sentence). It ignores right negatives, which is why it is liked where they abound. But its
gradient carries the factor p(1 − p) and vanishes for what is badly wrong: start from a model that
is not, add cross-entropy, or take `f1_weighted_bce`, which is the same aim without that factor.

Over a batch it is a ratio of sums, so the parts of a batch do not add up to the whole, and
accumulated gradients are not the large batch's. Per example they are.

Symbols: logits z, targets y, smooth s.   Axes: *shape any, the first one the examples.
Cost: one pass, two temporaries. Source: articles 7708, 4733; for text, with focal factors, arXiv
1911.02855.
"""

import math

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from kexue.losses.imbalance.inputs import element_inputs
from kexue.losses.reduction import Reduced, Reduction, reduced

__all__ = ["SigmoidDiceLoss", "overlap_and_size", "sigmoid_dice_loss"]


def sigmoid_dice_loss(
    logits: Float[Tensor, "*shape"],
    targets: Shaped[Tensor, "*shape"],
    smooth: float = 1.0,
    *,
    per_example: bool = False,
    ignore_index: int = -100,
    mask: Bool[Tensor, "..."] | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    """Dice loss (1) of the batch, or of every example, in float32 or better.

    Args:
        logits: no sigmoid before.
        targets: boolean, 0/1, or soft in [0, 1].
        smooth: s; keeps an example without positives from being 0/0. 0 costs 1 there.
        per_example: one Dice for every entry of the first axis instead of one for the batch.
        ignore_index: target of elements that do not count.
        mask: True where an element counts; without the last axis, where a row counts.
        reduction: over the Dices: "mean", "sum", "none" or "sum_and_count". Examples in which
            nothing counts do not count themselves.

    Raises:
        ValueError: smooth negative, per_example without a first axis, shapes or targets that do
            not fit.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([0.5, -1.0, 0.2, -2.0]), torch.tensor([1, 0, 0, 0])
        >>> round(sigmoid_dice_loss(z, y, smooth=0.0).item(), 4)
        0.5138
    """
    _check_smooth(smooth)
    z, y, kept = element_inputs(logits, targets, ignore_index, mask)
    if per_example and not z.dim():
        raise ValueError("per_example needs a first axis of examples, got a single logit")
    z, y, kept = (x.flatten(1) if per_example else x.flatten() for x in (z, y, kept))
    overlap, size = overlap_and_size(z, y, kept, dim=-1)
    ratio = (2 * overlap + smooth) / (size + smooth).clamp(min=torch.finfo(z.dtype).tiny)
    return reduced(1 - ratio, reduction, kept.any(dim=-1))  # (1)


class SigmoidDiceLoss(nn.Module):
    """`sigmoid_dice_loss` with its settings.

    Args:
        smooth: keeps an example without positives from being 0/0.
        per_example: one Dice for every entry of the first axis instead of one for the batch.
        ignore_index: target of elements that do not count.
        reduction: "mean", "sum", "none" or "sum_and_count".

    Raises:
        ValueError: smooth negative.
    """

    def __init__(
        self,
        smooth: float = 1.0,
        *,
        per_example: bool = False,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        _check_smooth(smooth)
        self.smooth, self.per_example = smooth, per_example
        self.ignore_index, self.reduction = ignore_index, reduction

    def forward(
        self,
        logits: Float[Tensor, "*shape"],
        targets: Shaped[Tensor, "*shape"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Reduced:
        return sigmoid_dice_loss(
            logits,
            targets,
            self.smooth,
            per_example=self.per_example,
            ignore_index=self.ignore_index,
            mask=mask,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"smooth={self.smooth}, per_example={self.per_example}"


def overlap_and_size(z: Tensor, y: Tensor, kept: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """sum y p and sum (y + p) along an axis."""
    p, y = z.sigmoid() * kept, y.to(z.dtype)
    return (y * p).sum(dim), (y + p).sum(dim)


def _check_smooth(smooth: float) -> None:
    if not (math.isfinite(smooth) and smooth >= 0):
        raise ValueError(f"smooth must be finite and >= 0, got {smooth}")
