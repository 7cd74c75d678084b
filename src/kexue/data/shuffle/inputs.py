"""Records of many files as one stream of bytes, each with its delimiter.

Files are given as paths, patterns or `-` for standard input, compressed or not (told by their first
bytes). A last record without its delimiter gets it, so that two files never grow together; where
the delimiter has several bytes and the file ends within one, the missing rest is added. Header
lines are taken off: those of the first file that has any are kept for the outputs, those of the
others are dropped, and it is told if they differ.
"""

import io
import sys
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from lzma import LZMAError
from pathlib import Path
from typing import Any

import numpy as np

from kexue.data.shuffle.input_paths import expand, head_of, regular, unpacking_memory
from kexue.data.shuffle.loops import Loops
from kexue.data.shuffle.packed import HEAD, Unpacked, kind_of

__all__ = ["Inputs", "expand", "unpacking_memory"]

BROKEN = (EOFError, zlib.error, LZMAError, OSError, ValueError)
PIECE = 1 << 16
LONGEST_HEADER = 1 << 24


class Prefixed(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, file: Any) -> None:
        self.head, self.file = head, file

    def readable(self) -> bool:
        return True

    def readinto(self, to: Any) -> int:
        if not self.head:
            return int(self.file.readinto(to) or 0)
        size = min(len(to), len(self.head))
        to[:size], self.head = self.head[:size], self.head[size:]
        return size


