"""Several tasks and seeds in one run folder, one after the other, with a report at the end.

A campaign that was stopped goes on where it was: finished tasks are in results.json, the
unfinished one has checkpoints.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kexue.report import RunFolder, write_clue_report
from kexue.report.environment import environment
from kexue.tasks.clue.run import encode_task, train_task
from kexue.tasks.clue.settings import RATES, ClueSettings, TaskResult
from kexue.tasks.clue.sources import open_source
from kexue.tasks.run_start import may_write
from kexue.training.processes import processes

__all__ = ["run_campaign"]


def run_campaign(
    tasks: Sequence[str],
    data: str,
    settings: ClueSettings,
    out: Path,
    *,
    seeds: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Trains every task with every seed and writes the run folder.

    Args:
        tasks: names, in the order of the table.
        data: "mini", "hub", "hub:NAME" or a folder.
        settings: how to train.
        out: the run folder.
        seeds: how many; they are 0, 1, ….
        resume: go on with a run that was stopped; its settings must be the same.
        overwrite: throw away what stands in `out`.
        command: the command line, for the report.
        quiet: no progress.
        say: receives lines for the user.

    Returns:
        The results as results.json holds them.

    Raises:
        ValueError: `out` holds a run and neither `resume` nor `overwrite` is given, or the run to
            resume has other settings.
    """
    process = processes()
    run = RunFolder(out)
    config = {
        "command": command,
        "tasks": list(tasks),
        "seeds": list(range(seeds)),
        "model": settings.model,
        "data": data,
        "settings": asked_for(settings),
    }
    source = open_source(data)
    goes_on = may_write(run, config, resume=resume, overwrite=overwrite)
    results: list[dict[str, Any]] = (
        run.read_json("results.json") if goes_on and run.exists("results.json") else []
    )
    process.wait_for_everyone()
    begun = goes_on

    def begin() -> None:
        nonlocal begun
        if not begun and process.is_main_process:
            if run.path.exists():
                shutil.rmtree(run.path)
            run.write_json("config.json", config)
            run.write_json("environment.json", environment())
        begun = True
        process.wait_for_everyone()

    finished = {(r["task"], r["seed"]) for r in results}
    for task in tasks:  # hours of training must not end in a complaint about the next one's data
        if any((task, seed) not in finished for seed in range(seeds)):
            encode_task(task, source, settings)
    for task in tasks:
        for seed in range(seeds):
            if (task, seed) in finished:
                continue
            folder = task if seeds == 1 else f"{task}/seed{seed}"
            result: TaskResult = train_task(
                task,
                source,
                settings,
                run,
                seed=seed,
                folder=folder,
                submissions="submission" if seed == 0 else f"{folder}/submission",
                resume=resume,
                quiet=quiet,
                say=say,
                begin=begin,
            )
            results.append(asdict(result))
            if process.is_main_process:
                run.write_json("results.json", results)
                shutil.rmtree(run.path / folder / "checkpoints", ignore_errors=True)
                write_clue_report(run.path)
            process.wait_for_everyone()
    return results


def asked_for(settings: ClueSettings) -> dict[str, Any]:
    """The settings as given; what the tasks make of them stands in results.json."""
    given = asdict(settings)
    for name in ("epochs", "batch_size", "seed", "optimizer", "options", *RATES):
        given["fit"].pop(name)
    return given
