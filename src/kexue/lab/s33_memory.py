"""How three optimizers remember squared gradients, and what a late burst does to them (S33).

Every one of them divides by the root of a weighted mean of past squares,

    v_t = (1 − s_t)·v_{t−1} + s_t·g_t²        with the newest square's weight s_t:             (1)

    Adam       s_t = (1 − β2) / (1 − β2^t), β2 = 0.999            → 1 − β2
    AdaX       s_t = β2 / ((1 + β2)^t − 1), β2 = 1e-4             → 0
    AdaFactor  s_t = t^−0.8                                       → 0

The square of step i then weighs w_i = s_i · Π_{j>i} (1 − s_j) at step t.                      (2)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.optim.adax import AdaX, newest_share
from kexue.report.charts import Bar, Series, bar_chart, line_chart

__all__ = ["EXPERIMENT", "Burst", "accuracy", "burst", "newest_shares", "verdict", "weights_by_age"]

LATE = 100_000
LENGTH, FACTOR = 100, 10.0
"""A burst: this many gradients, this many times as large."""
SHOWN = 1500
SEEDS = 3
EPOCHS = 20
OPTIMIZERS = {
    "AdaX 1e-3": lambda params: AdaX(params, lr=1e-3),
    "AdaX 5e-3": lambda params: AdaX(params, lr=5e-3),
    "AdamW 1e-3": lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=0.0),
    "SGD 0.1, momentum 0.9": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
}
NAMES_ZH = {
    "newest weight at t = 1": "t = 1 时最新平方的权重",
    f"newest weight at t = {LATE:,}": f"t = {LATE:,} 时最新平方的权重",
    "step length after a late burst, Adam": "后期突发之后的步长，Adam",
    "step length after a late burst, AdaFactor": "后期突发之后的步长，AdaFactor",
    "step length after a late burst, AdaX": "后期突发之后的步长，AdaX",
    "step length at the end after an early burst, AdaX": "开头突发后直到最后的步长，AdaX",
    **{f"digits, {name}": f"手写数字，{name}" for name in OPTIMIZERS},
}


def newest_shares(name: str, steps: int) -> np.ndarray:
    """s_1 … s_steps of "Adam", "AdaX" or "AdaFactor"."""
    t = np.arange(1, steps + 1, dtype=float)
    if name == "AdaX":
        return np.array([newest_share(i, 1e-4) for i in range(1, steps + 1)])
    return np.asarray(0.001 / -np.expm1(t * np.log(0.999)) if name == "Adam" else t**-0.8)


def weights_by_age(shares: np.ndarray) -> np.ndarray:
    """log10 of (2), the newest square first."""
    with np.errstate(divide="ignore"):  # s_1 = 1 leaves nothing of what was before
        kept = np.cumsum(np.log(1 - shares[::-1]))
    return np.asarray((np.log(shares[::-1]) + np.concatenate([[0.0], kept[:-1]])) / np.log(10))


@dataclass(frozen=True)
class Burst:
    """Step lengths 1/√v relative to the step before the burst, from there on."""

    lengths: Sequence[float]

    @property
    def least(self) -> float:
        """The shortest step."""
        return min(self.lengths)


def burst(
    name: str, late: int = LATE, seed: int = 0, shown: int = SHOWN, factor: float = FACTOR
) -> Burst:
    """Normal gradients, and LENGTH of them `factor` times as large from step `late` on.

    Adam and AdaX are the real optimizers; of AdaFactor only (1) without its factors is run.
    """
    coordinates, after = 64, LENGTH + shown
    generator = torch.Generator().manual_seed(seed)
    x = nn.Parameter(torch.zeros(coordinates))
    optimizer = AdaX([x]) if name == "AdaX" else torch.optim.Adam([x], fused=True)
    v, lengths = torch.zeros(coordinates), []
    shares = newest_shares(name, late + after) if name == "AdaFactor" else None
    for t in range(1, late + after + 1):
        g = torch.randn(coordinates, generator=generator)
        if late < t <= late + LENGTH:
            g *= factor
        if shares is None:
            x.grad = g
            optimizer.step()
        else:
            v.lerp_(g.square(), float(shares[t - 1]))
        if t >= late:
            lengths.append(_mean_length(name, t, v if shares is not None else optimizer.state[x]))
    return Burst([length / lengths[0] for length in lengths])


def _mean_length(name: str, t: int, kept: torch.Tensor | dict[str, torch.Tensor]) -> float:
    if isinstance(kept, torch.Tensor):
        v = kept
    elif name == "AdaX":
        v = kept["exp_avg_sq_hat"]
    else:
        v = kept["exp_avg_sq"] / (1 - 0.999**t)
    return float(v.rsqrt().mean())


def accuracy(name: str, seed: int, epochs: int = EPOCHS) -> float:
    """Percent of scikit-learn's digits that a small network gets right: 1,000 train, 797 test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    inputs = torch.tensor(digits.data / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator)
    train, test = order[:1000], order[1000:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = (nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        model = nn.Sequential(*layers, nn.Linear(256, 10))
    optimizer = OPTIMIZERS[name](model.parameters())
    total = epochs * len(train) // 50
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, 1 - step / total)
    )
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train), generator=generator)].split(50):
            F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    with torch.no_grad():
        right = model(inputs[test]).argmax(1) == labels[test]
    return 100 * float(right.float().mean())


