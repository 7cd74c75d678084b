"""`kexue audit --what words`: which words a model can never predict."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kexue.cli.console import console, fail, print_json

__all__ = ["words"]

METHODS = ("auto", "probe", "climb", "newton", "lp", "reflect", "min_norm")
STRICT = (
    "A word counts as predictable if it is the single most likely word for some features "
    "(strictly). Sampling and beam search can still emit the others."
)


def words(
    model: str,
    *,
    top: int = 20,
    out: Path | None = None,
    box: str | None = None,
    method: str = "auto",
    resume: Path | None = None,
    device: str | None = None,
    json: bool = False,
) -> None:
    """Verdicts with proofs for every word; see `kexue.analysis.unargmaxable.words`."""
    sides = _box(box)
    if method not in METHODS:
        fail(f"--method {method!r} is not known; choose from: {', '.join(METHODS)}")
    if out is not None and out.suffix not in (".html", ".csv"):
        fail(f"--out {out}: name a page, report.html, or a table of all words, words.csv")
    if device is not None:
        _check_device(device)
    from kexue.analysis.unargmaxable.words import audit_words
    from kexue.analysis.unargmaxable.words_summary import summary, write_words

    began = time.perf_counter()
    with _bar() as progress:
        audit = audit_words(
            model, box=sides, method=method, device=device, resume=resume, progress=progress
        )
    about = {
        "model": model,
        "method": method,
        "box": box,
        "seconds": round(time.perf_counter() - began, 3),
        "command": " ".join(["kexue", *sys.argv[1:]]),
    }
    if out is not None and out.suffix == ".csv":
        write_words(out, audit)
    elif out is not None:
        from kexue.report.words_report import MOST, write_words_report

        write_words_report(out, summary(audit, max(top, MOST)), about)
    if json:
        whole = summary(audit)
        print_json({"about": about, "report": None if out is None else str(out)} | whole)
        return
    _print(summary(audit, top), about)
    if out is not None:
        what = "page" if out.suffix == ".html" else "table"
        console().print(f"{what}: {out}", markup=False, soft_wrap=True)


def _box(given: str | None) -> float | str | None:
    if given is None or given == "norm":
        return given
    try:
        number = float(given)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        fail(f"--box {given!r}: give norm (what the final norm can output) or a positive number")
    return number


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {device}: {str(error).splitlines()[0]}")


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar on standard error with stage and rate; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("reading the output layer", total=None, rate="")
        state: dict[str, Any] = {"stage": "", "began": time.perf_counter()}

        def told(stage: str, done: int, whole: int) -> None:
            if stage != state["stage"]:
                state.update(stage=stage, began=time.perf_counter())
                bar.reset(row, description=stage, total=whole, rate="")
            took = time.perf_counter() - state["began"]
            rate = f"{done / took:,.0f} words/s" if took > 0 else ""
            bar.update(row, completed=done, rate=rate)

        yield told


def _print(found: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    from rich.text import Text

    screen = console()

    def say(text: str, style: str = "") -> None:
        screen.print(Text(text, style=style), soft_wrap=True)

    layer, counts, norm = found["layer"], found["counts"], found["norm"]
    say(found["source"], "bold")
    say(
        f"{layer['classes']:,} words × {layer['width']} features ({layer['weight']}), "
        + (f"with a bias ({layer['bias']})" if layer["bias"] else "without a bias")
        + (f", after a {norm['name']}" if norm else "")
        + ("" if found["norm"] is None else f"; a typical feature has |z| = {norm['typical']:.4g}")
    )
    if found["note"]:
        say(f"words are shown by number: {found['note']}", "yellow")
    say(f"proven: {proven(found)}")
    clean = not (counts["hidden"] or counts["unreachable"] or counts["undecided"])
    if clean:
        say("every word with a row of its own can be predicted", "green")
    for line in _counted(counts):
        say(line, "yellow")
    for name in ("hidden", "unreachable", "undecided"):
        if found[name]:
            _table(found[name], counts[name])
    _apart(found, say)
    size = found["size"]
    if size["median"] is not None:
        beside = f" (typical {norm['typical']:.4g})" if norm else ""
        free = "" if layer["bias"] else "; without a bias any length does as well"
        say(
            f"words win at features of |z| = {size['median']:.4g} (median), at most "
            f"{size['largest']:.4g}{beside}{free}",
            "dim",
        )
    say(STRICT, "dim")


def proven(found: Mapping[str, Any]) -> str:
    """Classes decided by each stage, in one line."""
    parts = []
    for stage in found["stages"]:
        verdicts = [f"{stage['can']:,} can win"] if stage["can"] else []
        verdicts += [f"{stage['cannot']:,} cannot"] if stage["cannot"] else []
        if verdicts:
            where = " in the box" if stage["where"] else ""
            parts.append(f"{stage['name']}{where} {', '.join(verdicts)}")
    return " · ".join(parts) or "nothing"


def _counted(counts: Mapping[str, int]) -> list[str]:
    lines = []
    if counts["hidden"]:
        marked = f", {counts['marked']:,} of them special or unused" if counts["marked"] else ""
        lines.append(f"{_some(counts['hidden'], 'word')} can never be predicted{marked}")
    if counts["unreachable"]:
        lines.append(
            f"{_some(counts['unreachable'], 'word')} unreachable in the box: they win only for "
            "features outside it (a weaker statement)"
        )
    if counts["undecided"]:
        lines.append(
            f"{_some(counts['undecided'], 'word')} undecided: no proof was found either way"
        )
    return lines


def _table(rows: list[Mapping[str, Any]], count: int) -> None:
    from rich.table import Table
    from rich.text import Text

    screen = console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("token", overflow="fold", min_width=5, max_width=28)
    for name in ("index", "verdict", "margin / bound"):
        table.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=True)
    table.add_column("spread", justify="right", no_wrap=True)
    table.add_column("nearest", overflow="fold", min_width=12, max_width=40)
    table.add_column("method", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    for row in rows:
        token = "—" if row["token"] is None else row["token"]
        token += f" ({row['kind']})" if row["kind"] else ""
        nearest = " ".join(
            str(one["index"] if one["token"] is None else one["token"]) for one in row["nearest"]
        )
        cells = (
            token,
            str(row["index"]),
            row["verdict"],
            _judged(row),
            _spread(row["spread"]),
            nearest or "—",
            row["method"] or "—",
            f"{1000 * row['seconds']:.3g}",
        )
        table.add_row(*map(Text, cells))
    screen.print(table)
    if len(rows) < count:
        screen.print(
            f"… and {count - len(rows):,} more: --top, or --out words.csv",
            markup=False,
            style="dim",
        )


def _spread(value: float) -> str:
    if not value:
        return "—"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _judged(row: Mapping[str, Any]) -> str:
    if row["verdict"] in ("never wins", "unreachable in the box", "tied"):
        return f"p ≤ {row['bound']:.3g}"
    return "—" if row["margin"] is None else f"margin {row['margin']:.3g}"


def _apart(found: Mapping[str, Any], say: Callable[[str, str], None]) -> None:
    """Ties, padding and zeros."""
    counts = found["counts"]
    if counts["tied"]:
        groups = []
        for tie in found["ties"][:5]:
            names = [
                str(one["index"]) if one["token"] is None else f"{one['token']} ({one['index']})"
                for one in tie["words"][:4]
            ]
            names += [f"{len(tie['words']) - 4} more"] if len(tie["words"]) > 4 else []
            groups.append(" = ".join(names))
        say(f"{counts['tied']:,} words share their row with another: {'; '.join(groups)}", "")
    if counts["padding"]:
        runs = ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in found["padding"][:8])
        more = " …" if len(found["padding"]) > 8 else ""
        say(f"{_some(counts['padding'], 'row')} without a token never win: {runs}{more}", "dim")
    if counts["empty"]:
        never = sum(one["verdict"] == "never wins" for one in found["empty"])
        shown = ", ".join(str(one["index"]) for one in found["empty"][:8])
        more = " …" if counts["empty"] > 8 else ""
        shut = f"{never} of them never win" if counts["empty"] > 1 else found["empty"][0]["verdict"]
        say(f"{_some(counts['empty'], 'row')} of zeros with a token ({shut}): {shown}{more}", "dim")


def _some(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
