r"""再谈类别不平衡问题：调节权重与魔改Loss的对比联系 (S37)

Losses for few positives and long tails, side by side: weights outside the logarithm, the prior
inside it, interest that fades, margins, smooth scores.

| file               | what it does                               | functions                     |
|--------------------|--------------------------------------------|-------------------------------|
| `cross_entropy`    | weighs classes, outside the logarithm      | `softmax_cross_entropy`       |
| `logit_adjustment` | moves the boundary by the prior, inside it | `logit_adjusted_loss`         |
| `margins`          | asks for wider margins on rare classes     | `ldam_loss`                   |
| `focal`            | mutes what is already right                | `softmax_focal_loss`          |
|                    |                                            | `sigmoid_focal_loss`          |
| `truncated`        | the same with a threshold, hard or soft    | `sigmoid_hard_truncated_loss` |
|                    |                                            | `sigmoid_soft_truncated_loss` |
| `f1`               | weighs positives by the F1 so far          | `f1_weighted_bce`             |
| `dice`             | F1 itself, smooth                          | `sigmoid_dice_loss`           |
| `ghm`              | weighs by how common a gradient is         | `sigmoid_ghm_loss`            |
| `zlpr`             | multi-label: positives against negatives   | `zlpr_loss`                   |
| `class_weights`    | priors and weights from counts             | `prior_from_counts`, …        |

All take logits first and labels second, `mask`, and the same four reductions; all work in float32
or better and stay finite, with their gradients, for logits up to 1e4. Helpers: `inputs`, `running`.
"""

from kexue.losses.imbalance.class_weights import (
    class_balanced_weights,
    class_counts,
    inverse_frequency_weights,
    prior_from_counts,
)
from kexue.losses.imbalance.cross_entropy import softmax_cross_entropy
from kexue.losses.imbalance.dice import SigmoidDiceLoss, sigmoid_dice_loss
from kexue.losses.imbalance.f1 import SmoothF1WeightedBCE, f1_weighted_bce, smooth_f1
from kexue.losses.imbalance.focal import (
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from kexue.losses.imbalance.ghm import GHMCLoss, gradient_histogram, sigmoid_ghm_loss
from kexue.losses.imbalance.logit_adjustment import (
    LogitAdjustedLoss,
    logit_adjusted_loss,
    posthoc_adjusted,
)
from kexue.losses.imbalance.margins import LDAMLoss, ldam_loss, ldam_margins
from kexue.losses.imbalance.truncated import (
    HardTruncatedLoss,
    SoftTruncatedLoss,
    sigmoid_hard_truncated_loss,
    sigmoid_soft_truncated_loss,
)
from kexue.losses.imbalance.zlpr import ZLPRLoss, zlpr_loss, zlpr_probabilities

__all__ = [
    "GHMCLoss",
    "HardTruncatedLoss",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "SigmoidDiceLoss",
    "SigmoidFocalLoss",
    "SmoothF1WeightedBCE",
    "SoftTruncatedLoss",
    "SoftmaxFocalLoss",
    "ZLPRLoss",
    "class_balanced_weights",
    "class_counts",
    "f1_weighted_bce",
    "gradient_histogram",
    "inverse_frequency_weights",
    "ldam_loss",
    "ldam_margins",
    "logit_adjusted_loss",
    "posthoc_adjusted",
    "prior_from_counts",
    "sigmoid_dice_loss",
    "sigmoid_focal_loss",
    "sigmoid_ghm_loss",
    "sigmoid_hard_truncated_loss",
    "sigmoid_soft_truncated_loss",
    "smooth_f1",
    "softmax_cross_entropy",
    "softmax_focal_loss",
    "zlpr_loss",
    "zlpr_probabilities",
]
