"""Which mean of fan-in and fan-out keeps a bottleneck chain flat, and does it matter? (S05)

Three pictures:

    gains      f = m t and g = n t of one m → n matrix against n/m, exact
    chain      20 linear pairs 256 → 1024 → 256, 20 draws, 64 inputs: second moment of the
               activations and of the gradients after every matrix
    training   digits, 6 residual blocks x + W2 relu(W1 LN x), 64 → 256 → 64, 10 epochs of
               Adam from 1e-3 down to 0, 6 seeds: the same classifier under three means
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.nn.fan_average import chain_report, gains
from kexue.nn.init import variance_scaling_
from kexue.report.charts import Series, line_chart
from kexue.report.drawing import Label

__all__ = ["EXPERIMENT", "chain", "finding", "train", "verdict"]

MEANS = ("geometric", "arithmetic", "contraharmonic")
NAMES: dict[str, Label] = {
    "geometric": ("geometric", "几何"),
    "arithmetic": ("arithmetic (Xavier)", "算术（Xavier）"),
    "contraharmonic": ("contraharmonic", "反调和"),
    "fan_in": "fan_in",
    "fan_out": "fan_out",
}
NARROW, WIDE, PAIRS, DRAWS, BATCH = 256, 1024, 20, 20, 64
BLOCKS, EPOCHS, SEEDS, RATE, TRAIN = 6, 10, 6, 1e-3, 1297

Moments = Mapping[str, tuple[Tensor, Tensor]]
"""Mean → (forwards, backwards), each (draws, matrices + 1), relative to where they start."""


def chain(
    kind: str,
    seed: int,
    *,
    pairs: int = PAIRS,
    draws: int = DRAWS,
    widths: tuple[int, int] = (NARROW, WIDE),
) -> tuple[Tensor, Tensor]:
    """Second moments along linear chains: activations by depth, gradients by distance from the end.

    Returns:
        Two tensors (draws, 2 pairs + 1), in units of the moment at the start of each direction.
    """
    narrow, wide = widths
    random = torch.Generator().manual_seed(seed)
    shapes = [(wide, narrow), (narrow, wide)] * pairs
    weights = [torch.empty(shape) for shape in shapes]
    found: list[tuple[list[float], list[float]]] = []
    for _ in range(draws):
        for weight in weights:
            variance_scaling_(weight, 1.0, kind, "normal", generator=random)
        moments: tuple[list[float], list[float]] = ([], [])
        for side, matrices in enumerate(([w.T for w in weights], list(reversed(weights)))):
            signal = torch.randn(BATCH, narrow, generator=random)
            signal /= signal.square().mean().sqrt()
            moments[side].append(1.0)
            for matrix in matrices:  # forwards x Wᵀ; backwards the gradient meets W
                signal = signal @ matrix
                moments[side].append(signal.square().mean().item())
        found.append(moments)
    forwards, backwards = (torch.tensor([m[side] for m in found]).double() for side in (0, 1))
    return forwards, backwards


class Classifier(nn.Module):
    """Residual blocks x + W2 relu(W1 LN x) and a linear head."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(BLOCKS + 1))
        self.up = nn.ModuleList(nn.Linear(64, 256) for _ in range(BLOCKS))
        self.down = nn.ModuleList(nn.Linear(256, 64) for _ in range(BLOCKS))
        self.head = nn.Linear(64, 10)
        for layer in (*self.up, *self.down, self.head):
            scale = 2.0 if layer in self.down else 1.0  # relu comes before these
            way = "fan_in" if layer is self.head else kind
            variance_scaling_(layer.weight, scale, way, "normal", generator=random)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for norm, up, down in zip(self.norms, self.up, self.down, strict=False):
            x = x + down(torch.relu(up(norm(x))))
        scores: Tensor = self.head(self.norms[-1](x))
        return scores


