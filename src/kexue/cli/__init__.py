"""The command line: one file per command group, imported when its command is called."""

from typing import Annotated

import typer

from kexue import __version__

__all__ = ["main"]


def main() -> None:
    """`kexue …`."""
    from kexue.cli.audit import audit
    from kexue.cli.clue import app as clue
    from kexue.cli.doctor import doctor
    from kexue.cli.find import find
    from kexue.cli.lab import app as lab
    from kexue.cli.leaderboard import leaderboard
    from kexue.cli.pretrain import pretrain
    from kexue.cli.shuffle import shuffle

    app = typer.Typer(
        help="kexue 科学: the methods of Scientific Spaces (kexue.fm), end to end.",
        no_args_is_help=True,
        invoke_without_command=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def options(
        version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    ) -> None:
        if version:
            print(f"kexue {__version__}")
            raise typer.Exit

    app.command()(find)
    app.command()(doctor)
    app.command()(audit)
    app.command()(pretrain)
    app.command()(shuffle)
    app.command()(leaderboard)
    app.add_typer(clue, name="clue")
    app.add_typer(lab, name="lab")
    app()
