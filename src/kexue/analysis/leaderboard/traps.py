"""What makes an average say something else than its reader thinks (S13).

    bad    published averages follow different rules in different rows; averaging over what is there
           would change the order; a fraction among percentages
    warn   missing scores; a diagnostic column among the tasks; columns of different scales; scores
           above 100, zero or below; columns where less is better; one task decides who is first
    note   the means disagree; gaps within rounding; ranks that hang on the tasks; one seed

`bad` makes the comparison wrong, `warn` may, `note` is worth a sentence beside the table.
Source: article 8783 for the first two; the rest are the usual ways to fool oneself.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from kexue.analysis.finding import Finding
from kexue.analysis.leaderboard.board import Leaderboard
from kexue.analysis.leaderboard.ranks import ranks
from kexue.probability.means import MEANS, power_mean

__all__ = ["traps"]

LEVELS = ("bad", "warn", "note")
DIAGNOSTIC = re.compile(r"ax([-_ ]?[bg])?|diagnostics?|broadcoverage.*|winogender.*", re.IGNORECASE)
LESS_IS_BETTER = re.compile(
    r"(^|[^a-z])(rank|err(or)?s?|loss|ppl|perplexity|wer|cer|mae|r?mse|latency|fid)([^a-z]|$)",
    re.IGNORECASE,
)
ROUNDING = 0.05
"""Half of the last digit of an average with one decimal."""
MOST_GAPS = 5
"""So many gaps within rounding are named, the first in the order; the others are counted."""


def traps(board: Leaderboard) -> tuple[Finding, ...]:
    """All that there is to distrust, worst first.

    Example:
        >>> board = Leaderboard([[90, 80, 51.0], [89, 82, np.nan]], ["A", "B", "AX"], ["m", "n"])
        >>> [(one.level, one.where) for one in traps(board)][0]
        ('warn', 'AX')
    """
    found = [
        one
        for rule in (_rules, _missing, _scales, _columns, _means, _tasks, _gaps, _seeds)
        for one in rule(board)
    ]
    return tuple(sorted(found, key=lambda one: LEVELS.index(one.level)))


def _rules(board: Leaderboard) -> Iterator[Finding]:
    """Published averages that no single rule explains."""
    if not board.table.published:
        return
    audit = board.audit()
    if audit.consistent:
        en, zh = audit.common[0].words()
        yield Finding("note", "published averages", f"explained by the {en}", f"可由“{zh}”解释")
        return
    if len(audit.groups) > 1:
        en = "; ".join(f"{', '.join(rows)}: {rule.words()[0]}" for rule, rows in audit.groups)
        zh = "；".join(f"{'、'.join(rows)}：{rule.words()[1]}" for rule, rows in audit.groups)
        en = f"no single rule gives all of them, so rows cannot be compared. {en}"
        yield Finding("bad", "published averages", en, f"没有统一的算法，各行不可比。{zh}")
    for row in audit.unexplained:
        en = f"no rule that was tried gives {board.table.published[row]:g}"
        zh = f"试过的算法都得不到 {board.table.published[row]:g}"
        yield Finding("bad" if len(audit.rows) > 1 else "warn", row, en, zh)


def _missing(board: Leaderboard) -> Iterator[Finding]:
    """Scores that are missing, and the order if one averaged over what is there."""
    whole = board.table.scores()
    gone = np.isnan(whole)
    if not gone.any():
        return
    names = list(board.table.tasks)
    for t in np.flatnonzero(gone.any(axis=0)):
        rows = [board.table.models[m] for m in np.flatnonzero(gone[:, t])]
        out = names[t] not in board.tasks
        en = f"missing for {_few(rows, ', ')}; " + (
            "the task is left out for every row" if out else "these rows are left out"
        )
        zh = f"{_few(rows, '、')} 缺分；" + ("该任务对所有行都不计" if out else "这些行不参与比较")
        yield Finding("warn", names[t], en, zh)
    kept = [board.table.models.index(model) for model in board.models]
    worst = (0, 0, 0, 0)
    for p, mean in enumerate(MEANS):
        if mean != "arithmetic" and (whole[kept] < 0).any():
            continue
        present = [power_mean(one[~np.isnan(one)], mean) for one in whole[kept]]
        there, ours = ranks(np.array(present)), board.rank(mean)
        m = int(np.abs(there - ours).argmax())
        worst = max(worst, (abs(int(there[m] - ours[m])), -p, m, int(there[m])))
    shift, p, m, then = worst
    if shift == 0:
        return
    mean, name, now = list(MEANS)[-p], board.models[m], board.rank(list(MEANS)[-p])[m]
    zh_mean = dict(zip(MEANS, ("算术", "几何", "调和"), strict=True))[mean]
    en = (
        f"if every row were averaged over whatever it has, {name} would be number {then} under the "
        f"{mean} mean; on the same tasks for all it is {now}"
    )
    zh = (
        f"若各行只对自己有的分数取平均，{name} 按{zh_mean}平均会排第 {then}；"
        f"各行用同样的任务时排第 {now}"
    )
    yield Finding("bad", "missing scores", en, zh)


def _scales(board: Leaderboard) -> Iterator[Finding]:
    """Percentages beside fractions, scores beyond 100, zero and below."""
    X = board.scores
    small, large = X.max(axis=0) <= 1, X.max(axis=0) > 1
    if small.any() and large.any():
        names = [board.tasks[t] for t in np.flatnonzero(small)]
        en = "no score above 1 while other tasks have percentages: it hardly counts in the average"
        zh = "分数都不超过 1，而其他任务是百分数：它在平均里几乎不起作用"
        yield Finding("warn", _few(names, ", "), en, zh)
    middle = np.median(X, axis=0)
    for m, t in np.argwhere((X > 0) & (X <= 1) & (middle > 10)).tolist():
        en = f"{X[m, t]:g}, where the middle score is {middle[t]:g}: a fraction among percentages?"
        zh = f"{X[m, t]:g}，而该列中位数是 {middle[t]:g}：是不是把小数当成了百分数？"
        yield Finding("bad", _cell(board, m, t), en, zh)
    for m, t in np.argwhere(X > 100).tolist()[:3]:
        en, zh = f"{X[m, t]:g} is above 100", f"{X[m, t]:g} 超过 100"
        yield Finding("warn", _cell(board, m, t), en, zh)
    for m, t in np.argwhere(X == 0).tolist()[:3]:
        en = "0 makes the geometric and the harmonic mean 0, whatever the other tasks say"
        yield Finding(
            "warn", _cell(board, m, t), en, "0 分使几何平均与调和平均为 0，其余任务不再起作用"
        )
    for m, t in np.argwhere(X < 0).tolist()[:3]:
        en = f"{X[m, t]:g} is negative: only the arithmetic mean is defined"
        yield Finding("warn", _cell(board, m, t), en, f"{X[m, t]:g} 为负：只有算术平均有定义")


def _columns(board: Leaderboard) -> Iterator[Finding]:
    """Columns that are no task, or whose direction is the other one."""
    for task in board.tasks:
        if DIAGNOSTIC.fullmatch(task):
            en = "a diagnostic column, which the benchmark's own average leaves out"
            yield Finding("warn", task, en, "诊断列，榜单自己的平均并不包含它")
        elif LESS_IS_BETTER.search(task):
            en = (
                "less seems to be better here; turn it round first, and say so: geometric means of "
                "errors and of accuracies order models differently"
            )
            zh = "看起来越小越好；请先换成越大越好并注明：错误率与准确率的几何平均次序不同"
            yield Finding("warn", task, en, zh)


def _means(board: Leaderboard) -> Iterator[Finding]:
    """Models whose rank depends on the mean."""
    if (board.scores < 0).any() or len(board.models) < 2:
        return
    table = np.stack([board.rank(mean) for mean in MEANS])  # (3, M)
    leaders = {tuple(np.flatnonzero(row == 1)) for row in table}
    moved = np.ptp(table, axis=0)
    if not moved.any():
        en, zh = "the three means give the same order", "三种平均给出相同的次序"
        yield Finding("note", "means", en, zh)
        return
    for m in np.flatnonzero(moved == moved.max())[:3]:
        a, g, h = table[:, m]
        en = f"rank {a} under the arithmetic, {g} under the geometric, {h} under the harmonic mean"
        zh = f"算术平均排第 {a}，几何平均排第 {g}，调和平均排第 {h}"
        yield Finding("warn" if len(leaders) > 1 else "note", board.models[m], en, zh)


def _tasks(board: Leaderboard) -> Iterator[Finding]:
    """A single task on which the first place, or much of the order, depends."""
    if len(board.models) < 2:
        return
    ours = board.rank()
    for task, without in board.leave_one_out().items():
        leader = int((ours == 1).argmax())
        if without[leader] != 1:
            now = board.models[int((without == 1).argmax())]
            en = f"without it {now} is first, not {board.models[leader]}"
            yield Finding("warn", task, en, f"去掉它，第一是 {now}，而不是 {board.models[leader]}")
        elif (moved := int(np.abs(without - ours).max())) >= max(3, len(ours) // 4):
            m = int(np.abs(without - ours).argmax())
            en = f"without it {board.models[m]} is number {without[m]}, not {ours[m]}"
            zh = f"去掉它，{board.models[m]} 排第 {without[m]}，而不是第 {ours[m]}"
            yield Finding("note", task, en, f"{zh}（相差 {moved} 位）")


def _gaps(board: Leaderboard) -> Iterator[Finding]:
    """Neighbours that one decimal does not tell apart, and ranks that resampling spreads."""
    values = board.aggregate()
    order = np.argsort(-values, kind="stable")
    percent = values.max() > 1
    close = [
        (values[better] - values[worse], f"{board.models[better]}, {board.models[worse]}")
        for better, worse in pairwise(order)
        if percent and values[better] - values[worse] < ROUNDING
    ]
    for gap, names in close[:MOST_GAPS]:
        en = f"arithmetic means {gap:.3f} apart: a tie at one decimal"
        yield Finding("note", names, en, f"算术平均只差 {gap:.3f}：保留一位小数就是并列")
    if (more := len(close) - MOST_GAPS) > 0:
        en = f"{more} more neighbours in the order are less than {ROUNDING:g} apart"
        yield Finding("note", "means", en, f"另有 {more} 对相邻模型的算术平均相差不到 {ROUNDING:g}")
    if len(board.tasks) > 1 and len(board.models) > 1:
        spread = board.bootstrap(2000).rank_interval()
        widest = int((spread[:, 2] - spread[:, 0]).argmax())
        low, _, high = spread[widest]
        if high - low >= max(2, len(board.models) // 3):
            n, name = len(board.tasks), board.models[widest]
            en = (
                f"with other {n} tasks of this kind its rank could be {low} to {high} (95 %, "
                "resampled tasks): sensitivity, not significance"
            )
            zh = (
                f"换 {n} 个同类任务，排名可能在 {low} 到 {high} 之间（重抽任务，95%）："
                "这是敏感度，不是显著性"
            )
            yield Finding("note", name, en, zh)


def _seeds(board: Leaderboard) -> Iterator[Finding]:
    """Runs with a single seed."""
    if board.table.seeds and all(len(one) < 2 for one in board.table.seeds.values()):
        en = "one seed per cell: how much a score varies from run to run is not known"
        yield Finding("note", "seeds", en, "每格只有一个种子：分数随训练的波动未知")


def _cell(board: Leaderboard, m: int, t: int) -> str:
    return f"{board.models[m]} / {board.tasks[t]}"


def _few(names: list[str], separator: str) -> str:
    more = f" + {len(names) - 3}" if len(names) > 3 else ""
    return separator.join(names[:3]) + more
