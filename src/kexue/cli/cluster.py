"""`kexue shuffle --engine ray`: on the machines of a Ray cluster."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import typer

from kexue.cli.console import fail

__all__ = ["check_engine", "leave", "plan_on_cluster", "shuffle_on_cluster"]

UNPACKED = 4
"""Bytes of content per byte of a compressed file, guessed."""


def check_engine(
    engine: str, ray_address: str | None, exchange: str, threads: int | None, resume: bool
) -> None:
    """Refuses options that do not belong to the engine."""
    if engine not in ("local", "ray"):
        fail(f"--engine is local or ray, got {engine!r}")
    if exchange not in ("shared", "objects"):
        fail(f"--exchange is shared or objects, got {exchange!r}")
    if engine == "local" and (ray_address is not None or exchange != "shared"):
        fail("--ray-address and --exchange are for --engine ray")
    if engine == "ray" and threads is not None:
        fail("--threads is for the local engine; Ray starts a task on every core it was given")
    if engine == "ray" and resume:
        fail("--resume is for the local engine; Ray runs tasks again, and a run starts anew")


def shuffle_on_cluster(inputs: list[str], output: str, **options: Any) -> Any:
    """`shuffle_lines_ray` with the options of the local engine that it has too."""
    from kexue.data.shuffle_ray import shuffle_lines_ray

    options.pop("threads")
    return shuffle_lines_ray(inputs, output, **options)


def plan_on_cluster(
    inputs: list[str],
    memory: str,
    *,
    exchange: str,
    nodes: int,
    disk_mb_s: float,
    network_mb_s: float,
) -> dict[str, Any]:
    """What the run would read, write and move, and in what time; no cluster is asked.

    Raises:
        ValueError: standard input is among the inputs.
    """
    from kexue.data.shuffle.input_paths import expand
    from kexue.data.shuffle.packed import HEAD, kind_of
    from kexue.data.shuffle.plan import parse_size
    from kexue.data.shuffle_ray import cost_model

    if "-" in inputs:
        raise ValueError("Ray's tasks do not see standard input (-); name files")
    size = 0
    for path in map(Path, expand(inputs)):
        with path.open("rb") as file:
            size += path.stat().st_size * (UNPACKED if kind_of(file.read(HEAD)) else 1)
    cost = cost_model(
        size, nodes, disk_mb_s, network_mb_s, exchange=exchange, memory=parse_size(memory)
    )
    return {name: value for name, value in asdict(cost).items() if value != ""}


def leave(engine: str, code: int) -> NoReturn:
    """Ends an interrupted command with this code.

    With Ray at once: its threads may abort the process while Python takes itself down.
    """
    if engine == "ray":
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code=code)
