"""What is minimised: losses as plain functions of tensors, and modules that hold their settings.

Two functions bear the name of their file and are imported from it: `losses.flooding.flooding` and
`losses.gradient_penalty.gradient_penalty`.
"""

from kexue.losses.adversarial import (
    FGM,
    PGD,
    virtual_adversarial_loss,
)
from kexue.losses.contrastive import (
    in_batch,
    log_odds_of_pairs,
    pair_scores,
    two_views,
)
from kexue.losses.exposure import (
    ExponentialDecay,
    ExposureGap,
    InverseSigmoidDecay,
    LinearDecay,
    ParallelScheduledSampling,
    RandomReplace,
    change_rates,
    exposure_gap,
    free_running,
    random_replace,
)
from kexue.losses.flat_nce import (
    FlatNCELoss,
    InfoNCELoss,
    effective_negatives,
    flat_nce_loss,
    info_nce_loss,
    log_odds_against,
    mutual_information,
)
from kexue.losses.flooding import (
    FloodingLoss,
    flood_gradients_,
)
from kexue.losses.gather import (
    gather_with_gradient,
)
from kexue.losses.ghost_norm import (
    per_sample_param_grad_norm,
)
from kexue.losses.gradient_penalty import (
    EmbeddingGradientPenalty,
    finite_difference_backward,
    input_gradient_norm,
)
from kexue.losses.imbalance import (
    GHMCLoss,
    HardTruncatedLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    SigmoidDiceLoss,
    SigmoidFocalLoss,
    SmoothF1WeightedBCE,
    SoftmaxFocalLoss,
    SoftTruncatedLoss,
    ZLPRLoss,
    class_balanced_weights,
    class_counts,
    f1_weighted_bce,
    gradient_histogram,
    inverse_frequency_weights,
    ldam_loss,
    ldam_margins,
    logit_adjusted_loss,
    posthoc_adjusted,
    prior_from_counts,
    sigmoid_dice_loss,
    sigmoid_focal_loss,
    sigmoid_ghm_loss,
    sigmoid_hard_truncated_loss,
    sigmoid_soft_truncated_loss,
    smooth_f1,
    softmax_cross_entropy,
    softmax_focal_loss,
    zlpr_loss,
    zlpr_probabilities,
)
from kexue.losses.multilabel import (
    flatten_spans,
    multilabel_cross_entropy,
)
from kexue.losses.r_drop import (
    RDropLoss,
    r_drop_loss,
    twice,
)
from kexue.losses.reduction import (
    reduced,
)
from kexue.losses.scale_balance import (
    balance_scales,
    shift_scales,
)
from kexue.losses.weissi import (
    product_penalty,
    weissi_parameters,
    weissi_penalty,
)

__all__ = [
    "FGM",
    "PGD",
    "EmbeddingGradientPenalty",
    "ExponentialDecay",
    "ExposureGap",
    "FlatNCELoss",
    "FloodingLoss",
    "GHMCLoss",
    "HardTruncatedLoss",
    "InfoNCELoss",
    "InverseSigmoidDecay",
    "LDAMLoss",
    "LinearDecay",
    "LogitAdjustedLoss",
    "ParallelScheduledSampling",
    "RDropLoss",
    "RandomReplace",
    "SigmoidDiceLoss",
    "SigmoidFocalLoss",
    "SmoothF1WeightedBCE",
    "SoftTruncatedLoss",
    "SoftmaxFocalLoss",
    "ZLPRLoss",
    "balance_scales",
    "change_rates",
    "class_balanced_weights",
    "class_counts",
    "effective_negatives",
    "exposure_gap",
    "f1_weighted_bce",
    "finite_difference_backward",
    "flat_nce_loss",
    "flatten_spans",
    "flood_gradients_",
    "free_running",
    "gather_with_gradient",
    "gradient_histogram",
    "in_batch",
    "info_nce_loss",
    "input_gradient_norm",
    "inverse_frequency_weights",
    "ldam_loss",
    "ldam_margins",
    "log_odds_against",
    "log_odds_of_pairs",
    "logit_adjusted_loss",
    "multilabel_cross_entropy",
    "mutual_information",
    "pair_scores",
    "per_sample_param_grad_norm",
    "posthoc_adjusted",
    "prior_from_counts",
    "product_penalty",
    "r_drop_loss",
    "random_replace",
    "reduced",
    "shift_scales",
    "sigmoid_dice_loss",
    "sigmoid_focal_loss",
    "sigmoid_ghm_loss",
    "sigmoid_hard_truncated_loss",
    "sigmoid_soft_truncated_loss",
    "smooth_f1",
    "softmax_cross_entropy",
    "softmax_focal_loss",
    "twice",
    "two_views",
    "virtual_adversarial_loss",
    "weissi_parameters",
    "weissi_penalty",
    "zlpr_loss",
    "zlpr_probabilities",
]
