"""`kexue shuffle --mixing-report`: how well an output is mixed, ours or anybody's."""

import sys
from pathlib import Path
from typing import Any

from kexue.cli.console import fail

__all__ = ["check_mixing", "mixing"]


def check_mixing(inputs: list[str], output: str, shuffled: list[str], page: Path | None) -> None:
    """Refuses, before anything is done, what could not be measured afterwards."""
    if page is None and not shuffled:
        return
    if shuffled and output != "-":
        fail("--shuffled names an output that is there already; leave --output out")
    if "-" in (*inputs, *shuffled):
        fail("mixing is measured on files; standard input (-) is gone once it is read")
    if not shuffled and output == "-":
        fail("--mixing-report reads the output again; give it a file name with --output")
    if output.endswith(".parquet"):
        fail("--mixing-report measures lines; rows of Parquet files have no bytes of their own")
    if page is not None and (page.is_dir() or not page.absolute().parent.is_dir()):
        fail(f"{page}: --mixing-report needs the name of a file, in a folder that is there")


def mixing(
    inputs: list[str],
    shuffled: list[str],
    page: Path | None,
    seed: int | None = None,
    *,
    to: Any = sys.stderr,
    **options: Any,
) -> dict[str, Any]:
    """Measures, writes the page if there is to be one, and says the numbers in a line.

    Args:
        inputs: files before.
        shuffled: files after.
        page: of the report; None: no page.
        seed: of the order, if it is ours.
        to: where the line goes; None: nowhere.
        options: of `measure_mixing`.

    Returns:
        The numbers as JSON takes them.
    """
    from kexue.data.mixing import measure_mixing
    from kexue.report.mixing_report import mixing_sentence, write_mixing_report

    found = measure_mixing(inputs, shuffled, **options)
    if page is not None:
        about = {"input": listed(inputs), "output": listed(shuffled)}
        write_mixing_report(page, found, about | ({} if seed is None else {"seed": seed}))
    if to is not None:
        print(mixing_sentence(found), file=to)
        if page is not None:
            print(f"written to {page}", file=to)
    return found.as_json()


def listed(names: list[str]) -> str:
    """The names, or the first and how many more."""
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} + {len(names) - 1}"
