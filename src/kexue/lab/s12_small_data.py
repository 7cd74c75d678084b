"""Sixty samples and a pretrained network: does training a child of it help? (S12)

A network learns the handwritten digits 0 to 4 from 10,000 shifted and noisy pictures, gets a new
head, and is fine-tuned on 60 pictures of the digits 5 to 9. Six ways, one learning rate, the same
pictures and batches; the new head is never masked:

    vanilla · random gradient masks · fixed Fisher masks · update masks
    lr · sqrt(p): the smaller rate that random masks amount to under Adam, without masks
    noise: gradients g + g · sqrt((1 − p) / p) · N(0, 1), of the variance that random masks have
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.optim.gradient_mask import GradientMask
from kexue.optim.gradient_mask.fisher import fisher_diagonal
from kexue.optim.gradient_mask.top_share import topk_masks
from kexue.report.drawing import (
    GRID,
    INK,
    SOFT,
    Label,
    colour,
    heading,
    label_width,
    rule,
    svg,
    text,
    tick_names,
    ticks,
)
from kexue.report.markup import Html, tag

__all__ = ["EXPERIMENT", "Data", "accuracies", "difference", "load", "pretrained", "verdict"]

KEEP = 0.2
SEEDS, SAMPLES, STEPS, BATCH = 20, 60, 200, 16
LEARNING_RATE = 3e-3
WAYS: dict[str, tuple[str, str]] = {
    "vanilla": ("vanilla", "普通微调"),
    "random": ("random masks (F)", "随机掩码（F）"),
    "fixed": ("fixed Fisher masks (D)", "固定的 Fisher 掩码（D）"),
    "update": ("update masks", "更新量掩码"),
    "rate": ("lr · √p, no mask", "学习率 · √p，无掩码"),
    "noise": ("Gaussian noise", "高斯噪声"),
}


@dataclass(frozen=True)
class Data:
    """Pictures as rows of 64 numbers in [0, 1], and their digits."""

    pictures: Tensor
    digits: Tensor


class Network(nn.Module):
    """Two blocks and a head."""

    def __init__(self, classes: int = 5, width: int = 128) -> None:
        super().__init__()
        self.layer = nn.ModuleList([nn.Linear(64, width), nn.Linear(width, width)])
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.layer:
            x = block(x).relu()
        scores: Tensor = self.head(x)
        return scores


def load() -> Data:
    """The 1,797 digits of scikit-learn, 8 × 8 pixels each."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    return Data(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits))


def pretrained(data: Data, seed: int, *, samples: int = 10_000, epochs: int = 3) -> Network:
    """A network that knows 0 to 4 from shifted, noisy copies."""
    torch.manual_seed(seed)
    known = (data.digits < 5).nonzero()[:, 0]
    chosen = known[torch.randint(len(known), (samples,))]
    pictures = data.pictures[chosen].view(-1, 8, 8)
    for axis in (1, 2):
        by = torch.randint(-1, 2, (samples, 1, 1))
        rolled = torch.stack([pictures.roll(shift, axis) for shift in (-1, 0, 1)])
        pictures = rolled.gather(0, (by + 1).expand(samples, 8, 8)[None])[0]
    pictures = (pictures + 0.1 * torch.randn_like(pictures)).view(-1, 64)
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(samples).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(pictures[rows]), data.digits[chosen[rows]]).backward()
            optimizer.step()
    return model


def accuracies(model: Network, data: Data, seed: int, *, steps: int = STEPS) -> dict[str, float]:
    """Percent of the remaining 5 to 9 that each way gets right, after 60 of them."""
    generator = torch.Generator().manual_seed(seed)
    rows = (data.digits >= 5).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=generator)]
    x, y = data.pictures[rows], data.digits[rows] - 5
    batches = [torch.randint(SAMPLES, (BATCH,), generator=generator) for _ in range(steps)]
    found = {}
    for way in WAYS:
        torch.manual_seed(seed)
        child = Network()
        child.layer.load_state_dict(model.layer.state_dict())
        fine_tune(child, x[:SAMPLES], y[:SAMPLES], batches, way, seed)
        with torch.no_grad():
            right = child(x[SAMPLES:]).argmax(-1) == y[SAMPLES:]
        found[way] = 100 * right.double().mean().item()
    return found


