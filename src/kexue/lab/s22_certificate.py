"""Words that can never win: how many there are, what makes them, which they are (S22).

Rows of three kinds, each class decided exactly by `check_argmaxable`:

    Gaussian                        w ~ N(0, I),              over (C, d)                      (1)
    directions with given lengths   w = u e^(s n), |u| = 1,   over (s, d), n ~ N(0, 1)         (2)
    a tiny language model           C = 2,000, d = 8, trained on a Zipf language               (3)

Claims, each judged from its numbers alone:

    dimension   such classes crowd low dimensions and vanish in high ones: (1)
    spread      they come from unequal lengths, and not from d: none at s = 0 whatever d, and at
                s > 0 no fewer in 64 dimensions than in 4: (2)
    rare        they are the rare words: (3)

Control: the same audit of the language model's layer before training, where rarity means
nothing, on every fourth word.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from numpy.typing import NDArray

from kexue.analysis.unargmaxable import check_argmaxable
from kexue.analysis.unargmaxable.repair import HOW, make_all_argmaxable
from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.lab.s22_language_model import TinyModel, trained
from kexue.lab.s22_pictures import cells, share_map
from kexue.report.charts import Bar, bar_chart

__all__ = ["EXPERIMENT", "Claims", "auc", "claims", "measure", "rows_of", "share", "verdict"]

Array = NDArray[np.float64]
CLASSES, WIDTHS = (30, 60, 120, 240), (2, 4, 8, 12, 16, 24)
SPREADS, SPREAD_WIDTHS, SPREAD_CLASSES = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0), (4, 8, 16, 32, 64), 120
LARGE = (20_000, 64, 0.3)
"""Classes, d and s of a layer of which the 10 shortest rows are decided, and 10 others."""
SQUARE = np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
NAMES_ZH = {
    "C = 240: d = 2, 8, 24": "C = 240：d = 2、8、24",
    "equal lengths, any d": "长度相等，任意 d",
    "s = 0.3: d = 4, 16, 64": "s = 0.3：d = 4、16、64",
    "20,000 rows, d = 64, s = 0.3: shortest / others": "20,000 行，d = 64，s = 0.3：最短的 / 其余",
    "language model: words that never win": "语言模型：无法预测的词",
    "commonest tenth / the rest": "最常见的十分之一 / 其余",
    "rarer than one that wins (chance: 50 %)": "比能获胜的词更少见（随机为 50%）",
    "nearer the middle than one that wins": "比能获胜的词更靠近中心",
    "control, before training: rarer": "对照，训练之前：更少见",
    "most probability of such a word: median, largest": "这类词的概率上限：中位数、最大",
    "of 9,998 sampled words, never-winners": "抽样的 9,998 个词中，无法预测的词",
    "perplexity: as it is": "困惑度：原样",
    "perplexity: raise / voronoi / normalise": "困惑度：raise / voronoi / normalise",
}


def rows_of(classes: int, width: int, spread: float | None, seed: int) -> torch.Tensor:
    """(1), or (2) where a spread s is given."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(classes, width, generator=random, dtype=torch.float64)
    if spread is None:
        return rows
    log_length = spread * torch.randn(classes, 1, generator=random, dtype=torch.float64)
    made: torch.Tensor = rows / rows.norm(dim=1, keepdim=True) * log_length.exp()
    return made


def share(classes: int, width: int, spread: float | None, seed: int) -> float:
    """Percent of the classes that never win."""
    found = check_argmaxable(rows_of(classes, width, spread, seed))
    return 100 * len(found.unargmaxable) / classes


def auc(values: Shaped[np.ndarray, " c"], hidden: Bool[np.ndarray, " c"]) -> tuple[float, float]:
    """How often, in percent, a class that never wins is below one that does; standard error.

    Example:
        >>> auc(np.arange(4), np.array([True, True, False, False]))[0]
        100.0
    """
    from scipy.stats import rankdata

    a, b = int(hidden.sum()), int((~hidden).sum())
    if not a or not b:
        return 50.0, np.inf
    above = float(rankdata(values)[~hidden].sum()) - b * (b + 1) / 2
    return 100 * above / (a * b), 100 * float(np.sqrt((a + b + 1) / (12 * a * b)))


