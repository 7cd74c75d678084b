r"""How well records are mixed: numbers from their places before and after (S09).

Record i of N before the shuffle stands at place o of M after it; u = i / N, v = o / M. Measured
on every record of evenly spread windows of the output:

    displacement   3 · mean |u − v|           uniform 1, identity 0, reversed 1.5               (1)
    correlation    of the ranks of u and v    uniform 0, identity 1, reversed −1                (2)
    neighbours     share of neighbours in the output that were neighbours in the input          (3)
    variance       Σ (n_cw − E n_cw)² / Σ V_cw                                                  (4)
    score          min(1, p_0 / p),  the share of the input that a window draws from            (5)

n_cw of the n_w records of window w come from chunk c of the input, which holds n_c of the n records
measured. If every order is equally likely, n_cw is hypergeometric:

    E n_cw = n_w n_c / n,     V_cw = n_w (n_c / n)(1 − n_c / n)(n − n_w) / (n − 1)              (6)

so (4) has the mean 1. It is near 0 if each window gets its fixed part of each chunk (stratified),
and as large as a window if windows are filled from one chunk. In (5), with chunks so small that a
window spans many,

    p = Σ_w Σ_c n_cw (n_cw − 1) / Σ_w n_w (n_w − 1),    p_0 = Σ_c n_c (n_c − 1) / (n (n − 1))   (7)

are the chance that two records of one window, and two of all, come from the same chunk. A window
that draws evenly from a tenth of the input has p = 10 p_0 and the score 0.1.
"""

from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNKS", "WINDOW", "Mixing", "mixing_of"]

Array = NDArray[Any]
WINDOW, CHUNKS = 1000, 16
FINEST = 1024
"""Chunks for the score, where there are records enough."""
POINTS = 3000
LOCAL = 0.6
"""A window that draws from less of the input shows a part of it: halves shuffled apart have 0.5."""


@dataclass(frozen=True)
class Mixing:
    """How well records are mixed.

    Args:
        score: (5); 1: a window of the output draws from the whole input.
        displacement: (1).
        correlation: (2).
        neighbours: (3).
        variance: (4).
        sampled: records that were measured.
        windows: into how many windows they fall.
        window: records of a window.
        chunks: of the input, for the variance.
        expected: name → (mean, standard error) if every order is equally likely.
        points: some (u, v) for a picture.
    """

    score: float
    displacement: float
    correlation: float
    neighbours: float
    variance: float
    sampled: int
    windows: int
    window: int
    chunks: int
    expected: dict[str, tuple[float, float]]
    points: tuple[tuple[float, float], ...] = field(repr=False, default=())

    @property
    def kind(self) -> str:
        """`uniform`, `stratified`, `uneven` or `local`; `unknown` where records are too few.

        A number counts as the uniform one within four standard errors.
        """
        if self.sampled < 1000:
            return "unknown"
        off = {
            name: (getattr(self, name) - mean) / error
            for name, (mean, error) in self.expected.items()
        }
        if self.score < LOCAL:
            return "local"
        if max(map(abs, off.values())) <= 4:
            return "uniform"
        others = max(abs(off[name]) for name in off if name not in ("variance", "score"))
        return "stratified" if off["variance"] < -4 and others <= 4 else "uneven"


