"""One task from files to score: encode, train, keep the best, predict the test split, write.

train_task(...)  →  run folder/<task>/ {metrics.jsonl, best/, predictions.jsonl}
                    run folder/submission/<official name>
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kexue.data.batching import padded_length
from kexue.data.features import FeatureTable
from kexue.data.files import atomic_write_text
from kexue.hardware import bf16_in_hardware
from kexue.models.cpu_training import prepare_for_cpu
from kexue.models.loading import LoadTable, load_encoder
from kexue.models.saving import save_text_model
from kexue.models.text_model import TextModel
from kexue.report import RunFolder
from kexue.tasks.clue.class_prior import LABEL_COUNTS, label_counts
from kexue.tasks.clue.classification import Classification
from kexue.tasks.clue.predict import (
    evaluator,
    load_trained,
    predict,
    read_split,
    split_features,
)
from kexue.tasks.clue.settings import ClueSettings, TaskResult
from kexue.tasks.clue.sources import Source
from kexue.tasks.clue.task import Example, Task
from kexue.training.checkpoint import replace_folder, restore_folder, whole_or_nothing
from kexue.training.fit import fit
from kexue.training.objective import TaskFacts, apply_tricks
from kexue.training.processes import make_accelerator

__all__ = ["encode_task", "train_task"]


def train_task(
    name: str,
    source: Source,
    settings: ClueSettings,
    run: RunFolder,
    *,
    seed: int = 0,
    folder: str | None = None,
    submissions: str = "submission",
    resume: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] = print,
    begin: Callable[[], None] = lambda: None,
) -> TaskResult:
    """Trains a task, keeps the best epoch, and writes the test split's submission, checked.

    Args:
        name: one of `TASKS`.
        source: where the data come from.
        settings: how to train.
        run: the run folder.
        seed: of weights, order and dropout.
        folder: the task's folder inside the run; default its name.
        submissions: the folder inside the run where the submission goes.
        resume: continue from the newest checkpoint.
        quiet: no progress.
        say: receives the load table.
        begin: called once data, model and settings are found good, before the first file of the
            run is written.

    Raises:
        DataError: something in the data is not as it must be.
        CheckpointError: the model folder cannot be used.
        ValueError: a setting is out of range.
    """
    began = time.perf_counter()
    folder = folder or name
    torch.manual_seed(seed)
    task = settings.task(name)
    tokenizer = task.tokenizer
    loop = settings.for_task(task, seed)
    accelerator = make_accelerator(loop, run.path / folder)

    notes: list[str] = []
    train = split_features(task, source, "train", notes)
    objective = apply_tricks(task.loss, settings.tricks, facts_of(task, train))
    dev_examples = read_split(task, source, "dev", notes)
    test_examples = read_split(task, source, "test", notes)
    dev = split_features(task, source, "dev", notes)
    test = split_features(task, source, "test", notes)

    encoder, table = load_encoder(settings.model, vocabulary_size=len(tokenizer))
    fits_positions(encoder, task, train, dev, test)
    if accelerator.device.type == "cpu":
        prepare_for_cpu(encoder)
    config: Any = encoder.config
    model = TextModel(encoder, task.head(config.hidden_size), padded_right=True)
    if accelerator.is_main_process and settings.model != "tiny":
        say(str(table))

    begin()
    if loop.tracker:
        accelerator.init_trackers(f"{name}-seed{seed}")
    best = run.path / folder / "best"
    restore_folder(best)
    evaluate = evaluator(task, dev, dev_examples, accelerator, loop.max_tokens)
    result = fit(
        model,
        objective,
        train,
        task.collate,
        loop,
        folder=made(run.path / folder),
        evaluate=lambda m: evaluate(m)[0],
        keep=keeper(best, task, train, accelerator, settings, table),
        metric=task.metric,
        rows=task.rows,
        label=name if seed == 0 else f"{name} seed {seed}",
        accelerator=accelerator,
        resume=resume,
        quiet=quiet,
    )
    for tracker in accelerator.trackers:
        tracker.finish()

    # What was saved, read back: the scores and the submission are those of the files.
    task, model = load_trained(best, version=settings.version)
    model.to(accelerator.device)
    scores, predictions = evaluator(task, dev, dev_examples, accelerator, loop.max_tokens)(model)
    notes += [f"dev predictions: {text} ({count})" for text, count in task.notes.items()]
    told = predict(task, model, test, test_examples, accelerator, loop.max_tokens)
    submission = f"{submissions}/{task.submission_name}"
    if accelerator.is_main_process:
        path = run.path / submission
        path.parent.mkdir(parents=True, exist_ok=True)
        task.write_submission(path, test_examples, told)
        task.read_submission(path, test_examples)
        write_predictions(run.path / folder / "predictions.jsonl", dev_examples, predictions)
    accelerator.wait_for_everyone()
    mistakes = list(task.mistakes(dev_examples, predictions))
    in_bf16 = loop.precision == "bf16" or (
        loop.precision == "auto" and bf16_in_hardware(accelerator.device.type)
    )
    used: dict[str, Any] = {
        "max_length": task.length,
        "pooling": task.pooling,
        "tricks": list(settings.tricks),
    }
    used |= {**asdict(loop), "precision": "bf16" if in_bf16 else "fp32"}
    return TaskResult(
        task=name,
        seed=seed,
        metric=task.metric,
        scores=scores,
        chance=task.chance(dev_examples),
        best_epoch=result.best_epoch,
        epochs=result.epochs,
        seconds=time.perf_counter() - began,
        tokens_per_second=result.tokens_per_second,
        samples_per_second=result.samples_per_second,
        train_examples=train.example_count,
        dev_examples=len(dev_examples),
        folder=folder,
        submission=submission,
        confusion=task.confusion(dev_examples, predictions),
        errors=[asdict(m) for m in mistakes[:12]],
        wrong=len(mistakes),
        notes=notes,
        settings=used,
    )


def encode_task(name: str, source: Source, settings: ClueSettings) -> None:
    """Reads and encodes all splits of a task, so that they are known to be good and at hand.

    Raises:
        DataError: something in the data is not as it must be.
        CheckpointError: the model has no usable tokenizer.
    """
    task = settings.task(name)
    for split in ("train", "dev", "test"):
        split_features(task, source, split, [])


def facts_of(task: Task, train: FeatureTable) -> TaskFacts:
    """What tricks of the loss may ask of a task and its training data."""
    if not isinstance(task, Classification):
        return TaskFacts(task.name, task.distribution)
    classes = len(task.labels)

    def counts() -> Tensor:
        return torch.from_numpy(np.bincount(train.column("label"), minlength=classes))

    return TaskFacts(task.name, task.distribution, counts)


def keeper(
    best: Path,
    task: Task,
    train: FeatureTable,
    accelerator: Any,
    settings: ClueSettings,
    table: LoadTable,
) -> Callable[[nn.Module], None]:
    """A function that saves the current weights as the best ones."""
    counts = label_counts(task, train)

    def keep(model: nn.Module) -> None:
        state = accelerator.get_state_dict(model)  # gathers what is sharded
        if accelerator.is_main_process:
            purpose: dict[str, Any] = {
                "task": task.name,
                "max_length": task.length,
                "pooling": task.pooling,
                "from": settings.model,
                "matched": table.share,
            }
            if counts is not None:
                purpose[LABEL_COUNTS] = counts
            partial = best.with_name(".best.partial")
            plain = accelerator.unwrap_model(model)
            with whole_or_nothing(partial):
                save_text_model(partial, plain, task.tokenizer, purpose, state)
                replace_folder(partial, best)
        accelerator.wait_for_everyone()

    return keep


def fits_positions(encoder: nn.Module, task: Task, *tables: FeatureTable) -> None:
    """Refuses rows, padding included, longer than the encoder has positions for.

    Raises:
        ValueError: the message gives both numbers.
    """
    longest = max(int(table.lengths.max()) for table in tables)
    width = max(longest, min(padded_length(longest), task.length))
    config: Any = encoder.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions and config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1  # they count positions from there
    if positions and width > positions:
        raise ValueError(
            f"the longest row has {longest} tokens, padded to {width}; the encoder has {positions} "
            f"positions; give --max-length {positions // 16 * 16} or less"
        )


def write_predictions(path: Path, split: Sequence[Example], predictions: Sequence[Any]) -> None:
    """One line per dev example: its id, where it stands, and the prediction."""
    lines = (
        json.dumps(
            {"id": e.id, "where": e.where, "prediction": p}, ensure_ascii=False, default=sorted
        )
        for e, p in zip(split, predictions, strict=True)
    )
    atomic_write_text(path, "".join(line + "\n" for line in lines))


def made(folder: Path) -> Path:
    """The folder, once it exists."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder
