"""Paths and patterns that name the inputs, and what can be told of a file before it is read."""

import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kexue.data.shuffle.packed import HEAD, window_of

__all__ = ["expand", "head_of", "regular", "unpacking_memory"]

STREAM_WINDOW = 10 << 20
"""For unpacking a stream, of which nothing is known before it is read."""


def expand(inputs: str | Path | Sequence[str | Path]) -> list[str]:
    """The files that paths and patterns stand for, patterns in sorted order; "-" stays.

    Raises:
        ValueError: nothing is given, "-" twice, or a folder.
        FileNotFoundError: no such file, or a pattern that nothing matches.
        PermissionError: a file may not be read.
    """
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not given:
        raise ValueError("name at least one input file, or - for standard input")
    found: list[str] = []
    for one in map(str, given):
        if one == "-":
            if "-" in found:
                raise ValueError("standard input (-) can be read once only")
            if sys.stdin is None:
                raise ValueError("standard input is closed")
            found.append(one)
        elif Path(one).exists():
            found.append(one)
        elif glob.has_magic(one):
            matches = sorted(glob.glob(one, recursive=True))  # noqa: PTH207
            matches = [match for match in matches if not Path(match).is_dir()]
            if not matches:
                raise FileNotFoundError(f"{one}: no file matches")
            found += matches
        else:
            raise FileNotFoundError(f"{one}: no such file")
    for path in found:
        if path != "-" and Path(path).is_dir():
            raise ValueError(f"{path}: is a folder; give its files, such as '{path}/*'")
        if path != "-" and not os.access(path, os.R_OK):
            raise PermissionError(f"{path}: may not be read")
    return found


def regular(path: str) -> bool:
    """Whether this is a file that can be read more than once."""
    return path != "-" and Path(path).is_file()


def head_of(path: str) -> bytes:
    """First bytes of a file; none of a stream, which could not be read again."""
    if not regular(path):
        return b""
    with Path(path).open("rb") as file:
        return file.read(HEAD)


def unpacking_memory(paths: Sequence[str]) -> int:
    """Bytes that the largest decompressor among these files needs."""
    return max(window_of(head_of(path)) if regular(path) else STREAM_WINDOW for path in paths)
