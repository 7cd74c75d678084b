"""The loops of a shuffle with numpy, and Arrow's `take` for the copies: where no compiler is.

The same results as `lines.c` but for the hash of a record, in some ten times the time.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from kexue.data.shuffle.loops import LENGTH_BITS, LONG, Array, Bytes, Words
from kexue.data.shuffle.philox import buckets_of, philox_keys

__all__ = ["ArrowLoops"]

STEP = 1 << 18
SLICE = 4096
"""Records copied at once by `ArrowLoops.gather`."""


class ArrowLoops:
    """The same with numpy, and Arrow's `take` for the copies."""

    name = "arrow"
    per_line = 80  # as above, and sorting copies the entries and the keys
    blocks = 12
    spare = 90_000_000  # what Arrow and numpy hold on to in between

    def __init__(self) -> None:
        try:
            import pyarrow
            import pyarrow.compute
        except ImportError:
            raise ImportError(
                'without a C compiler a shuffle needs pyarrow: pip install "kexue[shuffle]"'
            ) from None
        self.arrow: Any = pyarrow
        self.pool = pyarrow.system_memory_pool()  # Arrow's own keeps what it has given back
        self.take(np.zeros(1, np.uint8), np.zeros(2, np.int64), np.zeros(1, np.int64))  # loads it

    def skip(self, block: Bytes, delimiter: bytes) -> int:
        last = 0
        for ends in found_ends(block, delimiter):
            last = int(ends[-1])
        return last

    def scan(self, block: Bytes, delimiter: bytes, lengths: Array) -> tuple[int, int]:
        ends = ends_of(block, delimiter, len(lengths))
        lengths[: len(ends)] = np.diff(ends, prepend=0)
        return len(ends), int(ends[-1]) if len(ends) else 0

    def scatter(
        self,
        block: Bytes,
        lengths: Array,
        numbers: Words | int,
        seed: int,
        levels: Words,
        out: Bytes,
        out_numbers: Words,
    ) -> tuple[Array, Array, Words]:
        numbers = numbered(numbers, len(lengths))
        size = int(levels[-1])
        bucket = buckets_of(philox_keys(numbers, seed)[:, 0], levels)
        order = np.argsort(bucket, kind="stable")
        count = np.bincount(bucket, minlength=size)
        taken = np.bincount(bucket, weights=lengths, minlength=size).astype(np.int64)
        out_numbers[: len(numbers)] = numbers[order]
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        copied = self.take(block, offsets, order)
        out[: len(copied)] = copied
        edges = np.concatenate(([0], np.cumsum(count)))
        moved = np.concatenate(([0], np.cumsum(lengths[order].astype(np.int64))))
        total = [
            hashes(copied, moved[edges[b] : edges[b + 1] + 1]) if count[b] else 0
            for b in range(size)
        ]
        return count, taken, np.array(total, np.uint64)

    def enter(
        self, data: Bytes, offset: int, delimiter: bytes, numbers: Words | int, seed: int, to: Array
    ) -> int:
        ends = ends_of(data[offset:], delimiter, len(to))
        if len(ends) < len(to):
            return -1
        pair = philox_keys(numbered(numbers, len(to)), seed)
        to["k"], to["t"] = pair[:, 0], pair[:, 1]
        starts = np.concatenate(([0], ends[:-1])).astype(np.uint64)
        size = np.minimum(ends.astype(np.uint64) - starts, np.uint64(LONG))
        to["where"] = (starts + np.uint64(offset)) << np.uint64(LENGTH_BITS) | size
        return int(ends[-1]) if len(ends) else 0

    def sort(self, entries: Array) -> None:
        entries[:] = entries[np.lexsort((entries["t"], entries["k"]))]

    def gather(
        self, data: Bytes, delimiter: bytes, entries: Array, out: Bytes
    ) -> tuple[int, int, int]:
        lines, written, total = 0, 0, 0
        while lines < len(entries):  # a slice at a time: a bucket has no second copy
            some = entries["where"][lines : lines + SLICE]
            starts = (some >> np.uint64(LENGTH_BITS)).astype(np.int64)
            size = (some & np.uint64(LONG)).astype(np.int64)
            for j in np.flatnonzero(size == LONG):
                size[j] = length_at(data, int(starts[j]), delimiter)
            fit = int(np.searchsorted(np.cumsum(size), len(out) - written, side="right"))
            if fit == 0:
                break
            order = np.argsort(starts[:fit])
            offsets = np.zeros(2 * fit + 1, np.int64)  # records and the gaps between them
            offsets[:-1:2], offsets[1::2] = starts[:fit][order], (starts + size)[:fit][order]
            offsets[-1] = offsets[-2]
            place = np.empty(fit, np.int64)
            place[order] = 2 * np.arange(fit)
            copied = self.take(data, offsets, place)
            out[written : written + len(copied)] = copied
            ends = np.concatenate(([0], np.cumsum(size[:fit])))
            total = (total + hashes(copied, ends)) % (1 << 64)
            written, lines = written + len(copied), lines + fit
            if fit < len(some):
                break
        return lines, written, total

    def hash(self, record: Bytes) -> int:
        return hashes(record, np.array([0, len(record)]))

    def take(self, data: Bytes, offsets: Array, order: Array) -> Bytes:
        """Records of a block in an order; record j runs from offset j to offset j + 1."""
        buffers = [None, self.arrow.py_buffer(offsets), self.arrow.py_buffer(data)]
        kind = self.arrow.large_binary()
        records = self.arrow.LargeBinaryArray.from_buffers(kind, len(offsets) - 1, buffers)
        taken = self.arrow.compute.take(
            records, self.arrow.array(order, memory_pool=self.pool), memory_pool=self.pool
        )
        start, stop = np.frombuffer(taken.buffers()[1], np.int64)[[0, len(order)]]
        copied: Bytes = np.frombuffer(taken.buffers()[2], np.uint8)[start:stop]
        return copied


