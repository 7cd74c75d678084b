"""Does the factor log n keep attention equally sharp over any number of keys? (S07)

Two worlds of keys, d = 64, logits lambda · <q, k>:

    sphere       |q| = |k| = sqrt(d), keys uniform on the sphere; H − entropy by Monte Carlo     (1)
    planted key  scores N(0, 8²) but for one key, which scores 64                                (2)

Factors: plain 1/sqrt(d), the article's log_512(n)/sqrt(d), and ln n/(0.24 d), which the derivation
asks for on the sphere before its constant is fixed at n = 512.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.nn.attention_scale import log_n_scale
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "drift", "planted", "sphere", "verdict"]

HEAD_DIM = 64
GAP, NOISE = 64.0, 8.0
SPHERE_COUNTS = (64, 256, 1024, 4096, 16384)
PLANTED_COUNTS = (64, 512, 4096, 32768)
GOLDEN = math.log((1 + math.sqrt(5)) / 2) / 2
"""0.2406, the article's 0.24: half the logarithm of the golden ratio."""
STEADY = 0.5
"""Entropies that drift by less than this, in nats, count as steady."""

Curve = Sequence[float]


def sphere(counts: Sequence[int], scale: str, *, draws: int, seed: int = 0) -> list[float]:
    """Mean entropy over keys uniform on the sphere of radius sqrt(d)."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for n in counts:
        entropies = []
        for _ in range(draws):
            keys = torch.randn(n, HEAD_DIM, generator=generator)
            cosines = keys[:, 0] / keys.norm(dim=1)  # the query may be any direction: the first
            entropies.append(_entropy(_factor(scale, n) * HEAD_DIM * cosines.double()))
        found.append(torch.stack(entropies).mean().item())
    return found


def planted(
    counts: Sequence[int], scale: str, *, draws: int, seed: int = 0
) -> tuple[list[float], list[float]]:
    """Mean entropy and mean weight of the planted key."""
    generator = torch.Generator().manual_seed(seed)
    entropies, weights = [], []
    for n in counts:
        scores = NOISE * torch.randn(draws, n, dtype=torch.float64, generator=generator)
        scores[:, 0] = GAP
        logits = _factor(scale, n) * scores
        entropies.append(_entropy(logits).mean().item())
        weights.append(logits.softmax(dim=-1)[:, 0].mean().item())
    return entropies, weights


def drift(curve: Curve) -> float:
    """How far a curve moves over the counts."""
    return max(curve) - min(curve)


def verdict(entropies: Mapping[str, Curve], weights: Mapping[str, Curve]) -> Verdict:
    """Holds if log n is steady in both worlds, partly if only where a key must be found.

    Args:
        entropies: of log n by world, `sphere` and `planted`.
        weights: of the planted key, `plain` and `log n`: steady within 0.15, and plain is not.
    """
    finds = drift(weights["log n"]) < 0.15 < drift(weights["plain"])
    finds = finds and drift(entropies["planted"]) < STEADY
    if finds and drift(entropies["sphere"]) < STEADY:
        return Verdict.HOLDS
    return Verdict.PARTLY if finds else Verdict.FAILS


def _factor(scale: str, n: int) -> float:
    if scale == "log n":
        return log_n_scale(n, HEAD_DIM, dtype=torch.float64).item()
    return 1 / math.sqrt(HEAD_DIM) if scale == "plain" else math.log(n) / (GOLDEN * HEAD_DIM)


def _entropy(logits: Tensor) -> Tensor:
    logs = logits.log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def measure(seed: int, data: Path | None) -> Finding:
    """Draw both worlds; the data are not needed."""
    del data
    on_sphere = {
        scale: sphere(SPHERE_COUNTS, scale, draws=48, seed=seed)
        for scale in ("plain", "log n", "sphere")
    }
    found = {
        scale: planted(PLANTED_COUNTS, scale, draws=64, seed=seed) for scale in ("plain", "log n")
    }
    entropies = {"sphere": on_sphere["log n"], "planted": found["log n"][0]}
    weights = {scale: curves[1] for scale, curves in found.items()}
    judged = verdict(entropies, weights)
    numbers: dict[str, Number] = {
        "planted key: weight, plain": _arrow(weights["plain"]),
        "planted key: weight, log n": _arrow(weights["log n"]),
        "planted key: entropy, plain": _arrow(found["plain"][0]),
        "planted key: entropy, log n": _arrow(found["log n"][0]),
        "sphere: entropy, plain": _arrow(on_sphere["plain"]),
        "sphere: entropy, log n": _arrow(on_sphere["log n"]),
        "sphere: entropy, ln n / (0.24 d)": _arrow(on_sphere["sphere"]),
    }
    kept = drift(entropies["planted"])
    moved = drift(entropies["sphere"])
    needed = _factor("sphere", 512) / _factor("log n", 512)
    return Finding(
        numbers=numbers,
        figure=_picture(on_sphere, found),
        verdict=judged,
        comment_en=(
            f"n = {', '.join(map(str, PLANTED_COUNTS))} (planted) and "
            f"{', '.join(map(str, SPHERE_COUNTS))} (sphere). With log n the entropy moves by "
            f"{kept:.2f} nats where one key stands out and by {moved:.2f} on the sphere. There the "
            f"derivation asks for logits {needed:.1f} times as large; fixed to the usual scale at "
            "n = 512, the factor is too small to keep the entropy."
        ),
        comment_zh=(
            f"n = {'、'.join(map(str, PLANTED_COUNTS))}（埋入）与"
            f"{'、'.join(map(str, SPHERE_COUNTS))}（球面）。用 log n 时，有一个键突出的情形下"
            f"熵只变动 {kept:.2f} nat，球面上则变动 {moved:.2f}。球面情形的推导要求打分再大到 "
            f"{needed:.1f} 倍；把系数定成 n = 512 时等于常规缩放之后，这个因子太小，保不住熵。"
        ),
        names_zh={
            "planted key: weight, plain": "埋入的键：权重，常规",
            "planted key: weight, log n": "埋入的键：权重，log n",
            "planted key: entropy, plain": "埋入的键：熵，常规",
            "planted key: entropy, log n": "埋入的键：熵，log n",
            "sphere: entropy, plain": "球面：熵，常规",
            "sphere: entropy, log n": "球面：熵，log n",
            "sphere: entropy, ln n / (0.24 d)": "球面：熵，ln n / (0.24 d)",
        },
    )


def _arrow(curve: Curve) -> str:
    return " → ".join(f"{value:.2f}" for value in curve)


def _picture(
    on_sphere: Mapping[str, Curve], found: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> str:
    names = {
        "plain": ("1/√d", "1/√d"),
        "log n": ("log n, base 512", "log n，底 512"),
        "sphere": ("ln n / (0.24 d)", "ln n / (0.24 d)"),
    }
    across = ("number of keys, log₂ n", "键的个数，log₂ n")

    def chart(
        curves: Mapping[str, Curve], counts: Sequence[int], title: tuple[str, str], y: str
    ) -> str:
        words = {"weight": "权重", "entropy, nats": "熵（nat）"}
        lines = [
            Series(names[scale], [math.log2(n) for n in counts], list(curve), dots=True)
            for scale, curve in curves.items()
        ]
        return line_chart(lines, title=title, x_label=across, y_label=(y, words[y]), height=280)

    return (
        chart(
            {scale: curves[1] for scale, curves in found.items()},
            PLANTED_COUNTS,
            ("One key stands out: its weight", "有一个键突出：它的权重"),
            "weight",
        )
        + chart(
            {scale: curves[0] for scale, curves in found.items()},
            PLANTED_COUNTS,
            ("One key stands out: entropy", "有一个键突出：熵"),
            "entropy, nats",
        )
        + chart(
            on_sphere,
            SPHERE_COUNTS,
            ("Keys uniform on a sphere: entropy", "键均匀分布在球面上：熵"),
            "entropy, nats",
        )
    )


EXPERIMENT = Experiment(
    id="S07-entropy",
    system="S07",
    title_en="The sharpness of attention against the number of keys",
    title_zh="注意力的集中程度与键的个数",
    claim_en=(
        "Logits scaled by log n keep the entropy of attention, and the weight of a key that stands "
        "out, the same for any number of keys."
    ),
    claim_zh="打分按 log n 缩放后，无论有多少个键，注意力的熵以及突出的那个键的权重都保持不变。",
    published=(
        "MLM accuracy, trained at 64, tested at 64, 128, 256, 512, 1024: 43.3, 36.5, 23.0, 15.1, "
        "11.5 % plainly, 43.1, 41.2, 34.0, 20.2, 13.6 % with log n"
    ),
    published_zh=(
        "MLM 准确率，训练长度 64，测试长度 64、128、256、512、1024：常规 "
        "43.3、36.5、23.0、15.1、11.5%，log n 43.1、41.2、34.0、20.2、13.6%"
    ),
    measure=measure,
)
