"""Names of several outputs: `news.txt` → `news-00000.txt`, `news-00001.txt`, …"""

import os
import re
from pathlib import Path

__all__ = ["is_part", "older_parts", "part_name"]


def part_name(output: str, part: int, parts: int) -> str:
    """Of one of several outputs: `news.txt.gz` → `news-00000.txt.gz`.

    Example:
        >>> part_name("runs/news.txt.gz", 1, 2)
        'runs/news-00001.txt.gz'
    """
    before, behind = around_number(output)
    return f"{before}{part:0{max(5, len(str(parts - 1)))}}{behind}"


def around_number(output: str) -> tuple[str, str]:
    """What stands before and behind the number of a part."""
    name = Path(output).name
    stem, dot, rest = name.lstrip(".").partition(".")
    stem = name[: len(name) - len(name.lstrip("."))] + stem
    return str(Path(output).with_name(f"{stem}-")), dot + rest


def older_parts(output: str) -> list[str]:
    """Numbered files from 00000 on, without a gap, that stand there already."""
    found: list[str] = []
    before, behind = around_number(output)
    for digits in range(5, 20):
        number = 0
        while os.path.lexists(name := f"{before}{number:0{digits}}{behind}"):
            found.append(name)
            number += 1
    return found


def is_part(output: str, path: str) -> bool:
    """Whether an output of this name could have the path of another file as one of its parts."""
    before, behind = around_number(os.path.realpath(output))
    return bool(re.fullmatch(rf"{re.escape(before)}\d{{5,}}{re.escape(behind)}", path))
