"""Small batches on handwritten digits: does FlatNCE learn better representations? (S03)

An encoder 64 – 128 – 64 with a head to 32 numbers learns from two views of each image (rotated,
scaled, shifted, noisy) without labels, at temperature 0.1 with Adam and 1e-3. Then the 64 features
are judged on images it has not seen:

    probe      logistic regression on 200 labelled images
    neighbour  the label of the nearest training image

All seeds are trained side by side, as one stack of networks.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.losses.contrastive import unit
from kexue.losses.flat_nce import flat_nce_loss, info_nce_loss
from kexue.report.charts import Bar, bar_chart

__all__ = ["EXPERIMENT", "difference", "scores_of", "verdict", "views"]

SEEDS, TEST, LABELLED = 10, 500, 200
TEMPERATURE, RATE = 0.1, 1e-3
STEPS = {4: 1500, 32: 1000}
"""Pairs in a batch → steps."""
SIZES = (64, 128, 64, 32)
LOSSES: dict[str, Callable[..., Any]] = {"InfoNCE": info_nce_loss, "FlatNCE": flat_nce_loss}
PUBLISHED = {
    (4, "InfoNCE"): (82.8, 91.9),
    (4, "FlatNCE"): (84.9, 93.0),
    (32, "InfoNCE"): (86.0, 93.4),
    (32, "FlatNCE"): (85.9, 93.1),
}
"""(batch, loss) → probe and neighbour, percent; means of 3 seeds of an earlier run."""


def views(images: Tensor, generator: torch.Generator) -> Tensor:
    """One random view of each 8 × 8 image: turned, scaled, shifted by an affine map, and noise."""
    count = len(images)
    turn, size, x, y = (2 * torch.rand(4, count, generator=generator) - 1).unbind()
    turn, size = 0.35 * turn, 1 + 0.15 * size
    zoom_cos, zoom_sin = size * turn.cos(), size * turn.sin()
    theta = torch.stack((zoom_cos, -zoom_sin, 0.2 * x, zoom_sin, zoom_cos, 0.2 * y), dim=1)
    grid = F.affine_grid(theta.view(count, 2, 3), [count, 1, 8, 8], align_corners=False)
    moved = F.grid_sample(images.view(count, 1, 8, 8), grid, align_corners=False)
    return moved.view(count, 64) + 0.1 * torch.randn(count, 64, generator=generator)


def scores_of(
    name: str, batch: int, *, seed: int = 0, seeds: int = SEEDS, steps: int | None = None
) -> np.ndarray:
    """Percent right of probe and neighbour for every seed, (seeds, 2)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    test, train = order[:TEST], order[TEST:]
    weights = _networks(seeds, generator)
    optimizer = torch.optim.Adam(weights, lr=RATE)
    rows = torch.arange(2 * batch)
    target = ((rows + batch) % (2 * batch)).repeat(seeds)
    itself = torch.eye(2 * batch, dtype=torch.bool).repeat(seeds, 1)
    for _ in range(STEPS[batch] if steps is None else steps):
        drawn = torch.rand(seeds, len(train), generator=generator).topk(batch, dim=1).indices
        chosen = images[train[drawn]].flatten(0, 1)
        two = [views(chosen, generator).view(seeds, batch, 64) for _ in range(2)]
        z = unit(_forward(weights, torch.cat(two, dim=1), layers=3))  # (seeds, 2 batch, 32)
        scores = (z @ z.mT / TEMPERATURE).flatten(0, 1)  # (seeds · 2 batch, 2 batch)
        loss = LOSSES[name](scores, target, ignore=itself, reduction="sum") / (2 * batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        features = _forward(weights, images.expand(seeds, -1, -1), layers=2)  # (seeds, images, 64)
    return np.array([_judge(one, digits.target, train, test) for one in features.numpy()])


def _networks(seeds: int, generator: torch.Generator) -> list[Tensor]:
    """Weights and biases of one network per seed, stacked."""
    parameters = []
    for wide, narrow in pairwise(SIZES):
        for shape in ((seeds, wide, narrow), (seeds, 1, narrow)):
            drawn = 2 * torch.rand(shape, generator=generator) - 1
            parameters.append((drawn * wide**-0.5).requires_grad_())
    return parameters


def _forward(weights: Sequence[Tensor], x: Tensor, layers: int) -> Tensor:
    """The first layers, ReLU between them: two are the encoder, the third is the head."""
    for k in range(layers):
        x = torch.baddbmm(weights[2 * k + 1], x.relu() if k else x, weights[2 * k])
    return x


def _judge(features: np.ndarray, labels: np.ndarray, train: Tensor, test: Tensor) -> list[float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    features = (features - features[train].mean(0)) / features[train].std(0)
    few = train[:LABELLED]
    probe = LogisticRegression(max_iter=500).fit(features[few], labels[few])
    nearest = KNeighborsClassifier(1).fit(features[train], labels[train])
    return [100 * float(one.score(features[test], labels[test])) for one in (probe, nearest)]


def difference(flat: np.ndarray, info: np.ndarray) -> tuple[float, float]:
    """Mean of the paired differences and its standard error."""
    gaps = flat - info
    return float(gaps.mean()), float(gaps.std(ddof=1) / math.sqrt(len(gaps)))


def verdict(small: tuple[float, float], large: tuple[float, float]) -> Verdict:
    """From the gain of the probe at batch 4 and at batch 32, each with its standard error.

    Holds if FlatNCE gains at batch 4 by more than two standard errors, and by less than that or
    less than half as much at batch 32; partly if it gains at batch 4 alone or at both alike; fails
    if it gains nothing at batch 4.
    """
    gains = small[0] > 2 * small[1]
    if not gains:
        return Verdict.FAILS
    vanishes = large[0] <= max(2 * large[1], small[0] / 2)
    return Verdict.HOLDS if vanishes else Verdict.PARTLY


def measure(seed: int, data: Path | None) -> Finding:
    """Two losses, two batch sizes, ten seeds each; the data come with scikit-learn."""
    del data
    found = {
        (batch, name): scores_of(name, batch, seed=seed, seeds=SEEDS)
        for batch in STEPS
        for name in LOSSES
    }
    numbers: dict[str, Number] = {
        f"batch {batch}, {name}": " / ".join(
            f"{mean:.1f} ± {sd:.1f}" for mean, sd in zip(v.mean(0), v.std(0, ddof=1), strict=True)
        )
        for (batch, name), v in found.items()
    }
    gains = {
        batch: [
            difference(found[batch, "FlatNCE"][:, k], found[batch, "InfoNCE"][:, k])
            for k in range(2)
        ]
        for batch in STEPS
    }
    for batch, pair in gains.items():
        numbers[f"batch {batch}, gain of FlatNCE"] = " / ".join(
            f"{mean:+.2f} ± {error:.2f}" for mean, error in pair
        )
    small, large = (gains[batch][0] for batch in STEPS)
    return Finding(
        numbers,
        _picture(found),
        verdict(small, large),
        f"Probe / nearest neighbour, percent of {TEST} unseen images, mean ± standard deviation "
        f"over {SEEDS} seeds; the gains with their standard error, both losses starting from the "
        "same weights and seeing the same views. The verdict is that of the probe. Scores are in "
        "float32, where at this temperature InfoNCE's gradient is far from rounding to zero: what "
        "is compared is the weight that easy anchors get.",
        f"线性探测 / 最近邻，{TEST} 张未见图像的百分比，{SEEDS} 个种子的均值 ± 标准差；"
        "提升附标准误，两个损失的初始权重和所见视图都相同。结论按线性探测判断。"
        "得分为 float32，在这个温度下 InfoNCE 的梯度离被舍入吞掉还很远："
        "这里比较的其实是容易样本所得的权重。",
        {
            name: name.replace("batch", "批次")
            .replace(", gain of FlatNCE", "，FlatNCE 的提升")
            .replace(", ", "，")
            for name in numbers
        },
    )


def _picture(found: dict[tuple[int, str], np.ndarray]) -> str:
    bars = [
        Bar(
            (f"batch {batch}, {name}", f"批次 {batch}，{name}"),
            float(v[:, 0].mean()),
            low=float(v[:, 0].min()),
            high=float(v[:, 0].max()),
        )
        for (batch, name), v in found.items()
    ]
    return bar_chart(
        bars,
        title=("Digits: probe with 200 labels", "手写数字：200 个标签的线性探测"),
        unit=(
            f"percent right, mean and range of {SEEDS} seeds",
            f"准确率（%），{SEEDS} 个种子的均值与范围",
        ),
        top=100,
    )


EXPERIMENT = Experiment(
    id="S03-digits",
    system="S03",
    title_en="FlatNCE with batches of 4 and 32",
    title_zh="批次 4 与 32 下的 FlatNCE",
    claim_en=(
        "With 4 pairs in a batch, FlatNCE learns better representations of the digits than "
        "InfoNCE; with 32 the difference is gone."
    ),
    claim_zh="批次为 4 时，FlatNCE 学到的手写数字表示优于 InfoNCE；批次为 32 时差别消失。",
    published="Probe / neighbour, %: "
    + "; ".join(f"batch {b}, {n} {p:g} / {q:g}" for (b, n), (p, q) in PUBLISHED.items())
    + "; the paper reports gains on CIFAR-10 and ImageNet at all batch sizes",
    published_zh="线性探测 / 最近邻（%）："
    + "；".join(f"批次 {b}，{n} {p:g} / {q:g}" for (b, n), (p, q) in PUBLISHED.items())
    + "；论文称在 CIFAR-10 和 ImageNet 上各种批次都有提升",
    measure=measure,
)
