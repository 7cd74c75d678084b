"""Several tasks, one network: by their losses or gradients, with or without a primary task."""

from kexue.optim.multitask.backward import MultiTaskGradients, MultiTaskStep, multitask_backward
from kexue.optim.multitask.gradients import gram_matrix
from kexue.optim.multitask.gram import min_norm_weights, primary_auxiliary_weights
from kexue.optim.multitask.losses import combine_losses, prior_loss

__all__ = [
    "MultiTaskGradients",
    "MultiTaskStep",
    "combine_losses",
    "gram_matrix",
    "min_norm_weights",
    "multitask_backward",
    "primary_auxiliary_weights",
    "prior_loss",
]
