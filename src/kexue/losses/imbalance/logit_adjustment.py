r"""通过互信息思想来缓解类别不平衡问题 — logit adjustment: the prior inside the logarithm (S37)

Train on skewed classes, predict as if they were balanced.

    loss = −log softmax(z + tau log pi)_y                                                      (1)
         = log(1 + sum_{i≠y} (pi_i / pi_y)^tau e^{z_i − z_y})                                  (2)
    d loss / d z = softmax(z + tau log pi) − onehot(y)                                         (3)

With tau = 1 the logits learn the pointwise mutual information log p(y|x)/p(y): the prior is given,
so the model need not spend itself on it. In terms of margins, every logit is lowered by its own
m_i = −tau log pi_i, a large one for rare classes (not the target's alone).

    argmax z                       balanced accuracy; the balanced Bayes rule at tau = 1       (4)
    argmax z + tau log pi          plain accuracy, for any tau                                 (5)
    softmax(z + tau log pi)        p(y|x), calibrated for the training prior                   (6)

For other tau the balanced Bayes rule is argmax z + (tau − 1) log pi. A model trained by plain
cross-entropy gets the same afterwards, argmax z − tau log pi: `posthoc_adjusted`. Never both: the
prior would count twice. The same again: a last bias fixed at tau log pi, dropped at test time.

Symbols: logits z, prior pi, tau tau.   Axes: *batch leading axes, K classes.
Cost: one addition more than cross-entropy. Source: article 7615, arXiv 2007.07314. The author adds
1e-8 to the prior inside the logarithm; here a zero is refused, and counts are smoothed instead.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kexue.losses.imbalance.cross_entropy import softmax_cross_entropy
from kexue.losses.imbalance.inputs import MeanOver, Numbers, as_numbers
from kexue.losses.reduction import Reduced, Reduction

__all__ = ["LogitAdjustedLoss", "logit_adjusted_loss", "posthoc_adjusted"]


def logit_adjusted_loss(
    logits: Float[Tensor, "*batch K"],
    labels: Int[Tensor, "*batch"] | Float[Tensor, "*batch K"],
    prior: Numbers,
    tau: float = 1.0,
    *,
    class_weight: Numbers | None = None,
    mean_over: MeanOver = "weights",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    mask: Bool[Tensor, "*batch"] | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    """Cross-entropy of the logits plus tau times the log-prior: (1), in float32 or better.

    Args:
        logits: no softmax before; the classes are the last axis.
        labels: the class of each row, or a distribution over the classes.
        prior: pi, the share of each class in training: `prior_from_counts(counts)`.
        tau: strength; 0 is cross-entropy, 1 the article's.
        class_weight: weights outside the logarithm, on top.
        mean_over: what the mean of weighted rows is divided by, "weights" or "samples".
        label_smoothing: share of the target spread over all classes.
        ignore_index: label of rows that do not count.
        mask: True where a row counts.
        reduction: "mean", "sum", "none" or "sum_and_count".

    Raises:
        ValueError: a prior that holds zeros or does not sum to 1, tau negative or infinite, or
            what `softmax_cross_entropy` refuses.

    Example:
        >>> import torch
        >>> z, prior = torch.tensor([[1.0, 2.0, 0.0]]), [0.8, 0.15, 0.05]
        >>> [round(logit_adjusted_loss(z, torch.tensor([k]), prior).item(), 4) for k in range(3)]
        [0.427, 1.101, 4.1996]
    """
    shifted = _shifted(logits, _log_prior(prior), _checked_tau(tau))
    return softmax_cross_entropy(
        shifted,
        labels,
        class_weight=class_weight,
        mean_over=mean_over,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        mask=mask,
        reduction=reduction,
    )


def posthoc_adjusted(
    logits: Float[Tensor, "*batch K"], prior: Numbers, tau: float = 1.0
) -> Float[Tensor, "*batch K"]:
    """z − tau log pi: the argmax of a model trained by plain cross-entropy, balanced afterwards.

    Args:
        logits: of a model that was trained without logit adjustment.
        prior: share of each class in its training.
        tau: strength; 1 is the balanced Bayes rule.

    Raises:
        ValueError: as `logit_adjusted_loss`.

    Example:
        >>> import torch
        >>> z = torch.tensor([2.0, 1.5])
        >>> int(z.argmax()), int(posthoc_adjusted(z, [0.9, 0.1]).argmax())
        (0, 1)
    """
    return _shifted(logits, _log_prior(prior), -_checked_tau(tau))


class LogitAdjustedLoss(nn.Module):
    """`logit_adjusted_loss` that knows its prior, and how to read the logits afterwards.

    Args:
        prior: share of each class in training.
        tau: strength.
        trainable: the log-prior starts at log pi and is learned along; give `loss.parameters()`
            to the optimizer.
        label_smoothing: share of the target spread over all classes.
        ignore_index: label of rows that do not count.
        reduction: "mean", "sum", "none" or "sum_and_count".

    Raises:
        ValueError: a prior that holds zeros or does not sum to 1, or tau negative or infinite.

    Example:
        >>> import torch
        >>> loss = LogitAdjustedLoss([0.9, 0.1])
        >>> z = torch.tensor([[1.0, 1.5]])
        >>> int(loss.adjust(z).argmax()), int(loss.adjust(z, objective="accuracy").argmax())
        (1, 0)
    """

    log_prior: Tensor

    def __init__(
        self,
        prior: Numbers,
        tau: float = 1.0,
        *,
        trainable: bool = False,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.tau, self.label_smoothing = _checked_tau(tau), label_smoothing
        self.ignore_index, self.reduction = ignore_index, reduction
        log_prior = _log_prior(prior).float()
        if trainable:
            self.log_prior = nn.Parameter(log_prior)
        else:
            self.register_buffer("log_prior", log_prior)

    def forward(
        self,
        logits: Float[Tensor, "*batch K"],
        labels: Int[Tensor, "*batch"] | Float[Tensor, "*batch K"],
        mask: Bool[Tensor, "*batch"] | None = None,
    ) -> Reduced:
        return softmax_cross_entropy(
            _shifted(logits, self.log_prior, self.tau),
            labels,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            mask=mask,
            reduction=self.reduction,
        )

    def adjust(
        self,
        logits: Float[Tensor, "*batch K"],
        objective: Literal["balanced", "accuracy"] = "balanced",
    ) -> Float[Tensor, "*batch K"]:
        """What to take the argmax of: (4), the logits as trained, or (5).

        Raises:
            ValueError: an objective other than "balanced" and "accuracy".
        """
        if objective == "balanced":
            return logits
        if objective == "accuracy":
            return _shifted(logits, self.log_prior, self.tau)
        raise ValueError(f'objective must be "balanced" or "accuracy", got {objective!r}')

    def probabilities(self, logits: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch K"]:
        """p(y|x) under the training prior: (6)."""
        return self.adjust(logits, "accuracy").softmax(dim=-1)  # (6)

    def extra_repr(self) -> str:
        return f"classes={len(self.log_prior)}, tau={self.tau}"


def _shifted(logits: Tensor, log_prior: Tensor, tau: float) -> Tensor:
    """z + tau log pi, in float32 or better."""
    if logits.dim() == 0 or logits.shape[-1:] != log_prior.shape:
        raise ValueError(
            f"prior of {len(log_prior)} classes needs logits with that last axis, "
            f"got shape {tuple(logits.shape)}"
        )
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide + tau * log_prior.to(wide)


def _checked_tau(tau: float) -> float:
    if not (math.isfinite(tau) and tau >= 0):
        raise ValueError(f"tau must be finite and >= 0, got {tau}")
    return tau


def _log_prior(prior: Numbers) -> Tensor:
    pi = as_numbers(prior).to(torch.float64)
    if pi.dim() != 1:
        raise ValueError(f"prior needs one number per class, got shape {tuple(pi.shape)}")
    if not torch.compiler.is_compiling():
        way_out = "prior_from_counts(counts, smoothing=1) makes one from class counts"
        if not (pi > 0).all():
            k = int((~(pi > 0)).nonzero()[0])
            raise ValueError(f"prior must be positive, got {pi[k].item()} of class {k}; {way_out}")
        total = pi.sum().item()
        if not abs(total - 1) <= 1e-4:
            raise ValueError(f"prior must sum to 1, got {total:g}; {way_out}")
    return pi.log()
