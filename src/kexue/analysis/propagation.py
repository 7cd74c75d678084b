"""模型优化漫谈：BERT的初始标准差为什么是0.02？ — Why BERT starts from std 0.02 (S06).

BERT's odd choices (post-norm, std 0.02, warm-up, a Dense + LayerNorm before the MLM softmax) seen
through one number: how much of the identity path survives the stack at initialisation.

    identity_path               by formula, from a config or from weights      path_weight
    suggest_initializer_range   the std for a wanted identity weight           initializer_range
    measure_identity_path       in a forward pass                              measured_path
    grad_profile                gradient and Adam update against depth         gradient_profile
    ln_gain_report              gains of the norms, std of the tied logits     norm_gains
    LinearWarmup                holds back the layers behind                   here

The rate of a warm-up, the factor of `optim.schedule` with t counted from 1 instead of 0, so that no
step is idle:

    f(t) = min(t / steps, 1)                                                                    (1)

Post-norm without warm-up: the layers behind learn fast on inputs from layers that have not learned,
reach a poor place, and then send noise to the front, which Adam turns into full-size steps.

Source: article 8747; arXiv 1810.04805, 2002.04745. See also: `optim.schedule`, `analysis.scales`.
"""

from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kexue.analysis.gradient_profile import GradientProfile, grad_profile
from kexue.analysis.initializer_range import suggest_initializer_range
from kexue.analysis.measured_path import measure_identity_path
from kexue.analysis.norm_gains import GainReport, NormGain, ln_gain_report, tied_logit_std
from kexue.analysis.path_weight import (
    IdentityPath,
    Stack,
    identity_path,
    second_moment,
)
from kexue.optim.schedule import PiecewiseLinear, constant_with_warmup

__all__ = [
    "GainReport",
    "GradientProfile",
    "IdentityPath",
    "LinearWarmup",
    "NormGain",
    "Stack",
    "grad_profile",
    "identity_path",
    "ln_gain_report",
    "measure_identity_path",
    "second_moment",
    "suggest_initializer_range",
    "tied_logit_std",
]


class LinearWarmup(LambdaLR):
    """The rate climbs in equal steps to the optimizer's own and stays there: (1).

    Args:
        optimizer: whose rates are scaled.
        steps: of the rise; 0 or 1: none.

    Raises:
        ValueError: a negative number of steps.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> warmup, rates = LinearWarmup(optimizer, steps=4), []
        >>> for _ in range(6):
        ...     rates.append(optimizer.param_groups[0]["lr"])
        ...     optimizer.step()
        ...     warmup.step()
        >>> rates
        [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """

    def __init__(self, optimizer: Optimizer, steps: int) -> None:
        super().__init__(optimizer, partial(_next, constant_with_warmup(steps)))


def _next(factor: PiecewiseLinear, step: int) -> float:
    return factor(step + 1)  # (1)
