"""Where records go: one file, several numbered ones, or standard output; whole or not at all.

A file is written beside its final name under a temporary one; when everything is written and
verified all are renamed. Every part begins with the header. A place in the outputs (`Mark`) can be
written down and gone back to: compressed files end a member there, which all four formats allow.
"""

import errno
import io
import os
import select
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kexue.data.shuffle.packed import CODERS, compressor
from kexue.data.shuffle.part_names import is_part, older_parts, part_name

__all__ = ["Mark", "Outputs", "is_part", "older_parts", "part_name", "told", "write_all"]

PIECE = 1 << 20
MOST_PARTS = 100_000


@dataclass(frozen=True)
class Mark:
    """A place behind a whole record: part, bytes and records in it."""

    part: int = 0
    offset: int = 0
    lines: int = 0


class Outputs:
    """The outputs of a run.

    Args:
        output: final name, the pattern of several, or "-".
        header: at the head of every part.
        limits: records of each part; one part of any size: [None].
        fsync: ask the disk to keep the data before a file is renamed.
        partial: suffix of the temporary names, of this run alone.
    """

    def __init__(
        self,
        output: str,
        header: bytes,
        limits: list[int | None],
        *,
        fsync: bool = False,
        partial: str = "partial",
    ) -> None:
        self.output, self.stdout = output, output == "-"
        self.header, self.limits, self.fsync = header, limits, fsync
        self.several = limits != [None]
        if len(limits) > MOST_PARTS:
            raise ValueError(f"at most {MOST_PARTS:,} outputs can be made, not {len(limits):,}")
        parts = range(len(limits))
        self.names: tuple[str, ...] = (output,)
        if self.several:
            self.names = tuple(part_name(output, part, len(limits)) for part in parts)
        self.temporary = [
            str(Path(name).with_name(f".{Path(name).name}.{partial}")) for name in self.names
        ]
        suffix = Path(output).suffix.lstrip(".")
        self.kind = suffix if suffix in CODERS and not self.stdout else ""
        self.part, self.lines = 0, 0
        self.file: Any = None
        self.member: Any = None
        compressor(self.kind)  # a missing package is told before the work begins

    def room(self) -> int | None:
        """Records that the next `write` may have; None: any number. Goes on behind a full part."""
        while self.limits[self.part] == self.lines and self.part + 1 < len(self.limits):
            self.end_part()
            self.part, self.lines = self.part + 1, 0
        limit = self.limits[self.part]
        return None if limit is None else limit - self.lines

    def write(self, data: memoryview, lines: int) -> None:
        """Appends whole records, no more than there is room for.

        Raises:
            OSError: the disk is full or fails; the message names the file.
        """
        with told(self.name):
            if self.file is None:
                self.open(0)
            self.put(data)
            self.lines += lines

    @property
    def name(self) -> str:
        """Of the file that is being written."""
        return "standard output" if self.stdout else self.temporary[self.part]

    def open(self, offset: int) -> None:
        """Opens the part for writing behind `offset`; a new one gets its header."""
        if self.stdout:
            self.file = standard_output()
        else:
            # "r+b" keeps what stands before the offset
            mode = "r+b" if offset else "wb"
            self.file = Path(self.name).open(mode, buffering=0)  # noqa: SIM115
            if offset:  # cutting an empty file to nothing makes ext4 write it out when it is closed
                self.file.truncate(offset)
                self.file.seek(offset)
        if not offset and self.header:
            self.put(memoryview(self.header))

    def put(self, data: memoryview) -> None:
        """Bytes into the file, through the compressor if there is one."""
        if not self.kind:
            write_all(self.file, data)
            return
        if self.member is None:
            self.member = compressor(self.kind)
        for start in range(0, max(len(data), 1), PIECE):
            write_all(self.file, self.member.compress(data[start : start + PIECE]))

    def end_member(self) -> None:
        """Ends the compressed member, so that what follows can be read by itself."""
        if self.member is not None:
            write_all(self.file, self.member.flush())
            self.member = None

    def mark(self) -> Mark:
        """The place behind the last record, to go back to."""
        with told(self.name):
            self.end_member()
            if self.file is None or self.stdout:
                return Mark(self.part, 0, self.lines)
            if self.fsync:
                os.fsync(self.file.fileno())
            return Mark(self.part, self.file.tell(), self.lines)

    def go_back(self, mark: Mark) -> None:
        """Continues behind a mark of an earlier run.

        Raises:
            ValueError: the temporary files are no longer what they were.
        """
        for part in range(mark.part + bool(mark.offset)):
            path = Path(self.temporary[part])
            least = mark.offset if part == mark.part else 0
            if not path.exists() or path.stat().st_size < least:
                raise ValueError(f"{path}: is missing or shorter than it was; start anew")
        self.part, self.lines = mark.part, mark.lines
        if mark.offset:
            with told(self.name):
                self.open(mark.offset)

    def end_part(self) -> None:
        """Closes the open part; errors that come late are told here."""
        with told(self.name):
            if self.file is None:
                self.open(0)  # an empty part, with its header
            self.end_member()
            if self.stdout:
                self.file.flush()
            else:
                if self.kind and not self.file.tell():
                    self.put(memoryview(b""))
                    self.end_member()
                if self.fsync:
                    os.fsync(self.file.fileno())
                self.file.close()
            self.file = None

    def finish(self) -> None:
        """Closes all parts; those that no record reached hold the header alone."""
        self.end_part()
        while self.part + 1 < len(self.limits):
            self.part, self.lines = self.part + 1, 0
            self.end_part()

    def publish(self) -> None:
        """Gives all parts their final names; one that has it already, from a killed run, keeps it.

        An interrupt in between comes when all is done.
        """
        interrupt: BaseException | None = None
        part = 0
        while not self.stdout and part < len(self.limits):
            try:
                name, temporary = self.names[part], Path(self.temporary[part])
                if temporary.exists() or not Path(name).exists():
                    with told(name):
                        temporary.replace(name)
                part += 1
            except BaseException as error:
                if isinstance(error, Exception):
                    raise
                interrupt = error
        if self.fsync and not self.stdout:
            sync_folder(Path(self.names[0]).parent)
        if interrupt is not None:
            raise interrupt

    def discard(self) -> None:
        """Closes and removes what was written."""
        if self.file is not None and not self.stdout:
            with suppress(OSError):
                self.file.close()
        self.file = None
        for part in range(0 if self.stdout else len(self.limits)):
            Path(self.temporary[part]).unlink(missing_ok=True)


