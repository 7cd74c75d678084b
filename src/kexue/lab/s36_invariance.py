"""Moving scale between layers: what L2 and WEISSI see of it (S36).

A ReLU network 64-128-128-10 on the handwritten digits, 30 % of the training labels at random.
Its layers are multiplied by (4, 1/4, 1), the biases by the products up to their layer: the same
function. Then it is trained from there, without a penalty, with L2 and with WEISSI; the picture is
how far apart the squared norms of the first two layers stay, which moving scale would change:

    loss alone and WEISSI keep |W_1|² − |W_2|² (gradient flow, no biases), L2 shrinks it
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.lab.s36_digits import load, network
from kexue.losses.scale_balance import balance_scales, shift_scales
from kexue.losses.weissi import weissi_parameters, weissi_penalty
from kexue.report.charts import Label, Series, line_chart

__all__ = ["EXPERIMENT", "gaps", "judge", "squares"]

GAMMAS = (4.0, 0.25, 1.0)
RATE, STEPS, EVERY = 0.02, 800, 20
L2, WEISSI = 5e-3, 0.1


def squares(net: nn.Module) -> list[float]:
    """|W|² of each layer."""
    return [weight.square().sum().item() for weight in weissi_parameters(net, "all").values()]


def gaps(net: nn.Module, x: Tensor, y: Tensor, way: str, steps: int = STEPS) -> list[float]:
    """|W_1|² − |W_2|² along full-batch gradient descent, as a share of the start."""
    weights, found = dict(weissi_parameters(net, "all")), []
    for step in range(steps + 1):
        if step % EVERY == 0:
            first, second, *_ = squares(net)
            found.append(first - second)
        loss = F.cross_entropy(net(x), y)
        if way == "L2":
            loss = loss + L2 / 2 * torch.stack([w.square().sum() for w in weights.values()]).sum()
        elif way == "WEISSI":
            loss = loss + weissi_penalty(weights, WEISSI)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for weight, gradient in zip(weights.values(), gradients, strict=True):
                weight.sub_(RATE * gradient)
    return [gap / found[0] for gap in found]


def judge(outputs: float, weissi: float, l2: float, kept: Sequence[float]) -> Verdict:
    """The penalties under a shift, then what is kept of |W_1|² − |W_2|² by (none, WEISSI, L2).

    Invariance: outputs and WEISSI change by rounding only, L2 by more than a tenth. Training: the
    loss alone and WEISSI keep the difference within 2 %, L2 loses a tenth of it.
    """
    invariant = outputs < 1e-9 and abs(weissi) < 1e-9 and l2 > 1.1
    none, ours, shrunk = kept
    alone = abs(none - 1) < 0.02 and abs(ours - 1) < 0.02 and shrunk < 0.9 * min(none, ours)
    if invariant and alone:
        return Verdict.HOLDS
    return Verdict.PARTLY if invariant else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """One network, shifted and trained; the digits come with scikit-learn."""
    del data
    x, y, *_ = load(seed)
    x = x.double()
    net = network(seed).double()
    shifted = shift_scales(net, GAMMAS)
    with torch.no_grad():
        outputs = (shifted(x) - net(x)).abs().max().item()
    before, after = (sum(squares(one)) for one in (net, shifted))
    logs = [weissi_penalty(one, 1.0).item() for one in (net, shifted)]
    least = sum(squares(balance_scales(net)))
    curves = {}
    for way in ("none", "WEISSI", "L2"):
        plain = network(seed, bias=False).double()
        curves[way] = gaps(shift_scales(plain, GAMMAS), x[:300], y[:300], way)
    kept = [curve[-1] for curve in curves.values()]
    numbers: dict[str, Number] = {
        "largest change of the outputs": f"{outputs:.0e}",
        "L2": f"{before:.1f} → {after:.1f} (least by shifting: {least:.1f})",
        "sum of log norms": f"{logs[0]:.3f} → {logs[1]:.3f}",
        "kept of |W₁|² − |W₂|², no penalty": f"{100 * kept[0]:.1f} %",
        "kept, WEISSI": f"{100 * kept[1]:.1f} %",
        "kept, L2": f"{100 * kept[2]:.1f} %",
    }
    names_zh = {
        "largest change of the outputs": "输出的最大变化",
        "L2": "L2（最小值指挪动尺度所能达到的）",
        "sum of log norms": "对数范数之和",
        "kept of |W₁|² − |W₂|², no penalty": "|W₁|² − |W₂|² 的保留比例，无正则",
        "kept, WEISSI": "保留比例，WEISSI",
        "kept, L2": "保留比例，L2",
    }
    judged = judge(outputs, logs[1] - logs[0], after / before, kept)
    return Finding(numbers, _picture(curves), judged, *_comment(), names_zh)


def _picture(curves: dict[str, list[float]]) -> str:
    names: dict[str, Label] = {"none": ("no penalty", "无正则"), "WEISSI": "WEISSI", "L2": "L2"}
    return line_chart(
        [
            Series(names[way], range(0, EVERY * len(curve), EVERY), [100 * v for v in curve])
            for way, curve in curves.items()
        ],
        title=("How unequal the first two layers stay", "前两层的不均衡还剩多少"),
        x_label=("steps of gradient descent", "梯度下降步数"),
        y_label=("|W₁|² − |W₂|², percent of the start", "|W₁|² − |W₂|²，占初值的百分比"),
    )


def _comment() -> tuple[str, str]:
    product = math.prod(GAMMAS)
    return (
        f"Factors {GAMMAS} of product {product:g}; trained without biases on 300 digits, full "
        f"batch, rate {RATE:g}, L2 {L2:g} and WEISSI {WEISSI:g}. L2 spends part of its pull on "
        "balancing layers; WEISSI never balances them.",
        f"各层因子 {GAMMAS}，乘积 {product:g}；训练时不带偏置，300 个数字，全批量，"
        f"学习率 {RATE:g}，"
        f"L2 系数 {L2:g}，WEISSI 系数 {WEISSI:g}。L2 的一部分作用花在拉平各层上，WEISSI 从不拉平。",
    )


EXPERIMENT = Experiment(
    id="S36-invariance",
    system="S36",
    title_en="Moving scale between layers",
    title_zh="在层与层之间挪动尺度",
    claim_en=(
        "Shifting scale between the layers of a ReLU network changes L2 but neither the function "
        "nor WEISSI; in training L2 moves scale between layers and WEISSI does not."
    ),
    claim_zh=(
        "在 ReLU 网络的层间挪动尺度，L2 会变，函数和 WEISSI 都不变；训练中 L2 会在层间挪动尺度，"
        "WEISSI 不会。"
    ),
    published="article 7681: only log norms have a gradient flow that the shift leaves alone",
    published_zh="文章 7681：只有对数范数的梯度不受尺度偏移影响",
    measure=measure,
)
