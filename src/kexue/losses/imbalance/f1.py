r"""再谈类别不平衡问题 — F1 made smooth: cross-entropy with F1 weights (S37)

    F = 2 sum y p / sum (y + p),  p = sigmoid(z)                                smooth F1      (1)
    loss = −(1 − F/2) y log p − (F/2) (1 − y) log(1 − p),  F held constant                     (2)

The gradient of −p is −p(1 − p) dz: it vanishes for what is badly wrong, and that of −F with it (see
`dice`). Writing log p for p in the gradient of F takes the harmful factor away and leaves (2), a
cross-entropy that weighs the positives by 1 − F/2 and the negatives by F/2: the worse the score,
the more the positives count. With F = 1 it is half the binary cross-entropy.

F of a batch without positives is 0, which makes (2) 0: such a batch teaches nothing. The module
keeps running averages of numerator and denominator instead, from the first batch with a positive.
F being the micro-batch's, accumulated gradients equal the large batch's only if F is given.

Symbols: logits z, targets y, f1 F.   Axes: *shape any; one F for all, or K of the last axis.
Cost: one pass for the sums, one for the loss. Source: article 7708.
"""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.losses.imbalance.dice import overlap_and_size
from kexue.losses.imbalance.inputs import element_inputs, two_sided
from kexue.losses.imbalance.running import follow, sum_over_processes
from kexue.losses.reduction import Reduced, Reduction, reduced

__all__ = [
    "SmoothF1WeightedBCE",
    "f1_weighted_bce",
    "smooth_f1",
]


def smooth_f1(
    logits: Float[Tensor, "*shape"],
    targets: Shaped[Tensor, "*shape"],
    *,
    per_class: bool = False,
    ignore_index: int = -100,
    mask: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "*F"]:
    """Smooth F1 (1), without a gradient; 0 where there is no positive.

    Args:
        logits: no sigmoid before.
        targets: boolean, 0/1, or soft in [0, 1].
        per_class: one F for every class, the last axis, instead of one for all elements.
        ignore_index: target of elements that do not count.
        mask: True where an element counts; without the last axis, where a row counts.

    Raises:
        ValueError: shapes or targets that do not fit.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([0.5, -1.0, 0.2, -2.0]), torch.tensor([1, 0, 0, 0])
        >>> round(smooth_f1(z, y).item(), 4)
        0.4862
    """
    z, y, kept = element_inputs(logits, targets, ignore_index, mask)
    return _f1(_counts(z, y, kept, per_class))


def f1_weighted_bce(
    logits: Float[Tensor, "*shape"],
    targets: Shaped[Tensor, "*shape"],
    f1: Float[Tensor, "..."] | float | None = None,
    *,
    ignore_index: int = -100,
    mask: Bool[Tensor, "..."] | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    """Binary cross-entropy with F1 weights: (2), in float32 or better.

    Args:
        logits: no sigmoid before.
        targets: boolean, 0/1, or soft in [0, 1].
        f1: F, in [0, 1], one number or one per class (the last axis); None: of this batch.
        ignore_index: target of elements that do not count.
        mask: True where an element counts; without the last axis, where a row counts.
        reduction: "mean" over elements, "sum", "none" or "sum_and_count".

    Raises:
        ValueError: F outside [0, 1], shapes or targets that do not fit.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([0.5, -1.0, 0.2, -2.0]), torch.tensor([1, 0, 0, 0])
        >>> values = f1_weighted_bce(z, y, reduction="none")
        >>> [round(x, 4) for x in values.tolist()]
        [0.3588, 0.0762, 0.194, 0.0309]
    """
    z, y, kept = element_inputs(logits, targets, ignore_index, mask)
    score = _f1(_counts(z, y, kept, per_class=False)) if f1 is None else _checked_f1(f1, z)
    values = two_sided(lambda m: -F.logsigmoid(m), z, y, 1 - score / 2, score / 2)  # (2)
    return reduced(values, reduction, kept)


class SmoothF1WeightedBCE(nn.Module):
    """`f1_weighted_bce` with F from running averages, updated in training mode before the loss.

    Args:
        momentum: share of the past in the averages of numerator and denominator.
        num_classes: one F for each class of the last axis; None: one for all elements.
        sync: add the sums of all processes before averaging (torch.distributed).
        ignore_index: target of elements that do not count.
        reduction: "mean", "sum", "none" or "sum_and_count".

    Raises:
        ValueError: momentum outside [0, 1), or logits without the given number of classes.

    Example:
        >>> import torch
        >>> loss = SmoothF1WeightedBCE()
        >>> _ = loss(torch.tensor([0.5, -1.0, 0.2, -2.0]), torch.tensor([1, 0, 0, 0]))
        >>> round(loss.f1.item(), 4)
        0.4862
    """

    sums: Tensor

    def __init__(
        self,
        momentum: float = 0.9,
        *,
        num_classes: int | None = None,
        sync: bool = False,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.momentum, self.num_classes, self.sync = momentum, num_classes, sync
        self.ignore_index, self.reduction = ignore_index, reduction
        self.register_buffer(
            "sums", torch.zeros(2, *(() if num_classes is None else (num_classes,)))
        )

    @property
    def f1(self) -> Tensor:
        """F so far; 0 before the first positive."""
        return _f1(self.sums)

    def forward(
        self,
        logits: Float[Tensor, "*shape"],
        targets: Shaped[Tensor, "*shape"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Reduced:
        if self.num_classes is not None and logits.shape[-1:] != (self.num_classes,):
            raise ValueError(
                f"num_classes={self.num_classes} must be the last axis of logits, "
                f"got shape {tuple(logits.shape)}"
            )
        if self.training:
            z, y, kept = element_inputs(logits, targets, self.ignore_index, mask)
            sums = _counts(z, y, kept, self.num_classes is not None)
            if self.sync:
                sums = sum_over_processes(sums)
            follow(self.sums, sums, self.momentum, started=self.sums[0] > 0)
        return f1_weighted_bce(
            logits,
            targets,
            self.f1,
            ignore_index=self.ignore_index,
            mask=mask,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, num_classes={self.num_classes}"


def _counts(z: Tensor, y: Tensor, kept: Tensor, per_class: bool) -> Tensor:
    """sum y p and sum (y + p), stacked."""
    z, y, kept = (x.detach().flatten(0, -2 if per_class else -1) for x in (z, y, kept))
    return torch.stack(overlap_and_size(z, y, kept, dim=0))


def _f1(sums: Tensor) -> Tensor:
    return 2 * sums[0] / torch.where(sums[1] == 0, 1.0, sums[1])  # (1)


def _checked_f1(f1: Tensor | float, z: Tensor) -> Tensor:
    score = torch.as_tensor(f1, dtype=z.dtype, device=z.device).detach()
    if score.dim() > 1 or (score.dim() == 1 and score.shape != z.shape[-1:]):
        raise ValueError(
            f"f1 must be one number or one per class, shape {tuple(z.shape[-1:])}, "
            f"got {tuple(score.shape)}"
        )
    if not torch.compiler.is_compiling() and not ((score >= 0) & (score <= 1)).all():
        raise ValueError(f"f1 must be in [0, 1], got {score.tolist()}")
    return score
