"""Does holding the training loss at a level help on noisy labels? (S35)

Two Gaussians in 10 dimensions, means ±0.5 on every axis, 10 % of the labels flipped; 200 training
points, a network 10-200-200-1, Adam at 1e-3, batches of 50, 150 epochs. Test loss against labels
as noisy as those of training, accuracy against clean ones:

    none · flooding at four levels · iFlood (every sample held at the level) at two
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.losses.flooding import flooding
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "Run", "difference", "draw", "judge", "train"]

SEEDS, EPOCHS, EVERY, BATCH, SAMPLES, TEST = 4, 150, 5, 50, 200, 1000
FLIPPED = 0.1
QUANTILE = 3.18
"""Standard errors to each side of a 95 % interval from four seeds (Student's t)."""
WAYS: dict[str, tuple[str, float]] = {
    "none": ("batch", 0.0),
    "b = 0.05": ("batch", 0.05),
    "b = 0.1": ("batch", 0.1),
    "b = 0.2": ("batch", 0.2),
    "b = 0.3": ("batch", 0.3),
    "iFlood 0.2": ("sample", 0.2),
    "iFlood 0.3": ("sample", 0.3),
}
PAPER = (0.05, 0.1, 0.2)
"""Levels of the range that the paper searches."""


@dataclass(frozen=True)
class Run:
    """One training: test loss every five epochs, the last training loss, accuracy in percent."""

    test: list[float]
    train: float
    accuracy: float


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Points, their labels with 10 % flipped, and their true labels."""
    true = torch.randint(2, (count,), generator=generator)
    x = torch.randn(count, 10, generator=generator) + (true[:, None] - 0.5)
    flip = torch.rand(count, generator=generator) < FLIPPED
    return x, (true ^ flip).float(), true.float()


def train(
    ways: Mapping[str, tuple[str, float]], seeds: Sequence[int], epochs: int = EPOCHS
) -> dict[str, list[Run]]:
    """Way → one run per seed; the seed decides about points, start and batches for every way.

    All networks are trained side by side, along a first axis of R = ways · seeds.
    """
    many = [(mode, level, seed) for mode, level in ways.values() for seed in seeds]
    generators = {seed: torch.Generator().manual_seed(seed) for seed in seeds}
    drawn = {seed: (draw(SAMPLES, g), draw(TEST, g)) for seed, g in generators.items()}
    nets = [_network(seed) for _, _, seed in many]
    parameters, _ = stack_module_state(nets)
    scores = torch.vmap(lambda p, x: functional_call(nets[0], p, (x,))[:, 0])
    x, y, _ = (torch.stack(one) for one in zip(*(drawn[s][0] for *_, s in many), strict=True))
    test_x, test_y, true = (
        torch.stack(one) for one in zip(*(drawn[s][1] for *_, s in many), strict=True)
    )
    levels = torch.tensor([level for _, level, _ in many])
    samples = torch.tensor([mode == "sample" for mode, _, _ in many])
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-3)
    curves: list[Tensor] = []
    for epoch in range(epochs):
        orders = {seed: torch.randperm(SAMPLES, generator=g) for seed, g in generators.items()}
        for rows in torch.stack([orders[seed] for *_, seed in many]).split(BATCH, dim=1):
            batch_x = x.gather(1, rows[:, :, None].expand(-1, -1, 10))
            losses = _losses(scores(parameters, batch_x), y.gather(1, rows))  # (R, B)
            # Term by term, the flooded mean of a run is that of a batch.
            whole = _held(losses.mean(1), levels)
            each = _held(losses, levels[:, None]).mean(1)
            optimizer.zero_grad()
            torch.where(samples, each, whole).sum().backward()
            optimizer.step()
        if epoch % EVERY == EVERY - 1:
            with torch.no_grad():
                curves.append(_losses(scores(parameters, test_x), test_y).mean(1))
    with torch.no_grad():
        right = ((scores(parameters, test_x) > 0) == true.bool()).double().mean(1)
        last = _losses(scores(parameters, x), y).mean(1)
    curve = torch.stack(curves, dim=1).tolist()
    runs = [Run(curve[r], last[r].item(), 100 * right[r].item()) for r in range(len(many))]
    n = len(seeds)
    return {way: runs[n * i : n * (i + 1)] for i, way in enumerate(ways)}


def _held(losses: Tensor, levels: Tensor) -> Tensor:
    return cast(Tensor, flooding(losses, levels, mode="sample", reduction="none"))


def _network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Linear(10, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 1))
    )


def _losses(scores: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, y, reduction="none")


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean of the differences seed by seed, and its standard error."""
    pairs = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
    return pairs.mean().item(), pairs.std().item() / math.sqrt(len(pairs))


def judge(runs: Mapping[str, Sequence[Run]]) -> Verdict:
    """Flooding against none, by 95 % intervals of the differences seed by seed.

    Holds if every level of the paper's range has a lower final test loss and none a lower accuracy;
    partly if some level has a lower test loss.
    """
    levels = [f"b = {b:g}" for b in PAPER]
    losses = {way: [run.test[-1] for run in runs[way]] for way in ("none", *levels)}
    right = {way: [run.accuracy for run in runs[way]] for way in ("none", *levels)}
    lower = [_clear(difference(losses["none"], losses[way])) for way in levels]
    worse = [_clear(difference(right["none"], right[way])) for way in levels]
    if all(lower) and not any(worse):
        return Verdict.HOLDS
    return Verdict.PARTLY if any(lower) else Verdict.FAILS


def _clear(gap: tuple[float, float]) -> bool:
    return gap[0] > QUANTILE * gap[1]


def measure(seed: int, data: Path | None) -> Finding:
    """Every way with four seeds; the points are drawn, the data are not needed."""
    del data
    runs = train(WAYS, range(100 * seed, 100 * seed + SEEDS))
    return finding(runs)


def finding(runs: Mapping[str, Sequence[Run]]) -> Finding:
    """Numbers, picture and verdict from the trainings."""
    numbers: dict[str, Number] = {}
    for way, several in runs.items():
        loss, error = _mean([run.test[-1] for run in several])
        right, spread = _mean([run.accuracy for run in several])
        trained, _ = _mean([run.train for run in several])
        numbers[way] = f"{trained:.3f} → {loss:.3f} ± {error:.3f}; {right:.1f} ± {spread:.1f} %"
    curves = {way: _curve(several) for way, several in runs.items()}
    best = min(range(len(curves["none"])), key=curves["none"].__getitem__)
    numbers["best epoch of none"] = f"{curves['none'][best]:.3f} (epoch {EVERY * (best + 1)})"
    flooded = min(curve[-1] for way, curve in curves.items() if way != "none")
    names_zh = {"none": "不加", "best epoch of none": "不加时最好的一轮"}
    picture = line_chart(
        [
            Series(
                ("none", "不加") if way == "none" else way,
                range(EVERY, EVERY * len(curve) + 1, EVERY),
                curve,
            )
            for way, curve in curves.items()
            if way in ("none", "b = 0.05", "b = 0.1", "b = 0.2", "iFlood 0.2")
        ],
        title=("Test loss while training goes on", "训练过程中的测试损失"),
        x_label=("epoch", "轮"),
        y_label=("cross-entropy, noisy labels", "交叉熵（标签带噪声）"),
    )
    judged = judge(runs)
    return Finding(numbers, picture, judged, *_comment(flooded > curves["none"][best]), names_zh)


def _comment(stopping_wins: bool) -> tuple[str, str]:
    english = (
        "Final training loss → test loss; accuracy on clean labels; means with standard errors "
        f"over {SEEDS} seeds. "
    )
    chinese = f"依次为：最终训练损失 → 测试损失；干净标签上的准确率；{SEEDS} 个种子的均值与标准误。"
    if stopping_wins:
        return (
            english
            + "Stopping at the best epoch without flooding reaches a lower test loss still: "
            "flooding repairs training for too long, it does not replace early stopping here.",
            chinese
            + "不加 flooding 而在最好的一轮停下，测试损失更低：在这里 flooding 能补救训练过久，"
            "但替代不了提前停止。",
        )
    return (
        english + "Flooding ends lower than stopping at the best epoch without it.",
        chinese + "flooding 的最终结果好于不加 flooding 而在最好的一轮停下。",
    )


def _mean(values: Sequence[float]) -> tuple[float, float]:
    return difference(values, [0.0] * len(values))


def _curve(runs: Sequence[Run]) -> list[float]:
    return [sum(epoch) / len(runs) for epoch in zip(*(run.test for run in runs), strict=True)]


EXPERIMENT = Experiment(
    id="S35-levels",
    system="S35",
    title_en="Flooding on noisy labels",
    title_zh="标签有噪声时的 flooding",
    claim_en=(
        "Holding the training loss at a level between 0 and 0.2 lowers the test loss and does not "
        "cost accuracy."
    ),
    claim_zh="把训练损失稳定在 0 到 0.2 之间的某个水平，测试损失更低，准确率不降。",
    published="arXiv 2002.08709: lower test loss, accuracy often slightly higher",
    published_zh="arXiv 2002.08709：测试损失更低，准确率往往略有提高",
    measure=measure,
)
