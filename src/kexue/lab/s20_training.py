"""Which stacks of 200 layers train at all? (S20)

The families of `S20-depth` at width 64, and two with norms, between a trained projection of
scikit-learn's digits and a trained read-out: plain SGD in float32, 60 steps on 64 digits each, at
the better of two rates. Trained is what ends (mean of the last ten steps) below half of the loss
of guessing, ln 10.

    post-norm   x ← LN(x + ReLU(x) W)          pre-norm   x ← x + ReLU(LN(x)) W, LN at the end
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.lab.s20_depth import (
    ADAM,
    ISOMETRY,
    NAMES_ZH,
    ONE,
    RELU,
    SGD,
    TANH,
    Layer,
    digits,
    drawn,
    stacks,
)
from kexue.nn.residual import ScaledResidual
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "end", "judge", "train"]

DEPTH, WIDTH, BATCH, STEPS, LAST = 200, 64, 64, 60, 10
RATES = (0.1, 0.01)
GUESSING = math.log(10)
POST, PRE = "post-norm, ε = 1", "pre-norm, ε = 1"
WORDS_ZH = NAMES_ZH | {POST: "post-norm，ε = 1", PRE: "pre-norm，ε = 1"}
WITHOUT_NORM = (ISOMETRY, RELU, TANH, ONE, SGD, ADAM)
DRAWN = (ISOMETRY, TANH, SGD, ADAM, POST, PRE)
"""ReLU with He's W hides behind the level of guessing, ε = 1 starts far above the picture."""


def families(W: Tensor) -> dict[str, Callable[[], nn.Sequential]]:
    """Name -> a fresh network of all layers."""

    def norm() -> nn.LayerNorm:
        return nn.LayerNorm(W.shape[-1], elementwise_affine=False)

    def branches() -> list[Layer]:
        return [Layer(math.sqrt(2) * one, F.relu) for one in W]

    def post() -> nn.Sequential:
        layers = [nn.Sequential(ScaledResidual(branch, 1.0), norm()) for branch in branches()]
        return nn.Sequential(*layers)

    def pre() -> nn.Sequential:
        layers = [ScaledResidual(nn.Sequential(norm(), branch), 1.0) for branch in branches()]
        return nn.Sequential(*layers, norm())

    without = {name: (lambda net=net: net(len(W))) for name, net in stacks(W).items()}
    return without | {POST: post, PRE: pre}


def train(net: nn.Sequential, rate: float, seed: int, steps: int = STEPS) -> list[float]:
    """The loss of every step; it stops where the loss is no longer finite."""
    generator = torch.Generator().manual_seed(seed)
    x, y = digits(torch.float32)
    stem, head = (
        nn.Parameter(torch.randn(n, m, generator=generator) / math.sqrt(n))
        for n, m in ((x.shape[1], WIDTH), (WIDTH, 10))
    )
    optimizer = torch.optim.SGD([stem, head, *net.parameters()], lr=rate)
    losses: list[float] = []
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        loss = F.cross_entropy(net(x[rows] @ stem) @ head, y[rows])
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def end(losses: Sequence[float]) -> float:
    """Mean of the last ten steps; infinite if a loss was not finite."""
    last = losses[-LAST:]
    return sum(last) / len(last) if math.isfinite(losses[-1]) else math.inf


def judge(ends: Mapping[str, float]) -> Verdict:
    """Holds if without norm the two small weights train and nothing else does.

    Partly if both train, but something else as well.
    """
    trained = {name for name in WITHOUT_NORM if ends[name] < GUESSING / 2}
    if trained == {SGD, ADAM}:
        return Verdict.HOLDS
    return Verdict.PARTLY if {SGD, ADAM} <= trained else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Eight families, two rates; `data` is not needed."""
    del data
    generator = torch.Generator().manual_seed(seed)
    W = drawn(WIDTH, DEPTH, generator, torch.float32)
    runs = {
        name: min(((train(net(), rate, seed), rate) for rate in RATES), key=lambda run: end(run[0]))
        for name, net in families(W).items()
    }
    ends = {name: end(losses) for name, (losses, _) in runs.items()}
    start = {name: losses[0] for name, (losses, _) in runs.items()}
    numbers: dict[str, Number] = {
        name: f"{losses[0]:.3g} → {ends[name]:.3g} (rate {rate:g})"
        if math.isfinite(ends[name])
        else f"{losses[0]:.3g} → not finite at any rate"
        for name, (losses, rate) in runs.items()
    }
    chart = line_chart(
        [
            Series(
                (name, WORDS_ZH[name]),
                range(1, len(losses) + 1),
                [one if one <= 5 else math.nan for one in losses],
            )
            for name, (losses, _) in runs.items()
            if name in DRAWN
        ],
        title=(f"Training {DEPTH} layers", f"训练 {DEPTH} 层"),
        x_label=("step", "步"),
        y_label=("loss of the batch", "批次损失"),
        reference=(("guessing", "瞎猜水平"), GUESSING),
        height=380,
    )
    return Finding(numbers, chart, judge(ends), *_comment(ends, start), WORDS_ZH)


def _comment(ends: Mapping[str, float], start: Mapping[str, float]) -> tuple[str, str]:
    trained = [name for name in ends if ends[name] < GUESSING / 2]
    rates = " / ".join(f"{rate:g}" for rate in RATES)
    hidden = [name for name in ends if name not in DRAWN]
    begin = {name: f"{start[name]:.3g}" for name in hidden}
    return (
        f"Below {GUESSING / 2:.2f} at the better of the rates {rates}: "
        f"{'; '.join(trained) or 'none'}. Not drawn: "
        f"{'; '.join(f'{name}, whose first loss is {begin[name]}' for name in hidden)}.",
        f"取两个学习率（{rates}）中较好的一个，终值低于 {GUESSING / 2:.2f} 的有："
        f"{'；'.join(WORDS_ZH[name] for name in trained) or '无'}。图中未画："
        f"{'；'.join(f'{WORDS_ZH[name]}，第一步的损失为 {begin[name]}' for name in hidden)}。",
    )


EXPERIMENT = Experiment(
    id="S20-training",
    system="S20",
    title_en="Which stacks of 200 layers train",
    title_zh="哪些 200 层的网络能训练",
    claim_en=(
        "Of stacks of 200 layers without norm, only those with a small residual weight, N^(−1/2) "
        "or 1/N, train with plain SGD."
    ),
    claim_zh="没有归一化的 200 层网络，只有残差权重取 N^(−1/2) 或 1/N 的能用朴素 SGD 训练。",
    published="no experiment; follows from dL = O(ηNK)",
    published_zh="原文没有实验；由 dL = O(ηNK) 推得",
    measure=measure,
)
