"""Buckets of records on disk: what pass 1 leaves for pass 2.

A bucket file is a sequence of runs,

    records (u32) | bytes (u64) | number of each record (u64) | the records                     (1)

"""

import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kexue.data.shuffle.outputs import told, write_all

__all__ = ["Bucket", "BucketFiles", "largest_run", "runs"]

HEAD = struct.Struct("<IQ")
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Bucket:
    """What is in a bucket: records, bytes with delimiters, sums of hashes and of numbers."""

    lines: int = 0
    bytes: int = 0
    hash: int = 0
    numbers: int = 0

    @classmethod
    def of_all(cls, buckets: "list[Bucket]") -> "Bucket":
        """What is in all of them."""
        lines, size, hashes, numbers = (
            sum(column) for column in zip(*map(astuple, buckets), strict=True)
        )
        return cls(lines, size, hashes % (1 << 64), numbers % (1 << 64))


class BucketFiles:
    """The bucket files of one scatter, open for appending.

    Args:
        folder: where they are made.
        size: how many.
        open_files: at most this many are kept open.
    """

    def __init__(self, folder: Path, size: int, open_files: int) -> None:
        self.folder = folder
        self.buckets = [Bucket() for _ in range(size)]
        self.keep = size <= open_files
        self.files: dict[int, Any] = {}
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed while it wrote these
        with told(str(folder)):
            folder.mkdir(parents=True)

    def __enter__(self) -> "BucketFiles":
        return self

    def __exit__(self, *error: object) -> None:
        """Closes what is still open, which is so behind an error."""
        for file in self.files.values():
            with suppress(OSError):
                file.close()
        self.files.clear()

    def path(self, number: int) -> Path:
        """Of a bucket's file."""
        return self.folder / f"{number:06d}.bucket"

    def append(self, out: Array, numbers: Array, count: Array, taken: Array, hashes: Array) -> None:
        """Adds to every bucket its part of records that stand in the order of the buckets."""
        byte = line = 0
        for b in np.flatnonzero(count).tolist():
            lines, size = int(count[b]), int(taken[b])
            self.add(b, out[byte : byte + size], numbers[line : line + lines], int(hashes[b]))
            byte, line = byte + size, line + lines

    def add(self, number: int, records: Array, numbers: Array, hash: int) -> None:
        """Adds records to one bucket: (1)."""
        path = self.path(number)
        with told(str(path)):
            file = self.files.get(number)
            if file is None:
                file = path.open("ab", buffering=0)
                if self.keep:
                    self.files[number] = file
            try:
                write_all(file, HEAD.pack(len(numbers), len(records)), numbers, records)
            finally:
                if not self.keep:
                    file.close()
        bucket = self.buckets[number]
        bucket.lines += len(numbers)
        bucket.bytes += len(records)
        bucket.hash = (bucket.hash + hash) % (1 << 64)
        bucket.numbers = (bucket.numbers + int(numbers.sum(dtype=np.uint64))) % (1 << 64)

    def close(self) -> None:
        """Closes the files; an error that comes this late is still one."""
        for number, file in self.files.items():
            with told(str(self.path(number))):
                file.close()
        self.files.clear()


def runs(
    path: Path, bucket: Bucket, data: Array, *, behind: bool
) -> Iterator[tuple[Array, int, int]]:
    """The runs of a bucket file.

    Args:
        path: of the file.
        bucket: what was written to it.
        data: takes all records of the bucket, or the largest run.
        behind: one run behind the other into `data`; otherwise each at its beginning.

    Yields:
        The numbers of a run's records, where its records begin in `data`, and their bytes.

    Raises:
        ValueError: the file is damaged.
    """
    at = lines_before = 0
    with path.open("rb", buffering=0) as file:
        while head := file.read(HEAD.size):
            lines, size = HEAD.unpack(head) if len(head) == HEAD.size else (1 << 32, 0)
            lines_before += lines
            if at + size > len(data) or lines_before > bucket.lines:
                raise ValueError(f"{path}: its records are not those that were written")
            numbers = np.empty(lines, np.uint64)
            fill(file, numbers.data.cast("B"), path)
            fill(file, data[at : at + size].data, path)
            yield numbers, at, size
            at += size if behind else 0


def largest_run(path: Path) -> int:
    """Bytes of the largest run in a bucket file."""
    largest = 0
    with path.open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        while len(head := file.read(HEAD.size)) == HEAD.size:
            lines, size = HEAD.unpack(head)
            largest = max(largest, min(size, end))
            file.seek(min(end, file.tell() + 8 * lines + size))
    return largest


def fill(file: Any, view: memoryview, path: Path) -> None:
    """Reads exactly as much as the view takes."""
    while len(view):
        size = file.readinto(view)
        if not size:
            raise ValueError(f"{path}: its records are not those that were written")
        view = view[size:]
