"""Masked gradients under Adam: the drift shrinks like sqrt(p), the variance stays (S12)

Adam's step is u = m / sqrt(v), in units of the learning rate. With gradients N(μ, σ²) and random
masks that keep a share p, rescaled by 1/p, a long run has

    E u   = sqrt(p) · μ / sqrt(μ² + σ²)                                                          (1)
    Var u = (1 − β₁) / (1 + β₁) · (1 − p μ² / (μ² + σ²))                                         (2)

(1) is what a learning rate times sqrt(p) would do. That rate would also multiply the variance by p,
but (2) does not fall with p: beside the drift, the noise grows.
"""

import math
from pathlib import Path

import torch

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.optim.gradient_mask import GradientMask
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "SHARES", "drift", "steps_of_adam", "variance", "verdict"]

SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
MEAN, SIGMA, BETAS = 0.1, 1.0, (0.9, 0.999)
COORDINATES, WARM, STEPS = 2000, 2000, 3000

Moments = tuple[float, float, float]
"""Drift, its standard error, and variance of Adam's step."""


def drift(p: float) -> float:
    """(1)"""
    return math.sqrt(p) * MEAN / math.hypot(MEAN, SIGMA)  # (1)


def variance(p: float) -> float:
    """(2)"""
    share = MEAN**2 / (MEAN**2 + SIGMA**2)
    return (1 - BETAS[0]) / (1 + BETAS[0]) * (1 - p * share)  # (2)


def steps_of_adam(
    p: float, seed: int, *, coordinates: int = COORDINATES, warm: int = WARM, steps: int = STEPS
) -> Moments:
    """What torch's Adam with random masks does, once its averages have settled."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.nn.Parameter(torch.zeros(coordinates))
    optimizer = torch.optim.Adam([theta], lr=1.0, betas=BETAS, eps=1e-12)
    GradientMask(optimizer, "random", keep_prob=p, include="", seed=seed)
    total = torch.zeros(coordinates, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for step in range(warm + steps):
        theta.grad = MEAN + SIGMA * torch.randn(coordinates, generator=generator)
        optimizer.step()
        with torch.no_grad():
            if step >= warm:
                total -= theta
                squares += theta.double().square()
            theta.zero_()
    means = total / steps
    error = means.std().item() / math.sqrt(coordinates)
    whole = means.mean().item()
    return whole, error, squares.mean().item() / steps - whole**2


def verdict(found: dict[float, Moments]) -> Verdict:
    """Holds if drift and variance are those of a learning rate times sqrt(p).

    The drift within 2 % and three standard errors of (1), the variance nearer to p than to one
    times that without masks. Partly if the drift alone is.
    """
    drifts = all(
        abs(mean - drift(p)) <= 3 * error + 0.02 * drift(p) for p, (mean, error, _) in found.items()
    )
    full = found[1.0][2]
    falls = all(found[p][2] / full < (1 + p) / 2 for p in found if p < 1)
    if drifts:
        return Verdict.HOLDS if falls else Verdict.PARTLY
    return Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Six shares; the data are not needed."""
    del data
    return finding({p: steps_of_adam(p, seed) for p in SHARES})


def finding(found: dict[float, Moments]) -> Finding:
    """Numbers, picture and verdict from the moments at each share."""
    numbers: dict[str, Number] = {}
    for p, (mean, error, spread) in found.items():
        numbers[f"drift, p = {p:g}"] = f"{mean:.4f} ± {error:.4f}  (√p law {drift(p):.4f})"
        numbers[f"variance, p = {p:g}"] = f"{spread:.4f}  (formula {variance(p):.4f})"
    names_zh = {
        name: name.replace("drift, ", "漂移，").replace("variance, ", "方差，") for name in numbers
    }
    off = max(abs(spread / variance(p) - 1) for p, (_, _, spread) in found.items())
    numbers["largest deviation of the variance"] = f"{100 * off:.1f} %"
    names_zh["largest deviation of the variance"] = "方差的最大偏差"
    shares = list(found)
    full = found[1.0]
    drifts, variances = ([one[k] / full[k] for one in found.values()] for k in (0, 2))
    lines = [
        Series(("√p", "√p"), FINE, [math.sqrt(p) for p in FINE]),
        Series(("p", "p"), FINE, FINE),
        Series(("drift, measured", "漂移（实测）"), shares, drifts, dots=True),
        Series(("variance, measured", "方差（实测）"), shares, variances, dots=True),
    ]
    picture = line_chart(
        lines,
        title=("Adam's step under random gradient masks", "随机梯度掩码下 Adam 的一步"),
        x_label=("share p that is kept", "保留比例 p"),
        y_label=("relative to no mask", "相对于无掩码"),
        start=0.0,
    )
    judged = verdict(found)
    return Finding(numbers, picture, judged, *COMMENTS[judged], names_zh)


FINE = [k / 50 for k in range(5, 51)]
COMMENTS = {
    Verdict.HOLDS: (
        "Drift and variance both fall as a learning rate times √p would make them.",
        "漂移与方差都如学习率乘 √p 那样下降。",
    ),
    Verdict.PARTLY: (
        "The drift falls like √p. The variance stays where it was, instead of falling like p, so "
        "the masks are a smaller learning rate for the drift only: its ratio to the noise falls.",
        "漂移按 √p 下降；方差却维持原样，并未按 p 下降。可见掩码只对漂移而言等于减小学习率，"
        "漂移与噪声之比变小了。",
    ),
    Verdict.FAILS: ("The drift does not follow √p here.", "这里的漂移不服从 √p。"),
}

EXPERIMENT = Experiment(
    id="S12-adam-law",
    system="S12",
    title_en="Gradient masks under Adam are a smaller learning rate",
    title_zh="Adam 下的梯度掩码等价于更小的学习率",
    claim_en=(
        "Under Adam, gradient masks that keep a share p act as a learning rate times √p: the mean "
        "step shrinks by √p and the variance of the steps falls as well."
    ),
    claim_zh=(
        "在 Adam 下，保留比例 p 的梯度掩码相当于学习率乘 √p：平均步长按 √p 缩小，"
        "步的方差也随之变小。"
    ),
    published="article: mean times √p, variance falls; derived here: the variance does not",
    published_zh="文章：均值乘 √p，方差下降；本库推导：方差不降",
    measure=measure,
)
