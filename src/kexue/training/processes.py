"""Where training runs: processes, devices, and the precision they have in hardware."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from kexue.hardware import bf16_in_hardware
from kexue.training.settings import FitSettings

__all__ = ["autocast", "make_accelerator", "processes"]


def make_accelerator(settings: FitSettings, log_folder: Path | None = None) -> Any:
    """An Accelerator that leaves batches and autocast to the loop."""
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    processes()
    return Accelerator(
        log_with=settings.tracker,
        project_dir=log_folder,
        mixed_precision="no",  # whatever the user's accelerate configuration says
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )


def processes() -> Any:
    """The `accelerate.PartialState` of this run; joins its processes also where there is no GPU."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def autocast(precision: str, device: torch.device) -> Any:
    """bf16 where asked for, or where it is in hardware and nothing was asked for."""
    wanted = precision == "bf16" or (precision == "auto" and bf16_in_hardware(device.type))
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()
