"""Where CLUE data come from: a folder in the official layout, the Hub, or the built-in look-alike.

A source turns a task and a split into records in the official form. Labels go by name: the
integer order of classes differs between the Hub, the author's code and ours.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from kexue.cache import cache_folder
from kexue.data.corpus import DataError, Record
from kexue.data.features import content_hash
from kexue.tasks.clue.task import Task

__all__ = ["FolderSource", "HubSource", "MiniSource", "Source", "open_source"]

HUB_NAME = "clue/clue"
HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


@runtime_checkable
class Source(Protocol):
    """Gives the records of a task's split, and what they follow from."""

    def records(self, task: Task, split: str) -> Iterator[Record]:
        """The records of a split in the official form, in the official order."""
        ...

    def contents(self, task: Task, split: str) -> list[object]:
        """What identifies the records: files (as `Path`, hashed by content) or a version."""
        ...


class FolderSource:
    """The official files, one folder per task.

    Args:
        path: holds `tnews/`, `afqmc/`, … (or `tnews_public/`, …), or is itself one such folder.
        own: it is itself one, whatever else it holds.

    Raises:
        DataError: no such folder, or a zip archive.
    """

    def __init__(self, path: Path, own: bool = False) -> None:
        if path.is_file():
            raise DataError(
                f"{path}: a folder is needed, this is a file; if it is the benchmark's zip, "
                f"unpack it first: unzip {path} -d {path.parent / 'clue' / path.stem}"
            )
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; give mini, hub or a folder of CLUE data")
        self.path, self.own = path, own

    def folder(self, task: Task) -> Path:
        """The task's folder.

        Raises:
            DataError: it is not there; says so if its zip is.
        """
        if self.own:
            return self.path
        names = (task.name, f"{task.name}_public", f"{task.hub_config}_public", f"clue{task.name}")
        for name in names:
            if (self.path / name).is_dir():
                return self.path / name
        if (self.path / task.file_names("dev")[0]).is_file():
            return self.path
        for name in names:
            if (archive := self.path / f"{name}.zip").is_file():
                raise DataError(
                    f"{archive}: not unpacked yet; unzip {archive} -d {self.path / task.name}"
                )
        present = ", ".join(sorted(p.name for p in self.path.iterdir())[:12]) or "nothing"
        raise DataError(f"{self.path}: no folder {task.name}/ here, only {present}")

    def records(self, task: Task, split: str) -> Iterator[Record]:
        return task.records(self.folder(task), split)

    def contents(self, task: Task, split: str) -> list[object]:
        return [self.folder(task) / name for name in task.file_names(split)]


class MiniSource(FolderSource):
    """Built-in data that look like CLUE's; made once and kept in the cache.

    Args:
        seed: another seed, other sentences.
    """

    def __init__(self, seed: int = 0) -> None:
        from kexue.data import mini

        code = sorted(Path(mini.__file__).parent.glob("*.py"))
        folder = cache_folder() / f"mini-{content_hash(seed, *code)}"
        if not (folder / "complete").exists():
            mini.write_mini(folder, seed=seed)
            (folder / "complete").touch()
        super().__init__(folder)


class HubSource:
    """The Hub's `clue/clue`, or a local copy of it.

    Args:
        name: a dataset name, or a folder that holds a copy of the dataset's repository.
    """

    def __init__(self, name: str = HUB_NAME) -> None:
        self.name = name
        self.loaded: dict[tuple[str, str], Any] = {}

    def dataset(self, task: Task, split: str) -> Any:
        """The split as a `datasets.Dataset`.

        Raises:
            DataError: the Hub has no such task, or cannot be reached.
        """
        from datasets import load_dataset

        if task.hub_config is None:
            raise DataError(
                f"{self.name}: has no {task.name}; give --data a folder with the official files"
            )
        if split not in HUB_SPLITS:
            raise ValueError(f"split must be train, dev or test, got {split!r}")
        key = task.hub_config, HUB_SPLITS[split]
        if key not in self.loaded:
            try:
                self.loaded[key] = load_dataset(self.name, key[0], split=key[1])
            except (OSError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise DataError(
                    f"{self.name}/{task.hub_config}: {split} not loaded: {reason}; without a "
                    "network give --data a folder, or set HF_ENDPOINT to a mirror"
                ) from error
        return self.loaded[key]

    def records(self, task: Task, split: str) -> Iterator[Record]:
        dataset = self.dataset(task, split)
        named = {
            column: feature.names
            for column, feature in dataset.features.items()
            if hasattr(feature, "names")
        }
        path = Path(self.name) / str(task.hub_config) / HUB_SPLITS[split]
        for number, row in enumerate(dataset, start=1):
            for column, names in named.items():
                index = row[column]
                row[column] = None if index is None or index < 0 else names[index]
            if "idx" in row and "id" not in row:
                row["id"] = row["idx"]
            yield Record(path, str(number), task.from_hub(row))

    def contents(self, task: Task, split: str) -> list[object]:
        return [self.dataset(task, split)._fingerprint]


def open_source(data: str | Path) -> Source:
    """`mini`, `hub`, `hub:NAME` or a folder.

    Raises:
        DataError: no such folder.
    """
    text = str(data)
    if text == "mini":
        return MiniSource()
    if text == "hub":
        return HubSource()
    if text.startswith("hub:"):
        return HubSource(text.removeprefix("hub:"))
    return FolderSource(Path(text).expanduser())
