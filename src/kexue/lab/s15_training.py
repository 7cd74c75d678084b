"""Do batch and rate of SGD move both penalties together? (S15, article 8796)

Digits, an MLP 64-64-64-10 with tanh, plain SGD until the training loss falls to a common level. The
article reads the inequality as "the parameter penalty is about a constant times the input penalty";
arXiv 2111.15090 says that larger steps give smoother functions. Both are means over samples here:
the gradient of the mean loss obeys no such bound.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.losses.ghost_norm import per_sample_param_grad_norm
from kexue.losses.gradient_penalty import input_gradient_norm
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "SETTINGS", "Result", "train", "verdict"]

LEVELS = (1.0, 0.5, 0.25)
SETTINGS = {1: (0.005, 0.02), 16: (0.03, 0.3), 1000: (0.15, 0.5)}
"""Rates by batch size; 1000 is all training samples."""
TRAIN, SEEDS, CHECK = 1000, 3, 5000


@dataclass(frozen=True)
class Result:
    """At one level of the loss: mean squared gradients of samples, and test accuracy in percent."""

    by_input: float
    by_parameters: float
    accuracy: float

    @property
    def ratio(self) -> float:
        """Parameter penalty over input penalty."""
        return self.by_parameters / self.by_input


def train(batch: int, rate: float, seed: int, levels: Sequence[float] = LEVELS) -> list[Result]:
    """Train until the loss passes each level, and measure there; missing levels are left out."""
    x, y, test, truth = _digits(seed)
    random = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in ((64, 64), (64, 64), (64, 10)):
        dense = nn.Linear(a, b)
        dense.weight.data = torch.randn(b, a, generator=random) / a**0.5
        dense.bias.data.zero_()
        layers += [dense, nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    params = list(model.parameters())
    found: list[Result] = []
    steps = max(1, 100 // batch)
    for step in range(CHECK * steps):
        if step % steps == 0:
            with torch.no_grad():
                loss = F.cross_entropy(model(x), y).item()
            while len(found) < len(levels) and loss <= levels[len(found)]:
                found.append(_measured(model, x, y, test, truth))
            if len(found) == len(levels):
                break
        rows = torch.randint(len(y), (batch,), generator=random) if batch < len(y) else slice(None)
        grads = torch.autograd.grad(F.cross_entropy(model(x[rows]), y[rows]), params)
        with torch.no_grad():
            for p, g in zip(params, grads, strict=True):
                p.sub_(g, alpha=rate)
    return found


def _measured(model: nn.Module, x: Tensor, y: Tensor, test: Tensor, truth: Tensor) -> Result:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y, reduction="none")

    inputs = input_gradient_norm(model, x, y, loss).square().mean().item()
    params = per_sample_param_grad_norm(model, x, y, loss, squared=True).mean().item()
    with torch.no_grad():
        right = (model(test).argmax(1) == truth).double().mean().item()
    return Result(inputs, params, 100 * right)


def _digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.data).float() / 8 - 1
    y = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1000 + seed))
    seen, rest = order[:TRAIN], order[TRAIN:]
    return x[seen], y[seen], x[rest], y[rest]


Found = Mapping[tuple[int, float], Sequence[Sequence[Result]]]


def _mean(runs: Sequence[Sequence[Result]], level: int, name: str) -> float:
    return float(statistics.mean(getattr(run[level], name) for run in runs))


def verdict(found: Found) -> tuple[Verdict, float, int]:
    """Whether the ratio stays within a factor of two, and how often a larger rate is smoother.

    Returns:
        The verdict, the largest over the smallest mean ratio over all settings and levels, and at
        how many batch sizes the largest rate has the smaller input penalty at the last level.
    """
    levels = range(len(next(iter(found.values()))[0]))
    ratios = [_mean(runs, k, "ratio") for runs in found.values() for k in levels]
    drift = max(ratios) / min(ratios)
    smoother = 0
    for batch in {batch for batch, _ in found}:
        rates = sorted(rate for b, rate in found if b == batch)
        ends = [_mean(found[batch, rate], levels[-1], "by_input") for rate in (rates[0], rates[-1])]
        smoother += ends[1] < ends[0]
    sizes = len({batch for batch, _ in found})
    if drift <= 2 and smoother == sizes:
        return Verdict.HOLDS, drift, smoother
    return (Verdict.PARTLY if drift <= 2 or smoother == sizes else Verdict.FAILS), drift, smoother


def measure(seed: int, data: Path | None) -> Finding:
    """Train with every batch and rate over several seeds; scikit-learn brings the data."""
    del data
    found = {
        (batch, rate): [train(batch, rate, seed * SEEDS + k) for k in range(SEEDS)]
        for batch, rates in SETTINGS.items()
        for rate in rates
    }
    return _finding(found)


def _finding(found: Found) -> Finding:
    judged, drift, smoother = verdict(found)
    last = len(LEVELS) - 1
    numbers: dict[str, Number] = {}
    names_zh = {}
    lines = []
    for (batch, rate), runs in found.items():
        size, size_zh = ("all", "全部") if batch >= TRAIN else (str(batch), str(batch))
        name = f"batch {size}, rate {rate:g}: input, parameters, accuracy"
        numbers[name] = (
            f"{_mean(runs, last, 'by_input'):.3f}, {_mean(runs, last, 'by_parameters'):.2f}, "
            f"{_mean(runs, last, 'accuracy'):.1f} %"
        )
        names_zh[name] = f"批次 {size_zh}，学习率 {rate:g}：输入、参数、准确率"
        label = (f"batch {size}, rate {rate:g}", f"批次 {size_zh}，学习率 {rate:g}")
        levels = [-_log2(level) for level in LEVELS]
        values = [_mean(runs, k, "ratio") for k in range(len(LEVELS))]
        lines.append(Series(label, levels, values, dots=True))
    sizes = len(SETTINGS)
    numbers["largest over smallest ratio of the penalties"] = f"{drift:.1f}"
    numbers["batch sizes where the larger rate is smoother"] = f"{smoother} / {sizes}"
    names_zh |= {
        "largest over smallest ratio of the penalties": "两种惩罚之比：最大 / 最小",
        "batch sizes where the larger rate is smoother": "大学习率更光滑的批次大小",
    }
    figure = line_chart(
        lines,
        title=("Parameter penalty over input penalty", "参数惩罚 / 输入惩罚"),
        y_label=("mean squared gradients of samples", "逐样本梯度平方的均值之比"),
        x_label=("−log2 of the training loss", "训练损失的 −log2"),
    )
    return Finding(
        numbers=numbers,
        figure=figure,
        verdict=judged,
        comment_en=(
            f"The ratio of the penalties spans a factor of {drift:.1f} over settings and training "
            f"(up to 2 counts as a constant). At a training loss of {LEVELS[-1]:g} the largest "
            f"rate has the smaller input penalty at {smoother} of {sizes} batch sizes. Means of "
            f"{SEEDS} seeds; the table is at that loss."
        ),
        comment_zh=(
            f"各设置和整个训练中，两种惩罚之比相差 {drift:.1f} 倍（2 倍以内算常数）。"
            f"训练损失降到 {LEVELS[-1]:g} 时，{sizes} 种批次大小中有 {smoother} 种是"
            f"学习率越大输入惩罚越小。{SEEDS} 个种子的均值；表中数值取自该损失处。"
        ),
        names_zh=names_zh,
    )


def _log2(value: float) -> float:
    return torch.tensor(value, dtype=torch.float64).log2().item()


EXPERIMENT = Experiment(
    id="S15-training",
    system="S15",
    title_en="Both penalties while SGD trains",
    title_zh="SGD 训练中的两种梯度惩罚",
    claim_en=(
        "In a healthy run the parameter penalty is about a constant times the input penalty, so a "
        "larger learning rate gives a smoother function at equal training loss."
    ),
    claim_zh="正常训练时参数惩罚约为输入惩罚的常数倍，因此训练损失相同时，学习率越大函数越光滑。",
    published="A reading of the inequality in article 8796 and arXiv 2111.15090, without numbers.",
    published_zh="文章 8796 与 arXiv 2111.15090 对不等式的解读，没有给出数值。",
    measure=measure,
)
