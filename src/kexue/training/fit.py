"""The training loop: features in, the best weights out. It knows no method by name.

One epoch: its steps (`steps.train_step`) in the order of `LengthBatches`, then `evaluate`; a better
score calls `keep`. The order and everything random in a step follow from the seed, so a run that
was killed and resumed ends in the same bits as one that was not.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kexue.data.batching import LengthBatches
from kexue.data.features import FeatureTable, content_hash
from kexue.training.checkpoint import Checkpoints
from kexue.training.objective import Objective
from kexue.training.optimizers import make_optimizer, scale
from kexue.training.processes import make_accelerator
from kexue.training.settings import FitResult, FitSettings
from kexue.training.steps import Collate, Losses, batches, train_step
from kexue.training.tracking import Meter, log_of

__all__ = ["fit"]

Evaluate = Callable[[nn.Module], dict[str, float]]


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
        ValueError: the checkpoint to resume from belongs to other data or settings.
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
    run: Any = torch.compile(model, dynamic=True) if settings.compile else model

    checkpoints = Checkpoints(folder / "checkpoints", accelerator)
    state = checkpoints.load() if resume else None
    result = FitResult(**state["result"]) if state else FitResult()
    meter = Meter(**state["meter"]) if state else Meter()
    first = state["step"] if state else 0
    contents = content_hash(features.lengths.tobytes(), weights_follow_from(settings), rows)
    if state and state["contents"] != contents:
        raise ValueError(
            f"{folder}: the checkpoint belongs to other training data or settings; "
            "start anew (--overwrite), or bring the old ones back"
        )
    losses = Losses(accelerator)

    def save(step: int) -> None:
        losses.read()  # nothing is saved after a step that went wrong
        checkpoints.save(step, state_of(step, contents, result, meter))

    with log_of(
        folder / "metrics.jsonl",
        label,
        steps,
        accelerator,
        done=first if state else None,
        tracked=settings.tracker is not None,
        quiet=quiet,
    ) as log:
        for epoch in range(first // len(plan), settings.epochs):
            if stopped_early(result, settings):
                break
            behind = max(first - epoch * len(plan), 0)
            meter.start()
            for step, micro in enumerate(
                batches(plan.epoch(epoch)[behind:], features, collate),
                start=epoch * len(plan) + behind + 1,
            ):
                rate = settings.learning_rate * scale(settings, step - 1, steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss, count, tokens = train_step(
                    run, objective, micro, optimizer, settings, accelerator, step
                )
                losses.add(step, loss)
                shown = step % LOG_EVERY == 0 or step in (1, steps)
                value = losses.read() if shown else None
                meter.lap(count, tokens)
                log.step(step, step / len(plan), value, rate, meter)
                if step % len(plan) and due(checkpoints, settings.checkpoint_minutes, accelerator):
                    save(step)
                    meter.start()
            step = (epoch + 1) * len(plan)
            losses.read()
            scores = evaluate(model)
            better = not result.best or scores[metric] > result.best[metric]
            if better:
                result.best, result.best_epoch = scores, epoch + 1
                keep(model)
            result.history.append(scores)
            result.epochs = epoch + 1
            result.seconds = meter.seconds
            result.samples_per_second = meter.samples_per_second
            result.tokens_per_second = meter.tokens_per_second
            log.scores(step, epoch + 1, scores, metric, better)
            save(step)
    return result


LOG_EVERY = 10


def weights_follow_from(settings: FitSettings) -> dict[str, Any]:
    """The settings without those that leave the weights as they are."""
    return {**asdict(settings), "checkpoint_minutes": None, "tracker": None}


def state_of(step: int, contents: str, result: FitResult, meter: Meter) -> dict[str, Any]:
    """Where training stands, for a checkpoint."""
    return {"step": step, "contents": contents, "result": vars(result), "meter": meter.totals()}


def due(checkpoints: Checkpoints, minutes: float, accelerator: Any) -> bool:
    """Whether it is time for a checkpoint; the main process decides for all."""
    late = time.perf_counter() - checkpoints.saved > 60 * minutes
    if accelerator.num_processes == 1:
        return late
    flag = torch.tensor(float(late and accelerator.is_main_process), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum") > 0)


def stopped_early(result: FitResult, settings: FitSettings) -> bool:
    """Whether patience has run out."""
    return settings.patience is not None and result.epochs - result.best_epoch >= settings.patience
