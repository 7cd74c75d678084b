"""How far one step moves the loss, against depth (S20).

Stacks of N layers of width 128 between a fixed random projection of scikit-learn's digits and a
fixed random read-out, at initialisation, in float64. All stacks of a seed use the same matrices and
a shallower one is the beginning of a deeper one. One step of SGD on all layers:

    plain       x ← φ(x) W    |x| and orthogonal W, which keep every length exactly, forwards and
                              backwards; ReLU and He's W; tanh and LeCun's W
    residual    x ← x + ε ReLU(x) W    He's W; ε = 1, N^(−1/2), 1/N
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.analysis.residual_weight import residual_scale
from kexue.analysis.update_size import DepthRow, depth_sweep
from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.nn.residual import ScaledResidual
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "Layer", "drawn", "exponent", "judge", "signals", "stacks"]

DEPTHS = (4, 8, 16, 32, 64, 128, 256)
WIDTH, BATCH, SEEDS, RATE = 128, 64, 4, 1e-2
ISOMETRY, RELU, TANH = "plain, |x| and orthogonal", "plain, ReLU and He", "plain, tanh and LeCun"
ONE, SGD, ADAM = "residual, ε = 1", "residual, ε = N^(−1/2)", "residual, ε = 1/N"
PLAIN = (ISOMETRY, RELU, TANH)
NAMES_ZH = {
    ISOMETRY: "无残差，|x| 与正交",
    RELU: "无残差，ReLU 与 He",
    TANH: "无残差，tanh 与 LeCun",
    ONE: "残差，ε = 1",
    SGD: "残差，ε = N^(−1/2)",
    ADAM: "残差，ε = 1/N",
}
CEILING = 1e3
"""Changes of the loss above it leave the picture."""


class Layer(nn.Module):
    """φ(x) W."""

    def __init__(self, W: Tensor, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.W, self.activation = nn.Parameter(W.clone()), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x) @ self.W


def drawn(width: int, depth: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Matrices with entries of variance 1 / width, (depth, width, width)."""
    shape = (depth, width, width)
    return torch.randn(shape, generator=generator, dtype=dtype) / math.sqrt(width)


def stacks(W: Tensor) -> dict[str, Callable[[int], nn.Sequential]]:
    """The six families: depth -> network."""
    orthogonal, he = torch.linalg.qr(W)[0], math.sqrt(2) * W

    def plain(W: Tensor, activation: Callable[[Tensor], Tensor]) -> Callable[[int], nn.Sequential]:
        return lambda depth: nn.Sequential(*(Layer(one, activation) for one in W[:depth]))

    def residual(eps: Callable[[int], float]) -> Callable[[int], nn.Sequential]:
        return lambda depth: nn.Sequential(
            *(ScaledResidual(Layer(one, F.relu), eps(depth)) for one in he[:depth])
        )

    return {
        ISOMETRY: plain(orthogonal, torch.abs),
        RELU: plain(he, F.relu),
        TANH: plain(W, torch.tanh),
        ONE: residual(lambda depth: 1.0),
        SGD: residual(lambda depth: residual_scale(depth, "sgd")),
        ADAM: residual(lambda depth: residual_scale(depth, "adam")),
    }


