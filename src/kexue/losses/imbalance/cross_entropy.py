r"""再谈类别不平衡问题：调节权重与魔改Loss的对比联系 — weights outside the logarithm (S37)

Softmax cross-entropy with a weight per class: the baseline of every other loss here.

    loss = −w_y log softmax(z)_y                                                               (1)
    loss = −sum_k t_k w_k log softmax(z)_k       a distribution t instead of the label y       (2)
    t = (1 − e)·onehot(y) + e/K                  label smoothing e                             (3)

A weight scales the whole gradient w_y (softmax(z) − onehot(y)) and stops there: the minimum of a
model that can separate the classes is the same with and without weights. Logit adjustment puts the
same knowledge inside the logarithm, where it moves the boundary: see `logit_adjustment`.

The mean of (1) over a batch is divided by sum w_y in torch, by the number of rows elsewhere. With
all weights c the first is the plain loss, the second c times it. `mean_over` names which.

Symbols: logits z, labels y or t, class_weight w.   Axes: *batch leading axes, K classes.
Cost: one log-softmax. Source: article 7708. See also: `torch.nn.functional.cross_entropy`, equal
to this with class indices; with distributions torch's mean divides by the rows in any case.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kexue.losses.imbalance.inputs import (
    MeanOver,
    Numbers,
    class_inputs,
    class_vector,
    reduced_by_class,
)
from kexue.losses.reduction import Reduced, Reduction

__all__ = ["softmax_cross_entropy"]


def softmax_cross_entropy(
    logits: Float[Tensor, "*batch K"],
    labels: Int[Tensor, "*batch"] | Float[Tensor, "*batch K"],
    *,
    class_weight: Numbers | None = None,
    mean_over: MeanOver = "weights",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    mask: Bool[Tensor, "*batch"] | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    """Weighted cross-entropy (1) of every row, in float32 or better.

    Args:
        logits: no softmax before; the classes are the last axis.
        labels: the class of each row, or a distribution over the classes (2).
        class_weight: w, one number per class, such as `class_balanced_weights(counts)`.
        mean_over: whether "mean" and "sum_and_count" count the weights, as torch, or the rows.
        label_smoothing: e of (3), spread over the classes whose logit is not −inf.
        ignore_index: label of rows that do not count.
        mask: True where a row counts.
        reduction: "mean", "sum", "none" or "sum_and_count".

    Raises:
        ValueError: shapes that do not match, a label out of range, a row that is no distribution,
            label_smoothing outside [0, 1); what was given is named.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 2.0, 0.0]])
        >>> round(softmax_cross_entropy(z, torch.tensor([1])).item(), 4)
        0.4076
        >>> each = softmax_cross_entropy(
        ...     z, torch.tensor([1]), class_weight=[1, 3, 1], mean_over="samples"
        ... )
        >>> round(each.item(), 4)
        1.2228
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    soft = labels.is_floating_point()
    if soft:
        index, mask = _distribution_rows(logits, labels, mask)
        logits, _, kept = class_inputs(logits, index, ignore_index, mask)
    else:
        logits, labels, kept = class_inputs(logits, labels, ignore_index, mask)
    classes = logits.shape[-1]
    w = (
        None
        if class_weight is None
        else class_vector(class_weight, classes, "class_weight", logits)
    )
    losses = -logits.log_softmax(dim=-1)  # (*batch, K)
    if w is not None:
        losses = losses * w
    if soft:
        t = labels.detach().to(losses)
        values = torch.where(t == 0, 0.0, t * losses).sum(dim=-1)  # (2)
        weight = None if w is None else t @ w
    else:
        values = losses.gather(-1, labels.unsqueeze(-1)).squeeze(-1)  # (1)
        weight = None if w is None else w[labels]
    if label_smoothing:
        taking_part = ~logits.isneginf()
        spread = torch.where(taking_part, losses, 0.0).sum(-1) / taking_part.sum(-1)
        values = torch.lerp(values, spread, label_smoothing)  # (3)
    return reduced_by_class(values, reduction, kept, weight, mean_over)


def _distribution_rows(
    logits: Tensor, labels: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The likeliest class of every row, after the check that the rows are distributions."""
    if labels.shape != logits.shape:
        raise ValueError(
            f"distributions as labels must have the shape of logits {tuple(logits.shape)}, "
            f"got {tuple(labels.shape)}"
        )
    if not torch.compiler.is_compiling():
        bad = ((labels.sum(-1) - 1).abs() > 1e-3) | ~(labels >= 0).all(-1)
        if mask is not None and mask.shape == bad.shape:
            bad = bad & mask
        if bad.any():
            row = tuple(bad.nonzero()[0].tolist())
            raise ValueError(
                f"row {row}: labels {labels[row].tolist()} are no distribution over the classes; "
                "for several right classes at once take zlpr_loss"
            )
    return labels.detach().argmax(-1), mask
