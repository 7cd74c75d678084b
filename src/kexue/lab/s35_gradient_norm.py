"""A step down and a step up are a step on the squared gradient norm (S35).

A network 10-20-1 with tanh learns noisy labels, full batch, in float64, until its loss is 0.3.
From there, with SGD of rate ε:

    law        θ − ε g + ε g'  against  θ − (ε²/2) ∇|∇L|²  for several ε: the error falls as ε³
    flooding   1600 steps at the level 0.3, against 800 steps of the penalty itself at rate ε²/2
    batches    down on one half of the data, up on the other: the drift, and the noise beside it
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.lab.s35_levels import draw
from kexue.losses.flooding import flooding
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "judge", "order", "problem"]

LEVEL, RATE, PAIRS = 0.3, 1.0, 800
BATCH_RATE = 0.1
RATES = (0.04, 0.02, 0.01, 0.005)
SIZES = ((20, 10), (20,), (1, 20), (1,))

Loss = Callable[[Tensor], Tensor]


def problem(seed: int) -> tuple[list[Loss], Tensor]:
    """The losses of the whole batch and of its two halves, and parameters of loss `LEVEL`."""
    generator = torch.Generator().manual_seed(seed)
    x, y, _ = draw(100, generator)
    x, y = x.double(), y.double()
    counts = [math.prod(size) for size in SIZES]
    theta = torch.randn(sum(counts), generator=generator, dtype=torch.float64) / math.sqrt(20)

    def on(rows: slice) -> Loss:
        def loss(theta: Tensor) -> Tensor:
            parts = theta.split(counts)
            w, b, v, c = (part.view(size) for part, size in zip(parts, SIZES, strict=True))
            scores = F.linear(F.linear(x[rows], w, b).tanh(), v, c)[:, 0]
            return F.binary_cross_entropy_with_logits(scores, y[rows])

        return loss

    losses = [on(rows) for rows in (slice(None), slice(50), slice(50, None))]
    while losses[0](theta) > LEVEL:
        theta = theta - 0.1 * slope(losses[0], theta)
    return losses, theta


def slope(loss: Loss, theta: Tensor, create_graph: bool = False) -> Tensor:
    """∇L."""
    if not create_graph:
        theta = theta.detach().requires_grad_()
    (found,) = torch.autograd.grad(loss(theta), theta, create_graph=create_graph)
    return found


def norm_slope(loss: Loss, theta: Tensor) -> Tensor:
    """∇|∇L|²."""
    theta = theta.detach().requires_grad_()
    (found,) = torch.autograd.grad(slope(loss, theta, True).square().sum(), theta)
    return found


def down_up(down: Loss, up: Loss, theta: Tensor, rate: float) -> Tensor:
    """A step down on one loss, a step up on another."""
    below = theta - rate * slope(down, theta)
    return below + rate * slope(up, below)


def order(rates: Sequence[float], errors: Sequence[float]) -> float:
    """The exponent p of an error that falls as rate^p: the slope in logarithms."""
    x = torch.tensor(rates, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / x.square().sum()).item()


def judge(exponent: float, ratio: float) -> Verdict:
    """The law: an error of third order. Flooding: the fall of |∇L|² that the penalty itself gives.

    `ratio` is the fall of log |∇L|² under flooding over that under the penalty.
    """
    law, alike = abs(exponent - 3) < 0.1, abs(ratio - 1) < 0.1
    if law and alike:
        return Verdict.HOLDS
    return Verdict.PARTLY if law else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """The law, the long run and the two batches on one network; the data are not needed."""
    del data
    (loss, first, second), start = problem(seed)
    errors = []
    for rate in RATES:
        predicted = start - rate**2 / 2 * norm_slope(loss, start)
        errors.append((down_up(loss, loss, start, rate) - predicted).norm().item())
    exponent = order(RATES, errors)

    def held(theta: Tensor) -> Tensor:
        return cast(Tensor, flooding(loss(theta), LEVEL))

    flooded = penalised = start
    curves: dict[str, list[float]] = {"flooding": [], "penalty": [], "level": []}
    for _ in range(PAIRS):
        curves["flooding"].append(slope(loss, flooded).square().sum().item())
        curves["penalty"].append(slope(loss, penalised).square().sum().item())
        curves["level"].append(abs(loss(flooded).item() - LEVEL))
        for _ in range(2):
            flooded = flooded - RATE * slope(held, flooded)
        penalised = penalised - RATE**2 / 2 * norm_slope(loss, penalised)
    falls = {k: math.log(curves[k][0] / curves[k][-1]) for k in ("flooding", "penalty")}
    ratio = falls["flooding"] / falls["penalty"]

    turns = ((first, second), (second, first))
    steps = [down_up(down, up, start, BATCH_RATE) - start for down, up in turns]
    drift, noise = (steps[0] + steps[1]) / 2, (steps[0] - steps[1]) / 2
    louder = (noise.norm() / drift.norm()).item()
    numbers: dict[str, Number] = {
        "order of the error": f"{exponent:.3f}",
        "|∇L|², flooding": f"{curves['flooding'][0]:.2e} → {curves['flooding'][-1]:.2e}",
        "|∇L|², penalty": f"{curves['penalty'][0]:.2e} → {curves['penalty'][-1]:.2e}",
        "fall of log |∇L|², flooding / penalty": f"{ratio:.3f}",
        "largest distance to the level": f"{max(curves['level']):.1e}",
        "two halves, ε = 0.1: noise / drift of a pair": f"{louder:.1f}",
    }
    names_zh = {
        "order of the error": "误差的阶",
        "|∇L|², flooding": "|∇L|²，flooding",
        "|∇L|², penalty": "|∇L|²，梯度惩罚",
        "fall of log |∇L|², flooding / penalty": "log |∇L|² 的降幅，flooding / 惩罚",
        "largest distance to the level": "与水平 b 的最大距离",
        "two halves, ε = 0.1: noise / drift of a pair": "两半数据，ε = 0.1：一对步的噪声 / 漂移",
    }
    return Finding(numbers, _picture(curves), judge(exponent, ratio), *_comment(), names_zh)


def _picture(curves: dict[str, list[float]]) -> str:
    pairs = range(PAIRS)
    return line_chart(
        [
            Series(("flooding, 2 steps of SGD", "flooding，两步 SGD"), pairs, curves["flooding"]),
            Series(
                ("penalty |∇L|² at rate ε²/2", "|∇L|² 惩罚，学习率 ε²/2"), pairs, curves["penalty"]
            ),
        ],
        title=("Squared gradient norm at the level", "停在水平 b 处时梯度范数的平方"),
        x_label=("pairs of steps", "步对数"),
        y_label="|∇L|²",
    )


def _comment() -> tuple[str, str]:
    return (
        f"Full batch, ε = {RATE:g} in the long run. On two different halves a noise of order ε "
        "comes on top of the drift of order ε².",
        f"全批量，长程运行时 ε = {RATE:g}。一降一升用不同的两半数据时，"
        "ε² 阶的漂移之外还有 ε 阶的噪声。",
    )


EXPERIMENT = Experiment(
    id="S35-gradient-norm",
    system="S35",
    title_en="A step down and a step up",
    title_zh="一步下降与一步上升",
    claim_en=(
        "At its level, flooding with SGD of rate ε descends on the squared gradient norm at rate "
        "ε²/2."
    ),
    claim_zh=(
        "损失到达水平 b 后，学习率 ε 的 SGD 加 flooding，等于以 ε²/2 的学习率下降梯度范数的平方。"
    ),
    published="article 7643: θ'' ≈ θ − (ε²/2) ∇|∇L|²",
    published_zh="文章 7643：θ'' ≈ θ − (ε²/2) ∇|∇L|²",
    measure=measure,
)
