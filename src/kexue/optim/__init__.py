"""How it is minimised: optimizers and tricks of the gradient for any torch.optim.Optimizer."""

from kexue.optim.adafactor import AdaFactor
from kexue.optim.adax import AdaX
from kexue.optim.backstitch import Backstitch
from kexue.optim.gradient_mask import GradientMask, fisher_diagonal, topk_masks
from kexue.optim.guided_search import MGS
from kexue.optim.hidden_accumulation import HiddenAccumulation, check_accumulation
from kexue.optim.kinds import tiger_param_groups
from kexue.optim.lion import Lion
from kexue.optim.multitask import (
    MultiTaskGradients,
    combine_losses,
    min_norm_weights,
    multitask_backward,
    primary_auxiliary_weights,
    prior_loss,
)
from kexue.optim.runaway import runaway_rows
from kexue.optim.schedule import constant_with_warmup, piecewise_linear, warmup_linear
from kexue.optim.tiger import Tiger
from kexue.optim.weissi_decay import WeissiDecay

__all__ = [
    "MGS",
    "AdaFactor",
    "AdaX",
    "Backstitch",
    "GradientMask",
    "HiddenAccumulation",
    "Lion",
    "MultiTaskGradients",
    "Tiger",
    "WeissiDecay",
    "check_accumulation",
    "combine_losses",
    "constant_with_warmup",
    "fisher_diagonal",
    "min_norm_weights",
    "multitask_backward",
    "piecewise_linear",
    "primary_auxiliary_weights",
    "prior_loss",
    "runaway_rows",
    "tiger_param_groups",
    "topk_masks",
    "warmup_linear",
]