def verdict(first: float, last: float, adam: float, adax: float) -> Verdict:
    """From AdaX's newest weight at the first and a late step, and the shortest steps in a burst.

    Holds if the newest square weighs all at first and under a millionth late, and a late burst
    shortens AdaX's steps by less than a hundredth where it halves Adam's; partly if it only
    shortens them less than Adam's.
    """
    if abs(first - 1) < 1e-9 and last < 1e-6 and adax > 0.99 and adam < 0.5:
        return Verdict.HOLDS
    return Verdict.PARTLY if adax > adam else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Three pictures of memory, and a small classification beside them; the data are not needed."""
    del data
    names = ("Adam", "AdaX", "AdaFactor")
    shares = {name: newest_shares(name, LATE) for name in names}
    bursts = {name: burst(name, LATE, seed, SHOWN) for name in names}
    early = _early_burst(shares["AdaX"])
    scores = {name: [accuracy(name, seed + k, EPOCHS) for k in range(SEEDS)] for name in OPTIMIZERS}

    def row(values: Sequence[float]) -> str:
        return ", ".join(f"{name} {v:.2g}" for name, v in zip(names, values, strict=True))

    numbers: dict[str, Number] = {
        "newest weight at t = 1": row([shares[name][0] for name in names]),
        f"newest weight at t = {LATE:,}": row([shares[name][-1] for name in names]),
        **{
            f"step length after a late burst, {name}": f"{100 * bursts[name].least:.2f} %"
            for name in ("Adam", "AdaFactor", "AdaX")
        },
        "step length at the end after an early burst, AdaX": f"{100 * early:.1f} %",
    }
    for name, values in scores.items():
        spread = np.std(values, ddof=1)
        numbers[f"digits, {name}"] = f"{np.mean(values):.2f} ± {spread:.2f} %"
    first, last = shares["AdaX"][0], shares["AdaX"][-1]
    return Finding(
        numbers,
        _memory_picture(shares) + _burst_picture(bursts) + _digits_picture(scores),
        verdict(float(first), float(last), bursts["Adam"].least, bursts["AdaX"].least),
        *_comment(bursts, early),
        NAMES_ZH,
    )


def _early_burst(shares: np.ndarray) -> float:
    """Step length at the last step if the first LENGTH gradients were FACTOR times as large."""
    weights = 10 ** weights_by_age(shares)[::-1]
    return float(1 / np.sqrt(1 + (FACTOR**2 - 1) * weights[:LENGTH].sum()))


def _memory_picture(shares: dict[str, np.ndarray]) -> str:
    t = np.unique(np.geomspace(1, LATE, 200).round().astype(int))
    newest = [
        Series(name, np.log10(t).tolist(), np.log10(one[t - 1]).tolist())
        for name, one in shares.items()
    ]
    ages = np.arange(0, LATE, LATE // 500)
    lines = []
    for name, one in shares.items():
        weights = weights_by_age(one)[ages]
        seen = weights > -12
        lines.append(Series(name, (ages[seen] / 1000).tolist(), weights[seen].tolist()))
    return line_chart(
        newest,
        title=("Weight of the newest squared gradient", "最新一个梯度平方的权重"),
        x_label=("step t, log10", "步数 t（log10）"),
        y_label=("weight, log10", "权重（log10）"),
    ) + line_chart(
        lines,
        title=(f"Weight of past squares at t = {LATE:,}", f"t = {LATE:,} 时历史平方的权重"),
        x_label=("age, thousands of steps", "距今步数（千步）"),
        y_label=("weight, log10; below −12 not drawn", "权重（log10），小于 −12 的不画"),
    )


def _burst_picture(bursts: dict[str, Burst]) -> str:
    lines = [
        Series(name, range(len(one.lengths)), [100 * v for v in one.lengths])
        for name, one in bursts.items()
    ]
    return line_chart(
        lines,
        title=(f"A burst of gradients at t = {LATE:,}", f"t = {LATE:,} 时的一次梯度突发"),
        x_label=("steps since the burst began", "突发开始后的步数"),
        y_label=("step length, percent of the one before", "步长（占突发前的百分比）"),
        start=0,
    )


def _digits_picture(scores: dict[str, list[float]]) -> str:
    bars = [
        Bar((name, NAMES_ZH.get(name, name)), float(np.mean(v)), low=min(v), high=max(v))
        for name, v in scores.items()
    ]
    return bar_chart(
        bars,
        title=("Digits, test accuracy", "手写数字，测试准确率"),
        unit=(f"percent, mean and range of {SEEDS} seeds", f"百分比，{SEEDS} 个种子的均值与范围"),
        top=100,
    )


def _comment(bursts: dict[str, Burst], early: float) -> tuple[str, str]:
    adam, adax = 100 * bursts["Adam"].least, 100 * bursts["AdaX"].least
    return (
        f"{LENGTH} gradients {FACTOR:g} times as large at step {LATE:,} leave Adam with steps of "
        f"{adam:.0f} % of their length at the worst and AdaX with {adax:.2f} %. The same memory "
        f"has a price: a burst in the first {LENGTH} steps still leaves AdaX at {100 * early:.0f} "
        f"% at step {LATE:,}. The accuracies decide nothing: learning rates were hardly tuned, "
        f"and {SEEDS} seeds on 797 test digits cannot rank these optimizers.",
        f"第 {LATE:,} 步起连续 {LENGTH} 个梯度放大 {FACTOR:g} 倍，Adam 的步长最低降到原来的 "
        f"{adam:.0f}%，AdaX 仍有 {adax:.2f}%。同样的记忆也有代价：若突发发生在最初 {LENGTH} 步，"
        f"到第 {LATE:,} 步时 AdaX 的步长仍只有 {100 * early:.0f}%。准确率不参与判断：学习率几乎"
        f"没有调过，{SEEDS} 个种子、797 个测试样本分不出这些优化器的高下。",
    )


EXPERIMENT = Experiment(
    id="S33-memory",
    system="S33",
    title_en="AdaX: what is left of old and new gradients",
    title_zh="AdaX：新旧梯度各留下多少",
    claim_en=(
        "AdaX's scale is set by the newest gradient alone at the start and hardly by it in the "
        "end, so that a late burst leaves its step lengths as they are, unlike Adam's."
    ),
    claim_zh=(
        "AdaX 的二阶矩起初完全由当前梯度决定，最后几乎不受新梯度影响；"
        "因此训练后期的梯度突发不改变它的步长，而 Adam 会变。"
    ),
    published="1 − β̂ is 1 at t = 1 and tends to 0; no experiment in the article",
    published_zh="1 − β̂ 在 t = 1 时为 1，随后趋于 0；文章没有给实验",
    measure=measure,
)
