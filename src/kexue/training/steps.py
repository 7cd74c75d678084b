"""One optimizer step: its batches, its loss, its gradient.

    gradient of a step = sum_i  (count_i / count) · grad loss_i,     count = sum_i count_i       (1)

over all micro-batches i of all processes: it does not depend on how the step was cut up. All that
is random in a step follows from (seed, step, process).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kexue.data.batching import Batch, MicroBatch
from kexue.data.features import FeatureTable
from kexue.training.objective import Objective
from kexue.training.processes import autocast
from kexue.training.settings import FitSettings

__all__ = ["Collate", "Losses", "batches", "train_step"]

Collate = Callable[[list[dict[str, Any]]], Batch]


def train_step(
    model: nn.Module,
    objective: Objective,
    micro: list[Batch],
    optimizer: Any,
    settings: FitSettings,
    accelerator: Any,
    step: int,
) -> tuple[Tensor, float, float]:
    """One optimizer step.

    Args:
        model: as prepared by the accelerator.
        objective: mean loss over a batch's count.
        micro: this process's micro-batches.
        optimizer: as prepared by the accelerator.
        settings: seed, precision, clipping.
        accelerator: the `accelerate.Accelerator`.
        step: its number, from 1.

    Returns:
        This process's part of the step's mean loss, on the device, and behind it that of the raw
        loss where tricks changed it; examples and tokens of the whole step.
    """
    seed_step(settings.seed, step, accelerator.process_index)
    model.train()
    counts = torch.tensor(
        [sum(b.count for b in micro), sum(b.tokens for b in micro)], dtype=torch.float64
    )
    if accelerator.num_processes > 1:
        counts = accelerator.reduce(counts.to(accelerator.device), "sum").cpu()
    count, tokens = counts.tolist()
    losses = torch.zeros(2 if hasattr(objective, "raw") else 1, device=accelerator.device)
    for number, batch in enumerate(micro, start=1):
        batch = batch.to(accelerator.device)
        hold = accelerator.no_sync(model) if number < len(micro) else nullcontext()
        with hold:
            with autocast(settings.precision, accelerator.device):
                part = objective(model, batch) * (batch.count / count)  # (1)
            # DDP and FSDP average over processes; (1) is a sum
            accelerator.backward(part * accelerator.num_processes)
        losses[0] += part.detach()
        if len(losses) > 1:
            losses[1] += getattr(objective, "raw") * (batch.count / count)  # noqa: B009
    if settings.max_grad_norm is not None:
        norm = clip(model, optimizer, settings.max_grad_norm, accelerator)
        losses = torch.where(norm.isfinite(), losses, torch.nan)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return losses, count, tokens


def clip(model: nn.Module, optimizer: Any, max_norm: float, accelerator: Any) -> Tensor:
    """Scales the gradients down to a global norm of `max_norm`; returns the norm they had.

    A fused optimizer divides each gradient as it reads it, by the factor that a gradient scaler
    would set; that saves a pass over all gradients. Elsewhere, and over several processes,
    Accelerate clips.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if accelerator.num_processes > 1 or not inner.defaults.get("fused"):
        found: Any = accelerator.clip_grad_norm_(model.parameters(), max_norm)
        sharded = getattr(found, "full_tensor", None)
        whole: Tensor = sharded() if sharded else found
        return whole
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    inner.grad_scale = ((norm + 1e-6) / max_norm).clamp(min=1.0)
    inner.found_inf = torch.zeros_like(norm)
    return norm


def seed_step(seed: int, step: int, process: int) -> None:
    """Dropout of this step follows from these three numbers alone."""
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + process)


class Losses:
    """The losses of the steps, left on the device until somebody looks.

    Args:
        accelerator: sums them over the processes.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.unread: list[tuple[int, Tensor]] = []

    def add(self, step: int, losses: Tensor) -> None:
        """This process's part of a step's loss, and of the raw loss if there is one."""
        self.unread.append((step, losses))

    def read(self) -> dict[str, float] | None:
        """The last step's `loss` and perhaps `raw_loss` as numbers; None if there is nothing new.

        Every step since the last reading is looked at, so that nothing is scored or saved after
        one that went wrong.

        Raises:
            FloatingPointError: a loss is not finite; the message names the first such step.
        """
        if not self.unread:
            return None
        losses = torch.stack([part for _, part in self.unread])
        if self.accelerator.num_processes > 1:
            losses = self.accelerator.reduce(losses, "sum")
        steps = [step for step, _ in self.unread]
        self.unread.clear()
        values: list[list[float]] = losses.tolist()
        for step, (value, *_) in zip(steps, values, strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss or its gradient is {value} at step {step}; lower the learning rate, "
                    "or train in fp32"
                )
        return dict(zip(("loss", "raw_loss"), values[-1], strict=False))


def batches(
    steps: list[list[MicroBatch]], features: FeatureTable, collate: Collate
) -> Iterator[list[Batch]]:
    """The collated micro-batches of each step; one ahead of the accelerator where there is one."""
    cuda = torch.cuda.is_available()
    loader = DataLoader(
        StepData(steps, features, collate),
        batch_size=None,
        shuffle=False,
        num_workers=1 if cuda else 0,
        prefetch_factor=8 if cuda else None,
        pin_memory=cuda,
    )
    return iter(loader)


class StepData(Dataset[list[Batch]]):
    """Step number → its micro-batches."""

    def __init__(
        self, steps: list[list[MicroBatch]], features: FeatureTable, collate: Collate
    ) -> None:
        self.steps, self.features, self.collate = steps, features, collate

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> list[Batch]:
        micro = []
        for part in self.steps[step]:
            batch = self.collate(self.features.rows(part.indices))
            if not part.counted:
                batch.count, batch.tokens, batch.examples = 0, 0, []
            micro.append(batch)
        return micro
