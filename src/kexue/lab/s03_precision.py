"""Where a contrastive loss loses the pull on the positive (S03).

One anchor with a positive score of 20 (cosine 1 at temperature 0.05) and K − 1 negatives around
20 − gap. The gradient of the positive's score is compared with float64 on the same rounded scores:

    as written  log sum exp(s) − s_t,  d/ds_t = exp(s_t − lse) − 1, every step in the dtype    (1)
    fused       torch.nn.functional.cross_entropy, which subtracts the maximum first
    softplus    log(1 + xi),           d/ds_t = −xi / (1 + xi)                                 (2)
    flat        log xi,                d/ds_t = −1                                             (3)

(2) and (3) are this library's losses, given scores of the dtype.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.losses.flat_nce import flat_nce_loss, info_nce_loss
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "Row", "errors", "exact_log_xi", "median_errors", "verdict"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DRAWS, SMOOTH = 40, 11
"""Draws for a line of the table and for a point of the picture."""
POSITIVE, SPREAD = 20.0, 0.5
FLOOR = -9.0
"""Where the picture draws an error of exactly 0."""


class Row(NamedTuple):
    """A line of the published table: its setting, and the error of (1) that one draw gave."""

    dtype: str
    candidates: int
    gap: float
    published: float


TABLE = (
    Row("fp32", 8, 10.0, 2.3e-3),
    Row("fp32", 8, 15.0, 0.11),
    Row("fp32", 8, 20.0, 1.0),
    Row("fp32", 512, 15.0, 4e-3),
    Row("bf16", 8, 5.0, 1.0),
    Row("bf16", 512, 10.0, 1.0),
    Row("fp16", 8, 10.0, 1.0),
    Row("fp16", 512, 20.0, 1.0),
)
FORMS = ("as written", "fused", "softplus", "flat")


def exact_log_xi(scores: Tensor) -> float:
    """log xi of one row whose positive comes first, in float64."""
    s = scores.double()
    return float(s[1:].logsumexp(0) - s[0])


def errors(dtype: torch.dtype, candidates: int, gap: float, seed: int) -> dict[str, float]:
    """Relative error of d/ds_t for each form, and `log_xi`, for one draw."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(candidates - 1, generator=generator, dtype=torch.float64)
    row = torch.cat((torch.tensor([POSITIVE]), POSITIVE - gap + SPREAD * noise)).to(dtype)
    log_xi = exact_log_xi(row)
    exact = -1 / (1 + math.exp(-log_xi))
    target = torch.zeros(1, dtype=torch.long)
    lse = (row - row.max()).exp().sum().log() + row.max()
    found = {"log_xi": log_xi, "as written": float((row[0] - lse).exp() - 1) / exact}  # (1)
    for name, loss, true in (
        ("fused", F.cross_entropy, exact),
        ("softplus", info_nce_loss, exact),  # (2)
        ("flat", flat_nce_loss, -1.0),  # (3)
    ):
        scores = row[None].clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(scores, target), scores)
        found[name] = float(grad[0, 0]) / true
    return {name: v if name == "log_xi" else abs(v - 1) for name, v in found.items()}


def median_errors(
    dtype: str, candidates: int, gap: float, *, seed: int = 0, draws: int = DRAWS
) -> dict[str, float]:
    """Medians of `errors` over draws."""
    found = [errors(DTYPES[dtype], candidates, gap, seed * draws + k) for k in range(draws)]
    return {
        name: float(torch.tensor([one[name] for one in found], dtype=torch.float64).median())
        for name in found[0]
    }


def verdict(measured: dict[Row, dict[str, float]]) -> Verdict:
    """Holds if (1) loses what the table says and (3) nothing; fails if (3) loses anything.

    An entry of 1 must be 1; any other must have the published order of magnitude.
    """
    if any(one["flat"] > 0 for one in measured.values()):
        return Verdict.FAILS
    agree = all(
        one["as written"] == 1
        if row.published == 1
        else row.published / 10 < one["as written"] < row.published * 10
        for row, one in measured.items()
    )
    return Verdict.HOLDS if agree else Verdict.PARTLY


