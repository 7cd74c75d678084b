"""Pass 2: each bucket in memory, in order, into the outputs.

One thread loads the next bucket and writes slices while another sorts and gathers: numpy, ctypes,
files and compressors let each other run.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kexue.data.shuffle.blocks import Scatter
from kexue.data.shuffle.buckets import Bucket, BucketFiles, largest_run, runs
from kexue.data.shuffle.loops import ENTRY, LENGTH_BITS, Loops
from kexue.data.shuffle.outputs import Outputs
from kexue.data.shuffle.plan import Arena, Memory, buckets_for

__all__ = ["Order", "Sorting"]

HUGE = 1 << 29
Array = np.ndarray[Any, np.dtype[Any]]


class Order:
    """Records of a bucket in the order of their entries, into the outputs.

    Args:
        outputs: where records go.
        memory: how large slices may be.
        delimiter: ends a record.
        loops: do the work.
        pool: writes a slice while the next is gathered; None: one after the other.
        most: records wanted in all; None: every one.
    """

    def __init__(
        self,
        outputs: Outputs,
        memory: Memory,
        delimiter: bytes,
        loops: Loops,
        pool: Executor | None,
        most: int | None = None,
    ) -> None:
        self.outputs, self.delimiter, self.loops = outputs, delimiter, loops
        # a thread that waits for the reader of standard output could not be interrupted
        self.pool = None if outputs.stdout else pool
        self.most, self.written, self.bytes = most, 0, 0
        self.slices = [np.empty(memory.slice, np.uint8) for _ in range(2)]
        self.pending: Future[None] | None = None
        self.turn = 0

    def __enter__(self) -> "Order":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Behind an error, removes what was written once the other thread has come to its end."""
        if kind is not None:
            with suppress(Exception):
                self.flush()
            self.outputs.discard()

    def add(self, data: Array, entries: Array) -> int:
        """Writes the records; returns the sum of their hashes."""
        at, total = 0, 0
        while at < len(entries) and self.wanted() != 0:
            self.turn = 1 - self.turn
            out = self.slices[self.turn]
            room = [most for most in (self.room(), self.wanted()) if most is not None]
            some = entries[at : at + min(room)] if room else entries[at:]
            lines, size, hash = self.loops.gather(data, self.delimiter, some, out)
            if not lines:  # a record longer than a slice
                lines, out = 1, self.record(data, some[:1])
                size, hash = len(out), self.loops.hash(out)
            self.write(out[:size], lines)
            at += lines
            self.written += lines
            self.bytes += size
            total += hash
        self.flush()
        return total % (1 << 64)

    def wanted(self) -> int | None:
        """Records still to be written; None: all."""
        return None if self.most is None else self.most - self.written

    def room(self) -> int | None:
        """Records that the open part takes; None: any number."""
        if self.outputs.several:
            self.flush()  # the writer must have caught up
        return self.outputs.room()

    def record(self, data: Array, entry: Array) -> Array:
        """The bytes of one record, however long."""
        start = int(entry["where"][0]) >> LENGTH_BITS
        _, used = self.loops.scan(data[start:], self.delimiter, np.empty(1, np.uint32))
        return data[start : start + used]

    def write(self, data: Array, lines: int) -> None:
        """A slice, in the other thread if there is one."""
        self.flush()
        if self.pool is None:
            self.outputs.write(data.data, lines)
        else:
            self.pending = self.pool.submit(self.outputs.write, data.data, lines)

    def flush(self) -> None:
        """Waits for the slice that is being written; its error, if any, comes here."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()


@dataclass
class Sorting:
    """Buckets, in their order, through memory.

    Args:
        seed: of the keys.
        delimiter: ends a record.
        memory: what may be held.
        open_files: how many files may be open.
        loops: do the work.
        order: takes the buckets.
        pool: loads a bucket while another is written; None: one after the other.
    """

    seed: int
    delimiter: bytes
    memory: Memory
    open_files: int
    loops: Loops
    order: Order
    pool: Executor | None

    def __post_init__(self) -> None:
        self.half = self.memory.bucket
        self.arena = Arena(2 * self.half, huge=self.half < HUGE)

    def buckets(
        self,
        folder: Path,
        buckets: list[Bucket],
        levels: list[int],
        first: int = 0,
        done: Callable[[int], None] = lambda bucket: None,
    ) -> None:
        """Writes buckets from bucket `first` on; those too large are scattered again.

        Args:
            folder: holds the files.
            buckets: what is in each.
            levels: how many buckets on each level, the last ones being these.
            first: buckets before it are in the output already.
            done: called behind each bucket, before its file is removed.

        Raises:
            ValueError: a file is damaged.
        """
        ahead: Future[tuple[Array, Array]] | None = None
        side = 0
        for number in range(first, len(buckets)):
            bucket, path = buckets[number], bucket_path(folder, number)
            if self.order.wanted() == 0:
                break
            if not self.fits(bucket, 2 * self.half):
                total = self.again(path, bucket, levels)
            else:
                if ahead is not None:
                    data, entries = ahead.result()
                else:
                    data, entries = self.load(path, bucket, 0, 2 * self.half)
                    side = 0
                ahead, side = None, 1 - side
                following = number + 1
                if self.pool is not None and following < len(buckets):
                    both = self.fits(bucket, self.half) and self.fits(buckets[following], self.half)
                    if both:
                        file, start = bucket_path(folder, following), side * self.half
                        task = (file, buckets[following], start, start + self.half)
                        ahead = self.pool.submit(self.load, *task)
                total = self.order.add(data, entries)
                del data, entries
            if total != bucket.hash and self.order.wanted() != 0:
                raise ValueError(f"{path}: its records are not those that were written")
            done(number)
            path.unlink(missing_ok=True)

    def fits(self, bucket: Bucket, room: int) -> bool:
        """Whether a bucket can be sorted in so much memory."""
        return bucket.lines <= 1 or self.cost(bucket) <= room

    def cost(self, bucket: Bucket) -> int:
        """Memory that a bucket takes while it is sorted."""
        return bucket.bytes + self.memory.per_line * bucket.lines

    def load(self, path: Path, bucket: Bucket, start: int, stop: int) -> tuple[Array, Array]:
        """A bucket in a part of the arena: its bytes, and its entries in order.

        Raises:
            ValueError: the file is damaged.
        """
        room = self.arena.bytes[start:stop]
        data, place = room[: bucket.bytes], -(-bucket.bytes // 8) * 8
        entries = room[place : place + ENTRY.itemsize * bucket.lines].view(ENTRY)
        line, sum = 0, 0
        for numbers, at, size in runs(path, bucket, data, behind=True) if bucket.lines else ():
            some = entries[line : line + len(numbers)]
            used = self.loops.enter(data[: at + size], at, self.delimiter, numbers, self.seed, some)
            if used != size:
                raise ValueError(f"{path}: its records are not those that were written")
            line += len(numbers)
            sum += int(numbers.sum(dtype=np.uint64))
        if line != bucket.lines or sum % (1 << 64) != bucket.numbers:
            raise ValueError(f"{path}: its records are not those that were written")
        self.loops.sort(entries)
        return data, entries

    def again(self, path: Path, bucket: Bucket, levels: list[int]) -> int:
        """Scatters a bucket that is too large into smaller ones, and writes those in order.

        Returns:
            The sum of the hashes.
        """
        self.arena.drop()
        cost = self.cost(bucket)
        most = max(2, min(self.memory.block >> 16, self.open_files))
        size = min(most, max(2, 2 * buckets_for(self.memory, cost, cost * cost / bucket.lines)))
        levels = [*levels, size]
        files = BucketFiles(path.with_suffix(".again"), size, self.open_files)
        scatter = Scatter(files, levels, self.seed, self.memory, self.loops)
        block = np.empty(largest_run(path), np.uint8)
        with files:
            for numbers, _, taken in runs(path, bucket, block, behind=False):
                lengths = np.empty(len(numbers), np.uint32)
                lines, used = self.loops.scan(block[:taken], self.delimiter, lengths)
                if (lines, used) != (len(numbers), taken):
                    raise ValueError(f"{path}: its records are not those that were written")
                scatter.add(block[:taken], lengths, numbers)
            files.close()
        found = Bucket.of_all(files.buckets)
        if found != bucket:
            raise ValueError(f"{path}: its records are not those that were written")
        del block, scatter
        self.buckets(files.folder, files.buckets, levels)
        return found.hash


def bucket_path(folder: Path, number: int) -> Path:
    """Of a bucket's file."""
    return folder / f"{number:06d}.bucket"
