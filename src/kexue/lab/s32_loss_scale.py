"""Training on a loss times a number: who notices? (S32)

AdaFactor divides the gradient by the root of its mean square, clips relative to 1 and steps
relative to the size of the weights, so a factor of the loss cancels. Classes that bound the second
moment from below, or add a small number to its root, stop cancelling once gradients are as small.

Beside it, what each class keeps for a weight, counted in the state after one step.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.optim.adafactor import AdaFactor
from kexue.report.charts import Bar, Series, bar_chart, line_chart

__all__ = ["EXPERIMENT", "accuracies", "bytes_per_weight", "verdict"]

OURS, FACE, TORCH, ADAMW = "AdaFactor", "transformers", "torch", "AdamW"
EXPONENTS = (0, 3, 4, 5, 6, 7)
PUBLISHED = {
    TORCH: {0: 93.4, 3: 93.0, 5: 72.1, 7: 9.8},
    FACE: {0: 93.4, 3: 93.4, 5: 93.4, 7: 93.4},
    ADAMW: {0: 95.9, 3: 95.7, 5: 94.4, 7: 42.5},
}
"""Percent right on the digits with the loss times 10^−exponent; one earlier run of each."""
SEEDS, EPOCHS, BATCH, WARMUP = 3, 8, 50, 20
TRANSFORMER = ((21128, 768), (768, 768), (3072, 768), (768,))
CONVOLUTION = ((512, 512, 3, 3),)

Build = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def builds() -> dict[str, Build]:
    """The four optimizers with the settings of the comparison."""
    from transformers.optimization import Adafactor

    return {
        ADAMW: lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=0.01),
        TORCH: lambda params: torch.optim.Adafactor(params, lr=1e-2),
        FACE: lambda params: Adafactor(params, lr=1e-2, relative_step=False),
        OURS: lambda params: AdaFactor(params, lr=1e-2),
    }


def accuracies(
    build: Build, exponent: int, *, seeds: Sequence[int] = range(SEEDS), epochs: int = EPOCHS
) -> list[float]:
    """Percent of scikit-learn's digits right after training on the loss times 10^−exponent."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1
    y = torch.tensor(digits.target)
    found = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(x), generator=generator)
        train, test = order[:1000], order[1000:]
        net = network(generator)
        optimizer = build(net.parameters())
        steps = epochs * len(train) // BATCH
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, up_and_down(steps))
        for _ in range(epochs):
            for rows in train[torch.randperm(len(train), generator=generator)].split(BATCH):
                optimizer.zero_grad()
                (10.0**-exponent * F.cross_entropy(net(x[rows]), y[rows])).backward()
                optimizer.step()
                schedule.step()
        with torch.no_grad():
            found.append(100 * (net(x[test]).argmax(1) == y[test]).float().mean().item())
    return found


def up_and_down(steps: int) -> Callable[[int], float]:
    """A linear warm-up and a linear way down."""
    return lambda step: min((step + 1) / WARMUP, max(0.0, 1 - step / steps))


def network(generator: torch.Generator) -> nn.Sequential:
    """64 – 256 – 256 – 10, drawn from the generator."""
    layers: list[nn.Module] = []
    for wide, narrow in ((64, 256), (256, 256), (256, 10)):
        layer = nn.Linear(wide, narrow)
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -(wide**-0.5), wide**-0.5, generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def bytes_per_weight(build: Build, shapes: Sequence[tuple[int, ...]]) -> float:
    """Bytes of state after one step, per weight."""
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = build(params)
    optimizer.step()
    kept = [t for state in optimizer.state.values() for t in state.values()]
    return sum(t.nbytes for t in kept if torch.is_tensor(t)) / sum(p.numel() for p in params)


def verdict(means: dict[str, dict[int, float]]) -> Verdict:
    """Holds if ours stays within half a point at every factor and torch's falls below 20 %."""
    ours = means[OURS].values()
    if max(ours) - min(ours) > 0.5:
        return Verdict.FAILS
    return Verdict.HOLDS if means[TORCH][max(EXPONENTS)] < 20 else Verdict.PARTLY


