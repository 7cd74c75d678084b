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
import re
from collections.abc import Sequence
from pathlib import Path

from kexue.analysis.leaderboard.cells import Cells, assemble, parsed, text_of
from kexue.analysis.leaderboard.reading_json import read_json, read_runs
from kexue.analysis.leaderboard.table import ScoreTable, unique

__all__ = ["read_csv", "read_json", "read_runs", "read_table"]


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
    text = text_of(files[0])
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
    (_, names), *rows = _rows(body, source, skipped)
    while len(names) > 1 and not names[-1]:
        names.pop()
    cells: Cells = {}
    commas = _Commas(source)
    for number, row in rows:
        if not any(row):
            continue
        place = f"{source}:{number}"
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
            cells[row[0]][name] = parsed(cell, where)
            commas.see(cell, where)
    if "" in names[1:]:
        raise ValueError(f"{source}: column {names.index('', 1) + 1} of the heading has no name")
    unique(names[1:], f"{source}: column")
    return assemble(cells, names[1:], source, published)


def _rows(body: str, source: str, skipped: int) -> list[tuple[int, list[str]]]:
    """Number of the line and cells of every row, by the mark that gives all rows equal length.

    Where none does, it is the mark that the heading has most often.
    """
    heading = body.split("\n", 1)[0]
    found = []
    for mark in sorted("\t;,", key=heading.count, reverse=True):
        reader = csv.reader([f"{line}\n" for line in body.split("\n")], delimiter=mark)
        try:
            cells = [(reader.line_num, [" ".join(cell.split()) for cell in row]) for row in reader]
        except csv.Error as error:
            raise ValueError(f"{source}:{reader.line_num + skipped}: no CSV: {error}") from None
        rows = [(number + skipped, row) for number, row in cells]
        found.append(rows)
        if len(rows[0][1]) > 1 and len({len(row) for _, row in rows if any(row)}) == 1:
            return rows
    return found[0]


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
