"""Dividing by the density of the proposal leaves one candidate in charge (S26).

MGS draws Δ = μ_k + n, n ~ N(0, σ²I), μ_k zero or the surrogate's step of length 1 in turn, and
weighs by exp(−l/α)/q(Δ). With all losses equal only q is left, whose logarithm varies by ±√(d/2)
over the noise. The effective sample size 1/ΣW² is averaged over many draws of 16 candidates:

    exact     log q(Δ)                                    the density drawn from
    unit      the same with σ = 1                         the code of the paper
    mixture   log q(Δ) without the noise's own length     what the other component adds
    none      0                                           16 by definition

Only |n|² and n·μ enter, so d coordinates are drawn as one normal and one χ² number.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.optim.guided_search.sampling_view import log_mixture
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "effective", "judge", "measure"]

CANDIDATES, SIGMA, ROUNDS = 16, 0.1, 20_000
DIMENSIONS = (2, 10, 100, 1000, 10_000)
DENSITIES = ("exact", "unit", "mixture")
EXPECTED = {"exact": (6.2, 2.8, 1.5, 1.1, 1.04), "unit": (16.0, 16.0, 15.9, 15.3, 10.8)}
"""Effective sample sizes in the order of `DIMENSIONS`, from 10^5 draws of another program."""


def effective(
    dimensions: int, *, rounds: int = ROUNDS, sigma: float = SIGMA, seed: int = 0
) -> dict[str, float]:
    """Density → mean effective sample size of 16 candidates with equal losses."""
    random = np.random.default_rng((26, seed, dimensions))
    along = torch.from_numpy(random.standard_normal((rounds, CANDIDATES)))
    across = torch.from_numpy(random.chisquare(dimensions - 1, (rounds, CANDIDATES)))
    own, step = along.square() + across, 1 / sigma  # |n|² and |μ| in units of σ
    at_zero = torch.arange(CANDIDATES) % 2 == 1
    toward = torch.where(at_zero, -1.0, 1.0).double()
    other = own + 2 * toward * along * step + step**2
    log_q = {
        "exact": log_mixture(own, other, 0.5),
        "unit": log_mixture(own * sigma**2, other * sigma**2, 0.5),
        "mixture": log_mixture(torch.zeros_like(own), other - own, 0.5),
    }
    return {name: _mean_size(-log_q[name]) for name in DENSITIES}


def _mean_size(log_w: Tensor) -> float:
    return log_w.softmax(1).square().sum(1).reciprocal().mean().item()


def judge(sizes: dict[str, list[float]]) -> Verdict:
    """The exact density falls to one candidate; unit and mixture keep more at every dimension."""
    exact = sizes["exact"]
    collapses = exact[-1] < 1.5 and exact == sorted(exact, reverse=True)
    others_hold = all(
        kept > lost
        for name in ("unit", "mixture")
        for kept, lost in zip(sizes[name], exact, strict=True)
    )
    if collapses and others_hold:
        return Verdict.HOLDS
    return Verdict.PARTLY if collapses else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Every dimension with every density; the data are not needed."""
    del data
    measured = [effective(d, seed=seed) for d in DIMENSIONS]
    sizes = {name: [one[name] for one in measured] for name in DENSITIES}
    numbers: dict[str, Number] = {
        f"{name}, d = {d:,}": f"{size:.2f}"
        for name in DENSITIES
        for d, size in zip(DIMENSIONS, sizes[name], strict=True)
    }
    away = max(
        abs(ours - theirs)
        for name, row in EXPECTED.items()
        for ours, theirs in zip(sizes[name], row, strict=True)
    )
    numbers["largest difference to the expected"] = f"{away:.2f}"
    picture = line_chart(
        [
            Series(NAMES[name], np.log10(DIMENSIONS).tolist(), sizes[name], dots=True)
            for name in DENSITIES
        ],
        title=("Candidates that count, of 16 with equal losses", "16 个损失相同的候选中有效的个数"),
        x_label=("log₁₀ of the number of parameters", "参数个数的常用对数"),
        y_label=("effective sample size", "有效样本数"),
        reference=(("none: all 16", "none：全部 16 个"), float(CANDIDATES)),
    )
    return Finding(
        numbers=numbers,
        figure=picture,
        verdict=judge(sizes),
        comment_en=(
            f"σ = {SIGMA}, a step of length 1, {ROUNDS:,} draws per dimension. All losses are "
            "equal, so every candidate should count the same; what the exact density prefers is "
            "the longest noise. A model has far more than 10,000 parameters."
        ),
        comment_zh=(
            f"σ = {SIGMA}，一步的长度为 1，每个维度抽 {ROUNDS:,} 次。损失全都相同，各候选本应同等"
            "看待；精确密度偏爱的只是噪声最长的那个。真实模型的参数远不止一万个。"
        ),
        names_zh={"largest difference to the expected": "与预期值的最大偏差"},
    )


NAMES = {
    "exact": ("exact density", "精确密度 exact"),
    "unit": ("unit variance (the authors' code)", "单位方差 unit（作者代码）"),
    "mixture": ("own noise left out (mixture)", "去掉自身噪声 mixture"),
}

EXPERIMENT = Experiment(
    id="S26-density",
    system="S26",
    title_en="One candidate in charge: the density of the proposal in many dimensions",
    title_zh="一家独大：高维下的提议分布密度",
    claim_en=(
        "Dividing by the exact density of the proposal leaves about one effective candidate in "
        "many dimensions even when all losses are equal; unit variance or no density does not."
    ),
    claim_zh=(
        "维度一高，除以提议分布的精确密度后，即使损失全部相同也只剩约一个有效候选；"
        "单位方差或不除密度则不会。"
    ),
    published=(
        "no number; expected of 16 at d = 2, 10, 100, 1000, 10⁴: "
        "exact 6.2, 2.8, 1.5, 1.1, 1.04, unit 16.0, 16.0, 15.9, 15.3, 10.8"
    ),
    published_zh=(
        "文中无数字；d = 2、10、100、1000、10⁴ 时 16 个中预期有："
        "exact 6.2、2.8、1.5、1.1、1.04，unit 16.0、16.0、15.9、15.3、10.8"
    ),
    measure=measure,
)
