"""`kexue lab`: the claims of the articles, measured again on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kexue.cli.console import console, fail, print_json

if TYPE_CHECKING:
    from kexue.lab import Outcome

__all__ = ["app"]

app = typer.Typer(
    help="Experiments: a claim, a number, a picture and an honest verdict.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list")
def list_command(json: Json = False) -> None:
    """Show every experiment and what it claims.

    Example: kexue lab list
    """
    from kexue.lab import experiments

    known = experiments()
    if json:
        names = ("id", "system", "title_en", "title_zh", "claim_en", "claim_zh", "published")
        print_json([{name: getattr(one, name) for name in names} for one in known])
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("experiment", no_wrap=True)
    table.add_column("claim")
    for one in known:
        table.add_row(one.id, f"{one.title_en} · {one.title_zh}\n[dim]{one.claim_en}[/dim]")
    console().print(table)


@app.command("run")
def run_command(
    ids: Annotated[
        list[str], typer.Argument(metavar="ID|all", help="Experiments, systems (S01), or all.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for results and the page.")] = Path("runs/lab"),
    data: Annotated[
        Path | None, typer.Option(help="Folder of CLUE data, in the official layout.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Experiments at the same time.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every experiment.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds for one experiment.")] = 600.0,
    json: Json = False,
) -> None:
    """Run experiments and write a page with their pictures.

    Exit code 1 if one of them failed; a claim that does not hold is a result, not a failure.

    Example: kexue lab run S01 --out runs/lab
    """
    from kexue.lab import run_experiments

    if data is not None and not data.is_dir():
        fail(f"--data {data} is not a folder")
    try:
        outcomes = run_experiments(
            ids,
            out,
            seed=seed,
            processes=processes,
            data=data,
            timeout=timeout,
            on_done=None if json else _print_outcome,
        )
    except (OSError, ValueError) as error:
        fail(str(error))
    if json:
        print_json({"page": str(out / "index.html"), "results": [o.as_json() for o in outcomes]})
    else:
        console().print(f"page: {out / 'index.html'}", markup=False, soft_wrap=True)
    failed = [outcome.id for outcome in outcomes if outcome.failed]
    if failed:
        fail(f"{len(failed)} of {len(outcomes)} experiments failed: {', '.join(failed)}")


def _print_outcome(outcome: "Outcome") -> None:
    from rich.text import Text

    word = outcome.verdict.value if outcome.verdict else "failed"
    colour = {"holds": "green", "failed": "red", "does not hold here": "red"}.get(word, "yellow")
    line = Text(f"{outcome.id}  ")
    line.append(word, style=colour).append(f"  {outcome.seconds:.1f} s", style="dim")
    for name, value in outcome.numbers.items():
        line.append(f"\n    {name}: {value}")
    if outcome.failed:
        line.append(f"\n    {outcome.failed}")
    console().print(line, soft_wrap=True)
