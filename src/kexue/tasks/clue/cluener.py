"""CLUENER: names of ten types, nested ones too (S01).

    row     [CLS] text [SEP]
    score   s_t(i, j) for every type t and visible i <= j  (`nn.GlobalPointer`, 10 heads × 64)
    loss    log(1 + sum_neg e^s) + log(1 + sum_pos e^-s), mean over batch · types                (1)
    answer  every cell with s > 0                                                                (2)

Two scores: the official one compares, per type, the sets of entity *strings* of each sentence and
takes the unweighted mean of the ten F1; the author's compares (type, start, end) over all types.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kexue.data.batching import Batch
from kexue.data.corpus import Record
from kexue.data.tokens import SpanMap
from kexue.losses import flatten_spans, multilabel_cross_entropy
from kexue.nn import GlobalPointer
from kexue.tasks.clue.submission import submission_rows, write_lines
from kexue.tasks.clue.task import Example, Feature, Mistake, Task

__all__ = ["CLUENER", "Entity", "EntityExample", "f1_of"]

Entity = tuple[str, int, int]
"""Type, first character, past-the-last character."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityExample(Example):
    """A sentence and its entities (None in the test split)."""

    text: str
    entities: frozenset[Entity] | None


class CLUENER(Task[EntityExample]):
    """Named entities. A prediction is a set of entities."""

    name = "cluener"
    hub_config = None
    metric = "string_macro_f1"
    distribution = "multilabel"
    max_length = 256
    labels = (
        "address",
        "book",
        "company",
        "game",
        "government",
        "movie",
        "name",
        "organization",
        "position",
        "scene",
    )
    submission = "cluener_predict.json"
    columns: ClassVar[dict[str, str]] = {
        "example": "int",
        "length": "int",
        "input_ids": "ints",
        "starts": "ints",  # first and past-the-last character of each token of the text
        "ends": "ints",
        "spans": "lists",  # [type, first token, last token] of each entity
    }

    def read(self, record: Record, row: int, labelled: bool) -> list[EntityExample | None]:
        return [
            EntityExample(
                id=record.identity(row),
                row=row,
                where=record.where,
                text=record.text("text"),
                entities=self.entities_of(record, record.text("text")) if labelled else None,
            )
        ]

    def entities_of(self, record: Record, text: str) -> frozenset[Entity]:
        """The record's `label` field, checked against the text.

        Raises:
            DataError: an unknown type, or a mention that does not stand where it should.
        """
        found: set[Entity] = set()
        for kind, mentions in record.get("label", dict).items():
            if kind not in self.labels:
                known = ", ".join(self.labels)
                raise record.error(f"label.{kind}", f"no such type; known: {known}")
            for mention, spans in as_object(record, f"label.{kind}", mentions).items():
                if not is_span_list(spans):
                    raise record.error(
                        f"label.{kind}.{mention}", f"needs [[start, end], ...], got {spans!r}"
                    )
                for start, end in spans:
                    there = text[start : end + 1] if 0 <= start <= end else ""
                    if not there or there != mention:
                        raise record.error(
                            f"label.{kind}.{mention}",
                            f"not at characters {start} to {end} (end included), "
                            f"where {there!r} stands",
                        )
                    found.add((kind, start, end + 1))
        return frozenset(found)

    def encode(self, examples: Sequence[EntityExample], first: int) -> Iterator[Feature]:
        room = self.length - 2
        for index, (example, tokens) in enumerate(
            zip(examples, self.pieces.cut([e.text for e in examples]), strict=True), start=first
        ):
            offsets = tokens.offsets[:room]
            places, spans = SpanMap(tokens.offsets), []
            for kind, start, end in sorted(example.entities or ()):
                span = places.to_tokens(start, end)
                if span is None:
                    self.note("entities cut a token and train nothing")
                elif span[1] >= room:
                    self.note("entities beyond the maximum length train nothing")
                else:
                    spans.append([self.labels.index(kind), span[0] + 1, span[1] + 1])
            row = [self.pieces.cls, *tokens.ids[:room], self.pieces.sep]
            yield {
                "example": index,
                "length": len(row),
                "input_ids": row,
                "starts": [start for start, _ in offsets],
                "ends": [end for _, end in offsets],
                "spans": spans,
            }

    def collate(self, features: Sequence[Feature]) -> Batch:
        batch = self.batch(features, [f["input_ids"] for f in features])
        shape = batch.inputs["input_ids"].shape  # (B, L)
        starts, ends = torch.full(shape, -1), torch.full(shape, -1)
        grouped = [group_by_type(f["spans"], len(self.labels)) for f in features]
        most = max([1, *(len(spans) for types in grouped for spans in types)])
        spans = torch.full((len(features), len(self.labels), most, 2), -1)
        for i, (f, types) in enumerate(zip(features, grouped, strict=True)):
            text = slice(1, 1 + len(f["starts"]))
            starts[i, text] = torch.tensor(f["starts"], dtype=torch.long)
            ends[i, text] = torch.tensor(f["ends"], dtype=torch.long)
            for kind, places in enumerate(types):
                if places:
                    spans[i, kind, : len(places)] = torch.tensor(places)
        batch.targets["positive"] = flatten_spans(spans, shape[1])  # (B, T, P)
        batch.targets["starts"], batch.targets["ends"] = starts, ends
        return batch

    def head(self, hidden_size: int) -> nn.Module:
        return GlobalPointer(hidden_size, len(self.labels), bias=False)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        scores = model(**batch.inputs).flatten(2)  # (B, T, L·L)
        loss: Tensor = multilabel_cross_entropy(scores, positive_index=batch.targets["positive"])
        return loss  # (1)

    def outputs(self, model: nn.Module, batch: Batch) -> list[list[Entity]]:
        """The entities of each sentence."""
        scores = model(**batch.inputs)  # (B, T, L, L)
        starts, ends = batch.targets["starts"], batch.targets["ends"]
        text = starts >= 0  # neither [CLS], [SEP] nor padding
        inside = text[:, None, :, None] & text[:, None, None, :]
        found: list[list[Entity]] = [[] for _ in batch.examples]
        row, kind, m, n = ((scores > 0) & inside).nonzero().unbind(1)  # (2)
        cells = (row, kind, starts[row, m], ends[row, n])
        for i, k, start, end in zip(*(c.tolist() for c in cells), strict=True):
            if i < len(found):
                found[i].append((self.labels[k], start, end))
        return found

    def decode(
        self, examples: Sequence[EntityExample], outputs: Sequence[tuple[int, list[Entity]]]
    ) -> list[frozenset[Entity]]:
        predictions: list[frozenset[Entity]] = [frozenset()] * len(examples)
        for index, entities in outputs:
            predictions[index] = frozenset(entities)
        return predictions

    def score(
        self, examples: Sequence[EntityExample], predictions: Sequence[Iterable[Entity]]
    ) -> dict[str, float]:
        gold_strings: dict[str, set[tuple[int, str]]] = {kind: set() for kind in self.labels}
        told_strings: dict[str, set[tuple[int, str]]] = {kind: set() for kind in self.labels}
        gold_places: set[tuple[int, str, int, int]] = set()
        told_places: set[tuple[int, str, int, int]] = set()
        for i, (e, p) in enumerate(zip(examples, predictions, strict=True)):
            for entities, strings, places in (
                (e.entities or (), gold_strings, gold_places),
                (p, told_strings, told_places),
            ):
                for kind, start, end in entities:
                    strings[kind].add((i, e.text[start:end]))
                    places.add((i, kind, start, end))
        per_type = {k: 100 * f1_of(gold_strings[k], told_strings[k]) for k in self.labels}
        return {
            "string_macro_f1": sum(per_type.values()) / len(per_type),
            "position_micro_f1": 100 * f1_of(gold_places, told_places),
            **{f"f1/{kind}": value for kind, value in per_type.items()},
        }

    def chance(self, examples: Sequence[EntityExample]) -> float:
        """Saying nothing scores nothing; naming every span is hardly better."""
        return 0.0

    def mistakes(
        self, examples: Sequence[EntityExample], predictions: Sequence[Iterable[Entity]]
    ) -> Iterator[Mistake]:
        for e, p in zip(examples, predictions, strict=True):
            gold, told = e.entities or frozenset(), frozenset(p)
            if gold != told:
                yield Mistake(e.text, listed(e.text, gold - told), listed(e.text, told - gold))

    def write_submission(
        self,
        path: Path,
        examples: Sequence[EntityExample],
        predictions: Sequence[Iterable[Entity]],
    ) -> None:
        def rows() -> Iterator[dict[str, Any]]:
            for e, p in zip(examples, predictions, strict=True):
                label: dict[str, dict[str, list[list[int]]]] = {}
                for kind, start, end in sorted(p):
                    mentions = label.setdefault(kind, {})
                    mentions.setdefault(e.text[start:end], []).append([start, end - 1])
                yield {"id": e.id, "text": e.text, "label": label}

        write_lines(path, rows())

    def read_submission(
        self, path: Path, examples: Sequence[EntityExample]
    ) -> list[frozenset[Entity]]:
        lines = submission_rows(path, examples)
        return [self.entities_of(line, e.text) for line, e in zip(lines, examples, strict=True)]


