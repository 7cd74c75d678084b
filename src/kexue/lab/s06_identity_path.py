"""How much of the input, and of the gradient, gets through a stack at initialisation (S06).

Stacks of 12 and 24 blocks of width 128 (4 heads, feed-forward 512, ReLU) read 8 random sequences of
32 tokens; the loss is a random projection of the last states. All matrices share one std σ:

    σ √d = 1        the usual size, LeCun's for a square matrix
    σ √d = 0.4875   BERT's: a normal of 0.02, truncated, at width 768

For each, post-norm and pre-norm: the weight of the identity path, by projection, and the norm of
the gradient at the input of every block. Medians over draws.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from kexue.analysis.path_weight import TRUNCATED
from kexue.analysis.propagation import grad_profile, measure_identity_path
from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "Draw", "draw", "judge"]

WIDTH, HEADS, INNER, ROWS, TOKENS = 128, 4, 512, 8, 32
HALF = 0.02 * TRUNCATED * math.sqrt(768)  # 0.4875
DEPTHS, DRAWS = (12, 24), 5
STACKS = {
    ("post", HALF): ("post-norm, half size", "后置归一化，一半大小"),
    ("post", 1.0): ("post-norm, usual size", "后置归一化，通常大小"),
    ("pre", HALF): ("pre-norm, half size", "前置归一化，一半大小"),
    ("pre", 1.0): ("pre-norm, usual size", "前置归一化，通常大小"),
}
Stack = tuple[str, float]


@dataclass(frozen=True)
class Draw:
    """One random stack: the gradient at every block's input and at the end, what is left of x_0."""

    stream: tuple[float, ...]
    share: float

    @property
    def ratio(self) -> float:
        """Gradient at the input over gradient at the output."""
        return self.stream[0] / self.stream[-1]


def draw(norm: str, size: float, layers: int, seed: int) -> Draw:
    """Draw a stack with σ = size / √d and measure it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = nn.TransformerEncoderLayer(
            WIDTH, HEADS, INNER, 0.0, "relu", batch_first=True, norm_first=norm == "pre"
        )
        model = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=size / math.sqrt(WIDTH))
        x, wanted = torch.randn(2, ROWS, TOKENS, WIDTH)

    def loss(net: nn.Module, batch: Tensor) -> Tensor:
        last = nn.functional.layer_norm(net(batch), (WIDTH,))  # pre-norm needs one at its end
        projected: Tensor = (last * wanted).mean()
        return projected

    return Draw(grad_profile(model, loss, x).stream, measure_identity_path(model, x).share)


def judge(draws: Mapping[tuple[Stack, int], Sequence[Draw]]) -> Verdict:
    """Three parts of the claim about post-norm, by medians over draws, at every depth.

    path        half the size leaves at least twice as much of the input as the usual size
    gradient    it leaves at least twice as much of the gradient, and at least half of it
    together    at the usual size, gradient and input are left within a factor of three

    Fails without the first or the second, holds with all, else holds partly. Medians, since the
    argument is about variances, which a single draw need not follow.
    """
    together = True
    for layers in {layers for _, layers in draws}:
        half, usual = (draws[("post", size), layers] for size in (HALF, 1.0))
        gradient = [median(one.ratio for one in found) for found in (half, usual)]
        left = [median(abs(one.share) for one in found) for found in (half, usual)]
        if gradient[0] < max(2 * gradient[1], 0.5) or left[0] < 2 * left[1]:
            return Verdict.FAILS
        together &= 1 / 3 <= gradient[1] / max(left[1], 1e-30) <= 3
    return Verdict.HOLDS if together else Verdict.PARTLY


def measure(seed: int, data: Path | None) -> Finding:
    """Five draws of four stacks at two depths; no data are needed."""
    del data
    draws = {
        (stack, layers): [draw(*stack, layers, DRAWS * seed + k) for k in range(DRAWS)]
        for stack in STACKS
        for layers in DEPTHS
    }
    numbers: dict[str, Number] = {}
    names_zh = {}
    for stack, (name, name_zh) in STACKS.items():
        for layers in DEPTHS:
            found = draws[stack, layers]
            ratios = sorted(one.ratio for one in found)
            names_zh[f"gradient, {name}, {layers}"] = f"梯度比，{name_zh}，{layers} 块"
            names_zh[f"input left, {name}, {layers}"] = f"输入剩余，{name_zh}，{layers} 块"
            numbers[f"gradient, {name}, {layers}"] = (
                f"{median(ratios):.2f} ({ratios[0]:.2f} – {ratios[-1]:.2f})"
            )
            left = median(one.share for one in found)
            numbers[f"input left, {name}, {layers}"] = f"{left:.2g}"
    return Finding(numbers, _picture(draws), judge(draws), *_comment(draws), names_zh)


def _picture(draws: Mapping[tuple[Stack, int], Sequence[Draw]]) -> str:
    layers = DEPTHS[-1]
    lines = [
        Series(
            name,
            [float(block) for block in range(layers + 1)],
            [
                median(math.log10(one.stream[block] / one.stream[-1]) for one in found)
                for block in range(layers + 1)
            ],
        )
        for stack, name in STACKS.items()
        if (found := draws[stack, layers])
    ]
    return line_chart(
        lines,
        title=("Gradient on its way back to the input", "梯度回传到输入的途中"),
        x_label=("block; the loss is on the right", "块；损失在右端"),
        y_label=(
            "power of ten of the gradient norm, 1 at the output",
            "梯度范数的常用对数，输出端为 1",
        ),
        reference=(("neither", "不变"), 0.0),
    )


def _comment(draws: Mapping[tuple[Stack, int], Sequence[Draw]]) -> tuple[str, str]:
    shallow, deep = (draws[("post", 1.0), layers] for layers in (DEPTHS[0], DEPTHS[-1]))
    ratios = [median(one.ratio for one in found) for found in (shallow, deep)]
    left = median(one.share for one in deep)
    singles = sorted(one.ratio for one in deep)
    return (
        f"Medians of {DRAWS} draws. At the usual size {DEPTHS[-1]} post-norm blocks leave "
        f"{left:.1g} of the input but {ratios[1]:.2g} of the gradient; {DEPTHS[0]} blocks leave "
        f"{ratios[0]:.2g}. Branches carry gradient too, so the identity path gives the direction, "
        f"not the amount. Single draws range from {singles[0]:.2f} to {singles[-1]:.2f}.",
        f"{DRAWS} 次抽样的中位数。通常大小下，{DEPTHS[-1]} 个后置归一化块只留下 {left:.1g} 的输入，"
        f"梯度却还有 {ratios[1]:.2g}，而 {DEPTHS[0]} 块时是 {ratios[0]:.2g}：分支也传梯度，"
        f"所以恒等路径说对了方向，没说对大小。单次抽样从 {singles[0]:.2f} 到 {singles[-1]:.2f}。",
    )


EXPERIMENT = Experiment(
    id="S06-identity-path",
    system="S06",
    title_en="What a small start leaves of the input and of the gradient",
    title_zh="小初始化让输入和梯度剩下多少",
    claim_en=(
        "In post-norm at the usual size 1/√d the gradient vanishes towards the input together with "
        "the identity path; at half the size, as in BERT, hardly at all."
    ),
    claim_zh=(
        "后置归一化取通常大小 1/√d 时，梯度随恒等路径一起向输入方向消失；"
        "像 BERT 那样取一半时则几乎不消失。"
    ),
    published="Argued without measurements; identity weight 2^(−L/2) for L sub-layers",
    published_zh="只有论证，没有测量；L 个子层后恒等权重为 2^(−L/2)",
    measure=measure,
)
