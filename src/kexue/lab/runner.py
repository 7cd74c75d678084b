"""Run experiments side by side, one process and one thread each, and keep what each found.

    run_experiments(["S01-assignment"], Path("runs/lab"))   →   runs/lab/S01-assignment.json
                                                                runs/lab/index.html

An experiment that raises, dies or takes too long is reported as failed; the others go on. A result
file is written when its experiment is done, so that a stopped run keeps what was finished.
"""

import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kexue.lab.experiment import Experiment, Number, Verdict, discover
from kexue.lab.gallery import write_gallery
from kexue.report.run_folder import RunFolder

__all__ = ["Outcome", "run_experiments", "select"]

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """How one experiment went: its verdict, or why it failed."""

    id: str
    title_en: str
    title_zh: str
    seconds: float
    verdict: Verdict | None = None
    numbers: dict[str, Number] = field(default_factory=dict)
    failed: str | None = None

    @classmethod
    def of(cls, result: dict[str, Any]) -> "Outcome":
        """From the content of a result file."""
        return cls(
            id=result["id"],
            title_en=result["title_en"],
            title_zh=result["title_zh"],
            seconds=float(result["seconds"]),
            verdict=Verdict(result["verdict"]) if result.get("verdict") else None,
            numbers=dict(result.get("numbers") or {}),
            failed=result.get("failed"),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"verdict": self.verdict.value if self.verdict else None}


def select(ids: Sequence[str], known: Sequence[Experiment]) -> list[Experiment]:
    """The experiments that are meant: by id, by system, or `all`; case does not matter.

    Raises:
        ValueError: a name is unknown; the message lists what there is.
    """
    chosen: dict[str, Experiment] = {}
    for name in ids:
        wanted = name.casefold()
        fitting = [
            one for one in known if wanted in ("all", one.id.casefold(), one.system.casefold())
        ]
        if not fitting:
            there_are = ", ".join(one.id for one in known) or "none"
            raise ValueError(f"there is no experiment {name!r}; there are: {there_are}")
        chosen |= {one.id: one for one in fitting}
    return list(chosen.values())


def run_experiments(
    ids: Sequence[str],
    out: Path,
    *,
    seed: int = 0,
    processes: int = 2,
    data: Path | None = None,
    timeout: float = 600.0,
    package: str = "kexue.lab",
    on_done: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run experiments and write a result file for each and a page for all.

    Args:
        ids: ids, systems, or `all`.
        out: the folder for `<id>.json` and `index.html`.
        seed: given to every experiment.
        processes: how many run at the same time.
        data: a folder of data for the experiments that read any.
        timeout: seconds after which an experiment is stopped and counts as failed.
        package: where the experiments are.
        on_done: called with each outcome as it comes.

    Returns:
        The outcomes in the order of the ids.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    if timeout <= 0:
        raise ValueError(f"timeout must be positive, got {timeout}")
    chosen = select(ids, discover(package))
    folder = RunFolder(out)
    waiting, outcomes = list(chosen), dict[str, Outcome]()
    running: dict[BaseProcess, tuple[Experiment, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                experiment = waiting.pop(0)
                running[_start(experiment, folder, seed, data)] = (experiment, time.monotonic())
            deadline = min(start for _, start in running.values()) + timeout
            wait([one.sentinel for one in running], max(0.0, deadline - time.monotonic()))
            for process, (experiment, start) in list(running.items()):
                seconds = time.monotonic() - start
                if process.is_alive() and seconds < timeout:
                    continue
                del running[process]
                late = _stop(process)
                trouble = f"stopped after {timeout:g} s" if late else None
                outcome = _outcome(experiment, folder, process, seconds, trouble)
                outcomes[experiment.id] = outcome
                if on_done is not None:
                    on_done(outcome)
    finally:
        for process in running:
            _stop(process)
        write_gallery(folder.path)
    return [outcomes[experiment.id] for experiment in chosen]


def _start(experiment: Experiment, folder: RunFolder, seed: int, data: Path | None) -> BaseProcess:
    """A fresh interpreter for one experiment; names travel, so that it imports with one thread."""
    folder.file(_name(experiment.id)).unlink(missing_ok=True)
    module = experiment.measure.__module__
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(module, experiment.id, str(folder.path), seed, data), daemon=True
    )
    with _one_thread():
        process.start()
    return process


@contextmanager
def _one_thread() -> Iterator[None]:
    """What a child inherits: the thread pools of numpy and torch read it when they are loaded."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(module: str, id: str, out: str, seed: int, data: Path | None) -> None:
    """In the child: measure and write the result, or why there is none."""
    content = vars(importlib.import_module(module))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    known = (content.get("EXPERIMENT"), *content.get("EXPERIMENTS", ()))
    experiment = next(one for one in known if one is not None and one.id == id)
    result, start = _description(experiment), time.perf_counter()
    try:
        result |= experiment.run(seed, data).as_json()
    except Exception as error:
        result["failed"] = _last_line(error)
    result |= {"seed": seed, "seconds": time.perf_counter() - start}
    RunFolder(out).write_json(_name(id), result)


def _last_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _description(experiment: Experiment) -> dict[str, Any]:
    plain = (one.name for one in fields(experiment) if one.name != "measure")
    return {name: getattr(experiment, name) for name in plain}


def _stop(process: BaseProcess) -> bool:
    """End a process; True if it was still at work."""
    alive = process.is_alive()
    if alive:
        process.kill()
    process.join()
    return alive


def _outcome(
    experiment: Experiment,
    folder: RunFolder,
    process: BaseProcess,
    seconds: float,
    trouble: str | None,
) -> Outcome:
    name = _name(experiment.id)
    if not folder.exists(name):
        trouble = trouble or f"the process ended with exit code {process.exitcode}"
        result = _description(experiment) | {"failed": trouble, "seconds": seconds}
        folder.write_json(name, result)
    return Outcome.of(folder.read_json(name))


def _name(id: str) -> str:
    return f"{id}.json"
