"""What is done with the run that a killed process left: to go on with it, or to begin anew."""

import os
from collections.abc import Sequence
from typing import Any

from kexue.data.shuffle.part_names import older_parts
from kexue.data.shuffle.plan import megabytes
from kexue.data.shuffle.request import Request
from kexue.data.shuffle.run_files import RunFiles, boot

__all__ = ["prepared", "refuse"]


def prepared(run: RunFiles, request: Request) -> dict[str, Any] | None:
    """The manifest of a killed run to go on with, or None once nothing stands in the way.

    Raises:
        ValueError: another process is at work on the same, or the seed is another.
    """
    state = run.claim()
    if not state:
        if request.resume:
            request.warn("nothing to resume; starting anew")
    elif not request.resume:
        request.warn(f"{run.path}: left by a killed run, removed (--resume goes on with one)")
    elif request.seed not in (None, state["seed"]):
        run.release()  # it stays as it is
        raise ValueError(f"the run to resume has the seed {state['seed']}, got {request.seed}")
    elif (obstacle := why_anew(state, request)) is None:
        return state
    else:
        request.warn(f"{obstacle}; starting anew")
    for leftover in request.leftovers():
        leftover.unlink(missing_ok=True)
    run.empty()
    if request.resume and not request.overwrite:
        refuse(older_parts(request.output) if request.several else [request.output])
    return None


def why_anew(state: dict[str, Any], request: Request) -> str | None:
    """Why a killed run cannot go on, if so."""
    if state["engine"] == "parquet":
        return "a run over Parquet rows cannot go on"
    if state["stage"] == "scatter":
        return "the run was killed before all records were in buckets"
    if state["arguments"]["seen"] != request.seen:
        return "the inputs have changed since the run was killed"
    if state["engine"] != request.loops.name:
        return f"the run was killed with the {state['engine']} loops"
    if state["boot"] != boot() and not request.fsync:
        return "the machine was started since the run was killed, and --fsync was not given"
    if state["memory"] > request.memory.limit:
        return f"the killed run had more memory, {megabytes(state['memory'])}"
    return None


def refuse(names: Sequence[str]) -> None:
    """Refuses to replace files that exist.

    Raises:
        FileExistsError: one does.
    """
    for name in names:
        if os.path.lexists(name):
            raise FileExistsError(f"{name}: exists; give --overwrite to replace it")
