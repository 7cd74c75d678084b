"""What every command shares: where it prints, how it fails, how it prints JSON."""

import json
import sys
from typing import NoReturn

import typer
from rich.console import Console

__all__ = ["console", "fail", "print_json"]


def console() -> Console:
    """A rich console on standard output; made anew so that redirected output is honoured."""
    return Console(file=sys.stdout, highlight=False)


def fail(message: str) -> NoReturn:
    """Print one line `error: …` to standard error and leave with exit code 1."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(code=1)


def print_json(obj: object) -> None:
    """Print `obj` as indented JSON in UTF-8, Chinese characters as they are."""
    text = json.dumps(obj, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        sys.stdout.write(text)
        return
    sys.stdout.flush()
    buffer.write(text.encode("utf-8"))
    buffer.flush()