def measure(seed: int, data: Path | None) -> Finding:
    """Four optimizers, six factors, three seeds; `data` is not needed."""
    del data
    seeds = range(seed, seed + SEEDS)
    found = {
        name: {e: accuracies(build, e, seeds=seeds) for e in EXPONENTS}
        for name, build in builds().items()
    }
    means = {
        name: {e: sum(values) / len(values) for e, values in table.items()}
        for name, table in found.items()
    }
    numbers: dict[str, Number] = {
        f"{name}: loss × 1, 1e-3, 1e-5, 1e-7": " · ".join(f"{t[e]:.1f}" for e in (0, 3, 5, 7))
        for name, t in reversed(means.items())
    }
    numbers["largest change of a run, AdaFactor"] = round(
        max(
            abs(a - b)
            for e in EXPONENTS
            for a, b in zip(found[OURS][0], found[OURS][e], strict=True)
        ),
        2,
    )
    chart = line_chart(
        [
            Series(name, list(table), list(table.values()), dots=True)
            for name, table in means.items()
        ],
        title=("Accuracy against the scale of the loss", "准确率与损失的缩放"),
        x_label=("k, where the loss is multiplied by 10⁻ᵏ", "k：损失乘以 10⁻ᵏ"),
        y_label=("percent of the digits right", "手写数字的准确率（%）"),
        reference=(("chance", "瞎猜水平"), 10.0),
    )
    return Finding(numbers, chart + _memory(), verdict(means), *_comment(means), NAMES_ZH)


def _memory() -> str:
    named = builds()
    rows = [
        (("AdamW", "AdamW"), named[ADAMW], TRANSFORMER),
        (("AdaFactor, β₁ = 0.9", "AdaFactor，β₁ = 0.9"), _with_momentum, TRANSFORMER),
        (("AdaFactor", "AdaFactor"), named[OURS], TRANSFORMER),
        (("convolution: AdamW", "卷积：AdamW"), named[ADAMW], CONVOLUTION),
        (
            ("convolution: torch, transformers", "卷积：torch、transformers"),
            named[FACE],
            CONVOLUTION,
        ),
        (("convolution: AdaFactor", "卷积：AdaFactor"), named[OURS], CONVOLUTION),
    ]
    return bar_chart(
        [Bar(name, bytes_per_weight(build, shapes)) for name, build, shapes in rows],
        title=("State per weight", "每个参数的优化器状态"),
        unit=(
            "bytes; embedding and layers of 768, or one 512 × 512 × 3 × 3 kernel",
            "字节；词嵌入与宽度 768 的各层，或一个 512 × 512 × 3 × 3 的卷积核",
        ),
        digits=3,
    )


def _with_momentum(params: Any) -> torch.optim.Optimizer:
    return AdaFactor(params, beta1=0.9)


def _comment(means: dict[str, dict[int, float]]) -> tuple[str, str]:
    least, most = min(means[OURS].values()), max(means[OURS].values())
    torchs, last = means[TORCH], max(EXPONENTS)
    return (
        f"Means of {SEEDS} seeds. AdaFactor stays between {least:.1f} and {most:.1f} % whatever "
        f"the factor, and so does the class in transformers at {means[FACE][0]:.1f} %, which "
        "factors all matrices, not only the large ones (its line lies under ours). Torch's class "
        f"goes from {torchs[0]:.1f} to {torchs[last]:.1f} %: it bounds the root of the second "
        "moment from below by the machine precision. At the usual scale AdamW is "
        f"{means[ADAMW][0] - means[OURS][0]:.1f} points above AdaFactor here.",
        f"{SEEDS} 个种子的平均。无论乘以多小的数，AdaFactor 都在 {least:.1f}% 到 {most:.1f}% 之间；"
        f"transformers 的实现同样不变，为 {means[FACE][0]:.1f}%，曲线被盖在下面"
        "（它分解所有矩阵，不只是大的）。"
        f"torch 的实现从 {torchs[0]:.1f}% 跌到 {torchs[last]:.1f}%，因为它用机器精度给二阶矩的"
        "平方根设了下限。在通常的尺度下，AdamW 在这里比 AdaFactor 高 "
        f"{means[ADAMW][0] - means[OURS][0]:.1f} 个百分点。",
    )


NAMES_ZH = {
    **{
        f"{name}: loss × 1, 1e-3, 1e-5, 1e-7": f"{name}：损失 × 1、1e-3、1e-5、1e-7"
        for name in (OURS, FACE, TORCH, ADAMW)
    },
    "largest change of a run, AdaFactor": "AdaFactor 单次训练的最大变化",
}

EXPERIMENT = Experiment(
    id="S32-loss-scale",
    system="S32",
    title_en="Does the scale of the loss matter?",
    title_zh="损失的缩放有影响吗？",
    claim_en=(
        "AdaFactor's training does not change when the loss is multiplied by a number as small as "
        "1e-7; torch's class of this name fails there."
    ),
    claim_zh="损失乘以小到 1e-7 的数，AdaFactor 的训练也不变；torch 的同名实现则会失败。",
    published="; ".join(
        f"{name} {', '.join(f'{value:g}' for value in table.values())} %"
        for name, table in PUBLISHED.items()
    )
    + " for factors 1, 1e-3, 1e-5, 1e-7",
    published_zh="；".join(
        f"{name} {'、'.join(f'{value:g}' for value in table.values())}%"
        for name, table in PUBLISHED.items()
    )
    + "（乘数 1、1e-3、1e-5、1e-7）",
    measure=measure,
)
