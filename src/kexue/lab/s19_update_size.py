"""How far one optimizer step moves the output of a stack, against its depth (S19).

Encoders of N blocks (attention and feed-forward, 64 wide, 4 heads, Xavier normal) read 8 sequences
of 16 random vectors; the loss is the cross-entropy of random classes through a fixed head. After a
single step the output has moved by |dF|, root mean square over all its elements.

    SGD        step 0.05 g            sign       step 0.0001 sign g, as Adam takes at first

Post-LN, Pre-LN, DeepNorm with the constants for SGD, and with those for Adam; weight matrices alone
are updated. Then DeepNorm with SGD again, and the gains of the norms and all biases are updated
too: at the same rate, and at 1/2N of it.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional as F

from kexue.analysis.update_size import update_norm
from kexue.lab.deep_encoder import Design, Encoder
from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.lab.log_log import log_log_chart
from kexue.optim.lion import Lion
from kexue.report.charts import Series

__all__ = ["EXPERIMENT", "growth", "one_step", "spread", "verdict"]

Step = Literal["sgd", "sign"]

DEPTHS = (6, 12, 24, 48, 96)
SEEDS = 2
STEADY = 1.5
"""A curve whose largest value is within this factor of its smallest does not grow."""

CURVES: dict[str, tuple[Design, Step, float]] = {
    "Post-LN, SGD": ("post", "sgd", 0.0),
    "Pre-LN, SGD": ("pre", "sgd", 0.0),
    "DeepNorm, SGD": ("deepnorm", "sgd", 0.0),
    "DeepNorm, SGD, norms and biases too": ("deepnorm", "sgd", 1.0),
    "… at 1/2N of the rate": ("deepnorm", "sgd", -1.0),
    "Post-LN, sign": ("post", "sign", 0.0),
    "Pre-LN, sign": ("pre", "sign", 0.0),
    "DeepNorm, sign": ("deepnorm", "sign", 0.0),
    "DeepNorm for Adam, sign": ("deepnorm-adam", "sign", 0.0),
}
"""Name → design, step, and the rate of norms and biases against the others; −1 stands for 1/2N."""

NAMES_ZH = {
    "Post-LN, SGD": "Post-LN，SGD",
    "Pre-LN, SGD": "Pre-LN，SGD",
    "DeepNorm, SGD": "DeepNorm，SGD",
    "DeepNorm, SGD, norms and biases too": "DeepNorm，SGD，归一化与偏置也更新",
    "… at 1/2N of the rate": "……其学习率乘 1/2N",
    "Post-LN, sign": "Post-LN，符号",
    "Pre-LN, sign": "Pre-LN，符号",
    "DeepNorm, sign": "DeepNorm，符号",
    "DeepNorm for Adam, sign": "DeepNorm（Adam 常数），符号",
}


def one_step(
    depth: int, design: Design, step: Step, *, seed: int = 0, vectors: float = 0.0
) -> float:
    """|dF| of one step on a new network.

    Args:
        depth: N.
        design: how branches and stream are put together.
        step: "sgd" or "sign".
        seed: of weights and data.
        vectors: the rate of norms and biases as a share of that of the matrices.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 16, 64, generator=generator)
    head = torch.randn(64, 32, generator=generator) / 8
    classes = torch.randint(32, (8, 16), generator=generator)
    model = Encoder(depth, design, generator=generator)
    rate = 0.05 if step == "sgd" else 1e-4
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "lr": rate}]
    if vectors > 0:
        small = [p for p in model.parameters() if p.dim() == 1]
        groups.append({"params": small, "lr": vectors * rate})
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(groups, lr=rate)
        if step == "sgd"
        else Lion(groups, lr=rate, weight_decay=0.0)  # whose first step is the sign
    )
    loss = lambda y: F.cross_entropy((y @ head).flatten(0, 1), classes.flatten())  # noqa: E731
    return update_norm(model, loss, x, optimizer)


def curve(name: str, depths: Sequence[int], seed: int, seeds: int) -> list[float]:
    """|dF| at every depth, mean over the seeds."""
    design, step, vectors = CURVES[name]
    return [
        statistics.fmean(
            one_step(
                N, design, step, seed=seed + k, vectors=1 / (2 * N) if vectors < 0 else vectors
            )
            for k in range(seeds)
        )
        for N in depths
    ]


def spread(values: Sequence[float]) -> float:
    """The largest value over the smallest."""
    return max(values) / min(values)


