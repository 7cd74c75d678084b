"""Tables of scores from files: CSV, JSON, and the run folders of `kexue clue train` (S13).

    CSV    a heading, then a model per line; `,`, `;` or tab; comments (#) before the heading
    JSON   {"model": {"task": 90.5, …}, …} or [{"model": …, "task": 90.5, …}, …]
    runs   folders with results.json; several seeds give a list per cell

A cell is a number, several metrics as 95.8/98.9, or empty, —, n/a, NaN for a missing score; in JSON
also {"f1": …, "acc": …} for metrics and […] for seeds. Decimal commas are read where no cell has a
point; a table with both is refused. A column called average, published, 平均 and the like is the
table's own average, never a task.
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kexue.analysis.leaderboard.table import PUBLISHED, ScoreTable, cell_numbers, unique

__all__ = ["read_csv", "read_json", "read_runs", "read_table"]

Cells = dict[str, dict[str, list[float]]]
"""model → column → the numbers of the cell."""


def read_table(paths: Sequence[Path | str], published: str | None = None) -> ScoreTable:
    """A table from one CSV or JSON file, or from one or several run folders.

    Args:
        paths: the file, or the folders.
        published: the column with the table's own average; by its name (`PUBLISHED`) when None.

    Raises:
        ValueError: what stands there is no table; the message names file, row and column.
        FileNotFoundError: there is no such file.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise ValueError("give a table (CSV, JSON) or run folders")
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{file}: no such file or folder")
    if all(file.is_dir() or file.name == "results.json" for file in files):
        if published is not None:
            raise ValueError("run folders hold no published average; it belongs to a table")
        return read_runs(files)
    if len(files) > 1:
        raise ValueError(f"give one table or several run folders, got {len(files)} paths")
    text = _text(files[0])
    if files[0].suffix.lower() == ".json":
        return read_json(text, str(files[0]), published)
    return read_csv(text, str(files[0]), published)


def read_csv(text: str, source: str = "table", published: str | None = None) -> ScoreTable:
    """A table from the text of a CSV file."""
    lines = text.split("\n")
    skipped = next((i for i, one in enumerate(lines) if one.strip() and one[:1] != "#"), len(lines))
    body = "\n".join(lines[skipped:])
    if not body.strip():
        raise ValueError(f"{source} is empty: a heading and a line per model are needed")
    heading = body.split("\n", 1)[0]
    mark = max("\t;,", key=heading.count)  # the first of equals
    reader = csv.reader(body.split("\n"), delimiter=mark)
    names = [name.strip() for name in next(reader)]
    while len(names) > 1 and not names[-1]:
        names.pop()
    cells: Cells = {}
    commas = _Commas(source)
    for row in reader:
        row = [cell.strip() for cell in row]
        if not any(row):
            continue
        place = f"{source}:{reader.line_num + skipped}"
        if len(row) < len(names) or any(row[len(names) :]):
            raise ValueError(
                f"{place}: row {row[0]!r} has {len(row)} cells, the heading has {len(names)}"
            )
        if not row[0]:
            raise ValueError(f"{place}: the row has no name in its first cell")
        if row[0] in cells:
            raise ValueError(f"{place}: model {row[0]!r} is there twice; names must differ")
        cells[row[0]] = {}
        for name, cell in zip(names[1:], row[1:], strict=False):
            where = f"{place}: row {row[0]!r}, column {name!r}"
            cells[row[0]][name] = _parsed(cell, where)
            commas.see(cell, where)
    if "" in names[1:]:
        raise ValueError(f"{source}: column {names.index('', 1) + 1} of the heading has no name")
    unique(names[1:], f"{source}: column")
    return _assemble(cells, names[1:], source, published)


def read_json(text: str, source: str = "table", published: str | None = None) -> ScoreTable:
    """A table from the text of a JSON file."""
    try:
        found = json.loads(text, object_pairs_hook=_without_repetition)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}:{error.lineno} is not JSON: {error.msg}") from None
    except _RepeatedError as error:
        raise ValueError(f"{source}: {error}") from None
    if isinstance(found, list) and all(
        isinstance(one, Mapping) and "model" in one for one in found
    ):
        unique([str(one["model"]) for one in found], f"{source}: model")
        found = {str(one["model"]): {k: v for k, v in one.items() if k != "model"} for one in found}
    if not isinstance(found, Mapping) or not all(isinstance(v, Mapping) for v in found.values()):
        raise ValueError(
            f'{source}: {{"model": {{"task": score, …}}, …}} is needed, or a list of objects that '
            'each have "model"'
        )
    cells: Cells = {}
    seeds: dict[tuple[str, str], tuple[float, ...]] = {}
    for model, row in found.items():
        cells[model] = {}
        for name, value in row.items():
            where = f"{source}: row {model!r}, column {name!r}"
            if isinstance(value, list):
                values = [_scalar(one, where) for one in value]
                seeds[model, name] = tuple(values)
                value = sum(values) / len(values) if values else None
            metrics = value.values() if isinstance(value, Mapping) else [value]
            cells[model][name] = (
                _parsed(value, where)
                if isinstance(value, str)
                else [_scalar(one, where) for one in metrics]
            )
    names = list(dict.fromkeys(name for row in cells.values() for name in row))
    return _assemble(cells, names, source, published, seeds)


