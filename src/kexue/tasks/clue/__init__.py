"""The eleven CLUE tasks (S01), one file each, and how they are read, trained and scored.

from kexue.tasks.clue import load_clue
load_clue("tnews", "mini", "dev")[0]
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kexue.data.corpus import DataError
from kexue.tasks.clue.afqmc import AFQMC
from kexue.tasks.clue.c3 import C3
from kexue.tasks.clue.chid import CHID
from kexue.tasks.clue.cluener import CLUENER
from kexue.tasks.clue.cmnli import CMNLI
from kexue.tasks.clue.cmrc2018 import CMRC2018
from kexue.tasks.clue.csl import CSL
from kexue.tasks.clue.iflytek import IFlytek
from kexue.tasks.clue.ocnli import OCNLI
from kexue.tasks.clue.sources import Source, open_source
from kexue.tasks.clue.task import Example, Mistake, Task
from kexue.tasks.clue.tnews import TNews
from kexue.tasks.clue.wsc import WSC

__all__ = ["TASKS", "Example", "Mistake", "Task", "examples", "load_clue", "make_task"]

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (IFlytek, TNews, AFQMC, CMNLI, OCNLI, WSC, CSL, CMRC2018, C3, CHID, CLUENER)
}
"""In the order of the benchmark's table."""


def make_task(name: str, tokenizer: Any = None, **options: Any) -> Task:
    """A task by name.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"no CLUE task is called {name!r}; known: {', '.join(TASKS)}")
    return TASKS[name](tokenizer, **options)


def examples(task: Task, source: Source, split: str) -> Iterator[Example]:
    """The examples of a split, one after the other; rows left out are counted in `task.notes`."""
    row = 0
    seen: dict[str, str] = {}
    for record in source.records(task, split):
        for example in task.read(record, row, labelled=split != "test"):
            row += 1
            if example is None:
                continue
            for key in task.keys(example) if split == "test" else ():
                if key in seen:
                    raise DataError(f"{example.where}:id: {key!r} stands at {seen[key]} already")
                seen[key] = example.where
            yield example
    if row == 0:
        raise DataError(f"{task.name}: the {split} split holds no records")


def load_clue(
    task: str, path_or_hub: str | Path, split: str, version: str = "1.1"
) -> list[Example]:
    """The examples of one split of one task.

    Args:
        task: one of `TASKS`.
        path_or_hub: a folder in the official layout, "mini" (built in), "hub" or "hub:NAME".
        split: "train", "dev" or "test".
        version: of the test files of tnews, wsc, c3 and chid: "1.0" or "1.1".

    Returns:
        Dataclasses with label names, never ids.

    Raises:
        DataError: something in the files is not as it must be; the message names file, line
            and field.
        ValueError: no such task, split or version.

    Example:
        >>> example = load_clue("tnews", "mini", "dev")[0]
        >>> example.label in TASKS["tnews"].labels
        True
    """
    made = make_task(task, version=version)
    return list(examples(made, open_source(path_or_hub), split))
