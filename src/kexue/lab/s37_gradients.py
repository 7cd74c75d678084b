"""How hard each loss pulls at an example, from badly wrong to surely right (S37).

For one example, m is the logit of being right: z for a positive, −z for a negative. A loss is what
it does with |dL/dm|: the pull on what is wrong (m < 0), and what remains for what is right (m > 0),
which a thousand easy negatives sum up against a few positives.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.losses.imbalance import (
    sigmoid_focal_loss,
    sigmoid_hard_truncated_loss,
    sigmoid_soft_truncated_loss,
)
from kexue.report.charts import Bar, Series, bar_chart, line_chart

__all__ = ["EXPERIMENT", "pull", "share_of_positives", "verdict"]

WRONG, RIGHT = -5.0, 2.0
HARD, EASY = (10, -1.0), (1000, 3.0)
"""How many positives and negatives, and the m of each."""


def sign(m: float) -> str:
    """The number with a proper minus."""
    return f"{m:g}".replace("-", "−")


def right(loss: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    """The loss of a positive as a function of m."""
    return lambda m: loss(m, torch.ones_like(m, dtype=torch.bool), reduction="sum")


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "accuracy, −p": lambda m: -m.sigmoid().sum(),
    "cross-entropy": lambda m: -F.logsigmoid(m).sum(),
    "focal, γ = 2": right(sigmoid_focal_loss),
    "softened, K = 3": right(partial(sigmoid_soft_truncated_loss, sharpness=3.0)),
    "hard truncation": right(sigmoid_hard_truncated_loss),
}
NAMES_ZH = {
    "accuracy, −p": "准确率，−p",
    "cross-entropy": "交叉熵",
    "softened, K = 3": "软化，K = 3",
    "hard truncation": "硬截断",
}


def pull(name: str, m: Tensor) -> Tensor:
    """|dL/dm| at every m."""
    m = m.detach().clone().requires_grad_()
    return torch.autograd.grad(LOSSES[name](m), m)[0].abs()


def share_of_positives(name: str) -> float:
    """Percent of the pull that ten hard positives get beside a thousand easy negatives."""
    (few, hard), (many, easy) = HARD, EASY
    at_hard, at_easy = pull(name, torch.tensor([hard, easy], dtype=torch.float64))
    return 100 * float(few * at_hard / (few * at_hard + many * at_easy))


def verdict(pulls: Mapping[str, tuple[float, float]]) -> Verdict:
    """From the pulls on what is badly wrong and on what is right.

    Holds if −p hardly pulls (< 0.01) at what is wrong and all others do (> 0.9), and the three
    modified losses pull at what is right less than half as hard as cross-entropy; partly if only
    one of the two is so.
    """
    plain = pulls["cross-entropy"][1]
    modified = [one for name, one in pulls.items() if name not in ("accuracy, −p", "cross-entropy")]
    others = [*modified, pulls["cross-entropy"]]
    kept = pulls["accuracy, −p"][0] < 0.01 and all(wrong > 0.9 for wrong, _ in others)
    muted = all(easy < plain / 2 for _, easy in modified)
    if kept and muted:
        return Verdict.HOLDS
    return Verdict.PARTLY if kept or muted else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Differentiate the losses; nothing is random and no data are needed."""
    del seed, data
    ends = torch.tensor([WRONG, RIGHT], dtype=torch.float64)
    pulls = {name: (one[0].item(), one[1].item()) for name in LOSSES for one in [pull(name, ends)]}
    shares = {name: share_of_positives(name) for name in LOSSES}
    numbers: dict[str, Number] = {
        name: f"{pulls[name][0]:.4f}, {pulls[name][1]:.4f}, {shares[name]:.1f} %" for name in LOSSES
    }
    return Finding(
        numbers, _picture(shares), verdict(pulls), *_comment(pulls["accuracy, −p"][0]), NAMES_ZH
    )


def _picture(shares: Mapping[str, float]) -> str:
    m = torch.linspace(-5, 5, 201, dtype=torch.float64)
    lines = [
        Series((name, NAMES_ZH.get(name, name)), m.tolist(), pull(name, m).tolist())
        for name in LOSSES
    ]
    bars = [Bar((name, NAMES_ZH.get(name, name)), share) for name, share in shares.items()]
    (few, hard), (many, easy) = HARD, EASY
    at_hard, at_easy = sign(hard), sign(easy)
    return line_chart(
        lines,
        title=("How hard a loss pulls", "损失的拉力有多大"),
        x_label=("m, the logit of being right", "m，判对的 logit"),
        y_label=("|dL/dm|", "|dL/dm|"),
        height=340,
    ) + bar_chart(
        bars,
        title=("What the positives get", "正样本分到多少"),
        unit=(
            f"percent: {few} positives at m = {at_hard} beside {many:,} negatives at {at_easy}",
            f"百分比：{few} 个正样本 m = {at_hard}，{many:,} 个负样本 m = {at_easy}",
        ),
        top=100,
    )


def _comment(dead: float) -> tuple[str, str]:
    (few, hard), (many, easy) = HARD, EASY
    at_hard, at_easy, wrong, right = (sign(m) for m in (hard, easy, WRONG, RIGHT))
    return (
        f"The numbers are the pull at m = {wrong}, at m = {right}, and the share of {few} "
        f"positives at m = {at_hard} beside {many:,} negatives at m = {at_easy}. At m = {wrong} "
        f"−p pulls with {dead:.4f} of the 1 that cross-entropy nearly reaches.",
        f"各行数字依次是 m = {wrong}、m = {right} 处的拉力，以及 {few} 个 m = {at_hard} 的正样本"
        f"面对 {many:,} 个 m = {at_easy} 的负样本时分到的比例。在 m = {wrong} 处，"
        f"−p 的拉力只有 {dead:.4f}，交叉熵则接近 1。",
    )


EXPERIMENT = Experiment(
    id="S37-gradients",
    system="S37",
    title_en="How hard each loss pulls",
    title_zh="各种损失的梯度曲线",
    claim_en=(
        "The gradient of −p vanishes for what is badly wrong and that of cross-entropy does not; "
        "focal, softened and truncated losses keep it there and give up what is right."
    ),
    claim_zh=(
        "样本错得离谱时，−p 的梯度消失，交叉熵的不会；focal、软化与硬截断保留这部分梯度，"
        "同时放下已经判对的样本。"
    ),
    published="−p(1 − p)∇z against −(1 − p)∇z",
    published_zh="−p(1 − p)∇z 对比 −(1 − p)∇z",
    measure=measure,
)