def read_runs(folders: Sequence[Path]) -> ScoreTable:
    """A table from run folders: a row per run, a column per task, the main score in percent."""
    folders = [one.parent if one.name == "results.json" else one for one in folders]
    found = []
    for folder in folders:
        inside = [folder] if (folder / "results.json").is_file() else []
        inside = inside or sorted(one.parent for one in folder.glob("*/results.json"))
        if not inside:
            raise ValueError(f"{folder}: no results.json here, so it is no run folder")
        found += inside
    seen: dict[Path, Path] = {}
    for folder in found:
        seen.setdefault(folder.resolve(), folder)
    runs = list(seen)
    models = [run.name for run in runs]
    if len(set(models)) < len(models):
        models = [str(seen[run]) for run in runs]
    metrics: dict[str, tuple[str, str]] = {}
    scores: dict[tuple[str, str], list[float]] = {}
    for model, run in zip(models, runs, strict=True):
        for task, metric, value in _results(seen[run] / "results.json"):
            known, other = metrics.setdefault(task, (metric, model))
            if known != metric:
                raise ValueError(
                    f"task {task!r} is scored by {known} in {other!r} and by {metric} in {model!r}"
                )
            scores.setdefault((model, task), []).append(value)
    cells: Cells = {model: {} for model in models}
    for (model, task), values in scores.items():
        cells[model][task] = [sum(values) / len(values)]
    seeds = {key: tuple(values) for key, values in scores.items()}
    return _assemble(cells, list(metrics), " ".join(map(str, folders)), None, seeds)


def _results(file: Path) -> Iterable[tuple[str, str, float]]:
    try:
        results = json.loads(_text(file))
        for one in results:
            score = one["scores"].get(one["metric"])
            known = isinstance(score, int | float) and not isinstance(score, bool)
            yield str(one["task"]), str(one["metric"]), float(score) if known else math.nan
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno} is not JSON: {error.msg}") from None
    except (KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{file}: a list of results with task, metric and scores is needed, as `kexue clue "
            "train` writes it"
        ) from None


def _assemble(
    cells: Cells,
    names: Sequence[str],
    source: str,
    published: str | None,
    seeds: Mapping[tuple[str, str], tuple[float, ...]] | None = None,
) -> ScoreTable:
    if not cells or not names:
        raise ValueError(
            f"{source} is empty: {len(cells)} models and {len(names)} tasks; a heading with tasks "
            "and a line per model are needed"
        )
    own = _own_average(names, source, published)
    notes = []
    if own is not None and published is None:
        en = f"column {own!r} is taken as the table's own average, not as a task"
        notes.append((en, f"{own} 列视为表中已有的平均分，不作为任务"))
    columns: list[str] = []
    tasks: dict[str, tuple[int, ...]] = {}
    values: list[list[float]] = []
    for name in names:
        if name == own:
            continue
        parts = _parts(cells, name, source)
        tasks[name] = tuple(range(len(columns), len(columns) + parts))
        columns += [name] if parts == 1 else [f"{name} ({k})" for k in range(1, parts + 1)]
        empty = [math.nan] * parts
        rows = [row.get(name, empty) for row in cells.values()]
        rows = [one if len(one) == parts else empty for one in rows]
        values += [list(one) for one in zip(*rows, strict=True)]
    if not tasks:
        raise ValueError(f"{source}: no task beside the average {own!r}")
    averages = {model: row[own][0] for model, row in cells.items() if own and own in row}
    return ScoreTable(
        tuple(cells),
        tuple(columns),
        np.array(values).T,
        tasks,
        {model: value for model, value in averages.items() if not math.isnan(value)},
        seeds or {},
        tuple(notes),
    )


def _own_average(names: Sequence[str], source: str, published: str | None) -> str | None:
    if published is not None:
        if published not in names:
            raise ValueError(f"{source}: no column {published!r}; there are {', '.join(names)}")
        return published
    found = [name for name in names if name.casefold() in PUBLISHED]
    if len(found) > 1:
        raise ValueError(
            f"{source}: {' and '.join(map(repr, found))} both look like averages; name the one to "
            "check with --published and remove the other"
        )
    return found[0] if found else None


def _parts(cells: Cells, name: str, source: str) -> int:
    """How many metrics the column holds; a cell that is missing whole says nothing."""
    counts: dict[int, str] = {}
    for model, row in cells.items():
        if name in row and not (len(row[name]) == 1 and math.isnan(row[name][0])):
            counts.setdefault(len(row[name]), model)
    if len(counts) > 1:
        (one, first), (two, second) = list(counts.items())[:2]
        raise ValueError(
            f"{source}: column {name!r} has {one} number(s) in row {first!r} and {two} in row "
            f"{second!r}; every row needs the same metrics"
        )
    return next(iter(counts), 1)


class _Commas:
    """Refuses a table in which some cells have a decimal comma and others a point."""

    def __init__(self, source: str) -> None:
        self.source, self.comma, self.point = source, "", ""

    def see(self, cell: str, where: str) -> None:
        if re.search(r"\d,\d", cell):
            self.comma = self.comma or f"{where} ({cell})"
        if "." in cell:
            self.point = self.point or f"{where} ({cell})"
        if self.comma and self.point:
            raise ValueError(
                f"decimal commas and points are mixed: {self.comma}, but {self.point}; write points"
            )


class _RepeatedError(Exception):
    """A key that a JSON object holds twice."""


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for place, (key, _) in enumerate(pairs):
        if any(key == other for other, _ in pairs[:place]):
            raise _RepeatedError(f"{key!r} is there twice; names must differ")
    return dict(pairs)


def _parsed(cell: str, where: str) -> list[float]:
    try:
        return cell_numbers(cell)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _scalar(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: {value!r} is no score; give a number or null")
    return float(value)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text; save it as CSV in UTF-8") from None
