"""The training loop: features in, the best weights out. It knows no method by name.

One step: the loss of every micro-batch, weighted by its share of the step's examples, backward,
clip, optimizer step. One epoch: its steps in the order of `LengthBatches`, then
`evaluate`; a better score calls `keep`. Everything random in a step follows from (seed, step,
process), so a run that was killed and resumed ends in the same bits as one that was not.

    gradient of a step = sum_i  (count_i / count) · grad loss_i,     count = sum_i count_i       (1)

over all micro-batches i of all processes: it does not depend on how the step was cut up.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kexue.data.batching import Batch, LengthBatches, MicroBatch
from kexue.data.features import FeatureTable
from kexue.training.checkpoint import Checkpoints
from kexue.training.objective import Objective
from kexue.training.tracking import MetricsFile, progress

__all__ = [
    "FitResult",
    "FitSettings",
    "batches",
    "bf16_supported",
    "fit",
    "make_accelerator",
    "processes",
]

Collate = Callable[[list[dict[str, Any]]], Batch]
Evaluate = Callable[[nn.Module], dict[str, float]]


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
        optimizer: "adamw" or the name of a class in `torch.optim`.
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
        optimizer_class(self.optimizer)


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


def fit(
    model: nn.Module,
    objective: Objective,
    features: FeatureTable,
    collate: Collate,
    settings: FitSettings,
    *,
    folder: Path,
    evaluate: Evaluate,
    keep: Callable[[nn.Module], None],
    metric: str,
    rows: int = 1,
    label: str = "train",
    accelerator: Any = None,
    resume: bool = False,
    quiet: bool = False,
) -> FitResult:
    """Trains the model; `keep(model)` is called whenever `evaluate(model)[metric]` got better.

    Args:
        model: trained in place; left with the weights of the last step.
        objective: `(model, batch) -> mean loss over batch.count`.
        features: encoded training examples.
        collate: features to `Batch`.
        settings: see `FitSettings`.
        folder: metrics.jsonl and checkpoints/ go here.
        evaluate: scores of the current weights by name; called by every process.
        keep: saves the weights; called by every process.
        metric: name of the score that decides, larger is better.
        rows: rows a feature brings into a batch.
        label: for the progress line.
        accelerator: an `accelerate.Accelerator`; default `make_accelerator(settings)`.
        resume: continue from the newest checkpoint in `folder`, if there is one.
        quiet: no progress.

    Raises:
        FloatingPointError: the loss became NaN or infinite; the message names the step.
    """
    accelerator = accelerator or make_accelerator(settings)
    plan = LengthBatches(
        features.lengths,
        batch_size=settings.batch_size,
        max_tokens=settings.max_tokens,
        rows=rows,
        seed=settings.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    steps = len(plan) * settings.epochs
    optimizer = make_optimizer(model, settings)
    model, optimizer = accelerator.prepare(model, optimizer)
    run: nn.Module = torch.compile(model, dynamic=True) if settings.compile else model  # type: ignore[assignment]

    checkpoints = Checkpoints(folder / "checkpoints", accelerator)
    state = checkpoints.load() if resume else None
    result = FitResult(**state["result"]) if state else FitResult()
    first = state["step"] if state else 0
    samples, tokens = (state["samples"], state["tokens"]) if state else (0.0, 0.0)
    main = accelerator.is_main_process
    metrics = MetricsFile(folder / "metrics.jsonl", first if state else None) if main else None

    saved = time.perf_counter()
    unread: list[Tensor] = []
    with progress(label, steps, first, shown=main and not quiet) as bar:
        for epoch in range(first // len(plan), settings.epochs):
            if stopped_early(result, settings):
                break
            done = max(first - epoch * len(plan), 0)
            began = time.perf_counter()
            for step, micro in enumerate(
                batches(plan.epoch(epoch)[done:], features, collate),
                start=epoch * len(plan) + done + 1,
            ):
                rate = settings.learning_rate * scale(settings, step - 1, steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss, seen = train_step(
                    run, objective, micro, optimizer, settings, accelerator, step
                )
                shown = step % LOG_EVERY == 0 or step == steps or step == 1
                unread.append(loss)
                value = read_losses(unread, step, accelerator) if shown else None
                now = time.perf_counter()
                result.seconds, began = result.seconds + now - began, now
                samples, tokens = samples + seen[0], tokens + seen[1]
                speed = tokens / result.seconds
                bar.step(value, speed)
                if metrics is not None and value is not None:
                    metrics.log(
                        step=step,
                        epoch=round(step / len(plan), 4),
                        loss=value,
                        learning_rate=rate,
                        tokens_per_second=round(speed, 1),
                        samples_per_second=round(samples / result.seconds, 1),
                    )
                if settings.tracker and value is not None:
                    accelerator.log({"loss": value, "learning_rate": rate}, step)
                if step % len(plan) and due(saved, settings.checkpoint_minutes, accelerator):
                    read_losses(unread, step, accelerator)
                    checkpoints.save(step, state_of(step, result, samples, tokens))
                    began = saved = time.perf_counter()
            step = (epoch + 1) * len(plan)
            read_losses(unread, step, accelerator)
            scores = evaluate(model)
            better = not result.best or scores[metric] > result.best[metric]
            result.history.append(scores)
            result.epochs = epoch + 1
            if better:
                result.best, result.best_epoch = scores, epoch + 1
                keep(model)
            result.samples_per_second = samples / max(result.seconds, 1e-9)
            result.tokens_per_second = tokens / max(result.seconds, 1e-9)
            if metrics is not None:
                metrics.log(step=step, epoch=epoch + 1, dev=scores)
            if settings.tracker:
                accelerator.log({f"dev/{name}": value for name, value in scores.items()}, step)
            star = " *" if better else ""
            bar.say(f"{label}  epoch {epoch + 1}  {metric} {scores[metric]:.2f}{star}")
            checkpoints.save(step, state_of(step, result, samples, tokens))
            saved = time.perf_counter()
    return result


LOG_EVERY = 10


def train_step(
    model: nn.Module,
    objective: Objective,
    micro: list[Batch],
    optimizer: Any,
    settings: FitSettings,
    accelerator: Any,
    step: int,
) -> tuple[Tensor, tuple[float, float]]:
    """One optimizer step. Returns the step's mean loss (on the device) and examples, tokens."""
    seed_step(settings.seed, step, accelerator.process_index)
    model.train()
    counts = torch.tensor(
        [sum(b.count for b in micro), sum(b.tokens for b in micro)], dtype=torch.float64
    )
    if accelerator.num_processes > 1:
        counts = accelerator.reduce(counts.to(accelerator.device), "sum").cpu()
    count, tokens = counts.tolist()
    loss = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(micro, start=1):
        batch = batch.to(accelerator.device)
        hold = accelerator.no_sync(model) if number < len(micro) else nullcontext()
        with hold:
            with autocast(settings.precision, accelerator.device):
                part = objective(model, batch) * (batch.count / count)  # (1)
            # DDP and FSDP average over processes; (1) is a sum
            accelerator.backward(part * accelerator.num_processes)
        loss += part.detach()
    if settings.max_grad_norm is not None:
        accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, (count, tokens)


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


