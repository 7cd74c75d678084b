"""The index: every system of kexue, and how to find one.

People come with an article in mind ("8823"), a name ("Tiger", "熵不变"), a role ("optimizer",
"类别不平衡") or a paper ("2104.09864"). `systems` reads `systems.toml`, `find` ranks its rows.

This is the lowest layer of the package: the standard library only, so every other part may ask
the index and nothing heavy is imported by asking.

Score of one word of the query for one system, the best of:

    100   the id (S07, s7), an article number or an arXiv id        exact
     90   a whole title, keyword or module name                     exact
     60   part of a title or of the module path
     40   part of a keyword
     15   part of a summary

A query of several words scores as a whole phrase, plus its weakest word if every word is matched;
a change between Latin and Chinese script counts as a blank, words like "the" as none. Ties keep
the order of the index.
"""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

__all__ = ["System", "find", "systems"]

_FILLERS = frozenset(["a", "an", "and", "for", "in", "of", "on", "the", "to", "with"])
_EXACT_NUMBER, _EXACT_NAME, _IN_TITLE, _IN_KEYWORD, _IN_SUMMARY = 100, 90, 60, 40, 15


@dataclass(frozen=True)
class System:
    """One row of the index.

    Args:
        id: "S01" to "S38".
        title_en: what it is, in English.
        title_zh: the title of the article on kexue.fm, or a plain Chinese one.
        article: article numbers on kexue.fm, the main one first; may be empty.
        paper: arXiv ids.
        module: modules under `kexue.`, for example "losses.flat_nce".
        test: paths of its tests under the repository root.
        lab: ids of its experiments.
        docs_en: its English page under the repository root.
        docs_zh: its Chinese page.
        status: "done" or "planned".
        keywords_en: words people search for.
        keywords_zh: the same in Chinese.
        summary_en: one line.
        summary_zh: one line in Chinese.
    """

    id: str
    title_en: str
    title_zh: str
    article: tuple[str, ...]
    paper: tuple[str, ...]
    module: tuple[str, ...]
    test: tuple[str, ...]
    lab: tuple[str, ...]
    docs_en: str
    docs_zh: str
    status: str
    keywords_en: tuple[str, ...]
    keywords_zh: tuple[str, ...]
    summary_en: str
    summary_zh: str

    @property
    def role(self) -> str:
        """The folder of the first module: "optim", "losses", …"""
        return self.module[0].split(".")[0]

    @property
    def done(self) -> bool:
        """Whether it can be used today."""
        return self.status == "done"


@cache
def systems() -> tuple[System, ...]:
    """All systems in the order of their ids.

    Example:
        >>> [system.id for system in systems()][:2], systems()[28].title_zh
        (['S01', 'S02'], 'Tiger：一个“抠”到极致的优化器')
    """
    text = files("kexue").joinpath("systems.toml").read_text(encoding="utf-8")
    return tuple(_system(row) for row in tomllib.loads(text)["system"])


def find(text: str) -> list[System]:
    """The systems that `text` may mean, best first; empty if none does.

    Args:
        text: an id ("S07", "s7"), an article number or its address, an arXiv id, a module name,
            or words in English or Chinese. Case and width of characters do not matter.

    Raises:
        ValueError: nothing is left of `text` once blanks are removed.

    Example:
        >>> [system.id for system in find("s7")], find("熵不变")[0].id, find("8739")[0].id
        (['S07'], 'S07', 'S01')
    """
    query = _plain(text)
    if not query:
        raise ValueError(f"give a word, an id or an article number to find, got {text!r}")
    number = re.search(r"(?:archives|abs|arxiv|pdf)[/:] ?(\d{4}\.\d{4,5}|\d{4,5})(?!\d)", query)
    if number:  # an address of an article or a paper stands for its number
        query = number[1]
    scored = [(_score(system, query), system) for system in systems()]
    return [system for score, system in sorted(scored, key=lambda pair: -pair[0]) if score > 0]


def _system(row: dict[str, Any]) -> System:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return System(**fields)


def _plain(text: str) -> str:
    """Lower case, one blank between words, full-width characters made narrow, no title marks."""
    narrow = "".join(chr(ord(c) - 0xFEE0) if "！" <= c <= "～" else c for c in text)
    return " ".join(re.sub("[《》\u3000]", " ", narrow).casefold().split())


def _score(system: System, query: str) -> int:
    whole = _score_word(system, query)
    words = [word for word in re.findall(r"[!-~]+|[^ -~]+", query) if word not in _FILLERS]
    if len(words) <= 1:
        return max(whole, _score_word(system, words[0]) if words else 0)
    return whole + min(_score_word(system, word) for word in words)


def _score_word(system: System, word: str) -> int:
    if re.fullmatch(r"s\d{1,2}", word):
        return _EXACT_NUMBER if int(word[1:]) == int(system.id[1:]) else 0
    if word in (*system.article, *system.paper):
        return _EXACT_NUMBER
    if re.fullmatch(r"[\d.]+", word) and len(word) >= 4:
        return 0  # a number is looked up, not searched for inside texts
    titles = [_plain(system.title_en), _plain(system.title_zh)]
    modules = [part for name in system.module for part in _module_names(name)]
    keywords = [_plain(keyword) for keyword in (*system.keywords_en, *system.keywords_zh)]
    if word in (*titles, *modules, *keywords):
        return _EXACT_NAME
    if any(_holds(title, word) for title in (*titles, *modules)):
        return _IN_TITLE
    if any(_holds(keyword, word) for keyword in keywords):
        return _IN_KEYWORD
    summaries = (_plain(system.summary_en), _plain(system.summary_zh))
    return _IN_SUMMARY if any(_holds(summary, word) for summary in summaries) else 0


def _module_names(name: str) -> tuple[str, ...]:
    """`losses.flat_nce` is also called `kexue.losses.flat_nce`, `flat_nce` and `losses`."""
    return (name, f"kexue.{name}", *name.split("."))


def _holds(text: str, word: str) -> bool:
    """Whether `text` contains `word`; Latin letters must begin a word, one or two be all of it."""
    if not word.isascii():
        return word in text
    end = r"(?![a-z0-9])" if len(word) <= 2 else ""
    return re.search(rf"(?<![a-z0-9]){re.escape(word)}{end}", text) is not None
