"""The scores of a CLUE run as rows and means, for the terminal and for the page.

For the scores x_1 … x_n of n tasks, in percent:

    arithmetic mean  (1/n) Σ x_i      geometric mean  (Π x_i)^(1/n)      harmonic mean  n / Σ 1/x_i

With several seeds a row holds mean, standard deviation (n − 1 in the denominator), minimum and
maximum over the seeds. The means over tasks are taken for each seed that has every task, and then
averaged. A score of zero makes the geometric and the harmonic mean of its seed zero.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kexue.probability.means import power_mean

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Means",
    "Row",
    "Spread",
    "clue_means",
    "clue_table",
    "finite",
    "print_clue_table",
    "zero_words",
]

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """A number over seeds."""

    mean: float
    deviation: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Mean, standard deviation and range of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), deviation, min(values), max(values), len(values))

    @property
    def range(self) -> str:
        """From the lowest to the highest."""
        return f"{self.low:.1f}–{self.high:.1f}"


@dataclass(frozen=True)
class Row:
    """One task over its seeds; None is a number that the results do not hold."""

    task: str
    metric: str
    score: Spread | None
    others: dict[str, float]
    chance: float | None
    best_epoch: str
    seconds: float | None
    tokens_per_second: float | None
    samples_per_second: float | None
    train_examples: int | None
    dev_examples: int | None


@dataclass(frozen=True)
class Means:
    """Three means over tasks.

    Args:
        arithmetic, geometric, harmonic: over the seeds.
        tasks: how many.
        zero: the tasks that scored zero, per seed; the seed is "" where there is only one.
    """

    arithmetic: Spread
    geometric: Spread
    harmonic: Spread
    tasks: int
    zero: tuple[tuple[str, tuple[str, ...]], ...] = ()


def finite(value: object) -> float | None:
    """The value as a number, or None if it is none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def score(result: Result) -> float | None:
    """The main score of one result in percent."""
    scores = result.get("scores")
    return finite(scores.get(result.get("metric"))) if isinstance(scores, Mapping) else None


