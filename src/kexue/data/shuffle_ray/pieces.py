"""Scatter: runs of records in the order of their buckets, in files or as objects.

A file of pieces holds for each run, one behind the other,

    its records by bucket | their numbers | K + 1 ends in bytes | K + 1 ends in records          (1)

numbers and ends of 8 bytes. An object holds the same of a run and a group of buckets.
"""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kexue.data.shuffle.outputs import told, write_all
from kexue.data.shuffle.plan import peak_resident
from kexue.data.shuffle_ray.ranges import Stream
from kexue.data.shuffle_ray.settings import Settings, Share

__all__ = ["Piece", "PieceFiles", "PieceObjects", "ends", "scatter_to_file", "scatter_to_objects"]

Array = np.ndarray[Any, np.dtype[Any]]
Piece = tuple[int, int, Callable[[Array, Array], None]]
"""Bytes, records, and what fills arrays for them."""


@dataclass
class Scattered:
    """A run in the order of its buckets."""

    records: Array
    numbers: Array
    byte_ends: Array
    line_ends: Array
    hashes: Array


def scattered(share: Share, settings: Settings) -> Iterator[Scattered]:
    """The runs of a share, each by buckets.

    Raises:
        ValueError: the input is no longer what was counted.
    """
    loops, number = settings.loops(), share.first
    levels = np.array([settings.buckets], np.uint64)
    stream = Stream(share.slices, settings.delimiter, settings.header, loops)
    for size, lines in share.runs:
        block, lengths = np.empty(size, np.uint8), np.empty(lines, np.uint32)
        read = stream.readinto(block.data)
        if read != size or loops.scan(block, settings.delimiter, lengths) != (lines, size):
            raise ValueError(f"{stream.where(stream.given)}: the file changed while it was read")
        out, numbers = np.empty(size, np.uint8), np.empty(lines, np.uint64)
        found, taken, hashes = loops.scatter(
            block, lengths, number, settings.seed, levels, out, numbers
        )
        del block, lengths
        yield Scattered(out, numbers, ends(taken), ends(found), np.asarray(hashes, np.uint64))
        number += lines
    if stream.readinto(memoryview(bytearray(1))):
        raise ValueError(f"{stream.where(stream.given)}: the file changed while it was read")


def ends(sizes: Array) -> Array:
    """0, s_0, s_0 + s_1, …"""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)))


class Tally:
    """Records, bytes and hash of every bucket."""

    def __init__(self, buckets: int) -> None:
        self.sums = np.zeros((3, buckets), np.uint64)

    def add(self, run: Scattered) -> None:
        """Counts a run."""
        self.sums[0] += np.diff(run.line_ends).astype(np.uint64)
        self.sums[1] += np.diff(run.byte_ends).astype(np.uint64)
        self.sums[2] += run.hashes  # modulo 2⁶⁴


def scatter_to_file(share: Share, settings: Settings, path: str) -> tuple[Array, int]:
    """Writes the pieces of a share into one file: (1).

    Returns:
        Records, bytes and hash of every bucket, shape (3, K), and the peak memory.
    """
    tally = Tally(settings.buckets)
    attempt = f"{path}.{secrets.token_hex(4)}"
    with told(attempt):
        with Path(attempt).open("xb", buffering=0) as file:
            for run in scattered(share, settings):
                tally.add(run)
                for array in (run.records, run.numbers, run.byte_ends, run.line_ends):
                    write_all(file, array.data.cast("B"))
        Path(attempt).replace(path)
    return tally.sums, peak_resident()


def scatter_to_objects(share: Share, settings: Settings, edges: list[int]) -> Iterator[Any]:
    """Yields an object per run and group of buckets, and at last what `scatter_to_file` returns."""
    tally = Tally(settings.buckets)
    for run in scattered(share, settings):
        tally.add(run)
        for low, high in pairwise(edges):
            byte, line = run.byte_ends[low : high + 1], run.line_ends[low : high + 1]
            yield (
                run.records[byte[0] : byte[-1]],
                run.numbers[line[0] : line[-1]],
                byte - byte[0],
                line - line[0],
            )
    yield tally.sums, peak_resident()


class PieceFiles:
    """The pieces of a bucket from files.

    Args:
        files: path and runs of each, in the order of the records.
        buckets: K.
    """

    def __init__(self, files: Sequence[tuple[str, list[tuple[int, int]]]], buckets: int) -> None:
        self.files, self.buckets = files, buckets

    def of(self, bucket: int) -> Iterator[Piece]:
        """Its pieces in the order of the records."""
        for path, runs in self.files:
            at = 0
            with told(path), opened(path) as file:
                for size, lines in runs:
                    index = at + size + 8 * lines
                    pair = np.empty(2, np.int64)
                    read_at(file, index + 8 * bucket, pair, path)
                    byte, stop = map(int, pair)
                    read_at(file, index + 8 * (self.buckets + 1 + bucket), pair, path)
                    line, last = map(int, pair)
                    if not (0 <= byte <= stop <= size and 0 <= line <= last <= lines):
                        raise ValueError(f"{path}: is damaged")

                    def fill(
                        records: Array,
                        numbers: Array,
                        file: Any = file,
                        byte: int = at + byte,
                        line: int = at + size + 8 * line,
                        path: str = path,
                    ) -> None:
                        read_at(file, byte, records, path)
                        read_at(file, line, numbers, path)

                    if last > line:
                        yield stop - byte, last - line, fill
                    at = index + 16 * (self.buckets + 1)


def opened(path: str) -> Any:
    """A file of pieces."""
    try:
        return Path(path).open("rb", buffering=0)
    except FileNotFoundError:
        raise ValueError(f"{path}: is lost, and with it records of the input; start anew") from None


def read_at(file: Any, offset: int, array: Array, path: str) -> None:
    """Fills an array from a place in a file."""
    view = array.data.cast("B")
    while len(view):
        size = os.preadv(file.fileno(), [view], offset)
        if not size:
            raise ValueError(f"{path}: is damaged, it ends too early")
        view, offset = view[size:], offset + size


class PieceObjects:
    """The pieces of a group of buckets from objects.

    Args:
        objects: of the runs, in the order of the records.
        first: bucket of the group.
    """

    def __init__(self, objects: Sequence[Any], first: int) -> None:
        self.objects, self.first = objects, first

    def of(self, bucket: int) -> Iterator[Piece]:
        """Its pieces in the order of the records."""
        j = bucket - self.first
        for records, numbers, byte, line in self.objects:
            piece = records[byte[j] : byte[j + 1]], numbers[line[j] : line[j + 1]]

            def fill(to: Array, to_numbers: Array, piece: Any = piece) -> None:
                to[:], to_numbers[:] = piece

            if len(piece[1]):
                yield len(piece[0]), len(piece[1]), fill
