"""`kexue leaderboard`: which mean, which columns, and how stable the ranks are."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue.cli.console import console, fail, print_json

if TYPE_CHECKING:
    from kexue.analysis.leaderboard import Leaderboard

__all__ = ["leaderboard"]

MARKS = {"bad": ("wrong", "red"), "warn": ("beware", "yellow"), "note": ("to know", "dim")}
SHORT = {"arithmetic": "AM", "geometric": "GM", "harmonic": "HM", "borda": "Borda", "wins": "wins"}


def leaderboard(
    table: Annotated[
        list[str],
        typer.Argument(
            help="A table (CSV, JSON), run folders, or superglue, superglue-diagnostics, glue."
        ),
    ],
    mean: Annotated[
        list[str] | None,
        typer.Option(help="arithmetic, geometric, harmonic; several times. All three without."),
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="TASK=WEIGHT, several times; 1 where none is given.")
    ] = None,
    merge: Annotated[
        list[str] | None,
        typer.Option(help="NAME=TASK,TASK: average these first, such as MNLI=MNLI-m,MNLI-mm."),
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="A task to leave out, such as AX; several times.")
    ] = None,
    missing: Annotated[
        str, typer.Option(help="common (tasks that every row has), drop_rows, or error.")
    ] = "common",
    published: Annotated[
        str | None, typer.Option(help="The column with the table's own average, to be checked.")
    ] = None,
    over: Annotated[str, typer.Option(help="What is resampled: tasks or seeds.")] = "tasks",
    resamples: Annotated[int, typer.Option(min=1, help="How many resamples.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write a page with pictures (report.html).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check a leaderboard: ranks under three means, stability, and what to distrust.

    Example: kexue leaderboard superglue --out report.html

    Example: kexue leaderboard scores.csv --drop AX --merge MNLI=MNLI-m,MNLI-mm

    Example: kexue leaderboard runs/bert runs/roberta --over seeds
    """
    if out is not None:
        _check_page(out)
    means = tuple(dict.fromkeys(mean or ("arithmetic", "geometric", "harmonic")))
    if over not in ("tasks", "seeds"):
        fail(f"--over {over!r} is not known; choose from: tasks, seeds")
    try:
        board = _board(table, weight or [], merge or [], drop or [], missing, published)
        from kexue.analysis.leaderboard import summary

        found = summary(board, means, over=over, draws=resamples, seed=seed)
        about = {
            "source": ", ".join(table),
            "missing": missing,
            "command": " ".join(["kexue", *sys.argv[1:]]),
        }
        if out is not None:
            from kexue.report.leaderboard_report import write_leaderboard_report

            write_leaderboard_report(out, found, about)
    except (ValueError, OSError) as error:
        fail(str(error))
    if json:
        print_json({"about": about, "report": None if out is None else str(out)} | found)
        return
    _print(found)
    if out is not None:
        console().print(f"page: {out}", markup=False, soft_wrap=True)


def _board(
    names: list[str],
    weight: list[str],
    merge: list[str],
    drop: list[str],
    missing: str,
    published: str | None,
) -> "Leaderboard":
    from kexue.analysis.leaderboard import Leaderboard, built_in, read_table
    from kexue.analysis.leaderboard.tables import BUILT_IN

    own = len(names) == 1 and names[0] in BUILT_IN and not Path(names[0]).exists()
    table = read_table([built_in(names[0])] if own else names, published)
    groups = {name: tuple(tasks.split(",")) for name, tasks in _pairs(merge, "--merge").items()}
    table = table.merged(groups)
    table = table.without(drop) if drop else table
    weights = {}
    for task, value in _pairs(weight, "--weight").items():
        try:
            weights[task] = float(value)
        except ValueError:
            raise ValueError(f"--weight {task}={value}: {value!r} is no number") from None
    return Leaderboard.of(table, weights or None, missing=missing)


def _pairs(given: list[str], option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given:
        name, mark, value = one.partition("=")
        if not (name and mark and value):
            raise ValueError(f"{option} {one!r}: NAME=VALUE is needed")
        if name in found:
            raise ValueError(f"{option} names {name!r} twice")
        found[name] = value
    return found


def _check_page(out: Path) -> None:
    """Refuse a page that cannot be written before the work, not after it."""
    if out.is_dir():
        fail(f"--out {out} is a folder; name a file in it, such as {out / 'report.html'}")
    above = next((one for one in out.absolute().parents if one.exists()), None)
    if above is not None and not above.is_dir():
        fail(f"--out {out}: {above} is a file, not a folder")


def _print(found: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    screen = console()
    models, means, ways = found["models"], found["means"], list(found["values"])
    tasks = ", ".join(found["tasks"])
    screen.print(
        f"{len(models)} models on {len(found['tasks'])} tasks: {tasks}",
        markup=False,
        soft_wrap=True,
    )
    for en, _ in found["notes"]:
        screen.print(en, markup=False, soft_wrap=True)
    for one in found["findings"]:
        word, colour = MARKS[one["level"]]
        line = Text(f"{word:<8} ", style=colour)
        screen.print(line.append(f"{one['where']}: {one['en']}", style="default"), soft_wrap=True)
    screen.print()
    digits = 2 if max(abs(v) for row in found["scores"] for v in row) > 1.5 else 4
    grid = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    grid.add_column("model", overflow="fold", min_width=8)
    for way in ways:
        grid.add_column(SHORT[way], justify="right", no_wrap=True)
        grid.add_column("#", justify="right", no_wrap=True, style="bold")
    grid.add_column("95 % of #", justify="right", no_wrap=True)
    spread = found["bootstrap"]["of"][means[0]]["rank"]
    for m in sorted(range(len(models)), key=lambda m: found["ranks"][ways[0]][m]):
        cells = [Text(models[m])]
        for way in ways:
            value = found["values"][way][m]
            cells += [
                Text(f"{value:.1f}" if way in ("borda", "wins") else f"{value:.{digits}f}"),
                Text(str(found["ranks"][way][m])),
            ]
        grid.add_row(*cells, Text(f"{spread[m][0]}–{spread[m][2]}"))
    screen.print(grid)
    boot = found["bootstrap"]
    how = "all of them" if boot["exact"] else f"{boot['draws']:,} draws"
    taus = [
        f"{SHORT[way]} {'—' if (tau := found['kendall'][ways[0]][way]) is None else f'{tau:.3f}'}"
        for way in ways[1:]
    ]
    screen.print(
        f"Kendall's tau with {SHORT[ways[0]]}: {', '.join(taus)}; last column: rank under "
        f"{SHORT[means[0]]} over resampled {boot['over']} ({how})",
        style="dim",
        soft_wrap=True,
    )
