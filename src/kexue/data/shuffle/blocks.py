"""Pass 1: the inputs as blocks of whole records, and each record into the bucket of its key."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kexue.data.shuffle.buckets import BucketFiles
from kexue.data.shuffle.inputs import Inputs
from kexue.data.shuffle.loops import Loops
from kexue.data.shuffle.philox import buckets_of, philox_keys
from kexue.data.shuffle.plan import Memory, megabytes

__all__ = ["Batch", "Blocks", "Scatter", "too_long"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Batch:
    """Whole records, one behind the other, their lengths, and the number of the first."""

    block: Array
    lengths: Array
    first: int


class Blocks:
    """The inputs as batches of whole records, read into two buffers by turns.

    A batch may be used until the next but one is asked for.

    Args:
        inputs: the stream.
        memory: how large a block may be.
        delimiter: ends a record.
        loops: find the records.
        before: bytes that were read already.
        lines: records that were read already.
        settle: called before memory for a long record is taken: nothing else may hold one then.
    """

    def __init__(
        self,
        inputs: Inputs,
        memory: Memory,
        delimiter: bytes,
        loops: Loops,
        *,
        before: Array | None = None,
        lines: int = 0,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self.inputs, self.memory, self.delimiter, self.loops = inputs, memory, delimiter, loops
        self.buffers = [np.empty(memory.block, np.uint8) for _ in range(2)]
        self.lengths = [np.empty(memory.most_lines, np.uint32) for _ in range(2)]
        self.rest = np.empty(0, np.uint8) if before is None else before
        self.turn, self.lines, self.settle = 0, lines, settle

    def read(self) -> Batch | None:
        """The next batch; None at the end.

        Raises:
            ValueError: a record is longer than the memory allows.
        """
        self.turn = 1 - self.turn
        buffer, lengths = self.buffers[self.turn], self.lengths[self.turn]
        if len(self.rest) > len(buffer):
            return self.long(self.rest)
        have = len(self.rest)
        buffer[:have] = self.rest
        have += self.inputs.readinto(buffer.data[have:])
        lines, used = self.loops.scan(buffer[:have], self.delimiter, lengths)
        if not lines:
            return self.long(buffer[:have]) if have else None
        return self.batch(buffer, used, have, lengths[:lines])

    def long(self, begun: Array) -> Batch:
        """A record longer than a block, by itself."""
        longest, have, searched = self.memory.longest, len(begun), 0
        if have > longest:
            raise too_long(self.inputs, have, self.memory)
        self.settle()
        buffer = np.empty(longest + self.memory.block, np.uint8)  # unused pages take no memory
        buffer[:have] = begun
        end = np.empty(1, np.uint32)
        while True:
            lines, used = self.loops.scan(buffer[searched:have], self.delimiter, end)
            if (searched + used if lines else have) > longest:
                raise too_long(self.inputs, have, self.memory)
            if lines:
                break
            searched = max(0, have - len(self.delimiter) + 1)
            room = buffer.data[have : have + self.memory.block]
            have += self.inputs.readinto(room)
        used += searched
        return self.batch(buffer, used, have, np.array([used], np.uint32))

    def batch(self, buffer: Array, used: int, have: int, lengths: Array) -> Batch:
        """Counts records, and keeps what is behind them."""
        self.rest = buffer[used:have]
        first, self.lines = self.lines, self.lines + len(lengths)
        return Batch(buffer[:used], lengths, first)


def too_long(inputs: Inputs, behind: int, memory: Memory) -> ValueError:
    """The error of a record that begins so many bytes behind what was read."""
    return ValueError(
        f"{inputs.where(inputs.given - behind)}: a record is longer than a quarter of the memory "
        f"limit, {megabytes(memory.longest)}; give more --memory, or another --delimiter"
    )


class Scatter:
    """Each record into the bucket of its key.

    Args:
        files: of the buckets.
        levels: how many buckets on each level, the last ones being these.
        seed: of the keys.
        memory: how large a block may be.
        loops: do the work.
    """

    def __init__(
        self, files: BucketFiles, levels: list[int], seed: int, memory: Memory, loops: Loops
    ) -> None:
        self.files, self.seed, self.loops = files, seed, loops
        self.levels = np.array(levels, np.uint64)
        self.out = np.empty(memory.block, np.uint8)
        self.numbers = np.empty(memory.most_lines, np.uint64)

    def add(self, block: Array, lengths: Array, numbers: Array | int) -> None:
        """Records, one behind the other, with their numbers or the first of them."""
        if len(lengths) == 1:  # it may be long: no copy
            self.add_one(block, int(numbers if isinstance(numbers, int) else numbers[0]))
            return
        out, room = self.out, self.numbers
        if len(block) > len(out):
            out = np.empty(len(block), np.uint8)
        if len(lengths) > len(room):
            room = np.empty(len(lengths), np.uint64)
        count, taken, hashes = self.loops.scatter(
            block, lengths, numbers, self.seed, self.levels, out, room
        )
        self.files.append(out, room, count, taken, hashes)

    def add_one(self, record: Array, number: int) -> None:
        """A single record."""
        numbers = np.array([number], np.uint64)
        bucket = buckets_of(philox_keys(numbers, self.seed)[:, 0], self.levels)
        self.files.add(int(bucket[0]), record, numbers, self.loops.hash(record))
