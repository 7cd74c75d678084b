"""Merge: the pieces of a bucket from all runs, sorted by (k, t), to their place in the output.

A bucket that does not fit into a task is cut into parts by the next digits of its keys, and its
pieces are read once for each part. Records go to bytes of a file that is there already, or into a
compressed file of their own, from which the output is put together.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kexue.data.shuffle.loops import ENTRY
from kexue.data.shuffle.outputs import told, write_all
from kexue.data.shuffle.packed import compressor
from kexue.data.shuffle.plan import peak_resident
from kexue.data.shuffle_ray.pieces import Piece, PieceFiles, PieceObjects, ends
from kexue.data.shuffle_ray.settings import Bucket, Settings

__all__ = ["concatenate", "merge", "merge_group"]

Array = np.ndarray[Any, np.dtype[Any]]
OUT = 4 << 20
"""Bytes of sorted records that are written at once."""


class PartOfPieces:
    """Of the pieces of a bucket, what falls into one of the parts that it is cut into.

    Args:
        pieces: of the bucket.
        parts: how many.
        settings: of the run.
    """

    def __init__(self, pieces: Any, parts: int, settings: Settings) -> None:
        self.pieces, self.settings, self.loops = pieces, settings, settings.loops()
        self.levels = np.array([settings.buckets, parts], np.uint64)

    def split(self, bucket: int) -> Iterator[tuple[Array, Array, Array, Array]]:
        """Records and numbers of each piece by part, and their ends in bytes and records."""
        settings = self.settings
        for size, lines, fill in self.pieces.of(bucket):
            block, numbers = np.empty(size, np.uint8), np.empty(lines, np.uint64)
            fill(block, numbers)
            lengths, out, ordered = np.empty(lines, np.uint32), block.copy(), numbers.copy()
            if self.loops.scan(block, settings.delimiter, lengths) != (lines, size):
                raise ValueError(f"bucket {bucket}: a piece is damaged")
            found, taken, _ = self.loops.scatter(
                block, lengths, numbers, settings.seed, self.levels, out, ordered
            )
            yield out, ordered, ends(taken), ends(found)

    def of(self, bucket: int, part: int) -> Iterator[Piece]:
        """The pieces of one part."""
        for out, ordered, byte, line in self.split(bucket):
            records = out[byte[part] : byte[part + 1]]
            numbers = ordered[line[part] : line[part + 1]]

            def fill(
                to: Array, to_numbers: Array, records: Array = records, numbers: Array = numbers
            ) -> None:
                to[:], to_numbers[:] = records, numbers

            yield len(records), len(numbers), fill


def loaded(pieces: Any, bucket: Bucket, settings: Settings) -> Iterator[tuple[Array, Array]]:
    """The records of a bucket with their entries in order; part by part if they do not fit.

    Raises:
        ValueError: a piece is missing or damaged.
    """
    number = bucket.number
    if bucket.passes == 1:
        yield load(pieces.of(number), number, bucket.lines, bucket.bytes, settings)
        return
    parts = PartOfPieces(pieces, bucket.passes, settings)
    sizes = np.zeros((2, bucket.passes), np.int64)
    for _, _, byte, line in parts.split(number):
        sizes += np.stack((np.diff(line), np.diff(byte)))
    for part, (lines, size) in enumerate(sizes.T.tolist()):
        yield load(parts.of(number, part), number, lines, size, settings)


def load(
    pieces: Iterator[Piece], bucket: int, lines: int, size: int, settings: Settings
) -> tuple[Array, Array]:
    """Pieces in memory, and their entries in order."""
    loops = settings.loops()
    data, entries = np.empty(size, np.uint8), np.empty(lines, ENTRY)
    at = line = 0
    for taken, found, fill in pieces:
        if at + taken > size or line + found > lines:
            raise ValueError(f"bucket {bucket}: has more records than were written to it")
        numbers = np.empty(found, np.uint64)
        fill(data[at : at + taken], numbers)
        used = loops.enter(
            data[: at + taken],
            at,
            settings.delimiter,
            numbers,
            settings.seed,
            entries[line : line + found],
        )
        if used != taken:
            raise ValueError(f"bucket {bucket}: a piece is damaged")
        at, line = at + taken, line + found
    if (line, at) != (lines, size):
        raise ValueError(f"bucket {bucket}: {lines - line} of its {lines} records are missing")
    loops.sort(entries)
    return data, entries


class Target:
    """A segment of the output: bytes of a file from an offset, or a compressed file of its own.

    Args:
        path: of the file.
        offset: in it; -1: a file of its own.
        settings: of the run.
    """

    def __init__(self, path: str, offset: int, settings: Settings) -> None:
        self.path, self.own, self.fsync = path, offset < 0, settings.fsync
        self.attempt = f"{path}.{secrets.token_hex(4)}" if self.own else path
        with told(self.path):
            flags = os.O_CREAT | os.O_EXCL if self.own else 0
            self.file = os.fdopen(os.open(self.attempt, os.O_WRONLY | flags, 0o666), "wb", 0)
            self.file.seek(max(offset, 0))
        self.member = compressor(settings.kind)

    def write(self, data: Array) -> None:
        """Appends records."""
        with told(self.path):
            view = data.data
            write_all(self.file, view if self.member is None else self.member.compress(view))

    def close(self) -> None:
        """Ends the segment; an error that comes this late is still one."""
        with told(self.path):
            if self.member is not None:
                write_all(self.file, self.member.flush())
            if self.fsync:
                os.fsync(self.file.fileno())
            self.file.close()
            if self.own:
                Path(self.attempt).replace(self.path)


def merge(
    pieces: Any, buckets: list[Bucket], settings: Settings, write: bool = True
) -> tuple[list[list[int]], int]:
    """Sorts buckets and writes them to their segments: (3).

    Args:
        pieces: `of(bucket)` gives them.
        buckets: one behind the other.
        settings: of the run.
        write: False: only tell how long the segments are.

    Returns:
        Bytes of every segment of every bucket, and the peak memory.

    Raises:
        ValueError: the records are not those that were scattered.
        OSError: the output cannot be written.
    """
    loops, out = settings.loops(), np.empty(max(OUT, settings.longest), np.uint8)
    sizes: list[list[int]] = []
    for bucket in buckets:
        written, total, lines = [0] * len(bucket.segments), 0, 0
        left = [count for _, _, count in bucket.segments]
        segment, target = 0, None
        for data, entries in loaded(pieces, bucket, settings):
            at = 0
            while at < len(entries) and segment < len(left):
                some = entries[at : at + left[segment]]
                taken, size, hash = loops.gather(data, settings.delimiter, some, out)
                if write:
                    target = target or Target(*bucket.segments[segment][:2], settings)
                    target.write(out[:size])
                at, lines, total = at + taken, lines + taken, total + hash
                written[segment] += size
                left[segment] -= taken
                if not left[segment]:
                    if target is not None:
                        target.close()
                    segment, target = segment + 1, None
            if segment == len(left):
                break
            del data, entries
        whole = sum(count for _, _, count in bucket.segments) == bucket.lines
        if any(left) or (whole and total % (1 << 64) != bucket.hash):
            raise ValueError(f"bucket {bucket.number}: its records are not those that were written")
        sizes.append(written)
    return sizes, peak_resident()


def merge_group(
    pieces: PieceFiles | int, buckets: list[Bucket], settings: Settings, write: bool, *objects: Any
) -> tuple[list[list[int]], int]:
    """`merge` on a node, of pieces in files, or of the objects from the first bucket of a group.

    Ray has all objects ready before the task begins. A task that fetched them itself would keep its
    core while it waits, and nothing could make objects again that were lost with a node.
    """
    found = PieceObjects(objects, pieces) if isinstance(pieces, int) else pieces
    return merge(found, buckets, settings, write)


def concatenate(path: str, header: bytes, segments: list[str], settings: Settings) -> int:
    """One compressed output from the header and its segments, which are members of it.

    Returns:
        Its bytes.
    """
    attempt = f"{path}.{secrets.token_hex(4)}"
    with told(path):
        with Path(attempt).open("xb", buffering=0) as file:
            if header or not segments:
                member = compressor(settings.kind)
                write_all(file, member.compress(header) + member.flush())
            for segment in segments:
                with Path(segment).open("rb", buffering=0) as source:
                    while data := source.read(OUT):
                        write_all(file, data)
            if settings.fsync:
                os.fsync(file.fileno())
        Path(attempt).replace(path)
        return Path(path).stat().st_size
