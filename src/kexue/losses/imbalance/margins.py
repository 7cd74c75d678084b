r"""再谈类别不平衡问题 — margins that grow as classes get rare: LDAM (S37)

    D_k = C n_k^{−1/4},  C such that the largest is max_margin                                 (1)
    loss = −log softmax(s (z − D_y onehot(y)))_y                                               (2)

The article's view: every example owns a ball, of a radius that is larger for rare classes, and the
whole ball must lie on the right side. LDAM lowers the target's logit alone; lowering every logit by
its own margin −tau log pi_i instead gives `logit_adjusted_loss`, which needs no cosines.

The margins mean something only on a known scale of logits. The paper's logits are cosines between
normalised features and normalised class vectors, whence s = 30; with the logits of a linear layer
take s = 1. Its second part is deferred: train plainly first, then `reweight` with class-balanced
weights when the learning rate drops.

Symbols: logits z, counts n, margins D, scale s.   Axes: *batch leading axes, K classes.
Cost: one scattered subtraction more than cross-entropy. Source: arXiv 1906.07413 (max_margin 0.5,
s = 30).
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kexue.losses.imbalance.class_weights import checked_counts
from kexue.losses.imbalance.cross_entropy import softmax_cross_entropy
from kexue.losses.imbalance.inputs import MeanOver, Numbers, class_inputs, class_vector
from kexue.losses.reduction import Reduced, Reduction

__all__ = ["LDAMLoss", "ldam_loss", "ldam_margins"]


def ldam_margins(counts: Numbers, max_margin: float = 0.5) -> Float[Tensor, " K"]:
    """Margins (1), float64.

    Args:
        counts: how often every class occurs in training.
        max_margin: margin of the rarest class.

    Raises:
        ValueError: a class without examples, or a margin that is negative or infinite.

    Example:
        >>> ldam_margins([1600, 100, 1], max_margin=1.0).tolist()
        [0.15811388300841897, 0.31622776601683794, 1.0]
    """
    if not (math.isfinite(max_margin) and max_margin >= 0):
        raise ValueError(f"max_margin must be finite and >= 0, got {max_margin}")
    n = checked_counts(counts)
    return max_margin * (n.min() / n) ** 0.25  # (1)


def ldam_loss(
    logits: Float[Tensor, "*batch K"],
    labels: Int[Tensor, "*batch"],
    margins: Numbers,
    scale: float = 30.0,
    *,
    class_weight: Numbers | None = None,
    mean_over: MeanOver = "weights",
    ignore_index: int = -100,
    mask: Bool[Tensor, "*batch"] | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    """Cross-entropy with a margin of its own for every class: (2), in float32 or better.

    Args:
        logits: cosines for scale 30, any logits for scale 1; the classes are the last axis.
        labels: the class of each row.
        margins: D, one number per class: `ldam_margins(counts)`.
        scale: s.
        class_weight: weights of the classes, the deferred part of the method.
        mean_over: what the mean of weighted rows is divided by, "weights" or "samples".
        ignore_index: label of rows that do not count.
        mask: True where a row counts.
        reduction: "mean", "sum", "none" or "sum_and_count".

    Raises:
        ValueError: margins not one per class, a scale that is not positive, shapes or labels that
            do not fit.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([2])
        >>> round(ldam_loss(z, y, margins=[0.1, 0.2, 0.5], scale=1.0).item(), 4)
        2.8715
    """
    _check_scale(scale)
    z, y, kept = class_inputs(logits, labels, ignore_index, mask)
    margin = class_vector(margins, z.shape[-1], "margins", z)[y]
    moved = z.scatter_add(-1, y.unsqueeze(-1), -margin.unsqueeze(-1))
    return softmax_cross_entropy(  # (2)
        scale * moved,
        y,
        class_weight=class_weight,
        mean_over=mean_over,
        mask=kept,
        reduction=reduction,
    )


class LDAMLoss(nn.Module):
    """`ldam_loss` with margins from the counts of the classes.

    Args:
        counts: how often every class occurs in training.
        max_margin: margin of the rarest class.
        scale: multiplies the logits; 30 for cosines, 1 for the logits of a linear layer.
        mean_over: what the mean of weighted rows is divided by, "weights" or "samples".
        ignore_index: label of rows that do not count.
        reduction: "mean", "sum", "none" or "sum_and_count".

    Raises:
        ValueError: a class without examples, a negative margin, or a scale that is not positive.

    Example:
        >>> from kexue.losses.imbalance import class_balanced_weights
        >>> loss = LDAMLoss([1000, 10])
        >>> loss.reweight(class_balanced_weights([1000, 10], beta=0.999))  # late in training
        >>> [round(w, 3) for w in loss.class_weight.tolist()]
        [0.031, 1.969]
    """

    margins: Tensor
    class_weight: Tensor

    def __init__(
        self,
        counts: Numbers,
        max_margin: float = 0.5,
        scale: float = 30.0,
        *,
        mean_over: MeanOver = "weights",
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        _check_scale(scale)
        margins = ldam_margins(counts, max_margin).float()
        self.register_buffer("margins", margins)
        self.register_buffer("class_weight", torch.ones_like(margins))
        self.scale, self.mean_over = scale, mean_over
        self.ignore_index, self.reduction = ignore_index, reduction

    def reweight(self, class_weight: Numbers) -> None:
        """Weights of the classes from now on; all 1 before.

        Raises:
            ValueError: not one number >= 0 per class.
        """
        like = self.class_weight
        like.copy_(class_vector(class_weight, len(like), "class_weight", like))

    def forward(
        self,
        logits: Float[Tensor, "*batch K"],
        labels: Int[Tensor, "*batch"],
        mask: Bool[Tensor, "*batch"] | None = None,
    ) -> Reduced:
        return ldam_loss(
            logits,
            labels,
            self.margins,
            self.scale,
            class_weight=self.class_weight,
            mean_over=self.mean_over,
            ignore_index=self.ignore_index,
            mask=mask,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"classes={len(self.margins)}, scale={self.scale}"


def _check_scale(scale: float) -> None:
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be finite and positive, got {scale}")
