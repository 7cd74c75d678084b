"""What an experiment is: a claim, how to measure it, and an honest verdict.

A module `kexue.lab.sNN_name` holds one `EXPERIMENT` (or a tuple `EXPERIMENTS`):

    EXPERIMENT = Experiment(id="S01-assignment", system="S01", …, measure=measure)

`measure(seed, data)` computes the numbers, draws the picture and derives the verdict from the
numbers: a verdict is never written down in advance.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from re import fullmatch
from typing import Any

__all__ = ["Experiment", "Finding", "Number", "Verdict", "discover"]

Number = int | float | str


class Verdict(Enum):
    """What the numbers say about the claim."""

    HOLDS = "holds"
    PARTLY = "holds partly"
    FAILS = "does not hold here"
    OPEN = "cannot be judged here"
    """The data at hand are not those the claim is about."""

    @property
    def zh(self) -> str:
        """The verdict in Chinese."""
        words = ("成立", "部分成立", "本次不成立", "本次无法判断")
        return dict(zip(Verdict, words, strict=True))[self]


@dataclass(frozen=True)
class Finding:
    """What one run of an experiment found.

    Args:
        numbers: our numbers by name, in the order to show them; text for a number with its error.
        figure: the picture, inline SVG.
        verdict: derived from the numbers.
        comment_en: how the verdict came about, one to three sentences.
        comment_zh: the same in Chinese.
        names_zh: the names of the numbers in Chinese, where they differ.
    """

    numbers: Mapping[str, Number]
    figure: str
    verdict: Verdict
    comment_en: str
    comment_zh: str
    names_zh: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values for a result file."""
        return dict(vars(self)) | {"verdict": self.verdict.value}


@dataclass(frozen=True)
class Experiment:
    """A claim of an article and how to measure it here.

    Args:
        id: system and a word, such as `S01-assignment`.
        system: the system it belongs to, such as `S01`.
        title_en: its title.
        title_zh: its title in Chinese.
        claim_en: what is claimed, one sentence.
        claim_zh: the same in Chinese.
        published: the number or statement of the source.
        measure: computes the finding from a seed and an optional folder of data.
        published_zh: the number or statement in Chinese, where words are needed.
    """

    id: str
    system: str
    title_en: str
    title_zh: str
    claim_en: str
    claim_zh: str
    published: str
    measure: Callable[[int, Path | None], Finding]
    published_zh: str = ""

    def run(self, seed: int = 0, data: Path | None = None) -> Finding:
        """Measure; the same seed and data give the same finding."""
        return self.measure(seed, data)


def discover(package: str = "kexue.lab") -> list[Experiment]:
    """All experiments in the modules `sNN_*` of a package, by id."""
    found: dict[str, Experiment] = {}
    for module in sorted(one.name for one in iter_modules(import_module(package).__path__)):
        if not fullmatch(r"s\d\d_\w+", module):
            continue
        content = vars(import_module(f"{package}.{module}"))
        one = (content["EXPERIMENT"],) if "EXPERIMENT" in content else ()
        for experiment in (*one, *content.get("EXPERIMENTS", ())):
            if experiment.id in found:
                raise ValueError(f"two experiments are called {experiment.id!r}; rename one")
            found[experiment.id] = experiment
    return [found[key] for key in sorted(found)]
