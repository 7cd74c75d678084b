"""Idioms without repetition: assignment against row argmax (S01, ChID).

A record has m blanks and 10 candidate idioms, and no idiom is used twice. Taking the best idiom per
blank ignores this; the best injective map (an assignment problem) uses it. Scores are simulated:

    s_ij ~ N(0, 1), plus the signal at the true idiom of blank i
"""

import math
from pathlib import Path

import numpy as np

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.report.charts import Series, line_chart
from kexue.tasks.clue.chid import assign

__all__ = ["EXPERIMENT", "accuracies", "standard_error", "verdict"]

CANDIDATES = 10
RECORDS = 2000
SIGNALS = (1.0, 2.0, 3.0)
PUBLISHED = {2: (68.3, 68.8), 4: (66.6, 68.8), 6: (66.5, 70.5), 8: (67.2, 73.6)}
"""Blanks → accuracy of row argmax and of assignment in percent, at signal 2 and 2,000 records."""
NUMBERS = ", ".join(f"m = {m}: {a} → {b} %" for m, (a, b) in PUBLISHED.items())


def accuracies(
    blanks: int, signal: float, *, records: int = RECORDS, seed: int = 0
) -> tuple[float, float]:
    """Percent of blanks that row argmax and that assignment fill correctly."""
    random = np.random.default_rng((seed, blanks, round(1000 * signal)))
    hits = np.zeros(2)
    for _ in range(records):
        truth = random.permutation(CANDIDATES)[:blanks]
        scores = random.standard_normal((blanks, CANDIDATES))
        scores[np.arange(blanks), truth] += signal
        hits += (scores.argmax(axis=1) == truth).sum(), (assign(scores) == truth).sum()
    argmax, assigned = 100 * hits / (records * blanks)
    return float(argmax), float(assigned)


def standard_error(percent: float, blanks: int, records: int = RECORDS) -> float:
    """Of the difference between two such simulations, each with records · blanks trials."""
    share = percent / 100
    return 100 * math.sqrt(2 * share * (1 - share) / (records * blanks))


def verdict(ours: dict[int, tuple[float, float]], records: int = RECORDS) -> Verdict:
    """Holds if all numbers agree within three standard errors; partly if the gain only grows."""
    agree = all(
        abs(mine - theirs) <= 3 * standard_error(theirs, blanks, min(records, RECORDS))
        for blanks, pair in PUBLISHED.items()
        for mine, theirs in zip(ours[blanks], pair, strict=True)
    )
    gains = [assigned - argmax for argmax, assigned in (ours[blanks] for blanks in PUBLISHED)]
    if agree:
        return Verdict.HOLDS
    return Verdict.PARTLY if gains == sorted(gains) and gains[-1] > 0 else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Simulate every number of blanks with every signal; the data are not needed."""
    del data
    blanks = sorted(PUBLISHED)
    measured = {s: {m: accuracies(m, s, seed=seed) for m in blanks} for s in SIGNALS}
    ours = measured[2.0]
    numbers: dict[str, Number] = {
        f"m = {m}": f"{ours[m][0]:.1f} → {ours[m][1]:.1f} %"
        f"  (± {standard_error(ours[m][1], m) / math.sqrt(2):.1f})"
        for m in blanks
    }
    largest = max(
        abs(mine - theirs) / standard_error(theirs, m)
        for m in blanks
        for mine, theirs in zip(ours[m], PUBLISHED[m], strict=True)
    )
    numbers["gain at m = 8"] = f"{ours[8][1] - ours[8][0]:.1f}"
    numbers["largest deviation, in s.e."] = round(largest, 2)
    lines = [
        Series(
            (f"signal {signal:g}", f"信号 {signal:g}"),
            [float(m) for m in blanks],
            [table[m][1] - table[m][0] for m in blanks],
            dots=True,
        )
        for signal, table in measured.items()
    ]
    picture = line_chart(
        lines,
        title=("What assignment adds to row argmax", "指派相对逐行取最大的提升"),
        x_label=("blanks per record", "每条记录的空数"),
        y_label=("points of accuracy", "准确率（百分点）"),
    )
    return Finding(
        numbers=numbers,
        figure=picture,
        verdict=verdict(ours),
        comment_en=(
            f"Simulated with {RECORDS:,} records per point. The largest difference to the "
            f"published numbers is {largest:.1f} standard errors of a difference of two such "
            "simulations; up to 3 count as agreement. The more blanks share one list of "
            "idioms, the more the rule of no repetition is worth."
        ),
        comment_zh=(
            f"每个点模拟 {RECORDS:,} 条记录。与文中数字的最大偏差为 {largest:.1f} 个标准误"
            "（两次模拟之差的标准误），不超过 3 视为一致。共用同一组候选成语的空越多，"
            "“不重复”这一约束的价值越大。"
        ),
        names_zh={
            "gain at m = 8": "m = 8 时的提升",
            "largest deviation, in s.e.": "最大偏差（以标准误计）",
        },
    )


EXPERIMENT = Experiment(
    id="S01-assignment",
    system="S01",
    title_en="No idiom twice: assignment against row argmax",
    title_zh="成语不重复：指派与逐行取最大",
    claim_en=(
        "Choosing the idioms of a record together, none twice, fills more blanks correctly than "
        "choosing each alone, and the gain grows with the number of blanks."
    ),
    claim_zh="同一条记录的成语一起选且不重复，比逐个选更准；空越多，提升越大。",
    published=f"ChID: about +6 points. Simulation, signal 2: {NUMBERS}",
    published_zh=f"ChID：约 +6 个百分点。模拟，信号 2：{NUMBERS}",
    measure=measure,
)
