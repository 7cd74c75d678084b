"""`kexue audit`: what a model hides: in its scales, and in the words that it can never predict."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue.cli.console import console, fail, print_json

if TYPE_CHECKING:
    from kexue.analysis.scales import ScaleAudit

__all__ = ["audit"]

AUDITS = ("scales", "words")
MARKS = {"bad": ("broken", "red"), "warn": ("suspicious", "yellow"), "note": ("to know", "dim")}


def audit(
    model: Annotated[
        str,
        typer.Argument(
            help="tiny (built in), a model folder, or a hub name; for words also "
            "FILE.safetensors:WEIGHT:BIAS."
        ),
    ],
    what: Annotated[str, typer.Option(help="What to look at: scales or words.")] = "scales",
    text: Annotated[
        Path | None, typer.Option(help="A text file for the batch; a built-in sample without.")
    ] = None,
    init: Annotated[
        bool, typer.Option("--init", help="The architecture freshly drawn, not its weights.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="Write a page with pictures (report.html); words: also words.csv."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of fresh weights and of the batch.")] = 0,
    top: Annotated[
        int | None, typer.Option(min=1, help="words: rows of the table. Default: 20.")
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(help="words: norm (what the final norm can output), or R for |z_j| <= R."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="words: auto, probe, climb, newton, lp, reflect or min_norm."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="words: a file that keeps what is decided; go on from it.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="words: cpu, cuda, … Default: cpu.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Audit a model: its scales, worst first, or the words that it can never predict.

    Example: kexue audit tiny --what scales --out report.html

    Example: kexue audit ~/models/bert-base-chinese --init

    Example: kexue audit ~/models/gpt2 --what words --out words.html
    """
    if what not in AUDITS:
        fail(f"--what {what!r} is not known; choose from: {', '.join(AUDITS)}")
    for_scales: dict[str, Any] = {"text": text, "init": init or None, "seed": seed or None}
    for_words: dict[str, Any] = {
        "top": top,
        "box": box,
        "method": method,
        "resume": resume,
        "device": device,
    }
    foreign = for_words if what == "scales" else for_scales
    for name, value in foreign.items():
        if value is not None:
            owner = "words" if what == "scales" else "scales"
            fail(f"--{name} belongs to --what {owner}")
    if out is not None:
        _check_page(out)
    try:
        if what == "words":
            from kexue.cli.audit_words import words

            given = {name: value for name, value in for_words.items() if value is not None}
            words(model, out=out, json=json, **given)
        else:
            scales(model, text, init, out, seed, json)
    except ImportError as error:
        fail(f'{error.name or error} is not installed; pip install "kexue[nlp]"')
    except UnicodeDecodeError:
        fail(f"--text {text}: not a text in UTF-8")
    except (ValueError, OSError) as error:
        fail(str(error))


def scales(
    model: str, text: Path | None, init: bool, out: Path | None, seed: int, json: bool
) -> None:
    """Second moments, weight std against LeCun, gradients, gains, identity path."""
    if text is not None and not text.is_file():
        fail(f"--text {text} is not a file")
    words = None if text is None else text.read_text(encoding="utf-8")
    from kexue.analysis.scales import audit_scales
    from kexue.analysis.subject import load_subject
    from kexue.models.loading import quiet_transformers

    with quiet_transformers():
        subject = load_subject(model, init=init, text=words, seed=seed)
        found = audit_scales(subject.model, subject.batch)
    about = {
        "model": model,
        "weights": subject.source,
        "loss": subject.loss,
        "text": subject.text,
        "tokens": " × ".join(map(str, subject.batch["input_ids"].shape)),
        "seed": seed,
        "command": " ".join(["kexue", *sys.argv[1:]]),
    }
    plain = found.as_json()
    if out is not None:
        from kexue.report.scales_report import write_scales_report

        write_scales_report(out, plain, about)
    if json:
        print_json({"about": about, "report": None if out is None else str(out)} | plain)
        return
    _print(found, plain, about)
    if out is not None:
        console().print(f"page: {out}", markup=False, soft_wrap=True)


def _check_page(out: Path) -> None:
    """Refuse a page that cannot be written before the audit, not after it."""
    if out.is_dir():
        fail(f"--out {out} is a folder; name a file in it, such as {out / 'report.html'}")
    above = next((one for one in out.parents if one.exists()), None)
    if above is not None and not above.is_dir():
        fail(f"--out {out}: {above} is a file, not a folder")


def _print(found: "ScaleAudit", plain: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from kexue.report.module_groups import grouped, short

    screen = console()
    share, ratio = short(plain["path"]["share"]), short(plain["gradients"]["ratio"])
    screen.print(Text(about["weights"], style="bold"), soft_wrap=True)
    screen.print(
        f"{found.path.norm}-norm, {len(found.gradients.blocks)} blocks; of the input {share} is "
        f"left; gradient input / output {ratio}; loss: {about['loss']}",
        markup=False,
        soft_wrap=True,
    )
    for one in found.findings:
        word, colour = MARKS[one.level]
        line = Text(f"{word:<10} ", style=colour)
        screen.print(line.append(f"{one.where}: {one.en}", style="default"), soft_wrap=True)
    if not found.findings:
        screen.print("nothing suspicious was found", style="green")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("module", overflow="fold", min_width=12)
    for name in ("×", "std", "/ LeCun", "E[output²]", "gradient"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for group in grouped(plain["rows"]):
        values = (group.std, group.ratio, group.output, group.gradient)
        cells = (group.name, str(group.count), *values)
        table.add_row(*map(Text, cells))
    screen.print(table)
