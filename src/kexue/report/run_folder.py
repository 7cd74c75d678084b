"""A run folder: what a command leaves behind, as plain files that are whole or absent.

    config.json  environment.json  results.json  <task>/metrics.jsonl  …  report.html

How they stay whole is `kexue.data.files`: a file is replaced in one step, a log grows by whole
lines, and a last line torn by a crash is skipped by `read_jsonl`.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kexue.data.files import append_line, atomic_write_text

__all__ = ["RunFolder"]


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
        append_line(path, _json(obj))
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
