"""From a model to predictions: encoded splits, and what a model says of them (S01)."""

import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kexue.cache import cache_folder
from kexue.data.batching import LengthBatches
from kexue.data.features import FeatureTable, encode_once
from kexue.data.files import atomic_write_text, explained
from kexue.models.loading import load_tokenizer
from kexue.models.saving import load_text_model, read_purpose
from kexue.models.text_model import TextModel
from kexue.tasks.clue import examples, make_task
from kexue.tasks.clue.sources import Source
from kexue.tasks.clue.task import Example, Feature, Task
from kexue.training.steps import batches

__all__ = [
    "Evaluate",
    "evaluator",
    "load_trained",
    "predict",
    "read_split",
    "split_features",
    "split_outputs",
]

ENCODE_AT_ONCE = 1000


def read_split(task: Task, source: Source, split: str, notes: list[str]) -> list[Example]:
    """The examples of a split, in memory; what was remarkable about them goes to the notes."""
    task.notes = {}
    found = list(examples(task, source, split))
    notes += [f"{split}: {text} ({count})" for text, count in task.notes.items()]
    return found


def split_features(task: Task, source: Source, split: str, notes: list[str]) -> FeatureTable:
    """The encoded split: read and encoded in pieces the first time, opened from then on.

    Args:
        task: with a tokenizer.
        source: where the data come from.
        split: "train", "dev" or "test".
        notes: what reading and encoding had to leave out is added here.
    """
    reading = inspect.getsource(inspect.getmodule(type(source)) or type(source))
    key = task.fingerprint(split, task.version, reading, *source.contents(task, split))
    remarks = cache_folder() / f"{key}.json"

    def features() -> Iterator[Feature]:
        task.notes = {}
        first, rest = 0, examples(task, source, split)
        while chunk := list(itertools.islice(rest, ENCODE_AT_ONCE)):
            yield from task.encode(chunk, first)
            first += len(chunk)
        atomic_write_text(remarks, json.dumps(task.notes, ensure_ascii=False))

    with explained(cache_folder() / f"{key}.arrow"):
        table = encode_once(key, task.columns, features)
    known = json.loads(remarks.read_text(encoding="utf-8")) if remarks.exists() else {}
    told = [f"{split}: {text} ({count})" for text, count in known.items()]
    notes += [note for note in told if note not in notes]
    return table


Evaluate = Callable[[nn.Module], tuple[dict[str, float], list[Any]]]


def evaluator(
    task: Task,
    features: FeatureTable,
    split: Sequence[Example],
    accelerator: Any,
    max_tokens: int,
) -> Evaluate:
    """A function from a model to its scores and predictions on a split."""

    def evaluate(model: nn.Module) -> tuple[dict[str, float], list[Any]]:
        predictions = predict(task, model, features, split, accelerator, max_tokens)
        return task.score(split, predictions), predictions

    return evaluate


def predict(
    task: Task,
    model: nn.Module,
    features: FeatureTable,
    split: Sequence[Example],
    accelerator: Any = None,
    max_tokens: int = 8192,
) -> list[Any]:
    """One prediction per example; computed in float32, spread over all processes.

    Args:
        task: with a tokenizer.
        model: on its device.
        features: the encoded split.
        split: its examples.
        accelerator: None: this process alone.
        max_tokens: padded tokens per forward pass.
    """
    return task.decode(split, split_outputs(task, model, features, accelerator, max_tokens))


@torch.no_grad()
def split_outputs(
    task: Task,
    model: nn.Module,
    features: FeatureTable,
    accelerator: Any = None,
    max_tokens: int = 8192,
) -> list[tuple[int, Any]]:
    """What the model says of every feature, with the index of its example, in that order.

    Args:
        task, model, features, accelerator, max_tokens: as for `predict`, which decodes this.
    """
    model.eval()
    device = next(model.parameters()).device
    plan = LengthBatches(
        features.lengths,
        batch_size=max(1, len(features)),
        max_tokens=max_tokens,
        rows=task.rows,
        shuffle=False,
        rank=accelerator.process_index if accelerator else 0,
        world_size=accelerator.num_processes if accelerator else 1,
    )
    steps = [[micro] for step in plan.epoch(0) for micro in step]
    found: list[tuple[int, Any]] = []
    for [batch] in batches(steps, features, task.collate):
        found += zip(batch.examples, task.outputs(model, batch.to(device)), strict=False)
    if accelerator and accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        found = gather_object(found)
    return sorted(found, key=lambda pair: pair[0])


def load_trained(folder: Path, version: str = "1.1") -> tuple[Task, TextModel]:
    """A task and its model from the best/ folder of a run.

    Raises:
        CheckpointError: the folder is not one of those.
    """
    purpose = read_purpose(folder)
    tokenizer = load_tokenizer(folder)
    task = make_task(
        purpose["task"],
        tokenizer,
        max_length=purpose["max_length"],
        pooling=purpose["pooling"],
        version=version,
    )
    return task, load_text_model(folder, task.head(purpose["hidden_size"]))