def large(seed: int, pick: int = 10) -> tuple[float, float]:
    """Percent that never win in a `LARGE` layer: of the shortest rows, and of any others."""
    rows = rows_of(*LARGE, seed)
    order = rows.norm(dim=1).argsort()
    step = (LARGE[0] - pick) // pick
    chosen = (order[:pick], order[pick + step // 2 :: step][:pick])
    low, rest = (check_argmaxable(rows, classes=one).unargmaxable for one in chosen)
    return 100 * len(low) / pick, 100 * len(rest) / pick


@dataclass(frozen=True)
class Claims:
    """What holds."""

    dimension: bool
    equal_lengths: bool
    whatever_width: bool
    rare: bool


def claims(size: Array, spread: Array, rarity: tuple[float, float]) -> Claims:
    """From percentages over (C, d) and (s, d), and how often hidden words are the rarer ones.

    dimension: more than half at the smallest d and under 1 % at the largest, for every C.
    equal_lengths: none in the first line of `spread`; whatever_width: at no s > 0.2 does the last d
    have less than half of what the first has. rare: above chance by two errors, and at least 60 %.
    """
    wide = spread[np.array(SPREADS) > 0.2]
    return Claims(
        dimension=bool((size[:, 0] > 50).all() and (size[:, -1] < 1).all()),
        equal_lengths=bool((spread[0] == 0).all() and (spread[1:] > 0).any()),
        whatever_width=bool((wide[:, -1] >= wide[:, 0] / 2).all()),
        rare=rarity[0] >= max(60, 50 + 2 * rarity[1]),
    )


def verdict(held: Claims) -> Verdict:
    """Holds if all three claims do, partly if some do."""
    three = (held.dimension, held.equal_lengths and held.whatever_width, held.rare)
    if all(three):
        return Verdict.HOLDS
    return Verdict.PARTLY if any((*three, held.equal_lengths)) else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Draw, train, decide; no data are needed."""
    del data
    size = np.array([[share(c, d, None, seed) for d in WIDTHS] for c in CLASSES])
    spread = np.array([[share(SPREAD_CLASSES, d, s, seed) for d in SPREAD_WIDTHS] for s in SPREADS])
    model, fresh = trained(seed), trained(seed, steps=0)
    report = check_argmaxable(model.weight, model.bias)
    hidden = report.verdict == 0
    count, middle = model.count.numpy(), report.white.rows.norm(dim=1).numpy()
    rarity = auc(count, hidden)
    some = np.arange(seed % 4, len(count), 4)
    before = check_argmaxable(fresh.weight, fresh.bias, some).verdict == 0
    control = auc(count[some], before)
    tenths = by_tenths(count, hidden)
    fixed = [make_all_argmaxable(model.weight, model.bias, how, report=report) for how in HOW]
    after = [model.perplexity(one.weight, one.bias) for one in fixed]
    drawn = hidden[model.sampled(seed).numpy()]
    held = claims(size, spread, rarity)
    numbers: dict[str, Number] = {
        "C = 240: d = 2, 8, 24": _percents(size[-1, [0, 2, 5]]),
        "equal lengths, any d": f"{spread[0].max():.1f} %",
        "s = 0.3: d = 4, 16, 64": _percents(spread[3, [0, 2, 4]]),
        "20,000 rows, d = 64, s = 0.3: shortest / others": "{:.0f} % / {:.0f} %".format(
            *large(seed)
        ),
        "language model: words that never win": f"{int(hidden.sum())} of {len(hidden)}",
        "commonest tenth / the rest": f"{tenths[0]:.0f} % / {np.mean(tenths[1:]):.0f} %",
        "rarer than one that wins (chance: 50 %)": f"{rarity[0]:.1f} ± {rarity[1]:.1f} %",
        "nearer the middle than one that wins": f"{auc(middle, hidden)[0]:.1f} %",
        "control, before training: rarer": f"{control[0]:.1f} ± {control[1]:.1f} %",
        "most probability of such a word: median, largest": (
            f"{np.median(report.bound[hidden]):.3f}, {report.bound[hidden].max():.3f}"
        ),
        "of 9,998 sampled words, never-winners": f"{100 * drawn.mean():.1f} %",
        "perplexity: as it is": f"{model.perplexity(model.weight, model.bias):.1f}",
        "perplexity: raise / voronoi / normalise": " / ".join(f"{p:.1f}" for p in after),
    }
    figure = _picture(size, spread, tenths)
    return Finding(numbers, figure, verdict(held), *_comment(held, model), NAMES_ZH)


def by_tenths(count: NDArray[np.int64], hidden: Bool[np.ndarray, " c"]) -> list[float]:
    """Percent that never win, in tenths of the vocabulary from common to rare."""
    order = np.argsort(-count, kind="stable")
    return [100 * float(part.mean()) for part in np.array_split(hidden[order], 10)]


def _picture(size: Array, spread: Array, tenths: Sequence[float]) -> str:
    hidden, shown = np.zeros(5), np.array([0.0, 0.0, 0.0, 0.0, 0.5])
    never = ("percent of classes that never win", "永远不能获胜的类的百分比")
    bars = [
        Bar((f"{10 * n}–{10 * n + 10} %", f"{10 * n}–{10 * n + 10}%"), value)
        for n, value in enumerate(tenths)
    ]
    return (
        cells(SQUARE, [(("no bias", "无偏置"), hidden), ("b₅ = 0.5", shown)])
        + share_map(
            [f"C = {c}" for c in CLASSES],
            [str(d) for d in WIDTHS],
            size,
            title=("Gaussian rows", "高斯向量"),
            under=never,
            row_label=("classes", "类数"),
            column_label=("dimension d", "维数 d"),
        )
        + share_map(
            [f"s = {s:g}" for s in SPREADS],
            [str(d) for d in SPREAD_WIDTHS],
            spread,
            title=(
                f"{SPREAD_CLASSES} rows of unequal lengths",
                f"{SPREAD_CLASSES} 个长短不一的向量",
            ),
            under=never,
            row_label=("spread of log length", "对数长度的标准差"),
            column_label=("dimension d", "维数 d"),
        )
        + bar_chart(
            bars,
            title=("Tiny language model, by frequency", "小语言模型，按词频"),
            unit=(
                "percent of words that never win; from the commonest tenth to the rarest",
                "无法预测的词的百分比；从最常见的十分之一到最少见的",
            ),
            top=100,
        )
    )


def _comment(held: Claims, model: TinyModel) -> tuple[str, str]:
    def say(yes: bool, one: str, other: str) -> str:
        return one if yes else other

    words = len(model.count)
    return (
        say(held.dimension, "Dimension: holds. ", "Dimension: does not hold here. ")
        + say(held.equal_lengths, "Equal lengths leave none: holds. ", "Equal lengths: not so. ")
        + say(
            held.whatever_width,
            "With unequal lengths d does not help: holds. ",
            "With unequal lengths d still helps: lengths make such classes, d undoes them. ",
        )
        + say(held.rare, "Rare words: holds", "Rare words: not in this model")
        + f", a made-up language of {words:,} words after little training.",
        say(held.dimension, "维数：成立。", "维数：本次不成立。")
        + say(held.equal_lengths, "长度相等就一个没有：成立。", "长度相等：并非如此。")
        + say(
            held.whatever_width,
            "长度不等时加大 d 无济于事：成立。",
            "长度不等时加大 d 仍然有效：长短不一造出这样的类，维数又把它们消去。",
        )
        + say(held.rare, "少见词：成立", "少见词：在这个模型里不成立")
        + f"，模型只在 {words:,} 个词的人造语言上略加训练。",
    )


def _percents(values: Array) -> str:
    return " / ".join(f"{value:.1f} %" for value in values)


EXPERIMENT = Experiment(
    id="S22-certificate",
    system="S22",
    title_en="Which words can never win?",
    title_zh="哪些词永远无法被预测？",
    claim_en=(
        "Classes that never win crowd low dimensions and vanish in high ones; the spread of row "
        "lengths makes them, whatever the dimension; in a language model they are the rare words."
    ),
    claim_zh=(
        "永远不能获胜的类集中在低维，高维时消失；起作用的是向量长短不一，与维数无关；"
        "在语言模型里它们是少见的词。"
    ),
    published=(
        "4 classes crowd 2 dimensions, 40,000 do not crowd 200; equal norms make such words "
        "impossible; those affected are rare (article)"
    ),
    published_zh=(
        "4 个类能挤满 2 维，40,000 个类挤不满 200 维；模长相等就不会有这样的词；"
        "受影响的是低频词（文章）"
    ),
    measure=measure,
)
