"""The loops of a shuffle over bytes, in C where there is a compiler, else with numpy and Arrow.

Both do the same to the bit (`lines.c` says what); only the hash of a record differs, so that one
run must keep to one of them. No Python object is made per record. See also: `arrow_loops.py`.
"""

from functools import cache
from typing import Any, Protocol, runtime_checkable

import numpy as np

from kexue.native import native_function

__all__ = ["ENTRY", "LENGTH_BITS", "LONG", "CompiledLoops", "Loops", "loops"]

ENTRY = np.dtype([("k", np.uint64), ("t", np.uint64), ("where", np.uint64)])
"""Key, tie-breaker, and offset · 2²⁴ + length of a record; 24 bytes."""
LENGTH_BITS = 24
LONG = (1 << LENGTH_BITS) - 1
"""In the place of a length: this long or longer."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Words = np.ndarray[Any, np.dtype[np.uint64]]
Array = np.ndarray[Any, np.dtype[Any]]


@runtime_checkable
class Loops(Protocol):
    """What a shuffle does to blocks of bytes."""

    name: str
    per_line: int
    """Bytes per record of a bucket: its entry, its number, and what sorting needs."""
    blocks: int
    """Memory of pass 1, in blocks."""
    spare: int
    """Memory that is not for data."""

    def skip(self, block: Bytes, delimiter: bytes) -> int:
        """Bytes of all whole records at the start of a block."""
        ...

    def scan(self, block: Bytes, delimiter: bytes, lengths: Array) -> tuple[int, int]:
        """Lengths of the whole records at the start of a block: how many, and their bytes."""
        ...

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
        """Records and their numbers by bucket; records, bytes and hash of every bucket."""
        ...

    def enter(
        self, data: Bytes, offset: int, delimiter: bytes, numbers: Words | int, seed: int, to: Array
    ) -> int:
        """Entries of the next `len(to)` records of data; the bytes they take, -1: data end."""
        ...

    def sort(self, entries: Array) -> None:
        """Entries by key and tie-breaker, in place."""
        ...

    def gather(
        self, data: Bytes, delimiter: bytes, entries: Array, out: Bytes
    ) -> tuple[int, int, int]:
        """Copies records in the order of the entries while they fit: records, bytes, hash."""
        ...

    def hash(self, record: Bytes) -> int:
        """Of one record; the hash of several is the sum of theirs modulo 2^64."""
        ...


@cache
def loops() -> Loops:
    """The compiled ones where they can be had."""
    if native_function(__file__, "scan", "") is not None:
        return CompiledLoops()
    from kexue.data.shuffle.arrow_loops import ArrowLoops

    return ArrowLoops()


def at(array: Array | None) -> int | None:
    """Where an array begins."""
    return None if array is None else array.ctypes.data


class CompiledLoops:
    """`lines.c`; ctypes lets other threads run meanwhile."""

    name = "compiled"
    per_line = 40  # entry 24, number 8, interval in sorting 4, and four to spare
    spare = 0
    blocks = 5  # two read, one in the order of buckets, lengths and numbers 1.25

    def __init__(self) -> None:
        def function(name: str, signature: str, returns: str | None = None) -> Any:
            return native_function(__file__, name, signature, returns)

        self._scan = function("scan", "xnxnxnx", "long")
        self._scatter = function("scatter", "xxnxnnxnxxxxxxx")
        self._enter = function("enter", "xnnxnxnnnx", "long")
        self._sort = function("sort_entries", "xnx")
        self._gather = function("gather", "xnxnxnxnxx", "long")
        self._hash = function("hash_record", "xn", "long")

    def skip(self, block: Bytes, delimiter: bytes) -> int:
        used = np.zeros(1, np.int64)
        mark = np.frombuffer(delimiter, np.uint8)
        self._scan(at(block), len(block), at(mark), len(mark), None, 1 << 62, at(used))
        return int(used[0])

    def scan(self, block: Bytes, delimiter: bytes, lengths: Array) -> tuple[int, int]:
        used = np.zeros(1, np.int64)
        mark = np.frombuffer(delimiter, np.uint8)
        lines = self._scan(
            at(block), len(block), at(mark), len(mark), at(lengths), len(lengths), at(used)
        )
        return lines, int(used[0])

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
        size = int(levels[-1])
        bucket = np.empty(len(lengths), np.uint32)
        count, taken = np.empty(size, np.int64), np.empty(size, np.int64)
        place, total = np.empty(2 * size, np.int64), np.zeros(size, np.uint64)
        given, first = (None, numbers) if isinstance(numbers, int) else (numbers, 0)
        self._scatter(
            at(block), at(lengths), len(lengths), at(given), signed(first), signed(seed),
            at(levels), len(levels), at(bucket), at(count), at(taken), at(out), at(out_numbers),
            at(place), at(total),
        )  # fmt: skip
        return count, taken, total

    def enter(
        self, data: Bytes, offset: int, delimiter: bytes, numbers: Words | int, seed: int, to: Array
    ) -> int:
        mark = np.frombuffer(delimiter, np.uint8)
        given, first = (None, numbers) if isinstance(numbers, int) else (numbers, 0)
        used: int = self._enter(
            at(data), offset, len(data), at(mark), len(mark), at(given), signed(first), len(to),
            signed(seed), at(to),
        )  # fmt: skip
        return used

    def sort(self, entries: Array) -> None:
        heads = np.empty(len(entries) // 2 + 8192, np.int64)  # named: it lives through the call
        self._sort(at(entries), len(entries), at(heads))

    def gather(
        self, data: Bytes, delimiter: bytes, entries: Array, out: Bytes
    ) -> tuple[int, int, int]:
        mark = np.frombuffer(delimiter, np.uint8)
        written, total = np.zeros(1, np.int64), np.zeros(1, np.uint64)
        lines = self._gather(
            at(data), len(data), at(mark), len(mark), at(entries), len(entries), at(out), len(out),
            at(written), at(total),
        )  # fmt: skip
        return lines, int(written[0]), int(total[0])

    def hash(self, record: Bytes) -> int:
        return int(self._hash(at(record), len(record))) % (1 << 64)


def signed(number: int) -> int:
    """A 64-bit word as ctypes takes it."""
    return number - (1 << 64) if number >= 1 << 63 else number
