"""Time per layer against length: Transformer block, gated attention units, mixed chunks (S18).

Forward and backward, causal, of one Transformer block (fused attention of 4 heads, feed-forward
network of 4 D) and of the two GAU or FLASH layers that have about its parameters, at D = 128. What
counts is processor time, the least of several runs, and the slope in logarithms from 1,024 to 4,096
tokens: 1 is linear, 2 quadratic.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.nn.flash_layer import FlashLayer
from kexue.nn.gau import GatedAttentionUnit
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "Block", "layers", "seconds", "slope", "verdict"]

LENGTHS = (256, 512, 1024, 2048, 4096)
D_MODEL, KEY_SIZE, CHUNK = 128, 64, 128
BLOCK, GAU_SOFTMAX, GAU_RELU2, FLASH = "block", "2 GAU softmax_plus", "2 GAU relu2_ns", "2 FLASH"
NAMES_ZH = {
    BLOCK: "Transformer 块",
    GAU_SOFTMAX: "两层 GAU，softmax_plus",
    GAU_RELU2: "两层 GAU，relu2_ns",
    FLASH: "两层 FLASH",
}
LINEAR = 1.25
"""A slope up to this one counts as linear."""

Times = Mapping[str, Sequence[float]]
"""By name of the layers, the seconds at each of `LENGTHS`."""


class Block(nn.Module):
    """Causal attention and a feed-forward network, without norms and residuals."""

    def __init__(self, d_model: int = D_MODEL, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.up, self.down = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = self.out(attended.transpose(1, 2).flatten(2))
        result: Tensor = self.down(F.gelu(self.up(x)))
        return result


def layers() -> dict[str, nn.Module]:
    """What is timed, by name; about the same number of parameters each."""
    softmax, relu2 = (
        [GatedAttentionUnit(D_MODEL, 2.0, KEY_SIZE, name, causal=True) for _ in range(2)]
        for name in ("softmax_plus", "relu2_ns")
    )
    flash = [FlashLayer(D_MODEL, 2.0, KEY_SIZE, causal=True, chunk_size=CHUNK) for _ in range(2)]
    return {
        BLOCK: Block(),
        GAU_SOFTMAX: nn.Sequential(*softmax),
        GAU_RELU2: nn.Sequential(*relu2),
        FLASH: nn.Sequential(*flash),
    }


def seconds(layer: nn.Module, x: Tensor) -> float:
    """Processor time of one forward and backward pass."""
    start = time.process_time()
    y = layer(x)
    y.backward(torch.ones_like(y))
    return time.process_time() - start


def slope(times: Sequence[float]) -> float:
    """Of log time against log length, from a quarter of the longest length to it."""
    return math.log(times[-1] / times[-3]) / math.log(LENGTHS[-1] / LENGTHS[-3])


def verdict(times: Times) -> Verdict:
    """Holds if FLASH is linear and faster than the block, and no GAU slower; partly without GAU."""
    linear = slope(times[FLASH]) <= LINEAR
    faster = times[FLASH][-1] < times[BLOCK][-1]
    gau = max(times[GAU_SOFTMAX][-1], times[GAU_RELU2][-1]) <= times[BLOCK][-1]
    if linear and faster and gau:
        return Verdict.HOLDS
    return Verdict.PARTLY if linear and faster else Verdict.FAILS


def measure(seed: int, data: Path | None, runs: int = 3) -> Finding:
    """Time all layers in turns; the data are not needed."""
    del data
    torch.manual_seed(seed)
    timed = layers()
    times: dict[str, list[float]] = {name: [] for name in timed}
    for length in LENGTHS:
        x = torch.randn(1, length, D_MODEL)
        best = dict.fromkeys(timed, math.inf)
        for _ in range(runs):
            for name, layer in timed.items():
                best[name] = min(best[name], seconds(layer, x))
        for name, value in best.items():
            times[name].append(value)
    return finding(times)


def finding(times: Times) -> Finding:
    """Numbers, picture, verdict and words."""
    numbers: dict[str, Number] = {
        name: f"{1000 * row[-1]:.0f} ms, slope {slope(row):.2f}" for name, row in times.items()
    }
    ratio = {name: row[-1] / times[BLOCK][-1] for name, row in times.items()}
    return Finding(
        numbers=numbers,
        figure=_picture(times),
        verdict=verdict(times),
        comment_en=(
            f"At {LENGTHS[-1]:,} tokens two FLASH layers take {ratio[FLASH]:.2f} times the block's "
            f"processor time, two GAU {ratio[GAU_SOFTMAX]:.2f} times (softmax_plus) and "
            f"{ratio[GAU_RELU2]:.2f} times (relu2_ns). A slope up to {LINEAR} counts as linear. "
            "The published advantage of the quadratic unit was against attention that writes out "
            "every score; fused kernels do not."
        ),
        comment_zh=(
            f"长度 {LENGTHS[-1]:,} 时，两层 FLASH 的处理器时间是 Transformer 块的 "
            f"{ratio[FLASH]:.2f} 倍，"
            f"两层 GAU 是 {ratio[GAU_SOFTMAX]:.2f} 倍（softmax_plus）和 {ratio[GAU_RELU2]:.2f} 倍"
            f"（relu2_ns）。斜率不超过 {LINEAR} 视为线性。论文中二次 GAU 的优势，"
            "对手是把每个得分都写出来的注意力；融合算子并不如此。"
        ),
        names_zh=NAMES_ZH,
    )


def _picture(times: Times) -> str:
    steps = [math.log2(length) for length in LENGTHS]
    lines = [
        Series((name, NAMES_ZH[name]), steps, [math.log2(1000 * t) for t in row], dots=True)
        for name, row in times.items()
    ]
    return line_chart(
        lines,
        title=("Forward and backward, one sequence", "单条序列的前向加反向"),
        x_label=("log2 of the length", "长度的 log2"),
        y_label=("log2 of milliseconds", "毫秒数的 log2"),
    )


EXPERIMENT = Experiment(
    id="S18-linear-time",
    system="S18",
    title_en="Time per layer against length",
    title_zh="每层时间与长度的关系",
    claim_en=(
        "Mixed chunks make the layer linear in the length and faster than a Transformer block of "
        "the same size on long texts; the quadratic unit is no slower than the block."
    ),
    claim_zh=(
        "混合分块使层的时间随长度线性增长，长文本上快于同等规模的 Transformer 块；"
        "二次的 GAU 也不慢于该块。"
    ),
    published="training 4.9 to 12.1 times as fast as Transformers of 2022 at lengths 512 to 8,192",
    published_zh="长度 512 到 8,192 时，训练速度是 2022 年 Transformer 的 4.9 到 12.1 倍",
    measure=measure,
)
