"""C3: a question about a passage or a dialogue, with two to four choices (S01).

    one row per choice   [CLS] passage [SEP] question [SEP] choice [SEP]

The utterances of a passage are joined by "||". A question with fewer than four choices is filled
up with a dummy choice, which trains like the others and is never given as the answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kexue.data.corpus import DataError, Record, read_json
from kexue.tasks.clue.choice import Choice
from kexue.tasks.clue.submission import submission_rows, write_lines
from kexue.tasks.clue.task import Example, Feature, Mistake

__all__ = ["C3", "ChoiceExample"]

DUMMY = "无效答案"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceExample(Example):
    """One question; `answer` is the text of the right choice (None in the test split)."""

    passage: str
    question: str
    choices: tuple[str, ...]
    answer: str | None


class C3(Choice[ChoiceExample]):
    """Reading comprehension by choice. A prediction is the number of a choice."""

    name = "c3"
    hub_config = "c3"
    max_length = 512
    batch_size = 16
    rows = 4
    versions = ("1.0", "1.1")
    files = {
        "train": ("m-train.json", "d-train.json"),
        "dev": ("m-dev.json", "d-dev.json"),
        "test": ("test{version}.json",),
    }
    submission = "c3{version}_predict.json"

    def records(self, folder: Path, split: str) -> Iterator[Record]:
        """One record per document: {"lines": …, "questions": …}."""
        for name in self.file_names(split):
            path = folder / name
            documents = read_json(path)
            if not isinstance(documents, list):
                raise DataError(f"{path}:1: needs a JSON list of [lines, questions, id]")
            for number, document in enumerate(documents):
                where = f"[{number}]"
                if not isinstance(document, list) or len(document) < 2:
                    raise DataError(f"{path}:{where}: needs [lines, questions, id]")
                value = {"lines": document[0], "questions": document[1]}
                yield Record(path, where, value)

    def from_hub(self, row: dict[str, Any]) -> dict[str, Any]:
        question = {k: row[k] for k in ("question", "choice", "answer", "id") if k in row}
        if not question.get("answer"):
            question.pop("answer", None)
        return {"lines": row["context"], "questions": [question]}

    def read(self, record: Record, row: int, labelled: bool) -> list[ChoiceExample | None]:
        lines = record.get("lines", list)
        if not lines or not all(isinstance(line, str) for line in lines):
            raise record.error("lines", "needs a list of one or more strings")
        examples: list[ChoiceExample | None] = []
        for number, value in enumerate(record.get("questions", list)):
            asked = record.part(f"questions[{number}]", value)
            choices = asked.get("choice", list)
            if not 2 <= len(choices) <= self.rows or not all(isinstance(c, str) for c in choices):
                raise asked.error(
                    "choice", f"needs 2 to {self.rows} choices (strings), got {len(choices)}"
                )
            answer = asked.get("answer", str) if labelled else None
            if answer is not None and answer not in choices:
                raise asked.error("answer", f"{answer!r} is none of the choices {choices}")
            examples.append(
                ChoiceExample(
                    id=asked.identity(row + number),
                    row=row + number,
                    where=asked.where,
                    passage="||".join(lines),
                    question=asked.text("question"),
                    choices=tuple(choices),
                    answer=answer,
                )
            )
        return examples

    def encode(self, examples: Sequence[ChoiceExample], first: int) -> Iterator[Feature]:
        passages = self.pieces.cut([e.passage for e in examples])
        questions = self.pieces.cut([e.question for e in examples])
        filled = [(*e.choices, *[DUMMY] * (self.rows - len(e.choices))) for e in examples]
        choices = iter(self.pieces.cut([c for four in filled for c in four]))
        for index, (e, passage, question) in enumerate(
            zip(examples, passages, questions, strict=True), start=first
        ):
            rows = [
                self.pieces.row(
                    passage.ids, question.ids, next(choices).ids, max_length=self.length
                )
                for _ in range(self.rows)
            ]
            yield {
                "example": index,
                "part": 0,
                "length": max(map(len, rows)),
                "input_ids": rows,
                "label": -1 if e.answer is None else e.choices.index(e.answer),
            }

    def decode(
        self,
        examples: Sequence[ChoiceExample],
        outputs: Sequence[tuple[int, tuple[int, np.ndarray]]],
    ) -> list[int]:
        predictions = [0] * len(examples)
        for index, (_, scores) in outputs:
            predictions[index] = int(scores[: len(examples[index].choices)].argmax())
        return predictions

    def score(
        self, examples: Sequence[ChoiceExample], predictions: Sequence[int]
    ) -> dict[str, float]:
        right = sum(e.choices[p] == e.answer for e, p in zip(examples, predictions, strict=True))
        return {"accuracy": 100 * right / len(examples)}

    def chance(self, examples: Sequence[ChoiceExample]) -> float:
        return 100 * sum(1 / len(e.choices) for e in examples) / len(examples)

    def mistakes(
        self, examples: Sequence[ChoiceExample], predictions: Sequence[int]
    ) -> Iterator[Mistake]:
        for e, p in zip(examples, predictions, strict=True):
            if e.answer is not None and e.choices[p] != e.answer:
                yield Mistake(f"{e.passage} / {e.question}", e.answer, e.choices[p])

    def write_submission(
        self, path: Path, examples: Sequence[ChoiceExample], predictions: Sequence[int]
    ) -> None:
        pairs = zip(examples, predictions, strict=True)
        write_lines(path, ({"id": e.id, "label": str(p)} for e, p in pairs))

    def read_submission(self, path: Path, examples: Sequence[ChoiceExample]) -> list[int]:
        predictions = []
        for line, e in zip(submission_rows(path, examples), examples, strict=True):
            label = str(line.get("label", (str, int)))
            if label not in map(str, range(len(e.choices))):
                raise line.error("label", f"needs 0 to {len(e.choices) - 1}, got {label!r}")
            predictions.append(int(label))
        return predictions