def fine_tune(
    model: Network, x: Tensor, y: Tensor, batches: Sequence[Tensor], way: str, seed: int
) -> None:
    """Adam on the 60 pictures, in one of the ways."""
    slower = math.sqrt(KEEP) if way == "rate" else 1.0
    groups: list[dict[str, Any]] = [
        {"params": model.layer.named_parameters("layer"), "lr": LEARNING_RATE * slower},
        {"params": model.head.named_parameters("head")},
    ]
    optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE)
    if way == "fixed":
        masks = topk_masks(fisher_diagonal(model, [(x, y)]), KEEP)
        GradientMask(optimizer, "fixed", masks=masks)
    elif way in ("random", "update"):
        GradientMask(optimizer, way, keep_prob=KEEP, seed=seed)
    for rows in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        if way == "noise":
            for g in (p.grad for p in model.layer.parameters() if p.grad is not None):
                g *= 1 + math.sqrt((1 - KEEP) / KEEP) * torch.randn_like(g)
        optimizer.step()


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean of the differences seed by seed, and its standard error."""
    pairs = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
    return pairs.mean().item(), pairs.std().item() / math.sqrt(len(pairs))


def verdict(found: dict[str, list[float]]) -> Verdict:
    """Do masks beat plain fine-tuning, and the smaller rate as well, by two standard errors?

    Holds if both of the paper's forms beat both; partly if any mask beats plain fine-tuning.
    """

    def beats(way: str, other: str) -> bool:
        mean, error = difference(found[way], found[other])
        return mean > 2 * error

    if all(beats(way, other) for way in ("random", "fixed") for other in ("vanilla", "rate")):
        return Verdict.HOLDS
    if any(beats(way, "vanilla") for way in ("random", "fixed", "update")):
        return Verdict.PARTLY
    return Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """20 draws of 60 pictures, six ways each; the digits come with scikit-learn."""
    del data
    digits = load()
    model = pretrained(digits, seed)
    runs = [accuracies(model, digits, 1000 * seed + run) for run in range(SEEDS)]
    return finding({way: [run[way] for run in runs] for way in WAYS})


def finding(found: dict[str, list[float]]) -> Finding:
    """Numbers, picture and verdict from the accuracies of each way."""
    plain = found["vanilla"]
    numbers: dict[str, Number] = {"vanilla": f"{sum(plain) / len(plain):.2f} %"}
    compared = [way for way in WAYS if way != "vanilla"]
    gaps = {way: difference(found[way], plain) for way in compared}
    names_zh = {}
    for way, (mean, error) in {"vanilla": (0.0, 0.0), **gaps}.items():
        english, chinese = WAYS[way]
        names_zh[english] = chinese
        if way != "vanilla":
            numbers[english] = f"{mean:+.2f} ± {error:.2f}"
    mean, error = difference(found["random"], found["rate"])
    numbers["F against lr · √p"] = f"{mean:+.2f} ± {error:.2f}"
    names_zh["F against lr · √p"] = "F 相对学习率 · √p"
    picture = _picture([(WAYS[way], *gaps[way]) for way in compared])
    judged = verdict(found)
    same = abs(mean) <= 2 * error
    return Finding(numbers, picture, judged, *_comment(judged, same), names_zh)


def _comment(judged: Verdict, same: bool) -> tuple[str, str]:
    english = {
        Verdict.HOLDS: "Both forms of the paper beat plain fine-tuning and the smaller rate.",
        Verdict.PARTLY: "Some mask beats plain fine-tuning, not every form beats both controls.",
        Verdict.FAILS: "No mask beats plain fine-tuning by two standard errors.",
    }[judged]
    chinese = {
        Verdict.HOLDS: "论文的两种形式都胜过普通微调，也胜过更小的学习率。",
        Verdict.PARTLY: "有掩码胜过普通微调，但并非两种形式都胜过两个对照。",
        Verdict.FAILS: "没有哪种掩码比普通微调高出两个标准误。",
    }[judged]
    if same:
        english += " Random masks and lr · √p cannot be told apart."
        chinese += "随机掩码与学习率 · √p 分不出高下。"
    return (
        f"{english} p = {KEEP}; Adam at {LEARNING_RATE:g}, the best of 3e-4, 1e-3, 3e-3, 1e-2 for "
        "plain fine-tuning. A small network on easy pictures; the paper's gains are about large "
        "language models.",
        f"{chinese}p = {KEEP}；Adam 学习率 {LEARNING_RATE:g}，是 3e-4、1e-3、3e-3、1e-2 中对"
        "普通微调最好的。这里是小网络和简单图片，论文的提升针对大型语言模型。",
    )


def _picture(rows: Sequence[tuple[Label, float, float]], width: int = 520) -> Html:
    """A point and two standard errors to each side, per way; zero is plain fine-tuning."""
    title = ("What each way adds to plain fine-tuning", "各种做法相对普通微调的差别")
    under = ("points of accuracy, mean ± 2 standard errors", "准确率（百分点），均值 ± 2 个标准误")
    levels = ticks([0.0, *(m + side * 2 * e for _, m, e in rows for side in (-1, 1))])
    left, right = 20 + max(label_width(name) for name, _, _ in rows), width - 24
    top, step = 58, 28
    bottom = top + step * len(rows)

    def across(value: float) -> float:
        return left + (value - levels[0]) / (levels[-1] - levels[0]) * (right - left)

    parts = [heading(title, under)]
    for level, written in zip(levels, tick_names(levels), strict=True):
        parts.append(rule(across(level), top - 6, across(level), bottom, GRID))
        parts += text(written, across(level), bottom + 18, anchor="middle")
    parts.append(rule(across(0.0), top - 6, across(0.0), bottom, SOFT, 1.5))
    for index, (name, mean, error) in enumerate(rows):
        y = top + step * index + 10
        parts += text(name, left - 10, y + 4, anchor="end", fill=INK)
        parts.append(rule(across(mean - 2 * error), y, across(mean + 2 * error), y, colour(0), 2))
        parts.append(tag("circle", cx=f"{across(mean):.1f}", cy=y, r=4.5, fill=colour(0)))
    return svg(title, width, bottom + 30, parts)


EXPERIMENT = Experiment(
    id="S12-small-data",
    system="S12",
    title_en="Sixty samples: training a child of the network",
    title_zh="六十个样本：只训练子网络",
    claim_en=(
        "On little data, fine-tuning with masked gradients, random or chosen by Fisher "
        "information, beats plain fine-tuning, and not by a smaller learning rate alone."
    ),
    claim_zh=(
        "小数据上，给梯度加掩码（随机的，或按 Fisher 信息选的）胜过普通微调，"
        "且不只是学习率变小的缘故。"
    ),
    published="1.5 to 8.6 points on GLUE with large models; on CLUE with base models no clear gain",
    published_zh="GLUE 上的大模型提升 1.5 到 8.6 个百分点；CLUE 上的 base 模型没有明显提升",
    measure=measure,
)
