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
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from kexue.data import tokens
from kexue.data.batching import Batch, pad_rows
from kexue.data.corpus import DataError, Record, existing_file, read_json_lines
from kexue.data.features import content_hash
from kexue.data.files import atomic_writer
from kexue.data.tokens import Pieces

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
    """

    name: ClassVar[str]
    hub_config: ClassVar[str | None]
    metric: ClassVar[str] = "accuracy"
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
        self, tokenizer: Any = None, *, max_length: int | None = None, version: str = "1.1"
    ) -> None:
        if version not in ("1.0", "1.1"):
            raise ValueError(f"test version must be 1.0 or 1.1, got {version!r}")
        self.version = version if version in self.versions else self.versions[-1]
        self.length = max_length or self.max_length
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
        modules = [tokens, *(inspect.getmodule(c) for c in type(self).__mro__)]
        code = [inspect.getsource(m) for m in modules if m and m.__name__.startswith("kexue.")]
        return content_hash(self.name, self.options, self.columns, code, vocabulary, *parts)

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


def submission_rows(
    path: Path, examples: Sequence[Example], rows_left_out: bool = False
) -> list[Record]:
    """The lines of a submission that belong to the examples, in the order of the examples.

    By id where the ids are the examples' own. By row where the file counts its rows from 0 and
    the examples were read from a file that has other ids or none (labelled data).

    Args:
        path: the submission.
        examples: of the split it answers.
        rows_left_out: the split has rows that are no examples; the submission answers them too.

    Raises:
        DataError: lines without id, doubled or unknown ids, or an example without an answer.
    """
    by_id: dict[str, Record] = {}
    for line in read_json_lines(existing_file(path)):
        key = str(line.get("id", (str, int)))
        if key in by_id:
            raise line.error("id", f"{key!r} stands in line {by_id[key].position} already")
        by_id[key] = line
    absent = next((e for e in examples if e.id not in by_id), None)
    known = {e.id for e in examples}
    surplus = [line for key, line in by_id.items() if key not in known]
    counted = list(by_id) == [str(n) for n in range(len(by_id))]
    if absent is None:
        if surplus and not (counted and rows_left_out):
            raise surplus[0].error("id", f"{surplus[0].value['id']!r} is no id of the split")
        return [by_id[e.id] for e in examples]
    by_row = counted or len(surplus) == len(by_id)
    rows = max(e.row for e in examples) + 1
    if by_row and (len(by_id) == rows or (rows_left_out and len(by_id) > rows)):
        lines = list(by_id.values())
        return [lines[e.row] for e in examples]
    raise DataError(
        f"{path}:{len(by_id)}:id: no answer for {absent.id!r} ({absent.where}); write one line for "
        "each row of the test file, with the row's own id"
    )


def write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    with atomic_writer(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
