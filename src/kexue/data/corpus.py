"""Records of a corpus, each knowing where it stands: every complaint names file, line and field.

A corpus file is either JSON lines (one value a line) or one JSON value. Both are read here as
`Record`s; whoever reads a field through `Record.get` or `Record.text` gets a checked value or a
`DataError` that says what stands there, what is needed and how to mend it.

Lines end at "\\n" alone: U+2028 and its like may stand inside a string.
"""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DataError", "Record", "existing_file", "read_json", "read_json_lines"]


class DataError(ValueError):
    """Bad input data: the message is one line, `file:line:field: problem; way out`."""


@dataclass(frozen=True, slots=True)
class Record:
    """One value of a corpus and its address.

    Args:
        path: the file it came from.
        position: line number (from 1) of a JSON-lines file, or a path such as `data[3].qas[0]`.
        value: the parsed JSON object.
    """

    path: Path
    position: str
    value: dict[str, Any]

    @property
    def where(self) -> str:
        """`file:line`, as error messages begin."""
        return f"{self.path}:{self.position}"

    def error(self, field: str, problem: str) -> DataError:
        """The complaint about one field, ready to raise."""
        return DataError(f"{self.where}:{field}: {problem}")

    def get(self, field: str, kind: type | tuple[type, ...]) -> Any:
        """The field's value, of the stated type.

        Raises:
            DataError: the field is missing or of another type.
        """
        if field not in self.value:
            present = ", ".join(self.value) or "none"
            raise self.error(field, f"field is missing (present: {present})")
        value = self.value[field]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(JSON_NAMES.get(k, k.__name__) for k in kinds)
            raise self.error(field, f"needs {wanted}, got {shorten(value)}")
        return value

    def identity(self, row: int) -> str:
        """The field `id` as a string, or the row's number where there is none.

        Raises:
            DataError: it is neither a string nor an integer.
        """
        return str(self.get("id", (str, int))) if "id" in self.value else str(row)

    def text(self, field: str) -> str:
        """A string field that holds more than white space.

        Raises:
            DataError: missing, not a string, or empty.
        """
        value: str = self.get(field, str)
        if not value.strip():
            raise self.error(field, "text is empty; remove the row or fill it in")
        return value

    def part(self, place: str, value: object) -> "Record":
        """What stands at a place inside this record, as a record of its own.

        Raises:
            DataError: it is no object.
        """
        position = f"{self.position}.{place}".lstrip(".")
        if not isinstance(value, dict):
            raise DataError(f"{self.path}:{position}: needs an object, got {shorten(value)}")
        return Record(self.path, position, value)


JSON_NAMES = {str: "a string", int: "an integer", list: "a list", dict: "an object"}


def shorten(value: object, limit: int = 60) -> str:
    """A value as JSON, cut to fit a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def existing_file(path: Path) -> Path:
    """The path itself, once it is sure that a plain file stands there.

    Raises:
        DataError: nothing there, a folder, or a zip archive; the message lists what is there.
    """
    if path.is_file():
        if zipfile.is_zipfile(path):
            raise DataError(
                f"{path}: this is a zip archive; unpack it first: "
                f"unzip {path} -d {path.with_suffix('')}"
            )
        return path
    folder = path.parent
    if not folder.is_dir():
        raise DataError(f"{path}: no such file, and no folder {folder} either")
    present = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
    raise DataError(f"{path}: no such file; {folder} holds {present}")


def read_json_lines(path: Path) -> Iterator[Record]:
    """The records of a JSON-lines file, one object a line; blank lines are passed over.

    Raises:
        DataError: no such file, a line that is not UTF-8, not JSON or not an object.
    """
    with existing_file(path).open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            yield Record(path, str(number), parse(raw, path, number))


def parse(raw: bytes, path: Path, number: int) -> dict[str, Any]:
    """One line as a JSON object, or the complaint about it."""
    try:
        value = json.loads(raw.rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: byte {error.start} is not UTF-8; convert the file: "
            f"iconv -f GB18030 -t UTF-8 {path.name}"
        ) from None
    except json.JSONDecodeError as error:
        hint = " (is the file one JSON value instead of one a line?)" if number == 1 else ""
        raise DataError(
            f"{path}:{number}: not JSON at column {error.colno}: {error.msg}{hint}"
        ) from None
    except RecursionError:
        raise DataError(f"{path}:{number}: not JSON that can be read: nested too deep") from None
    if b"\\ud" in raw.lower():
        refuse_surrogates(value, f"{path}:{number}")
    if not isinstance(value, dict):
        raise DataError(f"{path}:{number}: needs one JSON object a line, got {shorten(value)}")
    return value


def refuse_surrogates(value: Any, where: str) -> None:
    """Half a character, as an escape such as \\ud83d alone leaves it, cannot be tokenised.

    Raises:
        DataError: a string holds one.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("ascii", "backslashreplace").decode()
        raise DataError(f"{where}: {half} is half a character; remove it") from None


def read_json(path: Path) -> Any:
    """The one JSON value of a file.

    Raises:
        DataError: no such file, not UTF-8, or not JSON.
    """
    raw = existing_file(path).read_bytes()
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; convert the file") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON at column {error.colno}: {error.msg}"
        ) from None
    except RecursionError:
        raise DataError(f"{path}: not JSON that can be read: nested too deep") from None
    if b"\\ud" in raw.lower():
        refuse_surrogates(value, str(path))
    return value
