"""Encoded examples in a memory-mapped Arrow file, made once per content.

The file's name is a hash of everything the features follow from (the corpus, the tokenizer, the
code and settings of the encoding), so a second run opens what the first one wrote, an edited
corpus is encoded anew, and nothing is ever stale. Memory holds the pages in use and the lengths.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kexue.cache import cache_folder

__all__ = ["FeatureTable", "content_hash", "encode_once"]

Feature = dict[str, Any]


class FeatureTable:
    """Features on disk, read by lists of indices.

    Args:
        dataset: a memory-mapped `datasets.Dataset` with a `length` column.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.lengths = self.column("length").astype(np.int64)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def example_count(self) -> int:
        """How many examples the features were made from."""
        return 1 + int(self.column("example").max())

    def column(self, name: str) -> np.ndarray:
        """One number of every feature, in order."""
        values: np.ndarray = self.dataset.with_format("numpy")[name][:]
        return values

    def rows(self, indices: list[int]) -> list[Feature]:
        """The features at the indices, in that order."""
        columns = self.dataset[indices]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def content_hash(*parts: object) -> str:
    """A short hash of values and of the bytes of files (given as `Path`).

    Example:
        >>> content_hash("tnews", 128) == content_hash("tnews", 128) != content_hash("tnews", 64)
        True
    """
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def encode_once(
    key: str,
    columns: dict[str, str],
    features: Callable[[], Iterable[Feature]],
    folder: Path | None = None,
) -> FeatureTable:
    """The features under a content hash: opened if they are there, else made and kept.

    Args:
        key: `content_hash` of all they follow from.
        columns: name → type, `"int"`, `"ints"` (a list) or `"lists"` (a list of lists).
        features: makes them, one dictionary each, in order; `length` is needed.
        folder: where the files are kept; default `cache_folder()`.

    Raises:
        ValueError: there is not a single feature.
        OSError: the disk is full or not writable; nothing is left under the final name.
    """
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    path = (folder or cache_folder()) / f"{key}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path):
        if not path.exists():
            for left_behind in path.parent.glob(f"{key}.*.partial"):
                left_behind.unlink()  # by a process that was killed; this one holds the lock
            partial = path.with_suffix(f".{os.getpid()}.partial")
            try:
                with ArrowWriter(features=arrow_types(columns), path=str(partial)) as writer:
                    for feature in features():
                        writer.write(feature)
                    written, _ = writer.finalize()
                if not written:
                    raise ValueError("there is not a single example to encode")
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.rename(path)
            finally:
                partial.unlink(missing_ok=True)
    return FeatureTable(Dataset.from_file(str(path)))


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """One process encodes, the others wait and open what it wrote."""
    from filelock import FileLock

    with FileLock(f"{path}.lock"):
        yield


def arrow_types(columns: dict[str, str]) -> Any:
    """The columns in the vocabulary of `datasets`."""
    from datasets import Features, List, Value

    ints = List(Value("int32"))
    types = {"int": Value("int32"), "ints": ints, "lists": List(ints)}
    return Features({name: types[kind] for name, kind in columns.items()})
