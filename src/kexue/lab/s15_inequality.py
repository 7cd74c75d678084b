"""Both sides of the inequality on random networks: how tight is it? (S15, article 8796)

ReLU networks of width 64 with He's initialisation, Gaussian inputs, one random logit. The left side
is measured in the Frobenius norm, the spectral norm (the article's) and the tight form.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kexue.analysis.inequality import gradient_inequality
from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.report.charts import Label
from kexue.report.drawing import FAINT, GRID, SOFT, colour, heading, legend, rule, svg, text
from kexue.report.markup import Html, tag

__all__ = ["EXPERIMENT", "draw", "picture", "verdict"]

WIDTH, DRAWS, DEPTHS = 64, 20, (2, 4, 8)
NORMS = {
    "fro": ("Frobenius", "Frobenius 范数"),
    "spectral": ("spectral", "谱范数"),
    "tight": ("tight", "紧形式"),
}
Sides = dict[tuple[int, str], tuple[Tensor, Tensor]]
"""By depth and norm: left and right sides, one for each draw."""


def draw(depth: int, seed: int, width: int = WIDTH) -> dict[str, tuple[float, float]]:
    """Left and right side of one random network, for each norm."""
    random = torch.Generator().manual_seed(1000 * depth + seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=random)

    layers: list[nn.Module] = []
    for _ in range(depth):
        dense = nn.Linear(width, width, dtype=torch.float64)
        dense.weight.data = normal(width, width) * math.sqrt(2 / width)
        dense.bias.data.zero_()
        layers += [dense, nn.ReLU()]
    x, v = normal(width), normal(width)
    network = nn.Sequential(*layers)
    found = {}
    for norm in NORMS:
        both = gradient_inequality(network, x, lambda out: out @ v, norm)  # type: ignore[arg-type]
        found[norm] = (both.left.item(), both.right.item())
    return found


def verdict(means: Mapping[tuple[int, str], float], largest: float) -> Verdict:
    """Holds if no left side is above the right and spectral ratios are within a factor of ten.

    Args:
        means: mean ratio of the sides by depth and norm.
        largest: the largest ratio of all.
    """
    if largest > 1 + 1e-9:
        return Verdict.FAILS
    close = [mean >= 0.1 for (_, norm), mean in means.items() if norm == "spectral"]
    return Verdict.HOLDS if all(close) else Verdict.PARTLY


def measure(seed: int, data: Path | None) -> Finding:
    """Draw the networks; nothing is trained and no data are needed."""
    del data
    sides: Sides = {}
    for depth in DEPTHS:
        drawn = [draw(depth, seed * DRAWS + k) for k in range(DRAWS)]
        for norm in NORMS:
            left, right = (torch.tensor([one[norm][k] for one in drawn]) for k in (0, 1))
            sides[depth, norm] = (left, right)
    return _finding(sides)


def _finding(sides: Sides) -> Finding:
    ratios = {key: left / right for key, (left, right) in sides.items()}
    means = {key: ratio.mean().item() for key, ratio in ratios.items()}
    largest = max(ratio.max().item() for ratio in ratios.values())
    numbers: dict[str, Number] = {}
    names_zh = {"largest ratio": "最大比值"}
    for (depth, norm), mean in means.items():
        name = f"left / right, depth {depth}, {NORMS[norm][0]}"
        numbers[name] = f"{mean:.2g} (max {ratios[depth, norm].max().item():.2g})"
        names_zh[name] = f"左边 / 右边，{depth} 层，{NORMS[norm][1]}"
    numbers["largest ratio"] = f"{largest:.2f}"
    depths = sorted({depth for depth, _ in means})
    ends = [f"{means[depth, 'spectral']:.3f}" for depth in (depths[0], depths[-1])]
    fro = [means[depth, "fro"] for depth in depths]
    return Finding(
        numbers=numbers,
        figure=picture(sides),
        verdict=verdict(means, largest),
        comment_en=(
            f"No draw breaks the inequality (largest ratio {largest:.2f}). The spectral form "
            f"fades with depth: {ends[0]} at depth {depths[0]}, {ends[1]} at depth {depths[-1]}; "
            f"the Frobenius form says almost nothing ({min(fro):.1g} to {max(fro):.1g}). The ratio "
            "is not constant: neither penalty can stand for the other."
            if largest <= 1 + 1e-9
            else f"A left side is {largest:.2f} times the right one: the inequality is broken."
        ),
        comment_zh=(
            f"没有一次抽样违反不等式（最大比值 {largest:.2f}）。谱范数形式随深度变松，"
            f"{depths[0]} 层时为 {ends[0]}，{depths[-1]} 层时为 {ends[1]}；Frobenius 形式几乎不提供"
            f"信息（{min(fro):.1g} 到 {max(fro):.1g}）。比值并非常数，两种惩罚不能互相替代。"
            if largest <= 1 + 1e-9
            else f"有一个左边是右边的 {largest:.2f} 倍：不等式被违反。"
        ),
        names_zh=names_zh,
    )


def picture(sides: Sides, width: int = 520, height: int = 430) -> Html:
    """Both sides on logarithmic axes with the diagonal they may not cross."""
    title: Label = ("Both sides of the inequality", "不等式的两边")
    under: Label = (
        f"random ReLU networks of width {WIDTH}; one dot per network, below the line it holds",
        f"宽度 {WIDTH} 的随机 ReLU 网络；每点一个网络，在对角线以下即成立",
    )
    parts = [heading(title, under)]
    names = [(name, colour(k), "|") for k, name in enumerate(NORMS.values())]
    samples, taken = legend([*names, (("left = right", "左边 = 右边"), SOFT, "5 4")], 62, width)
    parts += samples
    everything = torch.cat([torch.cat(pair) for pair in sides.values()]).log10()
    everything = everything[everything.isfinite()]
    low, high = math.floor(everything.min().item()), math.ceil(everything.max().item())
    xs = torch.cat([right for _, right in sides.values()]).log10()
    begin, end = math.floor(xs.min().item()), max(math.ceil(xs.max().item()), high)
    left, top, right, bottom = 52.0, 66.0 + taken, width - 14.0, height - 46.0

    def across(power: int | float) -> float:
        return left + (power - begin) / (end - begin) * (right - left)

    def up(power: int | float) -> float:
        return bottom - (power - low) / (high - low) * (bottom - top)

    for power in range(low, high + 1):
        parts.append(rule(left, up(power), right, up(power), GRID))
        parts += text(f"1e{power}", left - 8, up(power) + 4, anchor="end")
    for power in range(begin, end + 1):
        parts += text(f"1e{power}", across(power), bottom + 18, anchor="middle")
    parts += text(
        ("right: squared parameter gradient", "右边：参数梯度的平方"),
        right,
        bottom + 38,
        anchor="end",
    )
    parts += text(("left side", "左边"), left + 6, top + 12)
    parts.append(rule(left, bottom, right, bottom, FAINT))
    start, stop = max(begin, low), min(end, high)
    parts.append(rule(across(start), up(start), across(stop), up(stop), SOFT, dash="5 4"))
    for (_, norm), (one, two) in sides.items():
        paint = colour(list(NORMS).index(norm))
        pairs = torch.stack([two, one], dim=1).log10()
        for x, y in pairs[pairs.isfinite().all(dim=1)].tolist():
            place = {"cx": f"{across(x):.1f}", "cy": f"{up(y):.1f}"}
            parts.append(tag("circle", **place, r=3, fill=paint, fill_opacity=0.75))
    return svg(title, width, height, parts)


EXPERIMENT = Experiment(
    id="S15-inequality",
    system="S15",
    title_en="The inequality of gradient penalties, as numbers",
    title_zh="梯度惩罚不等式的数值",
    claim_en=(
        "The squared input gradient times a sum over layers never exceeds the squared parameter "
        "gradient, and in spectral norms it comes within a factor of ten of it."
    ),
    claim_zh="输入梯度平方乘以逐层之和不超过参数梯度平方；用谱范数度量时，两边相差不到十倍。",
    published="The inequality is proved in article 8796; how tight it is was not measured there.",
    published_zh="文章 8796 证明了不等式，没有测量它有多紧。",
    measure=measure,
)
