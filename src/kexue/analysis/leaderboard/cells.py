"""From cells as they were read to a table: metrics, missing scores, its own average (S13)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kexue.analysis.leaderboard.table import PUBLISHED, ScoreTable, cell_numbers

__all__ = ["Cells", "assemble", "parsed", "text_of"]

Cells = dict[str, dict[str, list[float]]]
"""model → column → the numbers of the cell."""


def assemble(
    cells: Cells,
    names: Sequence[str],
    source: str,
    published: str | None,
    seeds: Mapping[tuple[str, str], tuple[float, ...]] | None = None,
) -> ScoreTable:
    """The table of these cells.

    Args:
        cells: numbers by model and column; what is not there is missing.
        names: of the columns, in order.
        source: where they are from, for messages.
        published: the column with the table's own average; by its name when None.
        seeds: the score of every seed, in a table made from runs.

    Raises:
        ValueError: no cell, no task beside the average, a column with several metrics in one row
            and one in another.
    """
    if not cells or not names:
        raise ValueError(
            f"{source} is empty: {len(cells)} models and {len(names)} tasks; a heading with tasks "
            "and a line per model are needed, with a comma, a semicolon or a tab between cells"
        )
    own = _own_average(names, source, published)
    notes = []
    if own is not None and published is None:
        en = f"column {own!r} is taken as the table's own average, not as a task"
        notes.append((en, f"{own} 列视为表中已有的平均分，不作为任务"))
    if own is not None and _parts(cells, own, source) != 1:
        raise ValueError(f"{source}: the average in column {own!r} must be one number per row")
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


def parsed(cell: str, where: str) -> list[float]:
    """The numbers of a cell; what is no number is refused with its place."""
    try:
        return cell_numbers(cell)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def text_of(file: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(
            f"{file} is not UTF-8 text; save it as CSV in UTF-8, or change a file in GBK by: "
            f"iconv -f gb18030 -t utf-8 {file}"
        ) from None
