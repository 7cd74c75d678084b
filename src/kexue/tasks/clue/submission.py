"""Submission files made of JSON lines: written whole, and read back line by example."""

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kexue.data.corpus import DataError, Record, existing_file, read_json_lines
from kexue.data.files import atomic_writer, explained
from kexue.tasks.clue.task import Example

__all__ = ["pack", "submission_rows", "write_lines"]


def submission_rows(
    path: Path, examples: Sequence[Example], rows_left_out: bool = False
) -> list[Record]:
    """The lines of a submission that belong to the examples, in the order of the examples.

    By id where the ids are the examples' own. By row where the file counts its rows from 0 and
    the examples were read from a file that has other ids or none (labelled data).

    Args:
        path: the submission.
        examples: of the split it answers.
        rows_left_out: the split may have rows that are no examples; the submission answers them.

    Raises:
        DataError: lines without id, doubled or unknown ids, or an example without an answer.
    """
    by_id: dict[str, Record] = {}
    for line in read_json_lines(existing_file(path)):
        key = str(line.get("id", (str, int)))
        if key in by_id:
            raise line.error("id", f"{key!r} stands in line {by_id[key].position} already")
        by_id[key] = line
    known = {e.id for e in examples}
    absent = next((e for e in examples if e.id not in by_id), None)
    surplus = [line for key, line in by_id.items() if key not in known]
    counted = list(by_id) == [str(n) for n in range(len(by_id))]
    rows = max((e.row for e in examples), default=-1) + 1
    at_the_end = max(3, rows // 50) if rows_left_out else 0  # rows left out after the last example
    complete = rows <= len(by_id) <= rows + at_the_end
    if absent is None and (not surplus or (counted and complete)):
        return [by_id[e.id] for e in examples]
    if counted and complete:
        lines = list(by_id.values())
        return [lines[e.row] for e in examples]
    if absent is None:
        raise surplus[0].error("id", f"{surplus[0].value['id']!r} is no id of the split")
    raise DataError(
        f"{path}:{len(by_id)}:id: no answer for {absent.id!r} ({absent.where}) among {len(by_id)} "
        f"lines; the split has {rows} rows, each needs a line with its id"
    )


def write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    with atomic_writer(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def pack(run: Path, out: Path) -> list[Path]:
    """Packs the submission files of a run into the archive that the benchmark takes.

    Args:
        run: a run folder, or its submission/ folder.
        out: the archive; whole or absent.

    Returns:
        The files packed.

    Raises:
        ValueError: there are none.
    """
    folder = run / "submission" if (run / "submission").is_dir() else run
    files = sorted(folder.glob("*_predict.json"))
    if not files:
        raise ValueError(f"{folder}: holds no submission files (*_predict.json)")
    partial = out.with_name(f".{out.name}.partial")
    try:
        with explained(out), zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.name)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return files
