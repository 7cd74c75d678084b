"""How to train, and what came of it."""

import math
from dataclasses import dataclass, field
from typing import Any

from kexue.training.recipes import check_options

__all__ = ["FitResult", "FitSettings"]


@dataclass(frozen=True)
class FitSettings:
    """How to train.

    Args:
        epochs: passes over the training features.
        batch_size: features per optimizer step, over all processes.
        max_tokens: padded tokens per forward pass and process.
        learning_rate: peak of the schedule.
        schedule: "linear" (warm-up, then down to 0) or "constant" (after the warm-up).
        warmup: share of all steps in which the rate climbs from 0.
        weight_decay: decoupled, on matrices only.
        max_grad_norm: gradients are scaled down to this norm; None: never.
        optimizer: one of ours or of `torch.optim`, by name (`recipes.known_optimizers`).
        options: of the optimizer itself, such as {"betas": (0.95, 0.98)}.
        precision: "auto" (bf16 where the machine has it in hardware), "bf16" or "fp32". Scores are
            always computed in fp32, so that a prediction does not depend on its neighbours.
        patience: epochs without a better score before stopping; None: never.
        checkpoint_minutes: at most this long between checkpoints; each epoch's end writes one too.
        compile: run the model through `torch.compile`.
        seed: of weights, order and dropout.
        tracker: "tensorboard", "wandb", … through Accelerate, beside metrics.jsonl; None: none.
    """

    epochs: int = 3
    batch_size: int = 32
    max_tokens: int = 8192
    learning_rate: float = 2e-5
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0
    optimizer: str = "adamw"
    options: dict[str, Any] = field(default_factory=dict)
    precision: str = "auto"
    patience: int | None = None
    checkpoint_minutes: float = 10.0
    compile: bool = False
    seed: int = 0
    tracker: str | None = None

    def __post_init__(self) -> None:
        choices = {"schedule": ("linear", "constant"), "precision": ("auto", "bf16", "fp32")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        for name in ("epochs", "batch_size", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        for name in ("weight_decay", "checkpoint_minutes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive, got {self.max_grad_norm}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share of the steps, 0 to 1, got {self.warmup}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, got {self.patience}")
        check_options(self.optimizer, self.options)


@dataclass
class FitResult:
    """What came of it.

    Args:
        best_epoch: counted from 1; the epoch whose weights were kept.
        best: its scores.
        epochs: epochs run (fewer than asked for after an early stop).
        history: scores of every epoch.
        seconds: time in training steps, without evaluation, over all resumed parts.
        samples_per_second, tokens_per_second: over those seconds, padding not counted.
    """

    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    epochs: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    samples_per_second: float = 0.0
    tokens_per_second: float = 0.0