def measure(seed: int, data: Path | None) -> Finding:
    """The published table, and a sweep over gaps for the picture; the data are not needed."""
    del data
    measured = {row: median_errors(*row[:3], seed=seed) for row in TABLE}
    numbers: dict[str, Number] = {
        f"{row.dtype}, K = {row.candidates}, gap {row.gap:g}": " · ".join(
            f"{one[form]:.1e}".replace("e+00", "").replace("e-0", "e-") for form in FORMS
        )
        for row, one in measured.items()
    }
    softplus = max(one["softplus"] for row, one in measured.items() if row.dtype == "fp32")
    return Finding(
        numbers,
        _picture(seed),
        verdict(measured),
        f"Medians of {DRAWS} draws, in the order {', '.join(FORMS)}; 1 means that nothing of the "
        "gradient is left. The published errors are those of the first form, from one draw. What "
        "dies is the pull on the positive, p − 1, which cancels against 1 as soon as xi is below "
        f"the grain of the dtype. The flat gradient has no error, and the softplus form, which is "
        f"the same InfoNCE, at most {softplus:.0e} in fp32: precision alone does not need "
        "another loss. On half-precision scores its error is the rounding of the result, until "
        "the gradient leaves the range of fp16.",
        f"{DRAWS} 次抽样的中位数，依次为：原始写法、融合的交叉熵、softplus 写法、FlatNCE；"
        "1 表示梯度全部丢失。已发表的误差对应第一种写法的单次抽样。"
        "丢掉的是对正样本的拉力 p − 1：xi 一旦小于该精度的分辨率，就与 1 抵消殆尽。"
        f"FlatNCE 的梯度没有误差；softplus 写法仍是同一个 InfoNCE，fp32 下误差至多 {softplus:.0e}，"
        "所以单论精度并不需要换损失。打分为半精度时，它的误差只是结果的舍入，"
        "直到梯度小到 fp16 表示不了。",
        {name: name.replace(", ", "，").replace("gap", "间隔") for name in numbers},
    )


def _picture(seed: int) -> str:
    gaps = [0.25 * k for k in range(105)]
    swept = {
        name: [median_errors(name, 8, gap, seed=seed, draws=SMOOTH) for gap in gaps]
        for name in DTYPES
    }

    def line(name: tuple[str, str], found: list[dict[str, float]], form: str) -> Series:
        heights = [max(FLOOR, math.log10(one[form])) if one[form] else FLOOR for one in found]
        return Series(name, [one["log_xi"] / math.log(10) for one in found], heights)

    lines = [
        line((f"{name}, as written", f"{name}，原始写法"), swept[name], "as written")
        for name in DTYPES
    ]
    lines.append(line(("fp32, softplus", "fp32，softplus 写法"), swept["fp32"], "softplus"))
    lines.append(line(("fp16, softplus", "fp16，softplus 写法"), swept["fp16"], "softplus"))
    return line_chart(
        lines,
        title=("Error of the pull on the positive", "对正样本的拉力的误差"),
        x_label=(
            "odds against the positive xi, log10; easy anchors left",
            "xi（log10），越靠左越容易",
        ),
        y_label=("relative error of d/ds_t, log10", "d/ds_t 的相对误差（log10）"),
        reference=(
            ("FlatNCE, every dtype: exactly 0", "FlatNCE，任何精度：恰好为 0"),
            FLOOR,
        ),
        height=340,
    )


EXPERIMENT = Experiment(
    id="S03-precision",
    system="S03",
    title_en="Where the pull on the positive goes",
    title_zh="对正样本的拉力去了哪里",
    claim_en=(
        "Written as a log-sum-exp minus the positive's score, InfoNCE loses the gradient of the "
        "positive to rounding once the anchor is easy; FlatNCE loses nothing of it."
    ),
    claim_zh=(
        "按 log-sum-exp 减正样本得分来写，样本一旦变容易，InfoNCE 对正样本的梯度就被舍入吞掉；"
        "FlatNCE 则分毫不失。"
    ),
    published="; ".join(
        f"{row.dtype} K = {row.candidates} gap {row.gap:g}: {row.published:g}" for row in TABLE
    ),
    published_zh="；".join(
        f"{row.dtype} K = {row.candidates} 间隔 {row.gap:g}：{row.published:g}" for row in TABLE
    ),
    measure=measure,
)
