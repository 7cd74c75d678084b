"""A hundred Transformer blocks without warm-up: Post-LN against DeepNorm (S19).

The digits of scikit-learn, 8 × 8 grey values, are read as sequences of 8 rows by an encoder 32
wide with 2 heads; its mean over rows gives the class. Adam at rate 0.001, constant from the first
step, batches of 32, 80 steps; 1,500 digits to train on, the other 297 to test. A Post-LN encoder of
6 blocks shows that the task and the rate are fit to learn with, and Post-LN of 100 blocks gets a
tenth of the rate, too.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.lab.deep_encoder import Design, Encoder
from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "Run", "train", "verdict"]

DEPTH, RATE, STEPS, BATCH, SEEDS = 100, 1e-3, 80, 32, 2
TRAIN, DIM, TAIL = 1500, 32, 10
CHANCE = math.log(10)

PLAIN, DEEP = "Post-LN, 100 blocks", "DeepNorm, 100 blocks"
SLOW, SHALLOW = "Post-LN, 100 blocks, rate 0.0001", "Post-LN, 6 blocks"
NAMES_ZH = {
    PLAIN: "Post-LN，100 层",
    DEEP: "DeepNorm，100 层",
    SLOW: "Post-LN，100 层，学习率 0.0001",
    SHALLOW: "Post-LN，6 层",
}


@dataclass(frozen=True)
class Run:
    """The loss of every step and the percent right on unseen digits."""

    losses: Sequence[float]
    accuracy: float

    @property
    def last(self) -> float:
        """Mean loss of the last steps."""
        return statistics.fmean(self.losses[-TAIL:])


class RowReader(nn.Module):
    """Rows of pixels → encoder → class."""

    def __init__(self, depth: int, design: Design, generator: torch.Generator) -> None:
        super().__init__()
        self.read, self.head = nn.Linear(8, DIM), nn.Linear(DIM, 10)
        self.place = nn.Parameter(torch.randn(8, DIM, generator=generator) / 2)
        self.encoder = Encoder(depth, design, dim=DIM, heads=2, generator=generator)
        for linear in (self.read, self.head):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=generator)
            nn.init.zeros_(linear.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        pooled = self.encoder(self.read(pixels) + self.place).mean(dim=1)
        scores: Tensor = self.head(pooled)
        return scores


def train(
    design: Design, depth: int = DEPTH, *, rate: float = RATE, steps: int = STEPS, seed: int = 0
) -> Run:
    """One training from the seed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 16
    classes = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(seed)
    model, losses = RowReader(depth, design, generator), []
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    for _ in range(steps):
        rows = torch.randint(TRAIN, (BATCH,), generator=generator)
        loss = F.cross_entropy(model(images[rows]), classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        right = model(images[TRAIN:]).argmax(dim=1) == classes[TRAIN:]
    return Run(losses, 100 * right.double().mean().item())


def verdict(plain: Sequence[Run], deep: Sequence[Run]) -> Verdict:
    """Learnt: a last loss under half of chance. Not learnt: within a tenth of it, or beyond.

    Holds if DeepNorm learnt with every seed and Post-LN with none; partly if DeepNorm learnt with
    every seed and ended below Post-LN.
    """
    learnt = all(run.last < CHANCE / 2 for run in deep)
    stuck = all(not run.last < 0.9 * CHANCE for run in plain)  # NaN counts as stuck
    if learnt and stuck:
        return Verdict.HOLDS
    below = all(not b.last <= a.last for a, b in zip(deep, plain, strict=True))
    return Verdict.PARTLY if learnt and below else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Two seeds of both, and the two controls; the data come with scikit-learn."""
    del data
    seeds = range(seed, seed + SEEDS)
    runs: dict[str, list[Run]] = {
        PLAIN: [train("post", seed=one) for one in seeds],
        DEEP: [train("deepnorm", seed=one) for one in seeds],
        SLOW: [train("post", rate=RATE / 10, seed=seed)],
        SHALLOW: [train("post", 6, seed=seed)],
    }
    numbers: dict[str, Number] = {}
    for name, found in runs.items():
        numbers[name] = "; ".join(f"{run.last:.2f}, {run.accuracy:.0f} %" for run in found)
    losses = {name: statistics.fmean(run.last for run in found) for name, found in runs.items()}
    return Finding(
        numbers=numbers,
        figure=_picture(runs),
        verdict=verdict(runs[PLAIN], runs[DEEP]),
        comment_en=(
            f"Mean loss of the last {TAIL} of {STEPS} steps and percent right on unseen digits, by "
            f"seed; chance is {CHANCE:.2f} and 10 %. With the same rate and no warm-up Post-LN "
            f"ends at {losses[PLAIN]:.2f} and DeepNorm at {losses[DEEP]:.2f}; at a tenth of the "
            f"rate Post-LN ends at {losses[SLOW]:.2f}, with 6 blocks at {losses[SHALLOW]:.2f}."
        ),
        comment_zh=(
            f"各种子在 {STEPS} 步中最后 {TAIL} 步的平均损失，以及未见过的数字上的正确率；瞎猜是 "
            f"{CHANCE:.2f} 和 10%。学习率相同、不用 warmup 时，Post-LN 停在 {losses[PLAIN]:.2f}，"
            f"DeepNorm 到 {losses[DEEP]:.2f}；学习率降到十分之一，Post-LN 停在 {losses[SLOW]:.2f}；"
            f"只有 6 层的 Post-LN 到 {losses[SHALLOW]:.2f}。"
        ),
        names_zh=NAMES_ZH,
    )


def smoothed(losses: Sequence[float], width: int = 5) -> list[float]:
    """The mean over up to `width` steps that end at each."""
    return [statistics.fmean(losses[max(0, k - width + 1) : k + 1]) for k in range(len(losses))]


def _picture(runs: Mapping[str, Sequence[Run]]) -> str:
    lines = [
        Series((name, NAMES_ZH[name]), range(1, len(found[0].losses) + 1), _mean(found))
        for name, found in runs.items()
    ]
    return line_chart(
        lines,
        title=("A hundred blocks, no warm-up", "一百层，不用 warmup"),
        x_label=("step of Adam", "Adam 步数"),
        y_label=("loss, mean over seeds and 5 steps", "损失（各种子与 5 步平均）"),
        reference=(("chance", "瞎猜水平"), CHANCE),
        height=330,
    )


def _mean(found: Sequence[Run]) -> list[float]:
    return smoothed(
        [statistics.fmean(step) for step in zip(*(r.losses for r in found), strict=True)]
    )


EXPERIMENT = Experiment(
    id="S19-hundred-layers",
    system="S19",
    title_en="A hundred blocks without warm-up",
    title_zh="不用 warmup 训练一百层",
    claim_en=(
        "A Post-LN encoder of 100 blocks does not learn without warm-up; with DeepNorm the same "
        "network learns at the same rate."
    ),
    claim_zh=(
        "100 层的 Post-LN 编码器不用 warmup 学不动；换成 DeepNorm，学习率不变，同样的网络就能学会。"
    ),
    published="DeepNet trains 1,000 layers; no number for so small a task",
    published_zh="DeepNet 训练到 1000 层；没有这样的小任务的数字",
    measure=measure,
)
