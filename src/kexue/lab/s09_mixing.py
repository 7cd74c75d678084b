"""Counts in windows: the article's two stages, a shuffle buffer and random keys (S09).

1.8 million lines in 18 chunks of 100,000, as the article's script would cut them; windows of 360
lines of the output. A window of a uniform order holds 20 lines of each chunk on average, with the
hypergeometric variance

    n p (1 − p) (N − n) / (N − 1) = 18.9,    n = 360, p = 1/18, N = 1.8 million                 (1)

The two stages send out one line of each chunk per round: 20 rounds make a window.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kexue.data.mixing import Mixing, mixing_of
from kexue.data.shuffle.philox import philox_keys
from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.report.charts import Series, line_chart
from kexue.report.markup import Html, join
from kexue.report.scatter import scatter_chart

__all__ = ["EXPERIMENT", "buffered", "by_keys", "same_chunk", "two_stages", "verdict"]

Array = NDArray[Any]
CHUNKS, SIZE, WINDOW, BUFFER = 18, 100_000, 360, 10_000
NAMES = {
    "two stages": "两阶段",
    "random keys": "随机键",
    "buffer": "缓冲区",
}
COLUMNS = {
    "variance of counts": "计数方差",
    "neighbours from one chunk": "相邻两行出自同一块",
    "mixing score": "混合得分",
}


def two_stages(lines: int, size: int, rng: np.random.Generator) -> Array:
    """The article's order: chunks shuffled, then one line of each chunk per round.

    Args:
        lines: how many.
        size: lines of a chunk; the last one may be shorter.
        rng: draws.

    Returns:
        Input places in the order of the output.
    """
    chunks = -(-lines // size)
    order = np.argsort(rng.random((size, chunks)), axis=1)  # of chunks in each round
    table = np.full((size, chunks), lines)
    for k in range(chunks):
        first, last = k * size, min(lines, (k + 1) * size)
        table[: last - first, k] = rng.permutation(np.arange(first, last))
    rows = np.take_along_axis(table, order, axis=1).ravel()
    return rows[rows < lines]  # a short chunk has no line left in later rounds


def buffered(lines: int, room: int, rng: np.random.Generator) -> Array:
    """The order of a shuffle buffer: a random line leaves, the next one takes its place."""
    held = list(range(min(room, lines)))
    out = []
    for line, slot in enumerate(rng.integers(0, room, max(0, lines - room)).tolist(), start=room):
        out.append(held[slot])
        held[slot] = line
    return np.array(out + rng.permutation(held).tolist())


def by_keys(lines: int, seed: int) -> Array:
    """The order of `kexue shuffle`."""
    keys = philox_keys(np.arange(lines, dtype=np.uint64), seed)
    return np.lexsort((keys[:, 1], keys[:, 0]))


def same_chunk(order: Array, size: int) -> float:
    """Share of neighbours in the output that come from one chunk."""
    chunk = order // size
    return float((chunk[1:] == chunk[:-1]).mean())


def hypergeometric(chunks: int, size: int, window: int) -> float:
    """(1)."""
    p, lines = 1 / chunks, chunks * size
    return window * p * (1 - p) * (lines - window) / (lines - 1)


def verdict(found: Mapping[str, Mixing]) -> Verdict:
    """Whether stages are stratified, keys uniform and the buffer local."""
    mean, error = found["random keys"].expected["variance"]
    agree = [
        found["two stages"].variance < 0.01,
        abs(found["random keys"].variance - mean) <= 4 * error,
        found["buffer"].variance > 100 and found["buffer"].score < 0.05,
    ]
    if all(agree):
        return Verdict.HOLDS
    return Verdict.PARTLY if any(agree) else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Make the three orders and count."""
    rng = np.random.default_rng(seed)
    lines = CHUNKS * SIZE
    orders = {
        "two stages": two_stages(lines, SIZE, rng),
        "random keys": by_keys(lines, seed),
        "buffer": buffered(lines, BUFFER, rng),
    }
    there = np.arange(lines)
    found = {
        name: mixing_of(order, there, lines, window=WINDOW, chunks=CHUNKS)
        for name, order in orders.items()
    }
    unit = hypergeometric(CHUNKS, SIZE, WINDOW)
    numbers: dict[str, Number] = {"uniform order: variance of counts": f"{unit:.1f}"}
    names_zh = {"uniform order: variance of counts": "均匀次序：计数方差"}
    for name, mixing in found.items():
        values = (
            f"{unit * mixing.variance:,.1f}",
            f"{same_chunk(orders[name], SIZE):.4f}",
            f"{mixing.score:.4f}",
        )
        for (column, column_zh), value in zip(COLUMNS.items(), values, strict=True):
            numbers[f"{name}: {column}"] = value
            names_zh[f"{name}: {column}"] = f"{NAMES[name]}：{column_zh}"
    return Finding(
        numbers,
        _pictures(orders, found),
        verdict(found),
        f"Every window of the two stages holds 20 lines of each chunk, neither more nor less. "
        f"Random keys have {found['random keys'].variance:.3f} of the hypergeometric variance, "
        f"with a standard error of {found['random keys'].expected['variance'][1]:.3f}. A window "
        f"of the buffer draws from {found['buffer'].score:.1%} of the input.",
        f"两阶段的每个窗口都恰好含每块 20 行。随机键的方差是超几何值的 "
        f"{found['random keys'].variance:.3f} 倍，标准误 "
        f"{found['random keys'].expected['variance'][1]:.3f}。缓冲区的一个窗口只取材于输入的 "
        f"{found['buffer'].score:.1%}。",
        names_zh,
    )