def as_object(record: Record, field: str, value: Any) -> dict[str, Any]:
    """The value, once it is sure that it is a JSON object."""
    if not isinstance(value, dict):
        raise record.error(
            field, f"needs an object {{mention: [[start, end], ...]}}, got {value!r}"
        )
    return value


def is_span_list(value: Any) -> bool:
    """Is it [[start, end], …], of integers?"""
    return isinstance(value, list) and all(
        isinstance(span, list) and [type(border) for border in span] == [int, int] for span in value
    )


def group_by_type(spans: Sequence[Sequence[int]], types: int) -> list[list[list[int]]]:
    """[[type, first, last], …] as lists of [first, last] by type."""
    grouped: list[list[list[int]]] = [[] for _ in range(types)]
    for kind, first, last in spans:
        grouped[kind].append([first, last])
    return grouped


def f1_of(gold: set[Any], told: set[Any]) -> float:
    """F1 of two sets; 0 where nothing is common, so also where both are empty."""
    common = len(gold & told)
    return 2 * common / (len(gold) + len(told)) if common else 0.0


def listed(text: str, entities: Iterable[Entity]) -> str:
    """Entities as "type: mention", for the report."""
    return "；".join(f"{kind}: {text[s:e]}" for kind, s, e in sorted(entities)) or "–"
