"""浅谈Transformer的初始化、参数化与标准化 — what is suspicious about a scale, in words (S04).

Rules, each with its reason; `bad` breaks training, `warn` hurts it, `note` is worth knowing.

    NaN or infinite weights, activations, gradients                                      bad
    a matrix whose gradient is 0 everywhere, although the loss reaches it                bad
    max |w| <= 1/√m and √p = 1/√3: nn.Linear's default, a third of LeCun's variance      warn
    fresh weights with p > 1.5, or p < 0.1: too large, or too small, for the width       warn, note
    fresh post-norm stack that keeps less than 5 % of its input                          warn
    gradient at the input against the output beyond 1 : 100 or 100 : 1                   warn
    |activation| beyond 65504: overflow in float16; beyond an eighth of it               warn, note
    a gain near 0                                                                        warn
    the last gain of a trained model is the largest                                      note

Weights are judged against LeCun only when fresh: training moves them where it needs them.
Source: article 8620; article 8747 and S06 for the path. See also: `scales`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from kexue.analysis.finding import Finding
from kexue.analysis.gradient_profile import GradientProfile
from kexue.analysis.initializer_range import suggest_initializer_range
from kexue.analysis.path_weight import TRUNCATED, IdentityPath
from kexue.analysis.stack import activation_of, times_run
from kexue.analysis.transformer_blocks import DOWN, OUTPUT, branch_matrices, find_blocks

__all__ = ["Finding", "ScaleRow", "findings_of", "plain", "suggestion"]

HALF = 0.02 * TRUNCATED * math.sqrt(768)
"""BERT's std over LeCun's: 0.0176 · sqrt(768)."""
LARGE, SMALL = 1.5, 0.1
"""Powers p beyond which a fresh weight is remarked on; BERT's own last matrices have 1.23."""
FLOAT16 = 65504.0
LEVELS = ("bad", "warn", "note")


@dataclass(frozen=True)
class ScaleRow:
    """The scales of one module, or of one part of a packed weight.

    Args:
        name: of the module; the part in brackets.
        kind: matrix, convolution, embedding, norm or other.
        shape: of the weight, a matrix as (out, in).
        std: root mean square of the weight.
        bound: largest |w|.
        lecun: 1/sqrt(fan_in); None without a fan.
        input: second moment of the input; None where it is not a floating tensor.
        output: second moment of the output.
        gradient: norm of the weight's gradient; None if the loss does not reach it.
        zeros: share of its elements that are exactly 0.
        gain: root mean square gain of a norm.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    std: float
    bound: float
    lecun: float | None = None
    input: float | None = None
    output: float | None = None
    gradient: float | None = None
    zeros: float | None = None
    gain: float | None = None

    @property
    def ratio(self) -> float | None:
        """std over LeCun's, √p."""
        return None if self.lecun is None else self.std / self.lecun

    def __str__(self) -> str:
        values = {"√p": self.ratio, "gain": self.gain, "in": self.input, "out": self.output}
        values |= {"gradient": self.gradient}
        cells = [f"{k} {v:.3g}" for k, v in values.items() if v is not None]
        return f"{self.name}: std {self.std:.4g}, " + ", ".join(cells)


def findings_of(
    rows: Sequence[ScaleRow],
    path: IdentityPath,
    gradients: GradientProfile,
    fresh: bool,
    largest: float,
    suggested: float | None,
) -> tuple[Finding, ...]:
    """All that is suspicious, worst first; equal remarks about many modules become one."""
    found = [one for row in rows for one in _of_row(row, fresh, suggested, path.norm)]
    found += _of_stack(rows, path, gradients, fresh, largest, suggested)
    merged: dict[tuple[str, str], list[Finding]] = {}
    for one in found:
        kind = re.sub(r"^std \S+ (at width \d+): .*", r"\1", one.en)  # a std differs by its draw
        merged.setdefault((one.level, kind), []).append(one)
    once = [
        Finding(group[0].level, _together([one.where for one in group]), group[0].en, group[0].zh)
        for group in merged.values()
    ]
    return tuple(sorted(once, key=lambda one: LEVELS.index(one.level)))


