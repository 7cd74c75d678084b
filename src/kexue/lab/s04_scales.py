"""Five ways to add a branch, 64 of them in a row: scales at the start, and training (S04).

A residual network on scikit-learn's digits, 256 wide, 64 branches F(x) = W relu(x) with He's
variance 2/256, a linear layer in front and behind, Adam at 1e-3 without warm-up, batches of 64, 60
steps:

    post-norm    Norm(x + F(x))                pre-norm     x + F(Norm(x))
    ReZero       x + alpha F(x), alpha = 0     LayerScale   x + g * F(x), g = 1e-4
    alpha ramp   x + alpha F(x), alpha from 0 to 1 over the 60 steps

All but the first have one LayerNorm before the output. Measured at the start, by depth: the second
moment of the stream, the gradient of the loss with respect to it, and what is left of x_0.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.nn.init import he_normal_, lecun_normal_
from kexue.nn.residual import AlphaRamp, LayerScale, PostNorm, PreNorm, ReZero
from kexue.report.charts import Series, line_chart
from kexue.report.drawing import Label

__all__ = ["DESIGNS", "EXPERIMENT", "Run", "Stack", "finding", "run", "verdict"]

DEPTH, WIDTH, BATCH, STEPS, RATE, TRAIN = 64, 256, 64, 60, 1e-3, 1297
DESIGNS: dict[str, tuple[Label, Callable[[], nn.Module]]] = {
    "post-norm": (("post-norm", "后置归一化"), lambda: PostNorm(WIDTH)),
    "pre-norm": (("pre-norm", "前置归一化"), lambda: PreNorm(WIDTH)),
    "ReZero": ("ReZero", ReZero),
    "LayerScale": ("LayerScale", lambda: LayerScale(WIDTH, init=1e-4)),
    "alpha ramp": (("alpha ramp", "α 线性爬升"), lambda: AlphaRamp(STEPS)),
}


@dataclass(frozen=True)
class Run:
    """One design: by depth 0 … L at the start, and in training.

    Args:
        moments: second moment of the stream.
        gradients: norm of the loss's gradient with respect to the stream, over that at the end.
        identity: squared weight of x_0 in the stream after L branches.
        losses: training loss of every step.
        accuracy: on test digits, percent.
    """

    moments: tuple[float, ...]
    gradients: tuple[float, ...]
    identity: float
    losses: tuple[float, ...]
    accuracy: float

    @property
    def last_loss(self) -> float:
        """The mean over the last sixth of the steps."""
        last = self.losses[-max(1, len(self.losses) // 6) :]
        return sum(last) / len(last)


class Stack(nn.Module):
    """Linear layer, L branches in one design, norm, linear layer."""

    def __init__(self, design: str, seed: int, depth: int = DEPTH) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.front, self.head = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, WIDTH)) for _ in range(depth)
        )
        self.wrappers = nn.ModuleList(DESIGNS[design][1]() for _ in range(depth))
        self.norm = nn.Identity() if design == "post-norm" else nn.LayerNorm(WIDTH)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                fill = lecun_normal_ if layer in (self.front, self.head) else he_normal_
                fill(layer.weight, generator=random)
                nn.init.zeros_(layer.bias)

    def stream(self, x: Tensor) -> list[Tensor]:
        """x_0 … x_L."""
        states = [self.front(x)]
        for wrapper, branch in zip(self.wrappers, self.branches, strict=True):
            states.append(wrapper(states[-1], branch))
        return states

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.norm(self.stream(x)[-1]))
        return scores


def at_the_start(model: Stack, x: Tensor, y: Tensor) -> tuple[list[float], list[float], float]:
    """Second moments, gradient norms and the squared weight of x_0, as in `Run`."""
    states = model.stream(x)
    loss = F.cross_entropy(model.head(model.norm(states[-1])), y)
    slopes = [slope.norm().item() for slope in torch.autograd.grad(loss, states)]
    identity = torch.ones(len(x))
    if isinstance(model.wrappers[0], PostNorm):
        for state, branch in zip(states, model.branches, strict=False):
            total = (state + branch(state)).detach()
            identity /= total.var(dim=1, correction=0)  # each norm divides by the deviation
    moments = [state.detach().square().mean().item() for state in states]
    return moments, [slope / slopes[-1] for slope in slopes], identity.mean().item()


def run(design: str, seed: int = 0, steps: int = STEPS, depth: int = DEPTH) -> Run:
    """Measure a design at the start, then train it."""
    x, y = _digits()
    model = Stack(design, seed, depth)
    random = torch.Generator().manual_seed(seed)
    moments, gradients, identity = at_the_start(model, x[:BATCH], y[:BATCH])
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    losses = []
    for _ in range(steps):
        rows = torch.randint(TRAIN, (BATCH,), generator=random)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for wrapper in model.wrappers:
            if isinstance(wrapper, AlphaRamp):
                wrapper.step()
    with torch.no_grad():
        right = (model(x[TRAIN:]).argmax(1) == y[TRAIN:]).double().mean().item()
    return Run(tuple(moments), tuple(gradients), identity, tuple(losses), 100 * right)


def _digits() -> tuple[Tensor, Tensor]:
    """Pixels of mean 0 and second moment 1, in random order."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(pixels, dtype=torch.float32)[order]
    x = (x - x.mean(0)) / x.std(0).clamp(min=0.1)
    return x / x.square().mean().sqrt(), torch.tensor(digits)[order]


