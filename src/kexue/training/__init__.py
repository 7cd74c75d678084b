"""The loop: fit, objectives and their wrappers, checkpoints, tracking."""

from kexue.training.fit import fit
from kexue.training.objective import Objective, apply_tricks, register_trick, tricks
from kexue.training.processes import make_accelerator, processes
from kexue.training.settings import FitResult, FitSettings

__all__ = [
    "FitResult",
    "FitSettings",
    "Objective",
    "apply_tricks",
    "fit",
    "make_accelerator",
    "processes",
    "register_trick",
    "tricks",
]
