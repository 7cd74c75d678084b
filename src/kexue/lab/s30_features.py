"""How well random features estimate exp(q · k), and what that does to attention (S30).

Pairs of vectors of one norm in random directions, d = 16. The mean over draws of

    (estimate / exp(q · k) − 1)²     in theory  E[exp(|q + k|²) − 1] / m  for independent directions

with independent and with orthogonal directions, and with hyperbolic features, which use m/2
directions and their opposites. Then attention over 128 tokens: distance from exact softmax
attention, as a share of the distance between exact attention and the mean of all values.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.nn.linear_attention import linear_attention
from kexue.nn.random_features import Kind, favor_features, orthogonal_gaussian
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "KERNELS", "attention_error", "judge", "kernel_error"]

Estimate = tuple[float, float]
"""A mean and its standard error."""
SIZE, SIZES, NORMS = 16, (16, 32, 64, 128, 256), (0.5, 1.0)
DRAWS, PAIRS = 3000, 8
TOKENS, REPEATS, TOKEN_NORM = 128, 12, 1.0
ATTENTION_SIZES = (16, 64, 256, 1024)
KERNELS = {
    "independent": ("independent directions", "独立的方向"),
    "orthogonal": ("orthogonal directions", "正交的方向"),
    "hyperbolic": ("orthogonal, hyperbolic", "正交，双曲特征"),
}
KINDS: dict[Kind, tuple[str, str]] = {
    "positive": ("positive", "正特征"),
    "hyperbolic": ("hyperbolic", "双曲特征"),
    "relu": ("relu", "ReLU 特征"),
}
PUBLISHED = {0.5: (0.038, 0.031), 1.0: (0.50, 0.38)}
"""Norm → relative squared error at m = 16 with independent and orthogonal directions."""


def _normal(*shape: int, source: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def kernel_error(
    name: str, norm: float, m: int, seed: int = 0, draws: int = DRAWS
) -> tuple[Estimate, float]:
    """Mean squared relative error of the estimate over draws, and what theory says of m of them."""
    source = torch.Generator().manual_seed(30_000 + seed)
    q, k = (
        norm * F.normalize(_normal(draws, PAIRS, SIZE, source=source), dim=-1) for _ in range(2)
    )
    count = m // 2 if name == "hyperbolic" else m
    omega = (
        _normal(draws * count, SIZE, source=source)
        if name == "independent"
        else orthogonal_gaussian(draws * count, SIZE, "chi", source, dtype=torch.float64)
    ).view(draws, count, SIZE)
    a, b = (x @ omega.mT for x in (q, k))  # (draws, pairs, count)
    if name == "hyperbolic":
        estimate = (a + b - norm**2).exp().mean(-1) / 2 + (-a - b - norm**2).exp().mean(-1) / 2
    else:
        estimate = (a + b - norm**2).exp().mean(-1)
    error = (estimate / (q * k).sum(-1).exp() - 1).square().mean(-1)  # (draws)
    theory = ((q + k).square().sum(-1).exp() - 1).mean() / m
    return (error.mean().item(), error.std().item() / math.sqrt(draws)), theory.item()


def attention_error(kind: Kind, m: int, seed: int = 0) -> float:
    """Distance from exact attention over that of the mean of all values, over several draws."""
    source = torch.Generator().manual_seed(31_000 + seed)
    total = 0.0
    for _ in range(REPEATS):
        q, k, v = (_normal(TOKENS, SIZE, source=source) for _ in range(3))
        q, k = (TOKEN_NORM * F.normalize(x, dim=-1) for x in (q, k))
        exact = (q @ k.mT).softmax(-1) @ v
        count = m // 2 if kind == "hyperbolic" else m
        omega = orthogonal_gaussian(count, SIZE, "chi", source, dtype=torch.float64)
        eps = 1e-3 if kind == "relu" else 0.0
        phi_q = favor_features(q[None, None], omega, kind, "per_token", eps)
        phi_k = favor_features(k[None, None], omega, kind, "per_head", eps)
        out, _ = linear_attention(phi_q, phi_k, v[None, None])
        total += ((out[0, 0] - exact).norm() / (exact - v.mean(0)).norm()).item()
    return total / REPEATS


Kernels = Mapping[float, Mapping[str, Mapping[int, Estimate]]]


def pooled(estimates: Mapping[int, Estimate]) -> Estimate:
    """Mean of m · error over the numbers of features, and its standard error."""
    terms = [(m * mean, m * error) for m, (mean, error) in estimates.items()]
    mean = sum(term for term, _ in terms) / len(terms)
    return mean, math.sqrt(sum(error**2 for _, error in terms)) / len(terms)


def judge(
    found: Kernels, theory: Mapping[float, Mapping[int, float]]
) -> tuple[Verdict, list[bool]]:
    """Three statements at every norm: the formula at every m; orthogonal and hyperbolic, pooled."""

    def below(names: Mapping[str, Mapping[int, Estimate]], better: str, worse: str) -> bool:
        common = names[better].keys() & names[worse].keys()
        (a, a_error), (b, b_error) = (
            pooled({m: names[name][m] for m in common}) for name in (better, worse)
        )
        return b - a > 2 * math.hypot(a_error, b_error)

    kept = [
        all(
            abs(mean - theory[norm][m]) <= 4 * error + 0.02 * theory[norm][m]
            for norm, names in found.items()
            for m, (mean, error) in names["independent"].items()
        ),
        all(below(names, "orthogonal", "independent") for names in found.values()),
        all(below(names, "hyperbolic", "orthogonal") for names in found.values()),
    ]
    if all(kept):
        return Verdict.HOLDS, kept
    return Verdict.PARTLY if any(kept) else Verdict.FAILS, kept


def measure(seed: int, data: Path | None) -> Finding:
    """All kernels, then attention; the data are not needed."""
    del data
    found: dict[float, dict[str, dict[int, Estimate]]] = {}
    theory: dict[float, dict[int, float]] = {}
    for norm in NORMS:
        found[norm], theory[norm] = {name: {} for name in KERNELS}, {}
        for name in KERNELS:
            for m in SIZES[name == "hyperbolic" :]:  # m/2 directions make a whole block
                found[norm][name][m], expected = kernel_error(name, norm, m, seed)
                if name == "independent":
                    theory[norm][m] = expected
    outputs = {kind: {m: attention_error(kind, m, seed) for m in ATTENTION_SIZES} for kind in KINDS}
    verdict, kept = judge(found, theory)
    numbers: dict[str, Number] = {}
    names_zh = {}
    for norm in NORMS:
        for m in (16, 256):
            for name, (english, chinese) in KERNELS.items():
                if m not in found[norm][name]:
                    continue
                mean, error = found[norm][name][m]
                key = f"norm {norm}, m = {m}: {english}"
                numbers[key] = f"{mean:.4f} ± {error:.4f}"
                names_zh[key] = f"模长 {norm}，m = {m}：{chinese}"
    for kind, (english, chinese) in KINDS.items():
        key = f"attention, m = 64, 256, 1024: {english}"
        numbers[key] = ", ".join(f"{100 * outputs[kind][m]:.0f} %" for m in ATTENTION_SIZES[-3:])
        names_zh[key] = f"注意力，m = 64、256、1024：{chinese}"
    words = [("yes", "是") if one else ("no", "否") for one in kept]
    return Finding(
        numbers,
        _picture(found, theory, outputs),
        verdict,
        f"{DRAWS:,} draws of {PAIRS} pairs per point. Independent directions follow the formula: "
        f"{words[0][0]}; orthogonal ones have less error: {words[1][0]}; hyperbolic ones with half "
        f"the directions less still: {words[2][0]} (beyond two standard errors at both norms, all "
        "m together). ReLU features belong to another kernel, so with more of them attention "
        "settles away from softmax.",
        f"每个点取 {DRAWS:,} 次抽样，每次 {PAIRS} 对向量。独立方向符合公式：{words[0][1]}；"
        f"正交方向误差更小：{words[1][1]}；只用一半方向的双曲特征误差还要小：{words[2][1]}"
        "（两种模长下都超过两个标准误，各 m 合并计算）。ReLU 特征对应另一种核，"
        "特征再多，结果也停在离 softmax 注意力一段距离处。",
        names_zh,
    )


def _picture(
    found: Kernels,
    theory: Mapping[float, Mapping[int, float]],
    outputs: Mapping[Kind, Mapping[int, float]],
) -> str:
    lines = [
        Series(
            label,
            [math.log2(m) for m in found[1.0][name]],
            [math.log10(mean) for mean, _ in found[1.0][name].values()],
            dots=True,
        )
        for name, label in KERNELS.items()
    ]
    formula = ("formula, independent", "公式，独立方向")
    levels = [math.log10(value) for value in theory[1.0].values()]
    lines.append(Series(formula, [math.log2(m) for m in theory[1.0]], levels))
    shares = [
        Series(
            label,
            [math.log2(m) for m in outputs[kind]],
            [100 * share for share in outputs[kind].values()],
            dots=True,
        )
        for kind, label in KINDS.items()
    ]
    features = ("log₂ of the number of features", "特征数的 log₂")
    return line_chart(
        lines,
        title=("Error of exp(q · k) at |q| = |k| = 1", "exp(q · k) 的误差，|q| = |k| = 1"),
        x_label=features,
        y_label=("log₁₀ of the mean squared relative error", "相对误差均方的 log₁₀"),
    ) + line_chart(
        shares,
        title=("Distance from softmax attention", "与 softmax 注意力的距离"),
        x_label=features,
        y_label=(
            "percent of the distance between attention and plain mean",
            "占“注意力与全体均值之距”的百分比",
        ),
    )


EXPERIMENT = Experiment(
    id="S30-features",
    system="S30",
    title_en="Random features for exp(q · k)",
    title_zh="用随机特征近似 exp(q · k)",
    claim_en=(
        "The squared relative error of m independent positive features is (exp(|q + k|²) − 1)/m; "
        "orthogonal directions have less, hyperbolic features with half the directions less still."
    ),
    claim_zh=(
        "m 个独立正特征的相对误差平方为 (exp(|q + k|²) − 1)/m；正交方向更小，"
        "只用一半方向的双曲特征还要小。"
    ),
    published="d = 16, m = 16: 0.038 → 0.031 at norm 0.5, 0.50 → 0.38 at norm 1",
    published_zh="d = 16，m = 16：模长 0.5 时 0.038 → 0.031，模长 1 时 0.50 → 0.38",
    measure=measure,
)