def _together(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (+{len(names) - 1})"


def _of_row(row: ScaleRow, fresh: bool, suggested: float | None, norm: str) -> list[Finding]:
    numbers = [row.std, row.input, row.output, row.gradient]
    if not all(math.isfinite(x) for x in numbers if x is not None):
        kinds = ("weight", "input", "output", "gradient")
        names = dict(zip(kinds, ("权重", "输入", "输出", "梯度"), strict=True))
        broken = [
            k for k, x in zip(kinds, numbers, strict=True) if x is not None and not math.isfinite(x)
        ]
        en, zh = ", ".join(broken), "、".join(names[k] for k in broken)
        return [Finding("bad", row.name, f"NaN or infinite: {en}", f"出现 NaN 或无穷大：{zh}")]
    out: list[Finding] = []
    if row.kind == "matrix" and row.zeros == 1:
        out.append(
            Finding(
                "bad",
                row.name,
                "gradient exactly 0 everywhere: a dead branch, or an underflow in half precision",
                "梯度处处为 0：分支已死，或半精度下溢",
            )
        )
    if row.gain is not None and row.gain < 0.01:
        en, zh = (
            f"gain {row.gain:.2g}: the norm closes",
            f"增益只有 {row.gain:.2g}：该归一化层已关闭",
        )
        out.append(Finding("warn", row.name, en, zh))
    if row.kind == "matrix" and row.ratio is not None:
        ends_branch = row.name.rpartition(".")[2].lower() in OUTPUT | DOWN
        scaled = ends_branch and norm != "post"  # GPT-2 makes it smaller the deeper the stack is
        out += _of_matrix(row, row.ratio, fresh, suggested, scaled)
    return out


def _of_matrix(
    row: ScaleRow, ratio: float, fresh: bool, suggested: float | None, scaled: bool
) -> list[Finding]:
    width, p = row.shape[1], ratio**2
    uniform = row.bound <= 1.001 * (row.lecun or 0) and abs(ratio * math.sqrt(3) - 1) < 0.05
    if uniform and min(row.shape) >= 16:
        return [
            Finding(
                "warn",
                row.name,
                "nn.Linear's default U(±1/√m): a third of LeCun's variance; was it initialised?",
                "nn.Linear 的默认初始化 U(±1/√m)：方差只有 LeCun 的三分之一，是否忘了初始化？",
            )
        ]
    hint = "" if suggested is None else f"; an initializer_range of {suggested:.4f} fits"
    hint_zh = "" if suggested is None else f"；initializer_range 取 {suggested:.4f} 为宜"
    shown = f"std {row.std:.2g} at width {width}: p = {p:.2f}"
    shown_zh = f"宽度 {width} 而标准差 {row.std:.2g}：p = {p:.2f}"
    if fresh and p > LARGE:
        en, zh = f"{shown} > 1, larger than LeCun{hint}", f"{shown_zh} > 1，大于 LeCun{hint_zh}"
        return [Finding("warn", row.name, en, zh)]
    if fresh and 0 < p < SMALL and not scaled:
        en, zh = f"{shown}, far below LeCun{hint}", f"{shown_zh}，远小于 LeCun{hint_zh}"
        return [Finding("note", row.name, en, zh)]
    return []


def _of_stack(
    rows: Sequence[ScaleRow],
    path: IdentityPath,
    gradients: GradientProfile,
    fresh: bool,
    largest: float,
    suggested: float | None,
) -> list[Finding]:
    out: list[Finding] = []
    if fresh and path.norm == "post" and path.share < 0.05:
        hint = "" if suggested is None else f"; try initializer_range={suggested:.4f} and a warm-up"
        hint_zh = "" if suggested is None else f"；可用 initializer_range={suggested:.4f} 并加预热"
        kept, through = f"{path.share:.2%}", len(path.names)
        en = f"post-norm keeps only {kept} of its input through {through} sub-layers{hint}"
        zh = f"后置归一化经 {through} 个子层只保留 {kept} 的输入{hint_zh}"
        out.append(Finding("warn", "identity path", en, zh))
    ratio = gradients.ratio
    if gradients.stream[-1] > 0 and not 0.01 <= ratio <= 100:
        way, way_zh = ("fades", "衰减") if ratio < 1 else ("grows", "膨胀")
        en = f"the gradient {way} towards the input, by a factor of {ratio:.2g}"
        out.append(Finding("warn", "gradients", en, f"梯度向输入方向{way_zh}到 {ratio:.2g} 倍"))
    if math.isfinite(largest) and largest > FLOAT16 / 8:
        en, zh = f"largest |activation| {largest:.0f}", f"激活绝对值最大达 {largest:.0f}"
        over = largest > FLOAT16
        out.append(
            Finding(
                "warn" if over else "note",
                "activations",
                en + (": float16 overflows at 65504" if over else ": close to float16's 65504"),
                zh + ("：float16 在 65504 溢出" if over else "：接近 float16 的上限 65504"),
            )
        )
    gains = [row for row in rows if row.gain is not None]
    if not fresh and len(gains) > 2 and gains[-1] is max(gains, key=lambda row: row.gain or 0.0):
        others = sorted(row.gain or 0.0 for row in gains[:-1])[len(gains) // 2]
        sizes = f"{gains[-1].gain:.2f}"
        en = f"the largest gain of all norms, {sizes} (median {others:.2f}): it sharpens the logits"
        zh = f"全部归一化层中增益最大，{sizes}（中位数 {others:.2f}）：它在放大 logits"
        out.append(Finding("note", gains[-1].name, en, zh))
    return out


def suggestion(model: nn.Module, norm: str) -> float | None:
    """An initializer_range (plain normal) for this shape; None where no matrix is recognised.

    Post-norm: the std at which 40 % of the input survives. Else: BERT's share of LeCun, 0.49/√d.
    """
    try:
        blocks = find_blocks(model)
        matrices = branch_matrices(model, *blocks[0])
        width, inner = matrices["up"].fan_in, matrices["down"].fan_in
        if norm != "post":
            return HALF / math.sqrt(width)
        layers, phi = len(blocks) * times_run(model, len(blocks)), activation_of(model)
        return suggest_initializer_range(
            width, inner, layers, truncated=False, activation=phi, gated="gate" in matrices
        )
    except ValueError:
        return None


def plain(value: Any) -> Any:
    """The value for JSON: tuples as lists, numbers that are not finite as text."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