def growth(values: Sequence[float]) -> float:
    """The largest value over the first: saturation at great depth does not hide a growth."""
    return max(values) / values[0]


def verdict(curves: Mapping[str, Sequence[float]]) -> Verdict:
    """Holds if both matched pairs stay level and Post-LN grows under both steps."""
    level = [spread(curves[n]) < STEADY for n in ("DeepNorm, SGD", "DeepNorm for Adam, sign")]
    grows = [growth(curves[n]) > STEADY for n in ("Post-LN, SGD", "Post-LN, sign")]
    if all(level) and all(grows):
        return Verdict.HOLDS
    return Verdict.PARTLY if any(level) and any(grows) else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """One step for every curve and depth; the data are not needed."""
    del data
    curves = {name: curve(name, DEPTHS, seed, SEEDS) for name in CURVES}
    numbers: dict[str, Number] = {
        name: " → ".join(_short(value) for value in values) for name, values in curves.items()
    }
    return Finding(
        numbers=numbers,
        figure=_picture(curves),
        verdict=verdict(curves),
        comment_en=(
            f"|dF| at N = {', '.join(map(str, DEPTHS))}, mean of {SEEDS} seeds. Level means within "
            f"a factor of {STEADY}. Between the smallest and the largest: DeepNorm with SGD "
            f"×{spread(curves['DeepNorm, SGD']):.2f}, with the constants for Adam and a sign step "
            f"×{spread(curves['DeepNorm for Adam, sign']):.2f}; the constants for SGD under a sign "
            f"step ×{spread(curves['DeepNorm, sign']):.1f}. With gains and biases updated too, it "
            f"is ×{spread(curves['DeepNorm, SGD, norms and biases too']):.1f}: their gradients are "
            f"not scaled. At 1/2N of the rate for them it is "
            f"×{spread(curves['… at 1/2N of the rate']):.2f}."
        ),
        comment_zh=(
            f"N = {'、'.join(map(str, DEPTHS))} 时的 |dF|，{SEEDS} 个种子的平均；"
            f"最大与最小之比不超过 {STEADY} 算作不增长。"
            f"DeepNorm 配 SGD 为 {spread(curves['DeepNorm, SGD']):.2f} 倍，"
            f"Adam 常数配符号步为 {spread(curves['DeepNorm for Adam, sign']):.2f} 倍；"
            f"SGD 的常数用于符号步则为 {spread(curves['DeepNorm, sign']):.1f} 倍。"
            "归一化的增益和偏置也更新时为 "
            f"{spread(curves['DeepNorm, SGD, norms and biases too']):.1f} 倍，"
            "因为它们的梯度没有被缩小；把它们的学习率乘以 1/2N，就回到 "
            f"{spread(curves['… at 1/2N of the rate']):.2f} 倍。"
        ),
        names_zh=NAMES_ZH,
    )


def _short(value: float) -> str:
    return f"{value:.3f}".lstrip("0") if value >= 0.1 else f"{value:.4f}".lstrip("0")


def _picture(curves: Mapping[str, Sequence[float]]) -> str:
    def panel(title: tuple[str, str], names: Sequence[str]) -> str:
        return log_log_chart(
            [Series((n, NAMES_ZH[n]), DEPTHS, curves[n], dots=True) for n in names],
            title=title,
            x_label=("blocks N", "层数 N"),
            y_label=("change of the output |dF|, RMS", "输出的改变量 |dF|（均方根）"),
        )

    names = list(CURVES)
    return panel(("One step of SGD, rate 0.05", "一步 SGD，学习率 0.05"), names[:5]) + panel(
        ("One sign step, rate 0.0001", "一步符号下降，学习率 0.0001"), names[5:]
    )


EXPERIMENT = Experiment(
    id="S19-update-size",
    system="S19",
    title_en="How far one step moves the output, against depth",
    title_zh="一步更新对输出的改变与层数的关系",
    claim_en=(
        "One step moves the output of a Post-LN stack by more, the deeper it is; with DeepNorm's "
        "constants for the optimizer in use, by the same amount at every depth."
    ),
    claim_zh=(
        "Post-LN 的层数越多，一步更新对输出的改变越大；"
        "用上与优化器相配的 DeepNorm 常数，改变量与层数无关。"
    ),
    published="|dF| = O(eta · 2N (v² + w²) / alpha²), which the constants make O(eta)",
    published_zh="|dF| = O(η · 2N (v² + w²) / α²)，所选常数使之成为 O(η)",
    measure=measure,
)
