"""By which rule was a published average computed, and was it the same one in every row? (S13)

All rules of a family are tried on every row: a mean (arithmetic, geometric, harmonic) over a set of
columns, tasks with several metrics averaged first or counted metric by metric, known pairs such as
MNLI-m and MNLI-mm as one task or two, the result rounded or cut off. A rule explains a row if it
gives the printed number.

    T <= 14 columns: all 2^T − 1 sets of columns; more: those that leave out or keep at most three
                                                       (two beyond 67, one beyond 316)
    common rules: explain every row;   otherwise the fewest rules that together do (greedily)

One row alone is explained by many rules; a table with one rule for some rows and another for the
rest compares what cannot be compared. That is the error that article 8783 found.

Axes: R rules, M models, T tasks, C columns.   Cost: one product (R, C) × (C, M) per mean.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from kexue.analysis.leaderboard.table import ScoreTable
from kexue.probability.means import MEANS, power_mean

__all__ = ["Audit", "Rule", "audit_averages", "decimals_of", "known_pairs"]

EXHAUSTIVE = 14
"""Up to so many tasks every set of them is tried."""
MOST = 50_000
"""Of more tasks, sets of one size are tried while there are no more of them; 3 of 67, 2 of 316."""


@dataclass(frozen=True)
class Rule:
    """A way in which an average can be computed.

    Args:
        mean: arithmetic, geometric or harmonic.
        left_out: tasks that do not count.
        separate: every metric of a task counts by itself.
        merged: pairs of tasks that count as one.
        cut: further decimals are cut off instead of rounded.
    """

    mean: str
    left_out: tuple[str, ...] = ()
    separate: bool = False
    merged: tuple[str, ...] = ()
    cut: bool = False

    @property
    def cost(self) -> tuple[int, int, int]:
        """How far from the plain rule: small is plain."""
        place = list(MEANS).index(self.mean)
        return len(self.left_out) + 2 * self.separate + 2 * self.cut, place, self.separate

    def words(self) -> tuple[str, str]:
        """The rule in English and Chinese.

        Example:
            >>> Rule("geometric", ("AX",)).words()[0]
            'geometric mean of all columns but AX'
        """
        en = f"{self.mean} mean of all columns"
        zh = {"arithmetic": "算术平均，", "geometric": "几何平均，", "harmonic": "调和平均，"}[
            self.mean
        ]
        if self.left_out:
            en += f" but {', '.join(self.left_out)}"
            zh += f"不含 {'、'.join(self.left_out)}"
        else:
            zh += "全部列"
        for there, english, chinese in (
            (self.separate, "every metric by itself", "各指标单独计入"),
            (
                self.merged,
                f"{', '.join(self.merged)} as one task",
                f"{'、'.join(self.merged)} 合一",
            ),
            (self.cut, "decimals cut off", "小数直接截断"),
        ):
            if there:
                en, zh = f"{en}, {english}", f"{zh}，{chinese}"
        return en, zh


@dataclass(frozen=True)
class Audit:
    """What explains the published averages.

    Args:
        common: rules that explain every row, plainest first.
        groups: (rule, rows it explains); one group if there is a common rule.
        unexplained: rows that no rule explains.
        rows: row → number of rules that explain it.
        decimals: of the published averages.
    """

    common: tuple[Rule, ...]
    groups: tuple[tuple[Rule, tuple[str, ...]], ...]
    unexplained: tuple[str, ...]
    rows: Mapping[str, int]
    decimals: int

    @property
    def consistent(self) -> bool:
        """Whether one rule explains every row."""
        return bool(self.common)

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "consistent": self.consistent,
            "decimals": self.decimals,
            "common": [list(rule.words()) for rule in self.common[:5]],
            "common_count": len(self.common),
            "groups": [{"rule": list(rule.words()), "rows": list(m)} for rule, m in self.groups],
            "unexplained": list(self.unexplained),
        }


def audit_averages(
    table: ScoreTable, published: Mapping[str, float], decimals: int | None = None
) -> Audit:
    """Search the rules behind published averages.

    Args:
        table: every column that may have counted; a score may be missing.
        published: model → average, for some or all rows.
        decimals: of the averages as printed; as many as the longest has when None.

    Raises:
        ValueError: no average, one for a model that is not there, or one that is not finite.
    """
    if not published:
        raise ValueError("give the published average of at least one row")
    for model, value in published.items():
        if model not in table.models:
            raise ValueError(f"there is an average for {model!r}, but no such row in the table")
        if not math.isfinite(value):
            raise ValueError(f"the published average of {model!r} is {value}, not a number")
    digits = decimals_of(published.values()) if decimals is None else decimals
    rows = [table.models.index(model) for model in published]
    target = np.array(list(published.values()))
    rules: list[Rule] = []
    hits: list[np.ndarray] = []
    for variant, cells, columns_of, rule in _variants(table):
        masks = _subsets(len(columns_of))  # (R, T)
        columns = np.zeros((len(masks), cells.shape[1]))
        for t, at in enumerate(columns_of):
            columns[:, list(at)] = masks[:, t, None]
        names = np.array(variant)
        for mean, p in MEANS.items():
            values, valid = _means(cells[rows], p, columns)
            off = values - target
            for cut in (False, True):
                low, high = (0.0, 1.0) if cut else (-0.5, 0.5)
                near = (off > low * 10.0**-digits - 1e-9) & (off < high * 10.0**-digits + 1e-9)
                found = valid & near
                for r in np.flatnonzero(found.any(axis=1)):
                    out = tuple(str(name) for name in names[~masks[r]])
                    rules.append(Rule(mean, out, rule.separate, rule.merged, cut))
                    hits.append(found[r])
    return _explained(rules, hits, list(published), digits)


def decimals_of(values: Iterable[float]) -> int:
    """The most decimals that any of the values is written with.

    Example:
        >>> decimals_of([91.0, 90.85])
        2
    """
    parts = (f"{value:.10f}".rstrip("0").partition(".")[2] for value in values)
    return max(len(part) for part in parts)


def known_pairs(tasks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Columns that a benchmark counts as one task: X-m and X-mm, as in MNLI of GLUE.

    Example:
        >>> known_pairs(["RTE", "MNLI-m", "MNLI-mm"])
        {'MNLI': ('MNLI-m', 'MNLI-mm')}
    """
    return {
        name[:-2]: (name, f"{name}m")
        for name in tasks
        if name.endswith("-m") and f"{name}m" in tasks
    }