def digits(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The 1,797 digits, centred, each with mean square 1, and their classes."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x = torch.tensor(loaded.data, dtype=dtype)
    x = x - x.mean(dim=0)
    return x / x.square().mean(dim=1, keepdim=True).sqrt(), torch.tensor(loaded.target)


def signals(net: nn.Module, x: Tensor, loss_fn: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """What the stack multiplies the signal and the gradient by: rms out / in, and in / out."""
    x = x.detach().requires_grad_()
    out = net(x)
    at_in, at_out = torch.autograd.grad(loss_fn(out), [x, out])
    return float(out.detach().norm() / x.detach().norm()), float(at_in.norm() / at_out.norm())


def sweep(seed: int) -> tuple[dict[str, list[DepthRow]], dict[str, tuple[float, float]]]:
    """For every family the rows of all depths, and the signals of the deepest."""
    generator = torch.Generator().manual_seed(seed)
    x, y = digits(torch.float64)
    some = torch.randperm(len(x), generator=generator)[:BATCH]
    stem, head = (
        torch.randn(n, m, generator=generator, dtype=torch.float64) / math.sqrt(n)
        for n, m in ((64, WIDTH), (WIDTH, 10))
    )
    x = x[some] @ stem
    x, y = x / x.square().mean(dim=1, keepdim=True).sqrt(), y[some]

    def loss_fn(out: Tensor) -> Tensor:
        return F.cross_entropy(out @ head, y)

    families = stacks(drawn(WIDTH, max(DEPTHS), generator, torch.float64))
    return (
        {name: depth_sweep(net, DEPTHS, loss_fn, x, lr=RATE) for name, net in families.items()},
        {name: signals(net(max(DEPTHS)), x, loss_fn) for name, net in families.items()},
    )


def geometric_mean(values: Sequence[float]) -> float:
    """The exponential of the mean logarithm."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def exponent(sizes: Sequence[float]) -> float:
    """p of a size that goes as N^p: the slope in logarithms."""
    x = [math.log(N) for N in DEPTHS]
    return statistics.linear_regression(x, [math.log(size) for size in sizes]).slope


def judge(
    first: Mapping[str, Sequence[float]], signal: Mapping[str, tuple[float, float]]
) -> Verdict:
    """From the sizes of the first-order changes at all depths and the signals of the deepest.

    Holds if every plain stack that keeps signal and gradient within a factor of 2 (and there is
    one) has an exponent of 1 ± 0.3, ε = 1 multiplies by more than 1.5 per layer, and the exponents
    of the small weights are 0 ± 0.3 and −1 ± 0.3. Partly if at least the deepest are in order.
    """
    stable = [n for n in PLAIN if all(0.5 <= one <= 2 for one in signal[n])]
    per_layer = (first[ONE][-1] / first[ONE][0]) ** (1 / (DEPTHS[-1] - DEPTHS[0]))
    wanted = dict.fromkeys(stable, 1.0) | {SGD: 0.0, ADAM: -1.0}
    if (
        stable
        and per_layer > 1.5
        and all(abs(exponent(first[name]) - p) <= 0.3 for name, p in wanted.items())
    ):
        return Verdict.HOLDS
    last = [first[name][-1] for name in (ONE, ISOMETRY, SGD, ADAM)]
    return Verdict.PARTLY if last == sorted(last, reverse=True) else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Six families, seven depths, four seeds; `data` is not needed."""
    del data
    runs = [sweep(SEEDS * seed + one) for one in range(SEEDS)]
    names = list(runs[0][0])
    first, actual = {}, {}
    for name in names:
        columns = list(zip(*(rows[name] for rows, _ in runs), strict=True))  # one per depth
        first[name] = [geometric_mean([-row.first_order for row in column]) for column in columns]
        actual[name] = [statistics.median(_finite(row.actual) for row in c) for c in columns]
    signal = {
        name: (
            geometric_mean([found[name][0] for _, found in runs]),
            geometric_mean([found[name][1] for _, found in runs]),
        )
        for name in names
    }
    numbers: dict[str, Number] = {}
    names_zh = {}
    for name in names:
        power = exponent(first[name])
        grows = "explodes" if name == ONE else f"N^{power:.2f}".replace("-", "−")
        pairs = [
            f"{-first[name][i]:.2g} / {actual[name][i]:.2g}".replace("-", "−") for i in (0, 2, 4, 6)
        ]
        key = f"{name}: first-order / actual at N = 4, 16, 64, 256"
        numbers[key] = " · ".join(pairs) + f" ({grows})"
        names_zh[key] = f"{NAMES_ZH[name]}：一阶 / 实际，N = 4、16、64、256"
    for name in PLAIN:
        key = f"{name}: signal and gradient through 256 layers"
        numbers[key] = "× {:.2g}, × {:.2g}".format(*signal[name])
        names_zh[key] = f"{NAMES_ZH[name]}：256 层后信号与梯度的倍数"
    picture = _picture(first, actual)
    return Finding(numbers, picture, judge(first, signal), *_comment(first, signal), names_zh)


def _finite(change: float) -> float:
    """A loss that overflowed rose beyond all bounds."""
    return change if math.isfinite(change) else math.inf


def _picture(first: Mapping[str, Sequence[float]], actual: Mapping[str, Sequence[float]]) -> str:
    def lines(falls: Mapping[str, Sequence[float]]) -> list[Series]:
        x = [math.log2(N) for N in DEPTHS]
        return [
            Series((name, NAMES_ZH[name]), x, [_log10(fall) for fall in one], dots=True)
            for name, one in falls.items()
        ]

    depth = ("depth N, log2", "深度 N（log2）")
    return line_chart(
        lines(first),
        title=("How far one step lowers the loss: predicted", "一步让损失下降多少：一阶预测"),
        x_label=depth,
        y_label=("η|g|², log10; above 3 not drawn", "η|g|²（log10），大于 3 的不画"),
        height=380,
    ) + line_chart(
        lines({name: [-change for change in one] for name, one in actual.items()}),
        title=("How far one step lowers the loss: measured", "一步让损失下降多少：实际"),
        x_label=depth,
        y_label=("−dL, log10; where the loss rises, nothing", "−dL（log10），损失上升处不画"),
        height=380,
    )


def _log10(fall: float) -> float:
    return math.log10(fall) if 0 < fall <= CEILING else math.nan


def _comment(
    first: Mapping[str, Sequence[float]], signal: Mapping[str, tuple[float, float]]
) -> tuple[str, str]:
    powers = {name: f"{exponent(first[name]):.2f}".replace("-", "−") for name in first}
    fading = {name: "× {:.2g}, × {:.2g}".format(*signal[name]) for name in (RELU, TANH)}
    return (
        f"Geometric means over {SEEDS} seeds of the first-order change, medians of the actual one. "
        f"Exponents of N: {powers[ISOMETRY]} where every length is kept, {powers[SGD]} for "
        f"ε = N^(−1/2), {powers[ADAM]} for 1/N. Plain stacks count as stable where {DEPTHS[-1]} "
        "layers keep signal and gradient within a factor of 2. "
        + " ".join(f"{name}: {fading[name]}, exponent {powers[name]}." for name in fading),
        f"一阶变化取 {SEEDS} 个种子的几何平均，实际变化取中位数。随 N 的指数：严格保长的网络为"
        f" {powers[ISOMETRY]}，ε = N^(−1/2) 为 {powers[SGD]}，1/N 为 {powers[ADAM]}。"
        f"无残差的网络，{DEPTHS[-1]} 层后信号与梯度的变化都在 2 倍以内才算稳定。"
        + "".join(f"{NAMES_ZH[n]}：{fading[n]}，指数 {powers[n]}。" for n in fading),
    )


EXPERIMENT = Experiment(
    id="S20-depth",
    system="S20",
    title_en="How far one step moves the loss, against depth",
    title_zh="一步更新让损失变化多少，随深度如何变",
    claim_en=(
        "At one learning rate the loss change of an SGD step grows with depth in a plain stack "
        "with stable signals, explodes for residual branches of weight 1, stays the same for "
        "N^(−1/2) and falls as 1/N for 1/N."
    ),
    claim_zh=(
        "学习率相同时，SGD 一步带来的损失变化：信号稳定的无残差网络随深度成正比增长，"
        "ε = 1 的残差爆炸，ε = N^(−1/2) 保持不变，ε = 1/N 按 1/N 下降。"
    ),
    published="dL = O(ηNK) for a plain stack; ε = N^(−1/2) makes it independent of N",
    published_zh="无残差时 dL = O(ηNK)；取 ε = N^(−1/2) 则与 N 无关",
    measure=measure,
)
