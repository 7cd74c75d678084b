"""Files cut into ranges that tasks read apart, each of whole records (S09).

A plain file is cut anywhere; a range has the records that begin in it:

    border(p) = the first end of a delimiter at or behind p, and the content's own ends          (1)
    the range [a, b) has the bytes [border(a), border(b))                                        (2)

Two neighbours find the border between them independently. That is right if a delimiter cannot
overlap itself: where records end in "aaa" with the delimiter "aa" depends on all that is before. A
file with such a delimiter, or a compressed one, is read whole by one task.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kexue.data.shuffle.inputs import Inputs, missing
from kexue.data.shuffle.loops import Loops

__all__ = ["Slice", "Stream", "cut", "record_blocks", "settled"]

WINDOW = 1 << 20
BLOCK = 16 << 20
UNPACKED = 4
"""Bytes of content per byte of a compressed file, guessed to give tasks equal work."""
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Slice:
    """Some records of a file.

    Args:
        path: of the file.
        start: in bytes of the file.
        stop: in bytes of the file.
        begins: `start` is where the records of the file begin.
        ends: `stop` is where the file ends.
        whole: the file is one stream, header first; `start` and `stop` are of the file as it lies.
    """

    path: str
    start: int
    stop: int
    begins: bool = False
    ends: bool = False
    whole: bool = False


def cut(
    paths: Sequence[str],
    delimiter: bytes,
    header: int,
    range_bytes: int,
    loops: Loops,
    warn: Callable[[str], None] | None = None,
) -> tuple[list[list[Slice]], bytes]:
    """What each task reads, in the order of the records, and the header.

    Args:
        paths: plain or compressed files.
        delimiter: ends a record.
        header: lines at the head of every file.
        range_bytes: about as much for each task; small files share one.
        loops: find records.
        warn: receives a line for people.
    """
    overlaps = any(delimiter.startswith(delimiter[j:]) for j in range(1, len(delimiter)))
    shares: list[list[Slice]] = []
    room = 0
    with Inputs(paths, delimiter, loops, header, warn) as heads:
        for path in paths:
            heads.open_next()
            heads.close()
            size, skipped = Path(path).stat().st_size, heads.skipped[-1]
            whole = bool(heads.kinds[-1]) or overlaps
            pieces = 1 if whole else -(-(size - skipped) // range_bytes)
            for j in range(pieces):
                step = size - skipped
                start, stop = skipped + step * j // pieces, skipped + step * (j + 1) // pieces
                part = Slice(path, start, stop, j == 0, j + 1 == pieces)
                cost = stop - start
                if whole:
                    part = Slice(path, 0, size, True, True, whole=True)
                    cost = size * (UNPACKED if heads.kinds[-1] else 1)
                if cost > room or not shares:
                    shares.append([])
                    room = range_bytes
                shares[-1].append(part)
                room -= cost
        return shares, heads.header or b""


def settled(part: Slice, delimiter: bytes, longest: int) -> Slice:
    """The slice with its true borders: (2).

    Raises:
        ValueError: a record is longer than `longest`.
    """
    if part.whole:
        return part
    with Path(part.path).open("rb", buffering=0) as file:
        start = part.start if part.begins else border(file, part, part.start, delimiter, longest)
        stop = part.stop if part.ends else border(file, part, part.stop, delimiter, longest)
    size = Path(part.path).stat().st_size
    if stop > size or (part.ends and stop != size):
        raise ValueError(f"{part.path}: changed while it was read")
    return replace(part, start=start, stop=max(start, stop), ends=stop == size)


def border(file: BinaryIO, part: Slice, place: int, delimiter: bytes, longest: int) -> int:
    """Where the first record at or behind a place begins, or the file's end: (1)."""
    size = len(delimiter)
    at, before = max(0, place - size), b""
    file.seek(at)
    while window := file.read(WINDOW):
        data = before + window
        found = data.find(delimiter)
        if found >= 0:
            return at - len(before) + found + size
        at += len(window)
        before = data[len(data) - size + 1 :] if size > 1 else b""
        if at - place > longest:
            raise too_long(f"{part.path}, byte {place}", longest)
    return at