class Inputs:
    """All inputs as one stream.

    Args:
        paths: from `expand`.
        delimiter: ends a record; any bytes but none.
        loops: find records.
        header: lines at the head of every file that are no records.
        warn: receives a line for people.
    """

    def __init__(
        self,
        paths: Sequence[str],
        delimiter: bytes,
        loops: Loops,
        header: int = 0,
        warn: Any = None,
    ) -> None:
        self.paths, self.delimiter, self.loops = list(paths), delimiter, loops
        self.header_lines, self.warn = header, warn or (lambda text: None)
        self.header: bytes | None = None
        self.window = unpacking_memory(paths)
        self.files = all(map(regular, paths))
        self.total = sum(Path(path).stat().st_size for path in paths) if self.files else 0
        self.packed = any(kind_of(head_of(path)) for path in paths)
        self.number = -1
        self.raw: Any = None
        self.file: Any = None
        self.pending = b""
        self.tail = b""  # behind the last delimiter, shorter than one
        self.complete = True
        self.overlaps = any(delimiter.startswith(delimiter[j:]) for j in range(1, len(delimiter)))
        self.behind = 0  # bytes of the files that were read to their end
        self.given = 0  # bytes handed out
        self.starts: list[int] = []  # in the stream, of each file
        self.skipped: list[int] = []  # header bytes of each file
        self.kinds: list[str] = []

    def __enter__(self) -> "Inputs":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file that is open; standard input belongs to others."""
        if self.raw is not None and self.paths[self.number] != "-":
            self.raw.close()
        self.file = self.raw = None

    def size(self) -> int | None:
        """Bytes of all inputs, delimiters added, or None where only reading tells."""
        if self.packed or not self.files:
            return None
        return self.total + len(self.delimiter) * len(self.paths)

    def progress(self) -> tuple[int, int] | None:
        """Bytes of the files read so far, and bytes of all files; None for streams."""
        if not self.files:
            return None
        return self.behind + (0 if self.raw is None else self.raw.tell()), self.total

    def readinto(self, view: memoryview) -> int:
        """Fills a buffer as far as the stream goes; 0 only at its end or for an empty buffer.

        Raises:
            ValueError: a compressed file is damaged; the file is named.
            OSError: a file cannot be read.
        """
        filled = 0
        while filled < len(view):
            if self.pending:
                size = min(len(self.pending), len(view) - filled)
                view[filled : filled + size] = self.pending[:size]
                self.pending = self.pending[size:]
            elif self.file is not None:
                size = self.read(view[filled:])
                if size:
                    self.remember(view[filled : filled + size])
                else:
                    self.end_file()
            elif self.open_next():
                continue
            else:
                break
            filled += size
            self.given += size
        return filled

    def read(self, view: memoryview) -> int:
        """As much of the open file as one call gives."""
        try:
            return int(self.file.readinto(view) or 0)
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise OSError(
                    error.errno, f"{self.name}: cannot be read: {error.strerror}"
                ) from None
            kind = self.kinds[-1] or "plain"
            raise ValueError(f"{self.name}: this {kind} file is damaged: {error}") from None

    def remember(self, read: memoryview) -> None:
        """Whether the last record of what was read so far has its delimiter."""
        size = len(self.delimiter)
        if not self.overlaps:
            self.tail = (self.tail + bytes(read[-size:]))[-size:]
            self.complete = self.tail == self.delimiter
            return
        # "aa" ends the first two letters of "aaa" only: delimiters are to be counted off in turn
        across = (self.tail + bytes(read[: size - 1])).find(self.delimiter)
        start = across + size - len(self.tail) if across >= 0 else 0
        block = np.frombuffer(read, np.uint8)
        used = start + self.loops.skip(block[start:], self.delimiter)
        before = b"" if used else self.tail
        self.tail = (before + bytes(read[max(used, len(read) - size + 1) :]))[1 - size :]
        self.complete = used == len(read)

    @property
    def name(self) -> str:
        """Of the file that is open, for people."""
        path = self.paths[self.number]
        return "standard input" if path == "-" else path

    def open_next(self) -> bool:
        """Opens the next file and takes its header off; False behind the last one."""
        if self.number + 1 == len(self.paths):
            return False
        self.number += 1
        path = self.paths[self.number]
        self.kinds.append("")
        self.raw = sys.stdin.buffer if path == "-" else Path(path).open("rb")  # noqa: SIM115
        self.file = self.raw
        head = bytearray(HEAD)
        have = 0
        while have < HEAD and (size := self.read(memoryview(head)[have:])):
            have += size  # a pipe may give one byte at a time
        self.file = Prefixed(bytes(head[:have]), self.raw)
        self.kinds[-1] = kind_of(bytes(head[:have]))
        if self.kinds[-1]:
            self.file = Unpacked(self.file, self.kinds[-1], self.window)
        self.starts.append(self.given)
        self.tail, self.complete = b"", True
        self.skipped.append(self.take_header() if self.header_lines else 0)
        return True

    def take_header(self) -> int:
        """Reads the header lines; what was read beyond them waits in `pending`."""
        read, end, found = b"", 0, 0
        for _ in range(self.header_lines):
            while (found := read.find(self.delimiter, end)) < 0:
                piece = bytearray(PIECE)
                size = self.read(memoryview(piece))
                if size == 0:
                    break
                read += piece[:size]
                if len(read) > LONGEST_HEADER:
                    raise ValueError(
                        f"{self.name}: its {self.header_lines} header lines are longer than 16 MB; "
                        "is the delimiter right?"
                    )
            if found < 0:
                break
            end = found + len(self.delimiter)
        if found < 0 and end < len(read):
            read += missing(read[end:], self.delimiter)
            end = len(read)
        head, self.pending = read[:end], read[end:]
        if self.pending:
            self.remember(memoryview(self.pending))
        if self.header is None and head:
            self.header = head
        elif head and head != self.header:
            self.warn(f"{self.name}: its header differs from the first file's and is dropped")
        return end

    def end_file(self) -> None:
        """Adds what is missing of the last delimiter and closes the file."""
        if not self.complete:
            self.pending = missing(self.tail, self.delimiter)
        if self.files:
            self.behind += self.raw.tell()
        self.close()

    def where(self, offset: int) -> str:
        """`file, byte n` of a place in the stream, for people."""
        number = max(0, bisect_right(self.starts, offset) - 1)
        path = self.paths[number]
        inside = offset - self.starts[number] + self.skipped[number]
        unpacked = " of its content" if self.kinds[number] else ""
        return f"{'standard input' if path == '-' else path}, byte {inside}{unpacked}"


def missing(tail: bytes, delimiter: bytes) -> bytes:
    r"""What a record that ends with `tail` lacks of its delimiter.

    Example:
        >>> missing(b"the end\n", b"\n\n"), missing(b"the end", b"\n\n")
        (b'\n', b'\n\n')
    """
    begun = next(k for k in range(len(delimiter) - 1, -1, -1) if tail.endswith(delimiter[:k]))
    return delimiter[begun:]