def _variants(
    table: ScoreTable,
) -> Iterator[tuple[list[str], np.ndarray, list[tuple[int, ...]], Rule]]:
    """Names of tasks, (models, columns), the columns of each task, and what the variant means."""
    tables = [(table, ())]
    if pairs := known_pairs(list(table.tasks)):
        pairs = {name: pair for name, pair in pairs.items() if name not in table.tasks}
        tables.append((table.merged(pairs), tuple(pairs)))  # type: ignore[arg-type]
    for one, merged in tables:
        tasks = list(one.tasks)
        yield tasks, one.scores(), [(t,) for t in range(len(tasks))], Rule("", merged=merged)
        if not merged and len(table.columns) > len(tasks):
            yield tasks, one.cells, list(one.tasks.values()), Rule("", separate=True)


def _subsets(tasks: int) -> np.ndarray:
    """Sets of tasks as (R, T), without the empty one."""
    if tasks <= EXHAUSTIVE:
        numbers = np.arange(1, 2**tasks)
        return (numbers[:, None] >> np.arange(tasks) & 1).astype(bool)
    sizes = [size for size in range(4) if math.comb(tasks, size) <= MOST]
    few = [c for size in sizes for c in combinations(range(tasks), size)]
    small = np.zeros((len(few), tasks), dtype=bool)
    for row, chosen in enumerate(few):
        small[row, list(chosen)] = True
    return np.concatenate([~small, small[1:]])


def _means(cells: np.ndarray, p: float, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of every row under every set of columns, (R, M), and where it is defined."""
    bad = np.isnan(cells) | ((cells < 0) & (p != 1))
    values = power_mean(np.where(bad, 1.0, cells), p, columns)
    return values, columns @ bad.T == 0


def _explained(
    rules: list[Rule], hits: list[np.ndarray], models: list[str], decimals: int
) -> Audit:
    table = np.array(hits) if hits else np.zeros((0, len(models)), dtype=bool)
    counts = {model: int(n) for model, n in zip(models, table.sum(axis=0), strict=True)}
    common = sorted((rules[r] for r in np.flatnonzero(table.all(axis=1))), key=lambda r: r.cost)
    left, groups = np.array([n > 0 for n in counts.values()]), []
    while left.any():
        gains = (table & left).sum(axis=1)
        best = min(np.flatnonzero(gains == gains.max()), key=lambda r: rules[r].cost)
        chosen = table[best] & left
        groups.append((rules[best], tuple(m for m, c in zip(models, chosen, strict=True) if c)))
        left &= ~chosen
    nothing = tuple(model for model, count in counts.items() if count == 0)
    return Audit(tuple(common), tuple(groups), nothing, counts, decimals)