def train(kinds: Sequence[str], seeds: Sequence[int], epochs: int = EPOCHS) -> dict[str, Tensor]:
    """Mean → test accuracy in percent per seed. All classifiers learn side by side."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(pixels / 8 - 1, dtype=torch.float32)[order], torch.tensor(digits)[order]
    models = [Classifier(kind, seed) for kind in kinds for seed in seeds]
    parameters, _ = stack_module_state(models)
    optimizer = torch.optim.Adam(parameters.values(), lr=RATE)
    scores = torch.vmap(
        lambda p, x: functional_call(models[0], p, (x,)), in_dims=(0, None), randomness="error"
    )
    random = torch.Generator().manual_seed(1)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = RATE * (1 - epoch / epochs)
        for rows in torch.randperm(TRAIN, generator=random).split(64):
            out = scores(parameters, x[rows])  # (R, B, 10)
            loss = F.cross_entropy(out.flatten(0, 1), y[rows].repeat(len(models)))
            optimizer.zero_grad()
            (len(models) * loss).backward()
            optimizer.step()
    with torch.no_grad():
        right = scores(parameters, x[TRAIN:]).argmax(2) == y[TRAIN:]
    accuracy = 100 * right.double().mean(1).view(len(kinds), len(seeds))
    return dict(zip(kinds, accuracy, strict=True))


def errors(found: Moments, widths: Sequence[int]) -> dict[str, tuple[float, float]]:
    """By how many standard errors the measured end of each chain misses its product of gains."""

    def miss(moments: Tensor, wanted: float) -> float:
        end = moments[:, -1]
        return float((end.mean() - wanted).abs() / (end.std() / math.sqrt(len(end))))

    reports = {kind: chain_report(widths, kind) for kind in found}
    return {
        kind: (miss(ahead, reports[kind].forward), miss(back, reports[kind].backward))
        for kind, (ahead, back) in found.items()
    }


def largest_gap(accuracies: Mapping[str, Tensor]) -> tuple[float, float]:
    """The largest difference of two means of accuracies, seed by seed, and its standard error."""
    gaps = [a - b for a, b in combinations(accuracies.values(), 2)]
    largest = max(gaps, key=lambda gap: abs(gap.mean().item()))
    return abs(largest.mean().item()), largest.std().item() / math.sqrt(len(largest))


def verdict(
    misses: Mapping[str, tuple[float, float]], gap: float, error: float
) -> tuple[Verdict, bool, bool]:
    """Holds if every chain ends where its gains say, and training does not tell the means apart.

    A chain agrees within 3 standard errors; a difference of accuracies counts from 3 on, because it
    is the largest of three.
    """
    chains = all(miss <= 3 for both in misses.values() for miss in both)
    same = gap <= 3 * error
    if chains and same:
        return Verdict.HOLDS, chains, same
    return (Verdict.PARTLY if chains else Verdict.FAILS), chains, same


def measure(seed: int, data: Path | None) -> Finding:
    """Chains with fresh draws for every mean; the digits come with scikit-learn."""
    del data
    found = {kind: chain(kind, 1000 * seed + i) for i, kind in enumerate(MEANS)}
    return finding(found, train(MEANS, range(100 * seed, 100 * seed + SEEDS)))


def finding(found: Moments, accuracies: Mapping[str, Tensor]) -> Finding:
    """Numbers, pictures and verdict from both measurements."""
    matrices = next(iter(found.values()))[0].shape[1] - 1
    widths = [NARROW if i % 2 == 0 else WIDE for i in range(matrices + 1)]
    misses = errors(found, widths)
    gap, error = largest_gap(accuracies)
    judged, chains, same = verdict(misses, gap, error)
    numbers: dict[str, Number] = {}
    names_zh = {}
    for kind, (forwards, backwards) in found.items():
        name = f"{kind}: forwards, backwards, predicted"
        ends = [_power(one[:, -1].mean().item()) for one in (forwards, backwards)]
        numbers[name] = f"{ends[0]}, {ends[1]}, {_power(chain_report(widths, kind).forward)}"
        names_zh[name] = f"{NAMES[kind][1]}：前向、反向、预测"
    for kind, accuracy in accuracies.items():
        name = f"{kind}: test accuracy"
        spread = accuracy.std().item() / math.sqrt(len(accuracy))
        numbers[name] = f"{accuracy.mean().item():.2f} ± {spread:.2f} %"
        names_zh[name] = f"{NAMES[kind][1]}：测试准确率"
    numbers["largest difference of accuracies"] = f"{gap:.2f} ± {error:.2f}"
    names_zh["largest difference of accuracies"] = "准确率的最大差异"
    width_names = f"{NARROW} → {WIDE} → {NARROW}"
    comment_en = (
        f"{matrices} linear matrices {width_names}, means over {DRAWS} draws, "
        f"{'end' if chains else 'do not all end'} where the product of the gains says, within 3 "
        "standard errors. With residuals, LayerNorm and Adam the accuracies under the three means "
        f"differ by {gap:.2f} ± {error:.2f} points at most, "
        f"{'within' if same else 'beyond'} the noise of {SEEDS} seeds."
    )
    comment_zh = (
        f"{matrices} 个线性矩阵 {width_names}，{DRAWS} 次采样的平均"
        f"{'都落在' if chains else '没有都落在'}增益连乘所预测之处（3 个标准误以内）。"
        f"加上残差、LayerNorm 和 Adam 之后，三种平均的准确率最多相差 {gap:.2f} ± {error:.2f} "
        f"个百分点，{'没有超出' if same else '超出了'} {SEEDS} 个种子的噪声。"
    )
    figure = _gains_picture() + _chain_picture(found)
    return Finding(numbers, figure, judged, comment_en, comment_zh, names_zh)


def _power(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= value < 100 else f"{value:.1e}"


def _gains_picture() -> str:
    """log2 of both gains of one matrix, exact."""
    ratios = [i / 4 for i in range(-24, 25)]
    titles: list[tuple[Label, str]] = [
        (("One matrix, forwards", "单个矩阵，前向"), "m t"),
        (("One matrix, backwards", "单个矩阵，反向"), "n t"),
    ]
    return "".join(
        line_chart(
            [
                Series(NAMES[k], ratios, [math.log2(gains(1.0, 2.0**r, k)[side]) for r in ratios])
                for k in NAMES
            ],
            title=title,
            x_label=("log₂ of n/m", "n/m 的 log₂"),
            y_label=(f"log₂ of the gain {gain}", f"增益 {gain} 的 log₂"),
        )
        for side, (title, gain) in enumerate(titles)
    )


def _chain_picture(found: Moments) -> str:
    titles: list[Label] = [
        ("Chain 256 → 1024 → 256 → …, forwards", "链 256 → 1024 → 256 → …，前向"),
        ("The same chain, backwards", "同一条链，反向"),
    ]
    depth = [float(i) for i in range(next(iter(found.values()))[0].shape[1])]
    return "".join(
        line_chart(
            [
                Series(NAMES[kind], depth, both[side].mean(0).log10().tolist())
                for kind, both in found.items()
            ],
            title=title,
            x_label=("matrices passed", "经过的矩阵个数"),
            y_label=("log₁₀ of the second moment", "二阶矩的 log₁₀"),
        )
        for side, title in enumerate(titles)
    )


EXPERIMENT = Experiment(
    id="S05-means",
    system="S05",
    title_en="Means of fan-in and fan-out along a chain",
    title_zh="沿着一条链比较几种维度平均",
    claim_en=(
        "Over a bottleneck chain the geometric mean keeps second moments both ways, the arithmetic "
        "and the contraharmonic shrink them; in a residual classifier with Adam the choice does "
        "not show."
    ),
    claim_zh=(
        "在瓶颈结构的链上，几何平均使前向和反向的二阶矩都保持不变，算术平均和反调和平均使其缩小；"
        "而在用 Adam 训练的残差分类器里看不出差别。"
    ),
    published="Article 8725: geometric keeps both ends, arithmetic shrinks; no measurement",
    published_zh="文章 8725：几何平均保持首尾不变，算术平均缩小；没有实验数字",
    measure=measure,
)
