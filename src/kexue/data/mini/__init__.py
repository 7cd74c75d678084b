"""Small look-alikes of the eleven CLUE tasks, in the official folders, files and keys (S01).

They let every pipeline run from end to end without a network and without data whose licence
forbids passing it on. All sentences come from small grammars written for this purpose. They are
learnable: a two-layer encoder from scratch gets far above chance within a few hundred steps.
**Scores on them say that the code works, nothing about a method.**

Train, dev and test of a task share no text (`source.owner`). The same seed gives the same bytes.
See also: `kexue.tasks.clue`, which reads these files and the real ones alike.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kexue.data.files import atomic_write_text
from kexue.data.mini.entities import cluener
from kexue.data.mini.idioms import BLANK, chid
from kexue.data.mini.keywords import csl
from kexue.data.mini.pairs import afqmc, cmnli, ocnli
from kexue.data.mini.pronouns import wsc
from kexue.data.mini.reading import c3, cmrc2018
from kexue.data.mini.source import Row, Source, Split
from kexue.data.mini.topics import iflytek, tnews

__all__ = ["MINI_TASKS", "write_mini"]

_Files = dict[str, str]  # file name -> content
_SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_TESTS = {"tnews": ("test", "test1.0"), "wsc": ("test", "test1.0"), "chid": ("test1.0", "test1.1")}
_HIDDEN = {"label", "label_des", "label_desc", "idx", "id", *(f"label{k}" for k in range(5))}


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _lines(rows: Iterable[Row]) -> str:
    return "".join(_dump(row) + "\n" for row in rows)


def _plain(task: str, make: Callable[[Source, int], list[Row]]) -> Callable[[Source, int], _Files]:
    """The files of a task whose rows are lines; a test row keeps what is no label, under an id."""

    def files(source: Source, size: int) -> _Files:
        rows = make(source, size)
        if source.split != "test":
            name = "train.50k" if (task, source.split) == ("ocnli", "train") else source.split
            return {f"{name}.json": _lines(rows)}
        shown = [{k: v for k, v in row.items() if k not in _HIDDEN} for row in rows]
        content = _lines({"id": i, **row} for i, row in enumerate(shown))
        return {f"{name}.json": content for name in _TESTS.get(task, ("test",))}

    return files


def _cmrc2018(source: Source, size: int) -> _Files:
    data = []
    for i, passage in enumerate(cmrc2018(source, size)):
        name = f"{source.split.upper()}_{i}"
        questions = []
        for k, row in enumerate(passage["questions"]):
            answers = row["answers"][:1] if source.split == "train" else row["answers"]
            if source.split == "test":
                answers = [{"text": "", "answer_start": -1}] * len(answers)
            query = {"question": row["question"], "id": f"{name}_QUERY_{k}", "answers": answers}
            questions.append(query)
        paragraph = {"id": name, "context": passage["context"], "qas": questions}
        data.append({"id": name, "title": "", "paragraphs": [paragraph]})
    return {f"{source.split}.json": _dump({"version": "v1.0", "data": data})}


def _c3(source: Source, size: int) -> _Files:
    texts = c3(source, size - size // 2, dialogue=False)
    talks = c3(source, size // 2, dialogue=True)

    def documents(rows: list[Row], first: int) -> list[Any]:
        return [[row["lines"], row["questions"], f"{first}-{i}"] for i, row in enumerate(rows)]

    parts = {"m": documents(texts, 11), "d": documents(talks, 47)}
    if source.split != "test":
        return {f"{part}-{source.split}.json": _dump(rows) for part, rows in parts.items()}
    whole = parts["m"] + parts["d"]
    for i, question in enumerate(question for document in whole for question in document[1]):
        del question["answer"]
        question["id"] = i
    return {f"{name}.json": _dump(whole) for name in ("test1.0", "test1.1")}


def _chid(source: Source, size: int) -> _Files:
    records: list[Row] = []
    answers: dict[str, int] = {}
    for row in chid(source, size):
        content = []
        remaining = iter(row["answers"])
        for passage in row["content"]:
            pieces = passage.split(BLANK)
            marked = pieces[0]
            for piece in pieces[1:]:
                mark = f"#idiom{len(answers):06d}#"
                answers[mark] = next(remaining)
                marked += mark + piece
            content.append(marked)
        records.append({"content": content, "candidates": row["candidates"]})
    if source.split == "test":
        return {f"{name}.json": _lines(records) for name in _TESTS["chid"]}
    return {
        f"{source.split}.json": _lines(records),
        f"{source.split}_answer.json": _dump(answers),
    }


_WRITERS: dict[str, tuple[Callable[[Source, int], _Files], tuple[int, int, int]]] = {
    "iflytek": (_plain("iflytek", iflytek), (360, 120, 120)),
    "tnews": (_plain("tnews", tnews), (600, 120, 120)),
    "afqmc": (_plain("afqmc", afqmc), (800, 120, 120)),
    "cmnli": (_plain("cmnli", cmnli), (600, 120, 120)),
    "ocnli": (_plain("ocnli", ocnli), (600, 120, 120)),
    "wsc": (_plain("wsc", wsc), (800, 120, 120)),
    "csl": (_plain("csl", csl), (600, 120, 120)),
    "cmrc2018": (_cmrc2018, (600, 100, 100)),
    "c3": (_c3, (300, 100, 100)),
    "chid": (_chid, (420, 80, 80)),
    "cluener": (_plain("cluener", cluener), (600, 120, 120)),
}
MINI_TASKS: tuple[str, ...] = tuple(_WRITERS)


def write_mini(
    folder: Path,
    tasks: Iterable[str] | None = None,
    *,
    seed: int = 0,
    train: int | None = None,
    dev: int | None = None,
    test: int | None = None,
) -> Path:
    """Write look-alike data in the official CLUE layout, one folder per task.

    Args:
        folder: parent of the task folders; made if it does not exist.
        tasks: some of `MINI_TASKS`; all of them by default.
        seed: same seed, same bytes.
        train: examples of the training split (questions for cmrc2018 and c3, records for chid,
            lines elsewhere); a few hundred by default, the number depends on the task.
        dev: examples of the dev split, about a hundred by default.
        test: examples of the test split, about a hundred by default. Their labels are not written.

    Returns:
        `folder`.

    Raises:
        ValueError: a task is unknown or a size is below 1.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = write_mini(Path(name), ["afqmc"], train=20, dev=5, test=5)
        ...     sorted(path.name for path in folder.glob("afqmc/*"))
        ['dev.json', 'test.json', 'train.json']
    """
    if isinstance(tasks, str):
        raise ValueError(f"tasks must be a list of names, got the string {tasks!r}")
    chosen = MINI_TASKS if tasks is None else tuple(tasks)
    if unknown := [task for task in chosen if task not in _WRITERS]:
        raise ValueError(f"unknown tasks {unknown}; choose from {', '.join(MINI_TASKS)}")
    for split, size in zip(_SPLITS, (train, dev, test), strict=True):
        if size is not None and size < 1:
            raise ValueError(f"{split} must be at least 1 example, got {size}")
    for task in chosen:
        files, defaults = _WRITERS[task]
        (folder / task).mkdir(parents=True, exist_ok=True)
        for split, given, default in zip(_SPLITS, (train, dev, test), defaults, strict=True):
            source = Source(seed, task, split)
            for name, text in files(source, default if given is None else given).items():
                atomic_write_text(folder / task / name, text)
    return folder
