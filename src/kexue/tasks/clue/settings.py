"""How a CLUE task is trained, and what came of it."""

from dataclasses import dataclass, field, replace
from typing import Any

from kexue.models.loading import load_tokenizer
from kexue.tasks.clue import make_task
from kexue.tasks.clue.task import Task
from kexue.training.recipes import recipe_of
from kexue.training.settings import FitSettings

__all__ = ["RATES", "ClueSettings", "TaskResult"]

RATES = ("learning_rate", "schedule", "warmup", "weight_decay", "max_grad_norm")
"""What an optimizer's recipe says about the loop."""


@dataclass(frozen=True)
class ClueSettings:
    """How to train a CLUE task. None: the task's own, as the author published it.

    Args:
        model: "tiny", a model folder or a hub name.
        version: which test files: "1.0" or "1.1".
        epochs, batch_size, max_length: None: the recipe of the task (S01, section 2.2).
        pooling: what the heads for whole texts read: "first" ([CLS]), "avg" or "max".
        optimizer: by name; the author's is "adafactor".
        rates: any of `RATES`, and `options` of the optimizer, where they differ from its recipe
            (`training.recipes`).
        tricks: objective wrappers, `name=value`, innermost first.
        fit: everything else about the loop.
    """

    model: str = "tiny"
    version: str = "1.1"
    epochs: int | None = None
    batch_size: int | None = None
    max_length: int | None = None
    pooling: str = "first"
    optimizer: str = "adafactor"
    rates: dict[str, Any] = field(default_factory=dict)
    tricks: tuple[str, ...] = ()
    fit: FitSettings = field(default_factory=FitSettings)

    def task(self, name: str) -> Task:
        """A task with the model's tokenizer.

        Raises:
            CheckpointError: the model has no usable tokenizer.
            ValueError: there is no such task, version, length or pooling.
        """
        return make_task(
            name,
            load_tokenizer(self.model),
            max_length=self.max_length,
            version=self.version,
            pooling=self.pooling,
        )

    def for_task(self, task: Task, seed: int) -> FitSettings:
        """The loop's settings for one task and seed.

        Raises:
            ValueError: a setting is out of range.
        """
        recipe = recipe_of(self.optimizer)
        rate = recipe.from_scratch if self.model == "tiny" else recipe.learning_rate
        usual = {name: getattr(recipe, name) for name in RATES} | {"learning_rate": rate}
        chosen = usual | self.rates
        chosen["options"] = recipe.options | self.rates.get("options", {})
        return replace(
            self.fit,
            epochs=task.epochs if self.epochs is None else self.epochs,
            batch_size=task.batch_size if self.batch_size is None else self.batch_size,
            optimizer=self.optimizer,
            seed=seed,
            **chosen,
        )


@dataclass
class TaskResult:
    """What one task came to, as results.json keeps it. Scores are percentages."""

    task: str
    seed: int
    metric: str
    scores: dict[str, float]
    chance: float
    best_epoch: int
    epochs: int
    seconds: float
    tokens_per_second: float
    samples_per_second: float
    train_examples: int
    dev_examples: int
    folder: str
    submission: str | None = None
    confusion: dict[str, Any] | None = None
    errors: list[dict[str, str]] = field(default_factory=list)
    wrong: int = 0
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