def standard_output() -> Any:
    """The stream itself where there is one, without Python's buffer before it."""
    try:
        sys.stdout.flush()
        return open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
    except (AttributeError, io.UnsupportedOperation):
        return sys.stdout.buffer


def sync_folder(folder: Path) -> None:
    """Has the disk keep the names in a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(file: Any, *data: Any) -> None:
    """All of the data; an unbuffered file may take less at a time."""
    if len(data) > 1:
        parts = [memoryview(one).cast("B") for one in data]
        done = os.writev(file.fileno(), parts)
        for part in parts:
            write_all(file, part[done:])
            done = max(0, done - len(part))
        return
    rest = memoryview(data[0])
    while len(rest):
        taken = file.write(rest)
        if taken is None:  # a pipe that somebody made not wait
            select.select([], [file], [])
            continue
        rest = rest[taken:]


class told:  # noqa: N801
    """Errors of a file become one line with its name; a full disk is named as such."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, BrokenPipeError) or not isinstance(error, OSError):
            return
        if self.name in str(error):
            raise error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            folder = Path(self.name).absolute().parent
            raise OSError(
                error.errno, f"{self.name}: the disk is full; free space on {folder}"
            ) from None
        raise OSError(error.errno, f"{self.name}: {error.strerror or error}") from None
