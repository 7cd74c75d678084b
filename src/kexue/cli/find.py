"""`kexue find TEXT`: the index on the command line."""

import dataclasses
import difflib
import re
from enum import StrEnum
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from kexue.cli.console import console, fail, print_json
from kexue.systems import System, systems
from kexue.systems import find as find_systems

__all__ = ["Language", "find"]

_SHOWN = 8  # rows; more only hide the good ones


class Language(StrEnum):
    """Which language the table is written in."""

    en = "en"
    zh = "zh"


def find(
    text: Annotated[
        str,
        typer.Argument(
            help="An article number, an id, an arXiv id, a module or words in English or Chinese."
        ),
    ] = "",
    every: Annotated[
        bool, typer.Option("--all", help="Show every match; without TEXT the whole index.")
    ] = False,
    lang: Annotated[
        Language | None, typer.Option(help="Show the titles of one language; both if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every match as JSON.")] = False,
) -> None:
    """Find a method by article, name, role or paper, in English or Chinese.

    Example: kexue find 熵不变    kexue find 8739    kexue find "class imbalance" --lang en
    """
    if every and not text.strip():
        found = list(systems())
    else:
        try:
            found = find_systems(text)
        except ValueError:
            fail('what are you looking for? e.g. kexue find "class imbalance", or kexue find --all')
    if not found:
        fail(_nothing_found(text))
    if as_json:
        print_json([dataclasses.asdict(system) for system in found])
        return
    shown = found if every else found[:_SHOWN]
    out = console()
    out.print(_table(shown, lang))
    if len(found) == 1:
        _print_details(found[0], lang)
    if len(shown) < len(found):
        out.print(f"{len(found) - len(shown)} more: add --all")


def _table(rows: list[System], lang: Language | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", no_wrap=True)
    table.add_column("title", ratio=3, overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("module", overflow="fold")
    table.add_column("page", overflow="fold")
    for row in rows:
        titles = {Language.en: row.title_en, Language.zh: row.title_zh}
        title = titles[lang] if lang else f"{row.title_en}\n{row.title_zh}"
        page = row.docs_zh if lang is Language.zh else row.docs_en
        modules = "\n".join(f"kexue.{name}" for name in row.module)
        table.add_row(row.id, escape(title), row.status, modules, page if row.done else "")
    return table


def _print_details(row: System, lang: Language | None) -> None:
    """What it does and where to read about it, under the table of a single match."""
    lines = [] if lang is Language.zh else [row.summary_en]
    lines += [] if lang is Language.en else [row.summary_zh]
    lines += [f"https://kexue.fm/archives/{number}" for number in row.article]
    lines += [f"https://arxiv.org/abs/{number}" for number in row.paper]
    out = console()
    out.print()
    for line in lines:
        out.print(escape(line), soft_wrap=True)


def _nothing_found(text: str) -> str:
    """One line that names the nearest words of the index."""
    known: dict[str, str] = {}
    for row in systems():
        names = (row.id, row.title_en, row.title_zh, *row.keywords_en, *row.keywords_zh)
        parts = (word for name in names for word in re.split(r"[\s:,：，]+", name))
        modules = (part for name in row.module for part in name.split("."))
        for word in (*names, *parts, *modules):
            known.setdefault(word.casefold(), word)
    near = difflib.get_close_matches(text.casefold().strip(), [*known], n=3, cutoff=0.5)
    if not near:
        return f"nothing found for {text!r}; kexue find --all lists every system"
    return f"nothing found for {text!r}; did you mean {', '.join(known[word] for word in near)}?"