def numbered(numbers: Words | int, lines: int) -> Words:
    """The numbers themselves, or as many as needed from a first one."""
    if isinstance(numbers, int):
        return np.arange(numbers, numbers + lines, dtype=np.uint64)
    return numbers


def ends_of(block: Bytes, delimiter: bytes, most: int) -> Array:
    """Where the first `most` delimiters end."""
    found, count = [np.zeros(0, np.int64)], 0
    for ends in found_ends(block, delimiter):
        found.append(ends[: most - count])
        count += len(found[-1])
        if count == most:
            break
    return np.concatenate(found)


def found_ends(block: Bytes, delimiter: bytes) -> Iterator[Array]:
    """Where delimiters end, a piece of the block at a time; they do not overlap."""
    size, behind = len(delimiter), 0
    overlaps = any(delimiter.startswith(delimiter[j:]) for j in range(1, size))
    for start in range(0, len(block) - size + 1, STEP):
        part = block[start : start + STEP + size - 1]
        match = part[: len(part) - size + 1] == delimiter[0]
        for j in range(1, size):
            match &= part[j : len(part) - size + 1 + j] == delimiter[j]
        ends = np.flatnonzero(match) + (start + size)
        if overlaps:
            free = []
            for end in ends.tolist():  # "aa" in "aaa" is found once
                if end >= behind + size:
                    free.append(end)
                    behind = end
            ends = np.asarray(free, np.int64)
        if len(ends):
            yield ends


def length_at(data: Bytes, start: int, delimiter: bytes) -> int:
    """Length of the record that starts there."""
    ends = ends_of(data[start:], delimiter, 1)
    return int(ends[0])


def hashes(data: Bytes, offsets: Array) -> int:
    """Sum over records of Σ_j (byte_j + 1) · m^(j + 1) modulo 2^64, j counted in the record."""
    if len(offsets) < 2:
        return 0
    total = 0
    for first in range(0, len(offsets) - 1, SLICE):
        edge = offsets[first : first + SLICE + 1]
        for low in range(int(edge[0]), int(edge[-1]), STEP):
            high = min(low + STEP, int(edge[-1]))
            taken = np.diff(np.clip(edge, low, high))  # of each record, in this piece
            start = np.repeat(edge[:-1], taken)
            low_power, high_power = powers()
            exponent = np.arange(low + 1, high + 1) - start
            weight = low_power[exponent & 0xFFFF] * high_power[exponent >> 16]
            value = (data[low:high].astype(np.uint64) + np.uint64(1)) * weight
            total += int(value.sum(dtype=np.uint64))
    return total % (1 << 64)


@cache
def powers() -> tuple[Words, Words]:
    """m^e and m^(65536 e) modulo 2^64 for e < 65536, m odd."""
    tables = []
    base = 0x9E3779B97F4A7C15
    for m in (base, pow(base, 1 << 16, 1 << 64)):
        steps = np.full(1 << 16, m, np.uint64)
        steps[0] = 1
        tables.append(np.multiply.accumulate(steps))
    return tables[0], tables[1]
