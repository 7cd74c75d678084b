"""Files that are whole or absent, and logs whose lines are whole or absent.

A file that is replaced is written under a temporary name in its own folder, flushed, synced and
renamed, so a reader sees the old file or the new one and never a half (`atomic_writer`). A log
that grows gets one whole line per call (`append_line`); when the disk fills up the line is taken
back, and a line torn by a crash is removed by the next call.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

__all__ = ["append_line", "atomic_write_text", "atomic_writer", "explained"]


@contextmanager
def atomic_writer(path: Path | str) -> Iterator[TextIO]:
    """Open `path` for writing UTF-8 text that appears under this name only once it is complete.

    Args:
        path: the final name; its folder is made when missing.

    Raises:
        OSError: the text could not be written; the earlier file, if any, is unchanged and no
            temporary file is left. A full disk is named as such.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "scores.txt"
        >>> with atomic_writer(path) as file:
        ...     _ = file.write("tnews 57.4")
        >>> path.read_text(encoding="utf-8")
        'tnews 57.4'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("x", encoding="utf-8", newline="\n")
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.close()
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                file.close()  # flushes once more, and fails once more on a full disk
            temporary.unlink(missing_ok=True)
            raise


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write `text` as the whole content of `path`; see `atomic_writer`."""
    with atomic_writer(path) as file:
        file.write(text)


def append_line(path: Path, line: str) -> None:
    """Add one line to a growing log; either the whole line is in the file or nothing of it.

    Raises:
        OSError: it could not be written; the lines before it are still there.
    """
    data = line.encode() + b"\n"
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            end = _end_of_whole_lines(file)
            file.truncate(end)
            try:
                _write_all(file, data)
            except OSError:
                file.truncate(end)
                raise


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say of a full disk which file could not be written and what to do.

    Writers in C++ and Rust (torch, safetensors, tokenizers) raise something else than OSError when
    the disk is full, so for those the disk itself is asked.
    """
    message = "no space left to write this file (what was there before is kept); free some"
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(error.errno, message, str(path)) from error
    except Exception as error:
        if "No space left" not in str(error) and not _is_full(path):
            raise
        raise OSError(errno.ENOSPC, message, str(path)) from error


def _is_full(path: Path) -> bool:
    """Whether hardly a page is free where `path` lies."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free < 1 << 16


def _end_of_whole_lines(file: Any) -> int:
    """Length of the file up to and with its last line break, found from the end."""
    position = int(file.seek(0, os.SEEK_END))
    while position > 0:
        start = max(0, position - 4096)
        file.seek(start)
        found = file.read(position - start).rfind(b"\n")
        if found >= 0:
            return start + int(found) + 1
        position = start
    return 0


def _write_all(file: Any, data: bytes) -> None:
    """An unbuffered write may take only a part, for example just before the disk is full."""
    while data:
        data = data[file.write(data) :]
