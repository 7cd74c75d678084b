"""What every CLUE task is: reading → encoding → head → loss → decoding → score → submission (S01).

    Record ──read──▶ Example ──encode──▶ feature ──collate──▶ Batch ──model──▶ scores
                        │                                                        │ outputs
                        └────────────── score, submission ◀──decode── per-feature outputs

Labels are names in examples and predictions; ids exist between `encode` and `decode` only.
One example may give several features (the windows of a question, the blanks of a record); the
`example` column says whose they are.
"""

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from torch import Tensor, nn

from kexue.data import corpus, tokens
from kexue.data.batching import Batch, pad_rows
from kexue.data.corpus import Record, read_json_lines
from kexue.data.features import content_hash
from kexue.data.tokens import Pieces
from kexue.nn import Pooling

__all__ = ["Example", "Feature", "Mistake", "Task"]

Feature = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What all examples have.

    Args:
        id: as a submission names it: the record's own id, or its row (from 0) if it has none.
        row: position among the rows of the split, from 0, counting rows without a label too.
        where: `file:line`, for messages.
    """

    id: str
    row: int
    where: str


@dataclass(frozen=True, slots=True)
class Mistake:
    """One wrong answer, for the report."""

    text: str
    gold: str
    predicted: str


E = TypeVar("E", bound=Example)


class Task(ABC, Generic[E]):
    """One of the eleven.

    Args:
        tokenizer: a fast tokenizer; needed by `encode`, `collate` and nothing else.
        max_length: tokens of a row; default: the author's.
        version: which of the published test files, "1.0" or "1.1".
        pooling: what the heads for whole texts read: "first" ([CLS]), "avg" or "max".
    """

    name: ClassVar[str]
    hub_config: ClassVar[str | None]
    metric: ClassVar[str] = "accuracy"
    distribution: ClassVar[str] = "softmax"
    max_length: ClassVar[int] = 128
    batch_size: ClassVar[int] = 32
    epochs: ClassVar[int] = 10
    rows: ClassVar[int] = 1
    versions: ClassVar[tuple[str, ...]] = ("1.1",)
    files: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train.json",),
        "dev": ("dev.json",),
        "test": ("test.json",),
    }
    submission: ClassVar[str]
    columns: ClassVar[dict[str, str]]
    extra_tokens: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        max_length: int | None = None,
        version: str = "1.1",
        pooling: str = "first",
    ) -> None:
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        if pooling not in ("first", "avg", "max"):
            raise ValueError(f"pooling must be first, avg or max, got {pooling!r}")
        if version not in ("1.0", "1.1"):
            raise ValueError(f"test version must be 1.0 or 1.1, got {version!r}")
        self.version = version if version in self.versions else self.versions[-1]
        self.length = self.max_length if max_length is None else max_length
        self.pooling = cast("Pooling", pooling)
        self.notes: dict[str, int] = {}
        self.tokenizer = tokenizer
        if tokenizer is not None:
            missing = [t for t in self.extra_tokens if t not in tokenizer.get_vocab()]
            if missing:
                tokenizer.add_special_tokens({"extra_special_tokens": missing})
            self.pieces = Pieces(tokenizer)

    # Reading

    def file_names(self, split: str) -> tuple[str, ...]:
        """The official names of a split's files.

        Raises:
            ValueError: no such split.
        """
        if split not in self.files:
            raise ValueError(f"split must be train, dev or test, got {split!r}")
        return tuple(n.format(version=self.version) for n in self.files[split])

    def records(self, folder: Path, split: str) -> Iterator[Record]:
        """The records of a split in the official layout."""
        for name in self.file_names(split):
            yield from read_json_lines(folder / name)

    def from_hub(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of the Hub's `clue/clue`, labels already names, as an official record."""
        return row

    @abstractmethod
    def read(self, record: Record, row: int, labelled: bool) -> list[E | None]:
        """The examples of one record, in rows `row`, `row + 1`, …; None for a row left out.

        Args:
            record: in the official form.
            row: the first example's row in the split.
            labelled: False for the test split, whose records have no labels.

        Raises:
            DataError: something in the record is not as it must be.
        """

    def keys(self, example: E) -> tuple[str, ...]:
        """What a submission calls the example's answers by; none may occur twice in a split."""
        return (example.id,)

    # Encoding

    @abstractmethod
    def encode(self, examples: Sequence[E], first: int) -> Iterator[Feature]:
        """The features of some examples, the first of which has index `first` in its split."""

    @abstractmethod
    def collate(self, features: Sequence[Feature]) -> Batch:
        """Features as tensors."""

    def fingerprint(self, *parts: object) -> str:
        """A hash of all that the features of a corpus follow from."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        vocabulary = {k: v for k, v in backend.items() if k not in ("truncation", "padding")}
        modules = [corpus, tokens, *(inspect.getmodule(c) for c in type(self).__mro__)]
        code = [inspect.getsource(m) for m in modules if m and m.__name__.startswith("kexue.")]
        pieces = self.pieces
        special = (pieces.cls, pieces.sep, pieces.pad, pieces.mask)
        known = (self.name, self.options, self.columns, special)
        return content_hash(*known, code, vocabulary, *parts)

    @property
    def options(self) -> tuple[int, ...]:
        """The settings that the features depend on."""
        return (self.length,)

    def batch(self, features: Sequence[Feature], rows: Sequence[Sequence[int]]) -> Batch:
        """A batch of padded rows, without targets."""
        ids, mask = pad_rows(rows, self.pieces.pad, limit=self.length)
        return Batch(
            inputs={"input_ids": ids, "attention_mask": mask},
            count=len(features),
            examples=[f["example"] for f in features],
            tokens=sum(map(len, rows)),
        )

    # Model

    @abstractmethod
    def head(self, hidden_size: int) -> nn.Module:
        """The layer on top of the encoder."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over the batch's features: the task's objective."""

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch) -> list[Any]:
        """What `decode` needs of each feature, small enough to keep for a whole split."""

    # Decoding and scoring

    @abstractmethod
    def decode(self, examples: Sequence[E], outputs: Sequence[tuple[int, Any]]) -> list[Any]:
        """One prediction per example from (example index, output) of every feature."""

    @abstractmethod
    def score(self, examples: Sequence[E], predictions: Sequence[Any]) -> dict[str, float]:
        """Scores in percent by name; `metric` is the one that decides."""

    @abstractmethod
    def chance(self, examples: Sequence[E]) -> float:
        """The `metric` reached without looking: the most frequent answer, or a blind guess."""

    @abstractmethod
    def mistakes(self, examples: Sequence[E], predictions: Sequence[Any]) -> Iterator[Mistake]:
        """The wrong answers, in order."""

    def confusion(self, examples: Sequence[E], predictions: Sequence[Any]) -> dict[str, Any] | None:
        """Counts of gold (rows) against predicted (columns) labels, where the task has labels."""
        return None

    def note(self, text: str, count: int = 1) -> None:
        """Something the user should know about the data, counted for the report."""
        self.notes[text] = self.notes.get(text, 0) + count

    # Submission

    @property
    def submission_name(self) -> str:
        """The file name the benchmark expects."""
        return self.submission.format(version=self.version.replace(".", ""))

    @abstractmethod
    def write_submission(
        self, path: Path, examples: Sequence[E], predictions: Sequence[Any]
    ) -> None:
        """Predictions of the test split in the official form."""

    @abstractmethod
    def read_submission(self, path: Path, examples: Sequence[E]) -> list[Any]:
        """The predictions of a submission file, one per example; this is also its check.

        Raises:
            DataError: an id is missing, doubled or unknown, or an answer is not a legal one; the
                message names file, line and field.
        """
