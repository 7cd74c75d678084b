"""WEISSI against L2 where labels are wrong: handwritten digits (S36).

1,000 digits for training, 30 % of their labels at random, 797 for the test; a ReLU network
64-128-128-10, SGD with momentum 0.9 at 0.02, batches of 50, 60 epochs, 4 seeds:

    no penalty · L2 at three coefficients · WEISSI at four

Measured: accuracy, mean norm of the input gradient of the loss, product of the layers' norms.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.report.drawing import (
    GRID,
    Label,
    colour,
    heading,
    legend,
    rule,
    svg,
    text,
    tick_names,
    ticks,
)
from kexue.report.markup import Html, tag

__all__ = ["EXPERIMENT", "Run", "judge", "load", "network", "train"]

SEEDS, EPOCHS, BATCH, TRAIN = 4, 60, 50, 1000
RATE, MOMENTUM, RANDOM = 0.02, 0.9, 0.3
L2 = (1e-3, 5e-3, 1e-2)
WEISSI = (0.02, 0.05, 0.1, 0.15)
WAYS: dict[str, tuple[str, float]] = {
    "none": ("none", 0.0),
    **{f"L2 {value:g}": ("L2", value) for value in L2},
    **{f"WEISSI {value:g}": ("WEISSI", value) for value in WEISSI},
}


@dataclass(frozen=True)
class Run:
    """One training: accuracy in percent, norm of the input gradient, product of layer norms."""

    accuracy: float
    gradient: float
    product: float
    norms: tuple[float, ...]


def load(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training pictures with wrong labels among them, test pictures with right ones."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pixels), generator=generator)
    x = torch.tensor(pixels / 16, dtype=torch.float32)[order]
    y = torch.tensor(digits)[order]
    drawn = torch.randint(10, (TRAIN,), generator=generator)
    wrong = torch.rand(TRAIN, generator=generator) < RANDOM
    return x[:TRAIN], torch.where(wrong, drawn, y[:TRAIN]), x[TRAIN:], y[TRAIN:]


def network(seed: int, *, bias: bool = True) -> nn.Sequential:
    """64-128-128-10 with ReLU."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Linear(64, 128, bias=bias), nn.ReLU()),
        *(nn.Linear(128, 128, bias=bias), nn.ReLU(), nn.Linear(128, 10, bias=bias)),
    )


def train(
    ways: Mapping[str, tuple[str, float]], seeds: Sequence[int], epochs: int = EPOCHS
) -> dict[str, list[Run]]:
    """Way → one run per seed. All networks learn side by side, along a first axis R."""
    many = [(kind, value, seed) for kind, value in ways.values() for seed in seeds]
    sets = {seed: load(seed) for seed in seeds}
    x, y, test_x, test_y = (
        torch.stack(one) for one in zip(*(sets[seed] for *_, seed in many), strict=True)
    )
    nets = [network(seed) for *_, seed in many]
    parameters, _ = stack_module_state(nets)
    scores = torch.vmap(lambda p, x: functional_call(nets[0], p, (x,)))
    weights = [p for name, p in parameters.items() if name.endswith("weight")]
    l2 = torch.tensor([value if kind == "L2" else 0.0 for kind, value, _ in many])
    weissi = torch.tensor([value if kind == "WEISSI" else 0.0 for kind, value, _ in many])
    optimizer = torch.optim.SGD(parameters.values(), lr=RATE, momentum=MOMENTUM)
    generators = {seed: torch.Generator().manual_seed(seed) for seed in seeds}
    for _ in range(epochs):
        orders = {seed: torch.randperm(TRAIN, generator=g) for seed, g in generators.items()}
        for rows in torch.stack([orders[seed] for *_, seed in many]).split(BATCH, dim=1):
            batch = x.gather(1, rows[:, :, None].expand(-1, -1, 64))
            loss = _losses(scores(parameters, batch), y.gather(1, rows)).mean(1)  # (R)
            squares = [w.square().sum((1, 2)) for w in weights]
            # The penalties of R networks at once: L2 is λ/2 Σ|W|², WEISSI λ1 Σ log |W|.
            loss = loss + sum(l2 / 2 * s + weissi / 2 * s.log() for s in squares)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
    norms = torch.stack([w.detach().square().sum((1, 2)).sqrt() for w in weights], dim=1)
    with torch.no_grad():
        right = scores(parameters, test_x).argmax(2).eq(test_y).double().mean(1)
    test_x.requires_grad_()
    loss = _losses(scores(parameters, test_x), test_y).sum()
    (slopes,) = torch.autograd.grad(loss, test_x)
    lengths = slopes.norm(dim=2).mean(1)
    runs = [
        Run(
            100 * right[r].item(),
            lengths[r].item(),
            norms[r].prod().item(),
            tuple(norms[r].tolist()),
        )
        for r in range(len(many))
    ]
    n = len(seeds)
    return {way: runs[n * i : n * (i + 1)] for i, way in enumerate(ways)}


def _losses(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores.transpose(1, 2), y, reduction="none")


def best(runs: Mapping[str, Sequence[Run]], kind: str) -> str:
    """The way of this kind with the highest mean accuracy (the lower coefficient on ties)."""
    return max((way for way in runs if way.startswith(kind)), key=lambda way: _mean(runs[way])[0])


