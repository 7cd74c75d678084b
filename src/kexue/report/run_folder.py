"""A run folder: what a command leaves behind, as plain files that are whole or absent.

    config.json  environment.json  results.json  <task>/metrics.jsonl  …  report.html

A file that is replaced is written under a temporary name in its own folder, flushed, synced and
renamed, so a reader sees the old file or the new one and never a half (`atomic_writer`). A log that
grows (`append_jsonl`) gets one whole line per call; when the disk fills up the line is taken back,
and when the machine dies in the middle of a line, the torn line is skipped by `read_jsonl` and
removed by the next `append_jsonl`.
"""

import errno
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

__all__ = ["RunFolder", "atomic_write_text", "atomic_writer"]


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
    with _explained(path):
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


class RunFolder:
    """The files of one run, by name relative to the folder.

    Args:
        path: the folder; it is made by the first write.

    Example:
        >>> import tempfile
        >>> run = RunFolder(tempfile.mkdtemp())
        >>> _ = run.append_jsonl("tnews/metrics.jsonl", {"step": 10, "loss": 2.1})
        >>> run.read_jsonl("tnews/metrics.jsonl")
        [{'step': 10, 'loss': 2.1}]
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def file(self, name: str) -> Path:
        """Where `name` lives: always inside the folder."""
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute():
            raise ValueError(f"a name inside the run folder is needed, got {name!r}")
        return self.path.joinpath(*parts)

    def exists(self, name: str) -> bool:
        """Whether the run has this file."""
        return self.file(name).is_file()

    def write_json(self, name: str, obj: object) -> Path:
        """Write `obj` as indented JSON; numbers that are not finite become null."""
        path = self.file(name)
        atomic_write_text(path, _json(obj, indent=2) + "\n")
        return path

    def read_json(self, name: str) -> Any:
        """Read a JSON file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not JSON; the message names file and line.
        """
        path = self.file(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno} is not JSON: {error.msg}") from None

    def append_jsonl(self, name: str, obj: object) -> Path:
        """Add one line to a growing log; either the whole line is in the file or nothing of it."""
        path = self.file(name)
        line = (_json(obj) + "\n").encode()
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b", buffering=0) as file:
                end = _end_of_whole_lines(file)
                file.truncate(end)
                try:
                    _write_all(file, line)
                except OSError:
                    file.truncate(end)
                    raise
        return path

    def read_jsonl(self, name: str) -> list[Any]:
        """Read a log; a last line without its end, left by a crash, is skipped.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a line is not JSON; the message names file and line.
        """
        path = self.file(name)
        rows = []
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(f"{path}:{number} is not JSON: {error}") from None
        return rows


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


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say of a full disk which file could not be written and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = "no space left to write this file (what was there before is kept); free some"
        raise OSError(error.errno, message, str(path)) from error


def _json(obj: object, indent: int | None = None) -> str:
    return json.dumps(_plain(obj), ensure_ascii=False, allow_nan=False, indent=indent)


def _plain(obj: object) -> object:
    """JSON's own types: paths as text, arrays and tensors as lists, NaN and infinity as null."""
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if obj is None or isinstance(obj, str | int):
        return obj
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple | set | frozenset):
        return [_plain(value) for value in obj]
    if isinstance(obj, os.PathLike):
        return str(obj)
    if hasattr(obj, "tolist"):
        return _plain(obj.tolist())
    raise TypeError(f"{type(obj).__name__} cannot be written as JSON: {obj!r}")
