"""Tables of scores from JSON, and from the run folders of `kexue clue train` (S13)."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kexue.analysis.leaderboard.cells import Cells, assemble, parsed, text_of
from kexue.analysis.leaderboard.table import ScoreTable, unique

__all__ = ["read_json", "read_runs"]


def read_json(text: str, source: str = "table", published: str | None = None) -> ScoreTable:
    """A table from the text of a JSON file."""
    try:
        found = json.loads(text, object_pairs_hook=_without_repetition)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}:{error.lineno} is not JSON: {error.msg}") from None
    except _RepeatedError as error:
        raise ValueError(f"{source}: {error}") from None
    except RecursionError:
        raise ValueError(f"{source}: lists within lists without end are no table") from None
    if isinstance(found, list) and all(
        isinstance(one, Mapping) and one.get("model") is not None for one in found
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
                parsed(value, where)
                if isinstance(value, str)
                else [_scalar(one, where) for one in metrics]
            )
    names = list(dict.fromkeys(name for row in cells.values() for name in row))
    return assemble(cells, names, source, published, seeds)


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
    return assemble(cells, list(metrics), " ".join(map(str, folders)), None, seeds)


def _results(file: Path) -> Iterable[tuple[str, str, float]]:
    try:
        results = json.loads(text_of(file))
        for one in results:
            score = one["scores"].get(one["metric"])
            known = isinstance(score, int | float) and not isinstance(score, bool)
            yield str(one["task"]), str(one["metric"]), float(score) if known else math.nan
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno} is not JSON: {error.msg}") from None
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise ValueError(
            f"{file}: a list of results with task, metric and scores is needed, as `kexue clue "
            "train` writes it"
        ) from None


class _RepeatedError(Exception):
    """A key that a JSON object holds twice."""


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for place, (key, _) in enumerate(pairs):
        if any(key == other for other, _ in pairs[:place]):
            raise _RepeatedError(f"{key!r} is there twice; names must differ")
    return dict(pairs)


def _scalar(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: {value!r} is no score; give a number or null")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(
            f"{where}: a whole number of {len(str(value))} digits is no score"
        ) from None
