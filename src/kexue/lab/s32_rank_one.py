"""When row and column averages say it all, and when not (S32).

AdaFactor keeps of the second moment V only its averages over rows and columns and divides by

    V̂_ij = R_i C_j / mean R,    exact if V_ij = a_i b_j                                       (1)

Gradients are drawn with sizes |G_ij| = a_i b_j exp(σ z_ij), z normal: at σ = 0 the squares have
rank one. The noise z is either the same in every step, a structure that (1) cannot hold, or new in
every step, and then the average over time removes it. The error is measured in step lengths, 1/√V.
"""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.optim.adafactor import AdaFactor
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "deviation", "drawn", "network_gradients", "verdict"]

SIGMAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
ROWS, COLUMNS, STEPS = 128, 192, 200
EXACT = 0.01
"""Percent that count as nothing: the rounding of float32."""


def deviation(gradient: Callable[[int], Tensor], steps: int) -> float:
    """Median over all weights of |√(V/V̂) − 1| in percent, after `steps` gradients."""
    kept = []
    for threshold in (0, float("inf")):
        x = nn.Parameter(torch.ones_like(gradient(1)))
        optimizer = AdaFactor([x], lr=0.0, min_dim_size_to_factor=threshold)
        for t in range(1, steps + 1):
            x.grad = gradient(t)
            optimizer.step()
        kept.append(optimizer.state[x])
    row, col, v = (kept[i][name].double() for i, name in ((0, "row"), (0, "col"), (1, "v")))
    estimate = row * col / v.mean()  # (1): mean R is mean V
    return 100 * float(((v / estimate).sqrt() - 1).abs().median())


def drawn(sigma: float, *, same: bool, seed: int = 0) -> Callable[[int], Tensor]:
    """The gradient of step t; `same` noise in every step, or new noise."""

    def normal(number: int, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_000 * seed + number)
        return torch.randn(shape, generator=generator)

    a, b = normal(0, ROWS, 1).exp(), normal(1, 1, COLUMNS).exp()

    def gradient(t: int) -> Tensor:
        z = normal(2 if same else 2 + t, ROWS, COLUMNS)
        return a * b * (sigma * z).exp()  # the sign plays no part

    return gradient


def network_gradients(seed: int = 0) -> Callable[[int], Tensor]:
    """Gradients of the middle matrix of a small network while it learns the digits."""
    from sklearn.datasets import load_digits

    digits, generator = load_digits(), torch.Generator().manual_seed(seed)
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )
    optimizer, found = AdaFactor(net.parameters(), lr=1e-2), []
    for _ in range(STEPS):
        rows = torch.randint(len(x), (50,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
        found.append(cast(Tensor, net[2].weight.grad).clone())
    return lambda t: found[t - 1]


def verdict(fixed: dict[float, float], fresh: dict[float, float]) -> Verdict:
    """Holds if (1) is exact at σ = 0, worse with more fixed noise, and new noise averages out."""
    if fixed[0.0] > EXACT or fresh[0.0] > EXACT:
        return Verdict.FAILS
    grows = list(fixed.values()) == sorted(fixed.values())
    averages = all(fresh[s] < fixed[s] / 2 for s in fixed if s > 0)
    return Verdict.HOLDS if grows and averages else Verdict.PARTLY


def measure(seed: int, data: Path | None) -> Finding:
    """Two kinds of noise at nine strengths, and a network; `data` is not needed."""
    del data
    fixed = {s: deviation(drawn(s, same=True, seed=seed), 20) for s in SIGMAS}
    fresh = {s: deviation(drawn(s, same=False, seed=seed), STEPS) for s in SIGMAS}
    real = deviation(network_gradients(seed), STEPS)
    numbers: dict[str, Number] = {
        "σ = 0": f"{fixed[0.0]:.0e} %",
        "σ = 0.5, the same noise in every step": f"{fixed[0.5]:.1f} %",
        "σ = 0.5, new noise in every step": f"{fresh[0.5]:.1f} %",
        "a layer that learns the digits": f"{real:.1f} %",
    }
    chart = line_chart(
        [
            Series(
                ("the same noise in every step", "每步噪声相同"),
                list(fixed),
                list(fixed.values()),
                dots=True,
            ),
            Series(
                ("new noise in every step", "每步噪声不同"),
                list(fresh),
                list(fresh.values()),
                dots=True,
            ),
        ],
        title=("What the factors miss", "行列分解漏掉的部分"),
        x_label=("σ, strength of the noise", "σ：噪声强度"),
        y_label=("typical deviation of a step's length, percent", "步长的典型偏差（%）"),
        reference=(("a layer that learns the digits", "学习手写数字的一层"), real),
    )
    return Finding(
        numbers,
        chart,
        verdict(fixed, fresh),
        f"{ROWS} × {COLUMNS} weights, medians. With squares of rank one the factors give the whole "
        "second moment to rounding. Sizes that differ for good by a factor exp(±0.5) around rank "
        f"one cost {fixed[0.5]:.0f} % of a step's length; if they differ anew in every step, "
        f"{fresh[0.5]:.1f} %. A layer of a network in training has {real:.0f} %.",
        f"{ROWS} × {COLUMNS} 个参数，取中位数。平方的秩为一时，行列分解与完整二阶矩只差舍入误差。"
        f"若幅度始终在秩一附近相差 exp(±0.5) 倍，步长偏差 {fixed[0.5]:.0f}%；若每一步重新随机，"
        f"只有 {fresh[0.5]:.1f}%。训练中的一层实际为 {real:.0f}%。",
        {
            "σ = 0.5, the same noise in every step": "σ = 0.5，每步噪声相同",
            "σ = 0.5, new noise in every step": "σ = 0.5，每步噪声不同",
            "a layer that learns the digits": "学习手写数字的一层",
        },
    )


EXPERIMENT = Experiment(
    id="S32-rank-one",
    system="S32",
    title_en="What row and column averages miss",
    title_zh="只记行列平均会漏掉什么",
    claim_en=(
        "The second moment rebuilt from its row and column averages is exact where the squares "
        "have rank one; what departs from that alike in every step is lost, what varies averages "
        "out."
    ),
    claim_zh=(
        "平方的秩为一时，由行列平均重建的二阶矩是精确的；始终偏离秩一的部分会丢失，"
        "随机变化的部分则被平均掉。"
    ),
    published="exact for rank one; the article gives no number",
    published_zh="秩为一时精确；文中没有给出数字",
    measure=measure,
)