def clue_table(results: Sequence[Result]) -> list[Row]:
    """One row per task, in the order in which tasks first appear."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(str(result.get("task", "?")), []).append(result)
    return [_row(task, group) for task, group in groups.items()]


def clue_means(results: Sequence[Result]) -> Means | None:
    """The means over tasks, or None without any score.

    Example:
        >>> def result(task, score):
        ...     return {"task": task, "metric": "accuracy", "scores": {"accuracy": score}}
        >>> means = clue_means([result("tnews", 40.0), result("wsc", 90.0)])
        >>> [round(m.mean, 2) for m in (means.arithmetic, means.geometric, means.harmonic)]
        [65.0, 60.0, 55.38]
    """
    by_seed: dict[str, dict[str, float]] = {}
    for result in results:
        if (value := score(result)) is not None:
            by_seed.setdefault(str(result.get("seed")), {})[str(result.get("task", "?"))] = value
    if not by_seed:
        return None
    tasks = {task for scores in by_seed.values() for task in scores}
    known = {seed: scores for seed, scores in by_seed.items() if len(scores) == len(tasks)}
    if not known:
        known = {"": {row.task: row.score.mean for row in clue_table(results) if row.score}}
    complete = [list(scores.values()) for scores in known.values()]
    zero = [
        (seed if len(known) > 1 else "", names)
        for seed, scores in known.items()
        if (names := tuple(task for task in scores if scores[task] <= 0))
    ]
    return Means(
        Spread.of([_mean(values, "arithmetic") for values in complete]),
        Spread.of([_mean(values, "geometric") for values in complete]),
        Spread.of([_mean(values, "harmonic") for values in complete]),
        len(tasks),
        tuple(zero),
    )


def zero_words(zero: Sequence[tuple[str, Sequence[str]]]) -> tuple[str, str]:
    """Which scores of zero make two of the means zero, in English and Chinese.

    Example:
        >>> zero_words([("1", ["cluener"])])[0]
        'geometric and harmonic mean of seed 1 count as 0: cluener scored 0'
    """
    english, chinese = [], []
    for seed, tasks in zero:
        of, whose = (f" of seed {seed}", f"种子 {seed} 的") if seed else ("", "")
        names = ", ".join(tasks)
        english.append(f"geometric and harmonic mean{of} count as 0: {names} scored 0")
        chinese.append(f"{whose}几何平均与调和平均按 0 计：{'、'.join(tasks)} 的得分为 0")
    return "; ".join(english), "；".join(chinese)


WORTH = ("task", "score", "metric", "± sd", "chance", "min–max", "epoch", "time", "tokens/s")
"""The columns; on a narrow terminal the last of these go first."""


def print_clue_table(results: Sequence[Result], console: "Console") -> None:
    """Print the table and its means on a rich console; a narrow one gets fewer columns."""
    from rich.table import Table

    rows, means = clue_table(results), clue_means(results)
    several = max((row.score.count for row in rows if row.score), default=1) > 1
    gap = 1 if several else 2  # fits 80 columns
    columns = _columns(rows, several)
    width = {name: max(map(len, (name, *cells))) for name, cells in columns.items()}
    for name in reversed(WORTH[2:]):
        if sum(width[one] + gap for one in columns) - gap <= console.width:
            break
        columns.pop(name, None)
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    for name in columns:
        side: Literal["left", "right"] = "left" if name in ("task", "metric") else "right"
        least = width[name] if name == "score" else None
        table.add_column(name, justify=side, no_wrap=True, min_width=least)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    console.print(table)
    if means is None:
        console.print("no scores yet")
    if means is None or means.tasks == 1:
        return
    named = (("arithmetic", means.arithmetic), ("geometric", means.geometric))
    for name, mean in (*named, ("harmonic", means.harmonic)):
        spread = f" ± {mean.deviation:.2f}" if mean.count > 1 else ""
        console.print(
            f"{name:>10} mean over {means.tasks} tasks: {mean.mean:.2f}{spread}", soft_wrap=True
        )
    if means.zero:
        console.print(zero_words(means.zero)[0], soft_wrap=True)


def _columns(rows: Sequence[Row], several: bool) -> dict[str, list[str]]:
    """The cells of the printed table by column, from left to right."""

    def cells(write: Callable[[Row], str | None]) -> list[str]:
        return [write(row) or "—" for row in rows]

    def number(value: float | None, form: str, unit: str = "") -> str | None:
        return None if value is None else format(value, form) + unit

    columns = {
        "task": cells(lambda row: row.task),
        "metric": cells(lambda row: row.metric),
        "score": cells(lambda row: f"{row.score.mean:.2f}" if row.score else None),
    }
    if several:
        columns["± sd"] = cells(lambda row: f"{row.score.deviation:.2f}" if row.score else None)
        columns["min–max"] = cells(lambda row: row.score.range if row.score else None)
    return columns | {
        "chance": cells(lambda row: number(row.chance, ".1f")),
        "epoch": cells(lambda row: row.best_epoch),
        "time": cells(lambda row: number(row.seconds, ".1f", " s")),
        "tokens/s": cells(lambda row: number(row.tokens_per_second, ",.0f")),
    }


def _row(task: str, group: Sequence[Result]) -> Row:
    values = [value for result in group if (value := score(result)) is not None]
    metric = str(group[0].get("metric") or "—")

    def average(key: str) -> float | None:
        known = [number for result in group if (number := finite(result.get(key))) is not None]
        return statistics.fmean(known) if known else None

    def first(key: str) -> int | None:
        number = finite(group[0].get(key))
        return None if number is None else int(number)

    return Row(
        task=task,
        metric=metric,
        score=Spread.of(values) if values else None,
        others=_other_scores(group, metric),
        chance=average("chance"),
        best_epoch=_best_epoch(group, first("epochs")),
        seconds=average("seconds"),
        tokens_per_second=average("tokens_per_second"),
        samples_per_second=average("samples_per_second"),
        train_examples=first("train_examples"),
        dev_examples=first("dev_examples"),
    )


def _best_epoch(group: Sequence[Result], total: int | None) -> str:
    """Such as `3 / 5`, or `2–4 / 5` where seeds differ."""
    best = [epoch for result in group if (epoch := finite(result.get("best_epoch"))) is not None]
    if not best:
        return ""
    low, high = f"{min(best):g}", f"{max(best):g}"
    return (low if low == high else f"{low}–{high}") + (f" / {total}" if total else "")


def _other_scores(group: Sequence[Result], metric: str) -> dict[str, float]:
    """Every score but the main one, averaged over seeds."""
    known: dict[str, list[float]] = {}
    for result in group:
        scores = result.get("scores")
        for name, value in scores.items() if isinstance(scores, Mapping) else ():
            if name != metric and (number := finite(value)) is not None:
                known.setdefault(str(name), []).append(number)
    return {name: statistics.fmean(values) for name, values in known.items()}


def _mean(values: Sequence[float], name: str) -> float:
    """A mean over tasks; a score below zero counts as zero where only positive ones are defined."""
    if name == "arithmetic":
        return statistics.fmean(values)
    return float(power_mean([max(value, 0.0) for value in values], name))
