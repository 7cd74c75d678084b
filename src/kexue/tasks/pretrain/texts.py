"""Where the texts of a language model come from: files, or the built-in look-alike.

    mini                     made by the program, no network
    poems/                   a folder with train.jsonl and dev.jsonl, or train.txt and dev.txt
    novel.txt, news.jsonl    one file; every fiftieth text, chosen by its bytes, is kept for dev

A `.jsonl` line is an object with a string `text`; a `.txt` line is a text.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path

from kexue.data.corpus import DataError, existing_file, read_json_lines
from kexue.data.mini.texts import mini_texts

__all__ = ["Texts"]

ENDINGS = (".jsonl", ".txt")
DEV_SHARE = 50


class Texts:
    """Training and dev texts.

    Args:
        data: "mini", a folder or a file.

    Raises:
        DataError: nothing of that kind stands there.

    Example:
        >>> next(Texts("mini").read("dev"))[-1]
        '。'
    """

    def __init__(self, data: str | Path) -> None:
        self.path = None if data == "mini" else Path(data)
        if self.path is not None and not self.path.exists():
            raise DataError(f"{data}: no such file or folder; give mini, a folder or a file")
        for split in ("train", "dev"):
            self.contents(split)

    def contents(self, split: str) -> list[object]:
        """What the texts of a split follow from: a file (hashed by its bytes), or a version.

        Raises:
            DataError: the folder has no file for the split, or the file's ending is unknown.
        """
        if self.path is None:
            return ["mini texts", 1, split]
        if self.path.is_dir():
            candidates = [self.path / f"{split}{ending}" for ending in ENDINGS]
            found = [path for path in candidates if path.is_file()]
            if not found:
                names = " or ".join(path.name for path in candidates)
                raise DataError(f"{self.path}: needs {names}")
            return [found[0], split]
        if self.path.suffix not in ENDINGS:
            raise DataError(f"{self.path}: needs a name that ends in {' or '.join(ENDINGS)}")
        return [existing_file(self.path), split]

    def read(self, split: str) -> Iterator[str]:
        """The texts of a split, in the order of the file; blank ones are passed over.

        Raises:
            DataError: a line that cannot be read, with its number.
        """
        file = self.contents(split)[0]
        if not isinstance(file, Path):
            yield from mini_texts("dev", 400) if split == "dev" else mini_texts("train", 6000)
            return
        for text in self.lines(file):
            kept_for_dev = zlib.crc32(text.encode()) % DEV_SHARE == 0
            if file != self.path or kept_for_dev == (split == "dev"):
                yield text

    @staticmethod
    def lines(file: Path) -> Iterator[str]:
        """The texts of one file."""
        if file.suffix == ".jsonl":
            for record in read_json_lines(file):
                text: str = record.get("text", str)
                if text.strip():
                    yield text
            return
        with file.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{file}:{number}: byte {error.start} is not UTF-8; convert the file: "
                        f"iconv -f GB18030 -t UTF-8 {file.name}"
                    ) from None
                if text.strip():
                    yield text