def _counts(order: Array, chunk: int) -> list[float]:
    """Lines of a chunk in each window."""
    counts: list[float] = (order // SIZE == chunk).reshape(-1, WINDOW).sum(1).astype(float).tolist()
    return counts


def _pictures(orders: Mapping[str, Array], found: Mapping[str, Mixing]) -> Html:
    shown = 100
    some = [float(j) for j in range(shown)]
    lines = [
        Series((name, NAMES[name]), some, _counts(orders[name], 9)[:shown])
        for name in ("two stages", "random keys")
    ]
    window = ("window of 360 lines", "窗口（360 行）")
    level = (("20, the mean", "均值 20"), WINDOW / CHUNKS)
    few = line_chart(
        lines,
        title=("Lines of chunk 10 in the first windows", "前若干窗口中第 10 块的行数"),
        x_label=window,
        y_label=("lines", "行"),
        start=0,
    )
    passing = _counts(orders["buffer"], 9)
    all_windows = [float(j) for j in range(len(passing))]
    much = line_chart(
        [
            Series(("buffer of 10,000", "一万行的缓冲区"), all_windows, passing),
            Series(("random keys", "随机键"), all_windows, _counts(orders["random keys"], 9)),
        ],
        title=("Lines of chunk 10 in all windows", "全部窗口中第 10 块的行数"),
        x_label=window,
        y_label=("lines, means of 17 windows", "行，每 17 个窗口取平均"),
        reference=level,
        start=0,
    )
    places = [
        scatter_chart(
            found[name].points[::2],
            title=(f"{name}", NAMES[name]),
            x_label=("place in the input", "在输入中的位置"),
            y_label=("place in the output, upwards", "纵轴：在输出中的位置"),
            width=320,
            radius=1.1,
        )
        for name in orders
    ]
    return join([few, much, *places])


EXPERIMENT = Experiment(
    id="S09-mixing",
    system="S09",
    title_en="Lines of a chunk in windows of the output",
    title_zh="输出的各窗口里有多少行来自同一块",
    claim_en=(
        "The article's two stages are stratified: a window of j rounds holds exactly j lines of "
        "each chunk. Random keys have the variance of a uniform order, and a shuffle buffer fills "
        "windows from one place."
    ),
    claim_zh=(
        "文中的两阶段方法是分层的：j 轮构成的窗口恰好含每块 j 行。随机键具有均匀次序的方差，"
        "而缓冲区打乱的窗口来自同一处。"
    ),
    published="near-global and good enough; lines of one chunk never share a round",
    published_zh="近似全局，已够用；同一块的两行从不出现在同一轮",
    measure=measure,
)