def verdict(runs: Mapping[str, Run]) -> tuple[Verdict, bool, bool, bool]:
    """Whether the start, the training and the ramp are as claimed.

    The start: post-norm's stream stays within 5 % of 1 while x_0's weight falls as 2^-L, by 10 % of
    its logarithm; pre-norm grows to 1 + L by 30 %; ReZero and the ramp are the identity, exactly.
    Training: post-norm ends above half of log 10, all others below. The ramp: the lowest loss.

    Returns:
        Holds if all three are, fails if the start is not; and the three.
    """
    post, pre = runs["post-norm"], runs["pre-norm"]
    depth = len(post.moments) - 1
    start = (
        all(abs(moment - 1) < 0.05 for moment in post.moments[1:])
        and abs(-math.log2(post.identity) / depth - 1) < 0.1
        and abs((pre.moments[-1] - pre.moments[0]) / depth - 1) < 0.3
        and all(len(set(runs[name].moments)) == 1 for name in ("ReZero", "alpha ramp"))
    )
    learnt = {name: one.last_loss < math.log(10) / 2 for name, one in runs.items()}
    trains = not learnt["post-norm"] and all(learnt[n] for n in learnt if n != "post-norm")
    ramp = min(runs, key=lambda name: runs[name].last_loss) == "alpha ramp"
    if start and trains and ramp:
        return Verdict.HOLDS, start, trains, ramp
    return (Verdict.PARTLY if start else Verdict.FAILS), start, trains, ramp


def measure(seed: int, data: Path | None) -> Finding:
    """Every design with the same seed; the digits come with scikit-learn."""
    del data
    return finding({name: run(name, seed) for name in DESIGNS})


def finding(runs: Mapping[str, Run]) -> Finding:
    """Numbers, pictures and verdict."""
    judged, start, trains, ramp = verdict(runs)
    numbers: dict[str, Number] = {}
    names_zh = {}
    for name, one in runs.items():
        key = f"{name}: last moment, first gradient, last loss, accuracy"
        numbers[key] = (
            f"{one.moments[-1]:.2f}, {one.gradients[0]:.2g}, {one.last_loss:.2f}, "
            f"{one.accuracy:.1f} %"
        )
        label = DESIGNS[name][0]
        names_zh[key] = f"{label if isinstance(label, str) else label[1]}：末端二阶矩、始端梯度、"
        names_zh[key] += "末损失、准确率"
    numbers["post-norm: log2 of the squared weight of x_0"] = round(
        math.log2(runs["post-norm"].identity), 1
    )
    names_zh["post-norm: log2 of the squared weight of x_0"] = "后置归一化：x_0 权重平方的 log2"
    best = min(runs, key=lambda name: runs[name].last_loss)
    yes = {True: "as claimed", False: "not as claimed"}
    ja = {True: "符合", False: "不符合"}
    comment = (
        f"Scales at the start: {yes[start]}. Without warm-up all but post-norm learn: "
        f"{yes[trains]}. The ramp is best: {yes[ramp]}; the lowest loss is that of {best}. "
        f"One seed; {STEPS} steps make a steep ramp.",
        f"初始尺度：{ja[start]}。不用预热，除后置归一化外都能学会：{ja[trains]}。"
        f"线性爬升最好：{ja[ramp]}，损失最低的是 {best}。只有一个种子；{STEPS} 步的爬升很陡。",
    )
    return Finding(numbers, _picture(runs), judged, *comment, names_zh)


def _picture(runs: Mapping[str, Run]) -> str:
    def chart(title: Label, x: Label, y: Label, values: Callable[[Run], list[float]]) -> str:
        lines = [
            Series(DESIGNS[name][0], [float(i) for i in range(len(values(one)))], values(one))
            for name, one in runs.items()
        ]
        return line_chart(lines, title=title, x_label=x, y_label=y)

    depth = ("branches passed", "经过的分支数")
    return (
        chart(
            ("The stream at the start", "初始时的主干"),
            depth,
            ("log₂ of its second moment", "二阶矩的 log₂"),
            lambda one: [math.log2(moment) for moment in one.moments],
        )
        + chart(
            ("Its gradient at the start", "初始时主干的梯度"),
            depth,
            ("log₂ of the norm, over that at the end", "范数的 log₂，相对于末端"),
            lambda one: [math.log2(slope) for slope in one.gradients],
        )
        + chart(
            ("Training without warm-up", "不用预热的训练"),
            ("steps", "步数"),
            ("training loss, nats", "训练损失（nat）"),
            lambda one: list(one.losses),
        )
    )


EXPERIMENT = Experiment(
    id="S04-scales",
    system="S04",
    title_en="Residual designs, 64 deep",
    title_zh="64 层深的几种残差",
    claim_en=(
        "Post-norm keeps its stream at 1 and loses x_0 geometrically, pre-norm grows linearly, "
        "ReZero and the alpha ramp start as the identity; without warm-up post-norm does not "
        "train, and the ramp is best."
    ),
    claim_zh=(
        "后置归一化的主干始终是 1 而 x_0 几何式衰减，前置归一化线性增长，ReZero 和 α 爬升从恒等"
        "开始；不用预热时后置归一化训练不动，α 爬升最好。"
    ),
    published="Article 8620: the ramp worked best in its author's runs; no numbers",
    published_zh="文章 8620：作者的实验里线性爬升最好；没有数字",
    measure=measure,
)