def make_optimizer(model: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    """The named optimizer; matrices decay, vectors (biases, norms) do not.

    Raises:
        ValueError: `torch.optim` has no such class.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    name = optimizer_class(settings.optimizer)
    fused = {"fused": True} if name in ("Adam", "AdamW") else {}  # the others cannot be sharded
    optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(
        groups, lr=settings.learning_rate, **fused
    )
    return optimizer


NOT_FOR_FIT = ("Optimizer", "LBFGS", "SparseAdam", "Muon")
"""The base class, and those that need a closure, sparse gradients, or matrices only."""


def optimizer_class(name: str) -> str:
    """The class in `torch.optim` that a name stands for, in any case of letters.

    Raises:
        ValueError: there is none.
    """
    classes = [n for n in torch.optim.__all__ if isinstance(getattr(torch.optim, n), type)]
    names = {n.lower(): n for n in classes if n not in NOT_FOR_FIT}
    if name.lower() not in names:
        raise ValueError(f"no optimizer is called {name!r}; known: {', '.join(sorted(names))}")
    return names[name.lower()]


def scale(settings: FitSettings, taken: int, steps: int) -> float:
    """The schedule as a factor of the peak rate, after `taken` of `steps` steps."""
    warm = math.ceil(settings.warmup * steps)
    if taken < warm:
        return (taken + 1) / warm
    if settings.schedule == "constant":
        return 1.0
    return (steps - taken) / max(1, steps - warm)


def seed_step(seed: int, step: int, process: int) -> None:
    """Dropout of this step follows from these three numbers alone."""
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + process)


def autocast(precision: str, device: torch.device) -> Any:
    """bf16 where asked for, or where it is in hardware and nothing was asked for."""
    wanted = precision == "bf16" or (precision == "auto" and bf16_supported(device.type))
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


def bf16_supported(device_type: str) -> bool:
    """Whether bf16 matrix products are in the hardware."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device_type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def read_losses(unread: list[Tensor], step: int, accelerator: Any) -> float | None:
    """The loss of `step` over all processes, as a number; all steps since the last reading are
    read with it, so that nothing is scored or saved after a step that went wrong.

    Raises:
        FloatingPointError: one of them is not finite; the message names the first such step.
    """
    if not unread:
        return None
    losses = torch.stack(unread)
    unread.clear()
    if accelerator.num_processes > 1:
        losses = accelerator.reduce(losses, "sum")
    values = losses.tolist()
    for number, value in enumerate(values, start=step - len(values) + 1):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {number}; lower the learning rate or train in fp32"
            )
    return float(values[-1])


def due(saved: float, minutes: float, accelerator: Any) -> bool:
    """Whether it is time for a checkpoint; the main process decides for all."""
    late = time.perf_counter() - saved > 60 * minutes
    if accelerator.num_processes == 1:
        return late
    flag = torch.tensor(float(late and accelerator.is_main_process), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum") > 0)


def stopped_early(result: FitResult, settings: FitSettings) -> bool:
    """Whether patience has run out."""
    return settings.patience is not None and result.epochs - result.best_epoch >= settings.patience


def state_of(step: int, result: FitResult, samples: float, tokens: float) -> dict[str, Any]:
    """Where training stands, for a checkpoint."""
    return {"step": step, "samples": samples, "tokens": tokens, "result": vars(result)}