def mixing_of(
    before: Array,
    after: Array,
    records: int,
    shuffled_records: int | None = None,
    *,
    window: int = WINDOW,
    chunks: int = CHUNKS,
) -> Mixing:
    """The numbers from places of records.

    Args:
        before: places in the input, counted from 0, shape (n,).
        after: places of the same records in the output, ascending; all records of some windows.
        records: of the input.
        shuffled_records: of the output; as many when None.
        window: records of a window; fewer if there would be less than 50 windows.
        chunks: of the input, for the variance; at least 2.

    Raises:
        ValueError: fewer than two records, or a window or chunks below 2.

    Example:
        >>> order = np.random.default_rng(0).permutation(100_000)
        >>> found = mixing_of(order, np.arange(100_000), 100_000)
        >>> found.kind, mixing_of(np.arange(100_000), np.arange(100_000), 100_000).kind
        ('uniform', 'local')
    """
    if window < 2 or chunks < 2:
        raise ValueError(f"window and chunks must be at least 2, got {window} and {chunks}")
    n = len(before)
    if n < 2:
        raise ValueError(f"at least two records that occur once are needed, got {n}")
    total = shuffled_records or records
    window = max(2, min(window, n // 50))
    place = np.unique(after // window, return_inverse=True)[1]  # of 0 … windows − 1
    size = np.bincount(place)
    pairs = int((size * (size - 1)).sum()) // 2
    fine = int(min(FINEST, max(CHUNKS, pairs // 2000), max(2, records // 4)))
    u, v = (before + 0.5) / records, (after + 0.5) / total
    next_to = np.diff(after) == 1
    kept = np.abs(np.diff(before))[next_to] == 1
    cells = (len(size) - 1) * (chunks - 1)
    chance = 2 / records  # a handful of neighbours is Poisson, with a longer tail: hence + 2
    return Mixing(
        score=score(before, place, size, records, fine),  # (5)
        displacement=float(3 * np.abs(u - v).mean()),  # (1)
        correlation=rank_correlation(before),  # (2)
        neighbours=float(kept.mean()) if len(kept) else 0.0,  # (3)
        variance=variance(before, place, size, records, chunks),  # (4)
        sampled=n,
        windows=len(size),
        window=window,
        chunks=chunks,
        expected={
            "score": (1.0, sqrt(fine / max(pairs, 1))),
            "displacement": (1.0, sqrt(0.5 / n)),
            "correlation": (0.0, 1 / sqrt(n)),
            "neighbours": (chance, sqrt(chance * len(kept) + 2) / max(len(kept), 1)),
            "variance": (1.0, sqrt(2 / max(cells, 1))),
        },
        points=tuple((float(a), float(b)) for a, b in zip(*thinned(u, v), strict=True)),
    )


def counted(before: Array, place: Array, windows: int, records: int, chunks: int) -> Array:
    """n_cw: how many records of each window come from each chunk, shape (windows, chunks)."""
    chunk = before * chunks // records
    cells = np.bincount(place * chunks + chunk, minlength=windows * chunks)
    return cells.reshape(windows, chunks)


def variance(before: Array, place: Array, size: Array, records: int, chunks: int) -> float:
    """Of counts, relative to that of a uniform order; 1 if there is nothing to compare."""
    count = counted(before, place, len(size), records, chunks)
    n = len(before)
    share = count.sum(0) / n
    spread = share * (1 - share)
    expected = np.outer(size * (n - size) / (n - 1), spread).sum()  # (6)
    found = ((count - np.outer(size, share)) ** 2).sum()
    return float(found / expected) if expected else 1.0


def score(before: Array, place: Array, size: Array, records: int, chunks: int) -> float:
    """p_0 / p, at most 1: (7)."""
    count = counted(before, place, len(size), records, chunks)
    n, each = len(before), count.sum(0)
    within = (count * (count - 1)).sum() / max((size * (size - 1)).sum(), 1)
    overall = (each * (each - 1)).sum() / (n * (n - 1))
    return float(min(1.0, overall / within)) if within else 1.0


def rank_correlation(before: Array) -> float:
    """Of places in the input of records in the output's order with that order."""
    rank = np.empty(len(before))
    rank[np.argsort(before, kind="stable")] = np.arange(len(before))
    middle = (len(before) - 1) / 2
    there = np.arange(len(before)) - middle
    return float(((rank - middle) * there).sum() / (there**2).sum())


def thinned(u: Array, v: Array) -> tuple[Array, Array]:
    """At most `POINTS` of the points, evenly taken."""
    take = np.linspace(0, len(u) - 1, min(POINTS, len(u))).round().astype(np.int64)
    return u[take].round(5), v[take].round(5)
