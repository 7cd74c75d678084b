r"""将“softmax+交叉熵”推广到多标签分类问题 — ZLPR as a loss with a mask, and its probabilities (S37)

Several right classes at once, without weights: positives and negatives are compared, not summed.

    loss = log(1 + sum_pos e^{−s}) + log(1 + sum_neg e^s)                                      (1)
    p = sigmoid(2s)                                                                            (2)

The computation is `kexue.losses.multilabel_cross_entropy`; this adds a boolean mask of classes and
(2). With soft targets t the minimum of (1) is where t = sigmoid(2s), so (2) is the probability, not
sigmoid(s), while the decision s > 0 is the same. A class that does not take part is masked by −inf
inside, where the reference code adds −1e12, which float16 does not hold.

(1) is the sum of the binary cross-entropies of the classes without the products of several
exponentials, so it is never larger for hard targets. It comes from the pairwise form of circle
loss, log(1 + sum_{neg i, pos j} e^{s_i − s_j}), by a threshold class of score 0 between both sides.

Symbols: scores s, targets y.   Axes: *sets leading axes, C classes.
Source: articles 7359, 9064; arXiv 2208.02955, 2002.10857. For bert4keras users: this is
`multilabel_categorical_crossentropy(y_true, y_pred)`, with the scores first.
"""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from kexue.losses.multilabel import multilabel_cross_entropy
from kexue.losses.reduction import Reduced, Reduction, reduced

__all__ = ["ZLPRLoss", "zlpr_loss", "zlpr_probabilities"]


def zlpr_loss(
    scores: Float[Tensor, "*sets C"],
    targets: Shaped[Tensor, "*sets C"],
    *,
    valid: Bool[Tensor, "*sets C"] | None = None,
    mask: Bool[Tensor, "*sets"] | None = None,
    threshold: float = 0.0,
    reduction: Reduction = "mean",
) -> Reduced:
    """Multi-label cross-entropy (1) of every set, in float32 or better.

    Args:
        scores: raw scores, no sigmoid before.
        targets: boolean, 0/1, or soft in [0, 1].
        valid: True where a class takes part; targets elsewhere are ignored.
        mask: True where a set counts in the reduction.
        threshold: the score between right and wrong.
        reduction: "mean" over sets, "sum", "none" or "sum_and_count".

    Raises:
        ValueError: shapes that do not match, or a target outside [0, 1] on a valid class.

    Example:
        >>> import torch
        >>> s, y = torch.tensor([[1.5, -0.5, 0.2]]), torch.tensor([[1, 0, 0]])
        >>> round(zlpr_loss(s, y).item(), 4)
        1.241
    """
    for name, given, wanted in (
        ("targets", targets, scores.shape),
        ("valid", valid, scores.shape),
        ("mask", mask, scores.shape[:-1]),
    ):
        if given is not None and given.shape != wanted:
            raise ValueError(
                f"{name} must have shape {tuple(wanted)} beside scores {tuple(scores.shape)}, "
                f"got {tuple(given.shape)}"
            )
    if valid is not None:
        scores = scores.masked_fill(~valid, -torch.inf)
        targets = targets.masked_fill(~valid, 0)
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(-1), -torch.inf)
        targets = targets.masked_fill(~mask.unsqueeze(-1), 0)
    values = multilabel_cross_entropy(scores, targets, threshold=threshold, reduction="none")
    return reduced(values, reduction, mask)


def zlpr_probabilities(
    scores: Float[Tensor, "*sets C"], threshold: float = 0.0
) -> Float[Tensor, "*sets C"]:
    """sigmoid(2s): (2), in float32 or better.

    Example:
        >>> import torch
        >>> [round(p, 4) for p in zlpr_probabilities(torch.tensor([0.0, 1.0])).tolist()]
        [0.5, 0.8808]
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return (2 * (wide - threshold)).sigmoid()  # (2)


class ZLPRLoss(nn.Module):
    """`zlpr_loss` with its settings.

    Args:
        threshold: the score between right and wrong.
        reduction: "mean", "sum", "none" or "sum_and_count".
    """

    def __init__(self, threshold: float = 0.0, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.threshold, self.reduction = threshold, reduction

    def forward(
        self,
        scores: Float[Tensor, "*sets C"],
        targets: Shaped[Tensor, "*sets C"],
        valid: Bool[Tensor, "*sets C"] | None = None,
        mask: Bool[Tensor, "*sets"] | None = None,
    ) -> Reduced:
        return zlpr_loss(
            scores,
            targets,
            valid=valid,
            mask=mask,
            threshold=self.threshold,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"
