"""One thing to distrust or to know, found in a network (S04) or in a table of scores (S13)."""

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """Something suspicious: how bad, where, and why, in both languages."""

    level: str
    where: str
    en: str
    zh: str
