"""Does the class prior help a classifier trained on too few samples? (S11)

Logistic regression (C = 0.1) on n of scikit-learn's 1,797 digits, tested on all others; the prior
is uniform, k = 3, tau = 0.9. CAN corrects each unsure prediction alone beside the trusted ones.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.probability.can import topk_uncertainty
from kexue.probability.can_estimator import CAN
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "Run", "deciles", "run", "verdict"]

SIZES, SEEDS, TAU = (30, 60, 120, 300), 8, 0.9


@dataclass(frozen=True)
class Run:
    """One training: which predictions were right before and after, and how unsure they were."""

    before: np.ndarray
    after: np.ndarray
    unsure: np.ndarray

    @property
    def low(self) -> np.ndarray:
        """True where CAN corrects."""
        return self.unsure >= TAU

    @property
    def gain(self) -> float:
        """Points of accuracy over all test samples."""
        return 100 * float(self.after.mean() - self.before.mean())


def run(size: int, seed: int) -> Run:
    """Train on `size` digits, each class at least once, and correct the other predictions."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    x, y = load_digits(return_X_y=True)
    x = x / 16
    order = np.random.default_rng((seed, size)).permutation(len(x))
    first = [order[np.flatnonzero(y[order] == label)[0]] for label in range(10)]
    rest = order[~np.isin(order, first)]
    train, test = np.concatenate([first, rest[: size - 10]]), rest[size - 10 :]
    model = LogisticRegression(C=0.1, max_iter=2000).fit(x[train], y[train])
    p = model.predict_proba(x[test])
    unsure = topk_uncertainty(p, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few rows to trust: part of what is measured
        corrected = CAN(k=3, tau=TAU, prior="uniform").fit_transform(p)
    right = [np.asarray(one).argmax(1) == y[test] for one in (p, corrected)]
    return Run(right[0], right[1], np.asarray(unsure))


def deciles(runs: Sequence[Run]) -> tuple[list[float], list[float]]:
    """Percent right before and after by tenths of the predictions, the surest first."""
    before, after = [], []
    for part in range(10):
        chosen = [np.array_split(np.argsort(one.unsure), 10)[part] for one in runs]
        pairs = list(zip(runs, chosen, strict=True))
        before.append(100 * float(np.mean([one.before[c].mean() for one, c in pairs])))
        after.append(100 * float(np.mean([one.after[c].mean() for one, c in pairs])))
    return before, after


def verdict(gains: Mapping[int, Sequence[float]]) -> Verdict:
    """Of the gains by seed for every n.

    Holds if the mean is above zero and three seeds of four gain, for every n; partly if for some.
    """
    good = [
        np.mean(values) > 0 and np.mean([gain > 0 for gain in values]) >= 0.75
        for values in gains.values()
    ]
    if all(good):
        return Verdict.HOLDS
    return Verdict.PARTLY if any(good) else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Four sizes of the training set, `SEEDS` trainings each; the data come with scikit-learn."""
    del data
    seeds = range(SEEDS * seed, SEEDS * seed + SEEDS)
    runs = {size: [run(size, one) for one in seeds] for size in SIZES}
    gains = {size: [one.gain for one in found] for size, found in runs.items()}
    numbers: dict[str, Number] = {}
    before, after = [], []
    for size, found in runs.items():
        before.append(100 * float(np.mean([one.before.mean() for one in found])))
        after.append(100 * float(np.mean([one.after.mean() for one in found])))
        low = [_mean([one.before[one.low].mean() for one in found])]
        low.append(_mean([one.after[one.low].mean() for one in found]))
        high = _mean([one.before[~one.low].mean() for one in found])
        error = float(np.std(gains[size], ddof=1) / SEEDS**0.5)
        numbers[f"n = {size}: accuracy, %"] = (
            f"{before[-1]:.1f} → {after[-1]:.1f} (± {error:.1f}), "
            f"{sum(gain > 0 for gain in gains[size])} of {SEEDS} seeds"
        )
        numbers[f"n = {size}: unsure, %"] = (
            f"{low[0]:.1f} → {low[1]:.1f}, {_mean([one.low.mean() for one in found]):.0f} % of rows"
        )
        numbers[f"n = {size}: trusted, %"] = f"{high:.1f}"
    names = {f"n = {size}: accuracy, %": f"n = {size}：准确率，%" for size in SIZES}
    names |= {f"n = {size}: unsure, %": f"n = {size}：拿不准的，%" for size in SIZES}
    names |= {f"n = {size}: trusted, %": f"n = {size}：可信的，%" for size in SIZES}
    return Finding(
        numbers=numbers,
        figure=_picture(before, after, deciles(runs[60])),
        verdict=verdict(gains),
        comment_en=(
            f"Means of {SEEDS} trainings; ± is the standard error of the gain. From {SIZES[0]} to "
            f"{SIZES[-1]} training samples the gain goes from {after[0] - before[0]:.1f} to "
            f"{after[-1] - before[-1]:.1f} points; a better classifier has fewer unsure rows."
        ),
        comment_zh=(
            f"{SEEDS} 次训练的均值；± 为提升的标准误。"
            f"训练样本从 {SIZES[0]} 个增加到 {SIZES[-1]} 个，"
            f"提升从 {after[0] - before[0]:.1f} 个百分点变为 {after[-1] - before[-1]:.1f}："
            "分类器越好，拿不准的样本越少。"
        ),
        names_zh=names,
    )


def _mean(shares: Sequence[float]) -> float:
    return 100 * float(np.mean(shares))


def _picture(
    before: Sequence[float], after: Sequence[float], tenths: tuple[Sequence[float], Sequence[float]]
) -> str:
    words = (("before", "修正前"), ("after CAN", "CAN 修正后"))
    by_size = [
        Series(name, [float(size) for size in SIZES], values, dots=True)
        for name, values in zip(words, (before, after), strict=True)
    ]
    by_tenth = [
        Series(name, [float(part) for part in range(1, 11)], values, dots=True)
        for name, values in zip(words, tenths, strict=True)
    ]
    percent = ("accuracy, percent", "准确率，%")
    return line_chart(
        by_size,
        title=("More labels, less to correct", "标注越多，可修正的越少"),
        x_label=("training samples", "训练样本数"),
        y_label=percent,
    ) + line_chart(
        by_tenth,
        title=("By uncertainty, 60 training samples", "按不确定性分组，60 个训练样本"),
        x_label=("tenth of the predictions, the surest first", "预测的十分位，最确定的在前"),
        y_label=percent,
    )


EXPERIMENT = Experiment(
    id="S11-prior",
    system="S11",
    title_en="What the class prior is worth",
    title_zh="类别先验的价值",
    claim_en="Correcting unsure predictions with the class prior raises accuracy without training.",
    claim_zh="用类别先验修正拿不准的预测，无需训练即可提高准确率。",
    published="IFLYTEK 60.06 → 60.52 and 60.64 → 60.95; TNEWS 56.80 → 56.86 and 58.06 → 58.00",
    measure=measure,
)
