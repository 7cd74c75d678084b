"""CMRC 2018: the answer to a question is a span of the passage (S01).

    row       [CLS] question [SEP] window [SEP];  windows start at 0, stride, 2·stride, …        (1)
              and are  W = max_length − characters of the question − 3  characters wide
    score     s(i, j) = <R_i q_i, R_j k_j> / sqrt(d)  for visible i <= j  (`nn.SpanPointer`)
    loss      −log softmax over all cells at the answer, or at (0, 0) = [CLS] where the window does
              not hold the whole answer                                                         (2)
    answer    the best cell off row 0 and column 0 of each window, then the window with the
              largest logit                                                                     (3)

Spans are characters of the passage as given: the tokenizer's offsets map them to tokens and back,
so lower-casing or accent stripping cannot shift them. EM and F1 are in `reading_scores`.
`first_reference_exact` asks for the very text of the first of the references, as the author's dev
routine asks for its tokens; a submission holds no positions, so the same text elsewhere in the
passage counts here.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kexue.data.batching import Batch
from kexue.data.corpus import DataError, Record, read_json
from kexue.data.files import atomic_write_text
from kexue.data.tokens import SpanMap
from kexue.nn import SpanPointer, best_span, span_cross_entropy
from kexue.tasks.clue.reading_scores import exact_match, f1
from kexue.tasks.clue.task import Example, Feature, Mistake, Task

__all__ = ["CMRC2018", "QuestionExample", "locate", "windows"]

STRIDE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionExample(Example):
    """A question; `answers` are (text, first character) as published, empty in the test split."""

    context: str
    question: str
    answers: tuple[tuple[str, int], ...]


class CMRC2018(Task[QuestionExample]):
    """Span reading. A prediction is the answer's text, "" where no character is visible."""

    name = "cmrc2018"
    hub_config = "cmrc2018"
    metric = "exact_match"
    distribution = "spans"
    max_length = 512
    stride: ClassVar[int] = STRIDE
    submission = "cmrc2018_predict.json"
    columns: ClassVar[dict[str, str]] = {
        "example": "int",
        "length": "int",
        "input_ids": "ints",
        "prefix": "int",  # tokens before the window: [CLS] question [SEP]
        "starts": "ints",  # first and past-the-last character of each of the window's tokens
        "ends": "ints",
        "first": "int",  # the answer's first and last token in the row; -1: not known
        "last": "int",
    }

    @property
    def options(self) -> tuple[int, ...]:
        return (self.length, self.stride)

    def records(self, folder: Path, split: str) -> Iterator[Record]:
        """One record per question: {"id", "context", "question", "answers"}."""
        for name in self.file_names(split):
            path = folder / name
            articles = read_json(path)
            if not isinstance(articles, dict) or not isinstance(articles.get("data"), list):
                raise DataError(f'{path}:1:data: needs the SQuAD form {{"data": [...]}}')
            for i, value in enumerate(articles["data"]):
                article = Record(path, "", articles).part(f"data[{i}]", value)
                for j, value in enumerate(article.get("paragraphs", list)):
                    paragraph = article.part(f"paragraphs[{j}]", value)
                    context = paragraph.text("context")
                    for k, value in enumerate(paragraph.get("qas", list)):
                        asked = paragraph.part(f"qas[{k}]", value)
                        yield replace(asked, value={**value, "context": context})

    def from_hub(self, row: dict[str, Any]) -> dict[str, Any]:
        answers = row["answers"]
        pairs = zip(answers["text"], answers["answer_start"], strict=True)
        return {**row, "answers": [{"text": t, "answer_start": s} for t, s in pairs]}

    def read(self, record: Record, row: int, labelled: bool) -> list[QuestionExample | None]:
        context = record.text("context")
        answers = []
        for number, answer in enumerate(record.get("answers", list) if labelled else []):
            given = record.part(f"answers[{number}]", answer)
            text, start = given.text("text"), given.get("answer_start", int)
            place = locate(context, text, start)
            if place is None:
                self.note("reference answers do not occur in their passage")
            elif place[0] != start:
                self.note("reference answers are off their offset; the nearest occurrence counts")
            answers.append((text, start))
        if labelled and not answers:
            raise record.error("answers", "needs at least one answer")
        question: str = record.get("question", str)
        if not question.strip():  # one of the published questions is empty
            self.note("questions are empty")
        identity = record.get("id", str)
        return [
            QuestionExample(
                id=identity,
                row=row,
                where=record.where,
                context=context,
                question=question,
                answers=tuple(answers),
            )
        ]

    def encode(self, examples: Sequence[QuestionExample], first: int) -> Iterator[Feature]:
        contexts = self.pieces.cut([e.context for e in examples])
        questions = self.pieces.cut([e.question for e in examples])
        for index, (e, context, question) in enumerate(
            zip(examples, contexts, questions, strict=True), start=first
        ):
            # a vocabulary of pieces smaller than characters must not crowd out the passage
            prefix = [self.pieces.cls, *question.ids[: len(e.question)], self.pieces.sep]
            found = (locate(e.context, *answer) for answer in e.answers)
            answer = next((span for span in found if span), None)
            unknown = -1 if e.answers and answer is None else 0
            if unknown:
                self.note("questions whose answer was not found train nothing")
            if answer and SpanMap(context.offsets).to_tokens(*answer) is None:
                self.note("questions whose answer cuts a token train nothing where it stands")
            try:
                spans = windows(len(e.context), len(e.question), self.length, self.stride)
            except ValueError as error:
                raise DataError(f"{e.where}:question: {error}") from None
            for start, end in spans:
                inside = [t for t, (a, b) in enumerate(context.offsets) if a >= start and b <= end][
                    : self.length - len(prefix) - 1
                ]
                offsets = [context.offsets[t] for t in inside]
                target = SpanMap(offsets).to_tokens(*answer) if answer else None
                whole = answer is not None and start <= answer[0] and answer[1] <= end
                other = -1 if unknown or (whole and target is None) else 0  # nothing, or [CLS]
                row = [*prefix, *(context.ids[t] for t in inside), self.pieces.sep]
                yield {
                    "example": index,
                    "length": len(row),
                    "input_ids": row,
                    "prefix": len(prefix),
                    "starts": [a for a, _ in offsets],
                    "ends": [b for _, b in offsets],
                    "first": len(prefix) + target[0] if target else other,
                    "last": len(prefix) + target[1] if target else other,
                }

    def collate(self, features: Sequence[Feature]) -> Batch:
        batch = self.batch(features, [f["input_ids"] for f in features])
        shape = batch.inputs["input_ids"].shape
        visible = torch.zeros(shape, dtype=torch.bool)
        visible[:, 0] = True
        starts, ends = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for i, f in enumerate(features):
            window = slice(f["prefix"], f["prefix"] + len(f["starts"]))
            visible[i, window] = True
            starts[i, window] = torch.tensor(f["starts"], dtype=torch.long)
            ends[i, window] = torch.tensor(f["ends"], dtype=torch.long)
        batch.inputs["visible"] = visible
        batch.targets["span"] = torch.tensor([[f["first"], f["last"]] for f in features])
        batch.targets["starts"], batch.targets["ends"] = starts, ends
        return batch

    def head(self, hidden_size: int) -> nn.Module:
        return SpanPointer(hidden_size)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        span = batch.targets["span"]
        losses = span_cross_entropy(model(**batch.inputs), span.clamp(min=0), "none")  # (2)
        return losses.masked_fill(span[:, 0] < 0, 0).mean()

    def outputs(self, model: nn.Module, batch: Batch) -> list[tuple[int, int, float]]:
        """First and past-the-last character of the best span of each window, and its logit."""
        first, last, logit = best_span(model(**batch.inputs).float())
        starts = batch.targets["starts"].gather(1, first[:, None]).squeeze(1)
        ends = batch.targets["ends"].gather(1, last[:, None]).squeeze(1)
        return list(zip(starts.tolist(), ends.tolist(), logit.tolist(), strict=True))

    def decode(
        self,
        examples: Sequence[QuestionExample],
        outputs: Sequence[tuple[int, tuple[int, int, float]]],
    ) -> list[str]:
        best: dict[int, tuple[float, int, int]] = {}
        for index, (start, end, logit) in outputs:
            candidate = (logit, -start, end)  # the earlier one on ties
            best[index] = max(best.get(index, (-torch.inf, 0, 0)), candidate)  # (3)
        spans = (best.get(i, (0.0, 0, 0)) for i in range(len(examples)))
        return [e.context[-s[1] : s[2]] for e, s in zip(examples, spans, strict=True)]

    def score(
        self, examples: Sequence[QuestionExample], predictions: Sequence[str]
    ) -> dict[str, float]:
        totals = [0.0, 0.0, 0.0]
        for e, p in zip(examples, predictions, strict=True):
            texts = [text for text, _ in e.answers]
            totals[0] += max(exact_match(p, text) for text in texts)
            totals[1] += max(f1(p, text) for text in texts)
            totals[2] += p == texts[0]
        names = ("exact_match", "f1", "first_reference_exact")
        return {n: 100 * total / len(examples) for n, total in zip(names, totals, strict=True)}

    def chance(self, examples: Sequence[QuestionExample]) -> float:
        """A random span of the passage, of the right length."""
        hits = (1 / max(1, len(e.context) - len(e.answers[0][0]) + 1) for e in examples)
        return 100 * sum(hits) / len(examples)

    def mistakes(
        self, examples: Sequence[QuestionExample], predictions: Sequence[str]
    ) -> Iterator[Mistake]:
        for e, p in zip(examples, predictions, strict=True):
            if e.answers and not any(exact_match(p, text) for text, _ in e.answers):
                gold = " | ".join(dict.fromkeys(text for text, _ in e.answers))
                yield Mistake(f"{e.question} / {e.context}", gold, p)

    def write_submission(
        self, path: Path, examples: Sequence[QuestionExample], predictions: Sequence[str]
    ) -> None:
        answers = {e.id: p for e, p in zip(examples, predictions, strict=True)}
        atomic_write_text(path, json.dumps(answers, ensure_ascii=False, indent=1) + "\n")

    def read_submission(self, path: Path, examples: Sequence[QuestionExample]) -> list[str]:
        answers = read_json(path)
        if not isinstance(answers, dict):
            raise DataError(f"{path}:1: needs one JSON object {{question id: answer}}")
        for e in examples:
            if not isinstance(answers.get(e.id), str):
                raise DataError(f"{path}:1:{e.id}: needs the answer as a string")
        if unknown := answers.keys() - {e.id for e in examples}:
            raise DataError(f"{path}:1:{min(unknown)}: no question has this id")
        return [answers[e.id] for e in examples]


def windows(
    context_length: int, question_length: int, max_length: int = 512, stride: int = STRIDE
) -> list[tuple[int, int]]:
    """The half-open character ranges of the windows of a passage: (1).

    Raises:
        ValueError: the question leaves windows narrower than the stride, which would leave gaps.

    Example:
        >>> windows(context_length=40, question_length=5, max_length=28, stride=8)
        [(0, 20), (8, 28), (16, 36), (24, 40)]
    """
    width = max_length - question_length - 3
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    if width < stride:
        raise ValueError(
            f"a question of {question_length} characters leaves windows of {width} of the "
            f"{max_length} tokens, less than the stride of {stride}; raise max_length"
        )
    last = max(0, -(-(context_length - width) // stride))
    return [(n * stride, min(n * stride + width, context_length)) for n in range(last + 1)]


def locate(context: str, text: str, start: int) -> tuple[int, int] | None:
    """Where the answer stands: at its offset, or else its nearest occurrence, or nowhere."""
    if context[start : start + len(text)] == text and start >= 0:
        return start, start + len(text)
    found = [m.start() for m in re.finditer(f"(?={re.escape(text)})", context)]
    if not found:
        return None
    nearest = min(found, key=lambda place: abs(place - start))
    return nearest, nearest + len(text)
