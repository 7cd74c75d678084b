"""How far random residual layers amplify, draw by draw (S20).

v is multiplied by I + ε W_l for l = 1 … N, with W_l of width 256 and Gaussian entries of variance
1/256. Whatever v is, one layer multiplies |v|² by a factor of mean 1 + ε² and variance
(4ε² + 2ε⁴)/256, so over N layers, exactly,

    E r = (1 + ε²)^N,    E r² = ((1 + ε²)² + (4ε² + 2ε⁴)/256)^N,    r = |v Π(I + ε W_l)|² / |v|²
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from kexue.analysis.residual_weight import amplification, residual_scale
from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.report.charts import Bar, bar_chart

__all__ = ["EXPERIMENT", "deviation", "factors", "judge"]

WIDTH, DEPTHS, DRAWS = 256, (16, 64, 256), 8
RULES = ("ε = N^(−1/2)", "ε = 1/N", "ε = 1")

Case = tuple[str, int]
"""A rule and a depth."""


def weight(rule: str, depth: int) -> float:
    """The ε of a rule."""
    return dict(
        zip(RULES, (residual_scale(depth), residual_scale(depth, "adam"), 1.0), strict=True)
    )[rule]


def factors(
    seed: int, *, draws: int = DRAWS, width: int = WIDTH, depths: Sequence[int] = DEPTHS
) -> dict[Case, list[float]]:
    """r of every case for several draws of the matrices, which the cases share."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[Case, list[float]] = {(rule, N): [] for rule in RULES for N in depths}
    for _ in range(draws):
        start = torch.randn(width, generator=generator, dtype=torch.float64)
        v = dict.fromkeys(found, start)
        for layer in range(max(depths)):
            W = torch.randn(width, width, generator=generator, dtype=torch.float64)
            W = W / math.sqrt(width)
            for rule, N in found:
                if layer < N:
                    v[rule, N] = v[rule, N] + weight(rule, N) * v[rule, N] @ W
        for case, end in v.items():
            found[case].append(float(end.square().sum() / start.square().sum()))
    return found


def deviation(eps: float, depth: int, width: int = WIDTH) -> float:
    """The standard deviation of r, exact."""
    mean = (1 + eps**2) ** 2
    return math.sqrt((mean + (4 * eps**2 + 2 * eps**4) / width) ** depth - mean**depth)


def judge(means: Mapping[Case, float], draws: int) -> Verdict:
    """By how many of its standard errors the mean of a small weight misses the expectation.

    Holds up to 3 errors everywhere, partly up to 5. ε = 1 is not judged: r has so heavy a tail
    that a mean over a few draws says little.
    """
    errors = [
        abs(mean - amplification(weight(rule, N), N, "random"))
        / (deviation(weight(rule, N), N) / math.sqrt(draws))
        for (rule, N), mean in means.items()
        if rule != RULES[-1]
    ]
    if max(errors) <= 3:
        return Verdict.HOLDS
    return Verdict.PARTLY if max(errors) <= 5 else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Eight draws of 256 matrices; `data` is not needed."""
    del data
    found = factors(seed, draws=DRAWS)
    means = {case: statistics.fmean(one) for case, one in found.items()}
    exact = {(rule, N): amplification(weight(rule, N), N, "random") for rule, N in found}
    numbers: dict[str, Number] = {}
    for (rule, N), mean in means.items():
        sd = deviation(weight(rule, N), N)
        shape = ".4f" if rule != RULES[-1] else ".2e"
        numbers[f"{rule}, N = {N}"] = (
            f"{found[rule, N][0]:{shape}}, mean of {DRAWS} {mean:{shape}} "
            f"(exact {exact[rule, N]:{shape}}, deviation {sd:{shape}})"
        )
    bars = [
        Bar(f"{case[0]}, N = {case[1]}", mean, exact[case], min(found[case]), max(found[case]))
        for case, mean in means.items()
        if case[0] != RULES[-1]
    ]
    picture = bar_chart(
        bars,
        title=("How far N residual layers amplify |v|²", "N 层残差把 |v|² 放大多少"),
        unit=(
            f"mean and range of {DRAWS} draws, width {WIDTH}",
            f"{DRAWS} 次抽样的均值与范围，宽度 {WIDTH}",
        ),
        chance_name=("exact expectation", "精确期望"),
        digits=2,
    )
    largest = max(max(found[RULES[0], N]) for N in DEPTHS)
    return Finding(
        numbers,
        picture,
        judge(means, DRAWS),
        "First draw, then the mean of all; agreement means within three exact standard errors. "
        f"At ε = N^(−1/2) the expectation stays below e; the largest draw is {largest:.2f}.",
        "先列第一次抽样，再列全部的均值；与精确期望相差不超过三个精确标准误视为一致。"
        f"ε = N^(−1/2) 时期望始终小于 e，最大的一次抽样为 {largest:.2f}。",
    )


EXPERIMENT = Experiment(
    id="S20-chain",
    system="S20",
    title_en="How far random residual layers amplify",
    title_zh="随机残差层的放大倍数",
    claim_en=(
        "Random residual layers multiply |v|² by (1 + ε²)^N on average: at most e for "
        "ε = N^(−1/2), whatever the depth."
    ),
    claim_zh="随机残差层平均把 |v|² 放大 (1 + ε²)^N 倍：ε = N^(−1/2) 时无论多深都不超过 e。",
    published="(1 + ε²)^N to leading order; ε = N^(−1/2) suffices",
    published_zh="首阶为 (1 + ε²)^N；取 ε = N^(−1/2) 就够了",
    measure=measure,
)