def too_long(where: str, longest: int) -> ValueError:
    """For a record that a task cannot hold."""
    return ValueError(
        f"{where}: a record here is longer than a task may hold, {longest / 1e6:,.0f} MB; give "
        "more --memory per task, or another --delimiter"
    )


class Stream:
    """The records of some slices, one behind the other, each with its delimiter.

    Args:
        slices: with their true borders.
        delimiter: added to a last record that lacks it.
        header: lines that a whole file begins with.
        loops: find records.
    """

    def __init__(
        self, slices: Sequence[Slice], delimiter: bytes, header: int, loops: Loops
    ) -> None:
        self.slices, self.delimiter = list(slices), delimiter
        self.header, self.loops = header, loops
        self.number = -1
        self.file: Any = None
        self.left, self.pending, self.missing = 0, b"", b""
        self.given = 0
        self.starts: list[int] = []

    def readinto(self, view: memoryview) -> int:
        """Fills a buffer as far as the records go; 0 only at their end.

        Raises:
            ValueError: a file is damaged, or has become shorter.
        """
        filled = 0
        while filled < len(view):
            if self.pending:
                size = min(len(self.pending), len(view) - filled)
                view[filled : filled + size] = self.pending[:size]
                self.pending = self.pending[size:]
            else:
                if self.file is None and not self.open_next():
                    break
                size = self.read(view[filled:])
                if size == 0:
                    self.close()
            filled += size
            self.given += size
        return filled

    def open_next(self) -> bool:
        """Opens the next slice; False behind the last one."""
        self.number += 1
        if self.number == len(self.slices):
            self.number -= 1
            return False
        part = self.slices[self.number]
        self.starts.append(self.given)
        if part.whole:
            self.file = Inputs([part.path], self.delimiter, self.loops, self.header)
            return True
        self.file = Path(part.path).open("rb", buffering=0)  # noqa: SIM115
        self.left, self.missing = part.stop - part.start, b""
        if part.ends and self.left:
            self.file.seek(max(part.start, part.stop - len(self.delimiter)))
            tail = self.file.read(len(self.delimiter))
            self.missing = b"" if tail == self.delimiter else missing(tail, self.delimiter)
        self.file.seek(part.start)
        return True

    def read(self, view: memoryview) -> int:
        """As much of the open slice as one call gives; 0 at its end."""
        part = self.slices[self.number]
        if part.whole:
            return int(self.file.readinto(view))
        if not self.left:
            self.pending, self.missing = self.missing, b""
            return 0
        size = self.file.readinto(view[: self.left])
        if not size:
            raise ValueError(f"{part.path}: became shorter while it was read")
        self.left -= size
        return int(size)

    def close(self) -> None:
        """Closes the open slice."""
        if self.file is not None:
            self.file.close()
        self.file = None

    def where(self, offset: int) -> str:
        """`file, byte n` of a place in the stream, for people."""
        number = max(j for j, start in enumerate(self.starts) if start <= offset or j == 0)
        part = self.slices[number]
        if part.whole:
            return f"{part.path}, byte {offset - self.starts[number]} of its records"
        return f"{part.path}, byte {part.start + offset - self.starts[number]}"


def record_blocks(
    stream: Stream, delimiter: bytes, loops: Loops, longest: int, block: int = BLOCK
) -> Iterator[Array]:
    """Lengths of the records of a stream, a block at a time.

    Raises:
        ValueError: a record is longer than `longest`.
    """
    buffer, have = np.empty(block, np.uint8), 0
    lengths = np.empty(block // 16, np.uint32)
    while read := stream.readinto(buffer.data[have:]):
        have, at = have + read, 0
        while True:
            lines, used = loops.scan(buffer[at:have], delimiter, lengths)
            if not lines:
                break
            if int(lengths[:lines].max()) > longest:
                first = int(np.argmax(lengths[:lines] > longest))
                start = stream.given - have + at + int(lengths[:first].sum(dtype=np.int64))
                raise too_long(stream.where(start), longest)
            yield lengths[:lines]
            at += used
        if have - at > longest:
            raise too_long(stream.where(stream.given - have + at), longest)
        rest = buffer[at:have]
        if len(rest) == len(buffer):
            buffer = np.empty(2 * len(rest), np.uint8)
        buffer[: len(rest)] = rest.copy()
        have = len(rest)
