"""CHID: which of ten idioms belongs in the blank? (S01)

    one row per candidate   [CLS] idiom [SEP] left [unused1] right [SEP]

Every blank of a record is one feature; the other blanks of its passage read as 4 × [MASK]. The
text around a blank is cut to a budget of characters, at the far ends. All blanks of a record draw
from the same ten candidates and no idiom is used twice, so they are answered together:

    answer = argmax over injective maps a of  sum_blank  score[blank, a(blank)]                  (1)
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from kexue.data.corpus import DataError, Record, read_json, read_json_lines
from kexue.data.files import atomic_write_text
from kexue.tasks.clue.choice import Choice
from kexue.tasks.clue.task import Example, Feature, Mistake

__all__ = ["CHID", "Blank", "IdiomExample", "assign", "context_of"]

CANDIDATES = 10
MARK = re.compile(r"(#idiom\d+#)")


@dataclass(frozen=True, slots=True)
class Blank:
    """One blank: its mark, and the texts between the blanks on either side of it.

    Between two texts on one side lies another blank of the same passage.
    """

    mark: str
    left: tuple[str, ...]
    right: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdiomExample(Example):
    """A record: its blanks in reading order, its candidates, and the idiom of each blank."""

    blanks: tuple[Blank, ...]
    candidates: tuple[str, ...]
    answers: tuple[str, ...] | None


class CHID(Choice[IdiomExample]):
    """Idiom cloze. A prediction is one candidate number per blank of the record."""

    name = "chid"
    hub_config = "chid"
    max_length = 64  # characters around a blank, not tokens
    batch_size = 24
    epochs = 5
    rows = CANDIDATES
    versions = ("1.0", "1.1")
    files = {
        "train": ("train.json", "train_answer.json"),
        "dev": ("dev.json", "dev_answer.json"),
        "test": ("test{version}.json",),
    }
    submission = "chid{version}_predict.json"
    extra_tokens = ("[unused1]",)

    def records(self, folder: Path, split: str) -> Iterator[Record]:
        names = self.file_names(split)
        answers = read_json(folder / names[1]) if len(names) > 1 else None
        for record in read_json_lines(folder / names[0]):
            yield Record(record.path, record.position, {**record.value, "answers": answers})

    def from_hub(self, row: dict[str, Any]) -> dict[str, Any]:
        """The Hub lists {text, candidate_id} in reading order, without marks of its own."""
        given = row["answers"]["candidate_id"]
        marks = [m for passage in row["content"] for _, m in split_marks(passage) if m]
        answers = dict(zip(marks, given, strict=True)) if given else None
        return {"content": row["content"], "candidates": row["candidates"], "answers": answers}

    def read(self, record: Record, row: int, labelled: bool) -> list[IdiomExample | None]:
        candidates = record.get("candidates", list)
        if len(candidates) != CANDIDATES:
            raise record.error("candidates", f"needs {CANDIDATES} idioms, got {len(candidates)}")
        passages = record.get("content", list)
        for field, texts in (("candidates", candidates), ("content", passages)):
            if not all(isinstance(text, str) for text in texts):
                raise record.error(field, "needs a list of strings")
        blanks = tuple(b for passage in passages for b in blanks_of(passage))
        if not blanks:
            raise record.error("content", "holds no mark such as #idiom000378#")
        answers = None
        if labelled:
            key = record.get("answers", dict)
            for blank in blanks:
                answer = key.get(blank.mark)
                if type(answer) is not int or not 0 <= answer < CANDIDATES:
                    raise record.error(
                        blank.mark,
                        f"needs an answer from 0 to {CANDIDATES - 1} in the answer file, "
                        f"got {answer!r}",
                    )
            answers = tuple(candidates[key[b.mark]] for b in blanks)
        return [
            IdiomExample(
                id=str(row),
                row=row,
                where=record.where,
                blanks=blanks,
                candidates=tuple(candidates),
                answers=answers,
            )
        ]

    def keys(self, example: IdiomExample) -> tuple[str, ...]:
        return tuple(blank.mark for blank in example.blanks)

    def encode(self, examples: Sequence[IdiomExample], first: int) -> Iterator[Feature]:
        cls, sep, gap = self.pieces.cls, self.pieces.sep, self.pieces.id_of("[unused1]")
        blank = [self.pieces.mask] * 4
        for index, example in enumerate(examples, start=first):
            idioms = [t.ids for t in self.pieces.cut(example.candidates)]
            for part, hole in enumerate(example.blanks):
                left, right = context_of(hole, self.length)
                texts = [t.ids for t in self.pieces.cut([*left, *right])]
                sides = join(texts[: len(left)], blank), join(texts[len(left) :], blank)
                rows = [[cls, *i, sep, *sides[0], gap, *sides[1], sep] for i in idioms]
                answer = example.answers[part] if example.answers else None
                yield {
                    "example": index,
                    "part": part,
                    "length": max(map(len, rows)),
                    "input_ids": rows,
                    "label": -1 if answer is None else example.candidates.index(answer),
                }

    def decode(
        self,
        examples: Sequence[IdiomExample],
        outputs: Sequence[tuple[int, tuple[int, np.ndarray]]],
    ) -> list[list[int]]:
        tables = [np.zeros((len(e.blanks), CANDIDATES)) for e in examples]
        for index, (part, scores) in outputs:
            tables[index][part] = scores
        crowded = sum(len(t) > CANDIDATES for t in tables)
        if crowded:
            self.note("records with more blanks than candidates, each blank by itself", crowded)
        return [assign(table).tolist() for table in tables]

    def score(
        self, examples: Sequence[IdiomExample], predictions: Sequence[Sequence[int]]
    ) -> dict[str, float]:
        right = [
            e.candidates[p] == answer
            for e, given in zip(examples, predictions, strict=True)
            for p, answer in zip(given, e.answers or (), strict=True)
        ]
        return {"accuracy": 100 * sum(right) / len(right)}

    def chance(self, examples: Sequence[IdiomExample]) -> float:
        return 100 / CANDIDATES

    def mistakes(
        self, examples: Sequence[IdiomExample], predictions: Sequence[Sequence[int]]
    ) -> Iterator[Mistake]:
        for e, given in zip(examples, predictions, strict=True):
            if e.answers is None:
                continue
            for blank, p, answer in zip(e.blanks, given, e.answers, strict=True):
                if e.candidates[p] != answer:
                    text = f"{'____'.join(blank.left)}【    】{'____'.join(blank.right)}"
                    yield Mistake(text, answer, e.candidates[p])

    def write_submission(
        self, path: Path, examples: Sequence[IdiomExample], predictions: Sequence[Sequence[int]]
    ) -> None:
        answers = {
            blank.mark: p
            for e, given in zip(examples, predictions, strict=True)
            for blank, p in zip(e.blanks, given, strict=True)
        }
        atomic_write_text(path, json.dumps(answers, ensure_ascii=False) + "\n")

    def read_submission(self, path: Path, examples: Sequence[IdiomExample]) -> list[list[int]]:
        answers = read_json(path)
        if not isinstance(answers, dict):
            raise DataError(f"{path}:1: needs one JSON object {{mark: number of the idiom}}")
        unknown = answers.keys() - {b.mark for e in examples for b in e.blanks}
        if unknown:
            raise DataError(f"{path}:1:{min(unknown)}: no blank has this mark")
        predictions = []
        for e in examples:
            for blank in e.blanks:
                given = answers.get(blank.mark)
                if type(given) is not int or not 0 <= given < CANDIDATES:
                    raise DataError(
                        f"{path}:1:{blank.mark}: needs a number from 0 to {CANDIDATES - 1}, "
                        f"got {given!r}"
                    )
            predictions.append([answers[b.mark] for b in e.blanks])
        return predictions


def assign(scores: Float[np.ndarray, "blanks candidates"]) -> Int[np.ndarray, " blanks"]:
    """The candidate of each blank, no candidate twice, with the largest total score: (1).

    With more blanks than candidates no such map exists; each blank then takes its own best.

    Example:
        >>> assign(np.array([[2, 1.9, 0], [2.1, 1, 0.5]]))
        array([1, 0])
    """
    blanks, candidates = scores.shape
    if blanks > candidates:
        return np.asarray(scores.argmax(axis=1), dtype=np.int64)
    _, columns = linear_sum_assignment(scores, maximize=True)  # (1)
    return np.asarray(columns, dtype=np.int64)


def split_marks(passage: str) -> list[tuple[str, str]]:
    """The passage as (text, the mark that follows it); the last text is followed by ""."""
    parts = [*MARK.split(passage), ""]
    return list(zip(parts[::2], parts[1::2], strict=True))


def blanks_of(passage: str) -> list[Blank]:
    """The blanks of a passage, in order."""
    parts = split_marks(passage)
    texts = tuple(text for text, _ in parts)
    return [Blank(m, texts[: i + 1], texts[i + 1 :]) for i, (_, m) in enumerate(parts[:-1])]


def context_of(blank: Blank, max_length: int) -> tuple[list[str], list[str]]:
    """The texts left and right of a blank that fit `max_length` characters.

    Eight characters go to the idiom and the blank itself, four to each other blank. The longer
    side (the right one on ties) loses characters at its far end; a text of which at most one is
    left goes, and its blank with it.
    """
    left, right = list(blank.left), list(blank.right)
    while left or right:
        lengths = sum(map(len, left)), sum(map(len, right))
        blanks = max(0, len(left) - 1) + max(0, len(right) - 1)
        excess = sum(lengths) - (max_length - 8 - 4 * blanks)
        if excess <= 0:
            break
        from_left = lengths[0] > lengths[1] or not right
        side, far = (left, 0) if from_left else (right, -1)
        if len(side[far]) <= 1:
            del side[far]
            continue
        # what goes one character at a time until the other side is the longer one, in one cut
        lead = lengths[0] - lengths[1] if from_left else lengths[1] - lengths[0] + 1
        cut = min(excess, len(side[far]) - 1, max(1, lead))
        side[far] = side[far][cut:] if from_left else side[far][:-cut]
    return left, right


def join(texts: list[list[int]], blank: list[int]) -> list[int]:
    """Ids of the texts of one side, a blank between each two."""
    ids: list[int] = []
    for number, text in enumerate(texts):
        ids += [*blank, *text] if number else text
    return ids