def difference(ours: Sequence[Run], theirs: Sequence[Run]) -> tuple[float, float]:
    """Mean difference of the accuracies seed by seed, and its standard error."""
    gaps = torch.tensor(
        [one.accuracy - two.accuracy for one, two in zip(ours, theirs, strict=True)]
    ).double()
    return gaps.mean().item(), gaps.std().item() / math.sqrt(len(gaps))


def judge(runs: Mapping[str, Sequence[Run]]) -> Verdict:
    """The best WEISSI against the best L2 and against no penalty, by two standard errors.

    Holds if it beats both; partly if it beats no penalty.
    """
    ours = runs[best(runs, "WEISSI")]
    over = {way: difference(ours, runs[way]) for way in (best(runs, "L2"), "none")}
    clear = {way: gap > 2 * error for way, (gap, error) in over.items()}
    if all(clear.values()):
        return Verdict.HOLDS
    return Verdict.PARTLY if clear["none"] else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Every way with the same seeds; the digits come with scikit-learn."""
    del data
    return finding(train(WAYS, range(100 * seed, 100 * seed + SEEDS)))


def finding(runs: Mapping[str, Sequence[Run]]) -> Finding:
    """Numbers, picture and verdict from the trainings."""
    numbers: dict[str, Number] = {}
    for way, several in runs.items():
        accuracy, error = _mean(several)
        gradient = sum(run.gradient for run in several) / len(several)
        numbers[way] = f"{accuracy:.2f} ± {error:.2f} %; {gradient:.2f}; {_product(several):.0f}"
    ours, theirs = best(runs, "WEISSI"), best(runs, "L2")
    gap, error = difference(runs[ours], runs[theirs])
    numbers["best WEISSI − best L2"] = f"{gap:+.2f} ± {error:.2f}"
    for way, name in ((ours, "norms, best WEISSI"), (theirs, "norms, best L2")):
        means = [sum(one) / len(one) for one in zip(*(r.norms for r in runs[way]), strict=True)]
        numbers[name] = ", ".join(f"{norm:.1f}" for norm in means)
    names_zh = {
        "none": "无正则",
        "best WEISSI − best L2": "最好的 WEISSI − 最好的 L2",
        "norms, best WEISSI": "各层范数，最好的 WEISSI",
        "norms, best L2": "各层范数，最好的 L2",
    }
    comment = (
        f"Accuracy, input gradient, product of norms; means over {SEEDS} seeds. Coefficients were "
        "compared on the test digits, for both penalties alike.",
        f"依次为准确率、输入梯度、范数之积；{SEEDS} 个种子的均值。"
        "两种正则的系数都直接在测试集上比较。",
    )
    return Finding(numbers, _picture(runs), judge(runs), *comment, names_zh)


def _mean(runs: Sequence[Run]) -> tuple[float, float]:
    values = torch.tensor([run.accuracy for run in runs]).double()
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def _product(runs: Sequence[Run]) -> float:
    """The geometric mean of the products."""
    return math.exp(sum(math.log(run.product) for run in runs) / len(runs))


def _picture(runs: Mapping[str, Sequence[Run]], width: int = 520, height: int = 320) -> Html:
    """Accuracy against the product of norms, one dot per coefficient; lines join one penalty."""
    title: Label = ("Accuracy and the size of the network", "准确率与网络的大小")
    kinds: list[tuple[str, Label]] = [
        ("L2", "L2"),
        ("WEISSI", "WEISSI"),
        ("none", ("none", "无正则")),
    ]
    points = {
        kind: sorted((math.log10(_product(r)), _mean(r)[0]) for w, r in runs.items() if kind in w)
        for kind, _ in kinds
    }
    everything = [point for several in points.values() for point in several]
    x_ticks, y_ticks = ticks([x for x, _ in everything]), ticks([y for _, y in everything])
    left, right, top, bottom = 52.0, width - 24.0, 82.0, height - 44.0

    def across(x: float) -> float:
        return left + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (right - left)

    def up(y: float) -> float:
        return bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top)

    parts = [heading(title, ("accuracy on clean test labels, percent", "测试准确率（%）"))]
    parts += legend([(name, colour(i), "") for i, (_, name) in enumerate(kinds)], 60, width)[0]
    for tick, name in zip(y_ticks, tick_names(y_ticks), strict=True):
        parts.append(rule(left, up(tick), right, up(tick), GRID))
        parts += text(name, left - 8, up(tick) + 4, anchor="end")
    for tick, name in zip(x_ticks, tick_names(x_ticks), strict=True):
        parts += text(name, across(tick), bottom + 18, anchor="middle")
    under = ("log₁₀ of the product of layer norms", "各层范数之积的 log₁₀")
    parts += text(under, right, bottom + 36, anchor="end")
    for index, (kind, _) in enumerate(kinds):
        placed = [(across(x), up(y)) for x, y in points[kind]]
        corners = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        if len(placed) > 1:
            parts.append(
                tag("path", d=f"M{corners}", fill="none", stroke=colour(index), stroke_width=2)
            )
        parts += [
            tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=4, fill=colour(index)) for x, y in placed
        ]
    return svg(title, width, height, parts)


EXPERIMENT = Experiment(
    id="S36-digits",
    system="S36",
    title_en="WEISSI against L2 on wrong labels",
    title_zh="标签有错时 WEISSI 与 L2 的比较",
    claim_en="WEISSI generalises better than weight decay.",
    claim_zh="WEISSI 的泛化优于权重衰减。",
    published="arXiv 2008.02965: better generalisation and robustness than weight decay",
    published_zh="arXiv 2008.02965：泛化与鲁棒性均优于权重衰减",
    measure=measure,
)
