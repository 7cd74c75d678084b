"""The loop: fit, objectives and their wrappers, checkpoints, tracking."""

from kexue.training.exposure import ExposureBiasMixin
from kexue.training.fit import fit
from kexue.training.loss_tricks import trainer_loss
from kexue.training.objective import Objective, apply_tricks, register_trick, tricks
from kexue.training.processes import make_accelerator, processes
from kexue.training.settings import FitResult, FitSettings

__all__ = [
    "ExposureBiasMixin",
    "FitResult",
    "FitSettings",
    "Objective",
    "apply_tricks",
    "fit",
    "make_accelerator",
    "processes",
    "register_trick",
    "trainer_loss",
    "tricks",
]
