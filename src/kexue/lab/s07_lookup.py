"""Does the factor log n help a net find one key among more keys than it was trained with? (S07)

A sequence of n tokens: n/2 pairs of a random direction in R^8 and one of 8 values, and n/2 queries,
each the direction of one pair with noise (deviation 0.2 per coordinate). Two blocks of attention,
width 32, name the value that belongs to each query. They are trained at n = 64 and tested up to
1,024.

With base 64 the factor is 1 while training, so that one training serves both scales: the same
weights are tested with 1/sqrt(d) and with log_64(n)/sqrt(d). The value of the nearest direction is
the ceiling: what a search would answer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.nn.log_n_attention import LogNAttention
from kexue.nn.row_scale import LogNScale
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "Lookup", "accuracy", "draw", "nearest", "train", "verdict"]

TRAINED, TESTED = 64, (16, 64, 128, 256, 512, 1024)
DIRECTION, VALUES, WIDTH, NOISE = 8, 8, 32, 0.2
STEPS, ROWS, RATE, SEEDS = 250, 16, 5e-3, 3
ASKED = 2048
"""Queries per test length."""

Curve = Sequence[float]


def draw(rows: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (rows, n, 17), queries first, and the values that the queries ask for (rows, n/2)."""
    half = n // 2
    keys = torch.randn(rows, half, DIRECTION, generator=generator)
    keys = F.normalize(keys, dim=-1) * DIRECTION**0.5
    values = torch.randint(VALUES, (rows, half), generator=generator)
    order = torch.rand(rows, half, generator=generator).argsort(dim=1)
    asked = keys.take_along_dim(order.unsqueeze(-1), dim=1)
    asked = asked + NOISE * torch.randn(asked.shape, generator=generator)
    shown = F.one_hot(values, VALUES).float()
    mark = torch.ones(rows, half, 1)
    queries = torch.cat((asked, torch.zeros_like(shown), mark), dim=-1)
    pairs = torch.cat((keys, shown, 0 * mark), dim=-1)
    return torch.cat((queries, pairs), dim=1), values.take_along_dim(order, dim=1)


class Lookup(nn.Module):
    """Two pre-norm blocks that read tokens and name a value for every query."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(DIRECTION + VALUES + 1, WIDTH)
        self.attentions = nn.ModuleList(LogNAttention(WIDTH, 4, base=TRAINED) for _ in range(2))
        self.feed_forwards = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH)
            )
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.answer = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VALUES))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.read(tokens)
        for norm, attend, feed in zip(self.norms, self.attentions, self.feed_forwards, strict=True):
            x = x + attend(norm(x))
            x = x + feed(x)
        scores: Tensor = self.answer(x[:, : x.shape[1] // 2])
        return scores

    def scale_by(self, scale: nn.Module | None) -> None:
        """Exchange the factor of every attention layer; None is the plain scale."""
        for layer in self.modules():
            if isinstance(layer, LogNAttention):
                layer.scale = scale


def train(seed: int, steps: int = STEPS) -> Lookup:
    """Train at n = 64, by Adam in one cycle: its rate rises over a tenth of the steps."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Lookup()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    for _ in range(steps):
        tokens, wanted = draw(ROWS, TRAINED, generator)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Lookup, n: int, seed: int) -> float:
    """Percent of right values, over about 2,000 queries."""
    tokens, wanted = _questions(n, seed)
    right: float = (model(tokens).argmax(dim=-1) == wanted).double().mean().item()
    return 100 * right


def nearest(n: int, seed: int) -> float:
    """Percent of right values if the nearest direction answers: the ceiling."""
    tokens, wanted = _questions(n, seed)
    queries, pairs = tokens.split(n // 2, dim=1)
    found = torch.cdist(queries[..., :DIRECTION], pairs[..., :DIRECTION]).argmin(dim=-1)
    values = pairs[..., DIRECTION:-1].argmax(dim=-1).gather(1, found)
    right: float = (values == wanted).double().mean().item()
    return 100 * right


def _questions(n: int, seed: int) -> tuple[Tensor, Tensor]:
    return draw(2 * ASKED // n, n, torch.Generator().manual_seed(1_000 + seed))


def verdict(plain: Sequence[Curve], log_n: Sequence[Curve]) -> Verdict:
    """Of accuracies by seed, a curve over `TESTED` each.

    Holds if log n is the better scale with every seed at the greatest length, and by the mean over
    seeds at every length beyond the trained one; partly if by the mean at the greatest length
    alone; else fails, as it does if a net has not learnt (90 % at the trained length).
    """
    at = TESTED.index(TRAINED)
    better = [b > a for a, b in zip(_mean(plain), _mean(log_n), strict=True)][at + 1 :]
    if min(curve[at] for curve in plain) < 90 or not better[-1]:
        return Verdict.FAILS
    every = all(new[-1] > old[-1] for old, new in zip(plain, log_n, strict=True))
    return Verdict.HOLDS if every and all(better) else Verdict.PARTLY


def measure(seed: int, data: Path | None) -> Finding:
    """Three trainings, each tested with both scales; no data are needed."""
    del data
    seeds = range(SEEDS * seed, SEEDS * seed + SEEDS)
    scales: dict[str, nn.Module | None] = {"plain": None, "log n": LogNScale(TRAINED)}
    curves: dict[str, list[Curve]] = {name: [] for name in scales}
    for one in seeds:
        model = train(one)
        for name, scale in scales.items():
            model.scale_by(scale)
            curves[name].append([accuracy(model, n, one) for n in TESTED])
    ceiling = [[nearest(n, one) for n in TESTED] for one in seeds]
    means = {name: _mean(found) for name, found in (curves | {"nearest key": ceiling}).items()}
    numbers: dict[str, Number] = {
        **{f"accuracy, {name}, %": _arrow(mean) for name, mean in means.items()},
        **{
            f"at {TESTED[-1]} by seed, {name}, %": ", ".join(f"{one[-1]:.1f}" for one in found)
            for name, found in curves.items()
        },
    }
    lost, kept = (means[name][TESTED.index(TRAINED)] - means[name][-1] for name in scales)
    return Finding(
        numbers=numbers,
        figure=_picture(means),
        verdict=verdict(curves["plain"], curves["log n"]),
        comment_en=(
            f"n = {', '.join(map(str, TESTED))}; means of {SEEDS} seeds, trained at {TRAINED} for "
            f"{STEPS} steps. From {TRAINED} to {TESTED[-1]} tokens the plain scale loses "
            f"{lost:.1f} points and log n, with the same weights, {kept:.1f}."
        ),
        comment_zh=(
            f"n = {'、'.join(map(str, TESTED))}；{SEEDS} 个种子的均值，在 {TRAINED} 上训练 {STEPS} "
            f"步。从 {TRAINED} 个 token 到 {TESTED[-1]} 个，常规缩放下降 {lost:.1f} 个百分点；"
            f"同样的权重换成 log n，只降 {kept:.1f}。"
        ),
        names_zh={
            "accuracy, plain, %": "准确率，常规，%",
            "accuracy, log n, %": "准确率，log n，%",
            "accuracy, nearest key, %": "准确率，取最近的键，%",
            f"at {TESTED[-1]} by seed, plain, %": f"长度 {TESTED[-1]}，各种子，常规，%",
            f"at {TESTED[-1]} by seed, log n, %": f"长度 {TESTED[-1]}，各种子，log n，%",
        },
    )


def _mean(curves: Sequence[Curve]) -> list[float]:
    return [fmean(values) for values in zip(*curves, strict=True)]


def _arrow(curve: Curve) -> str:
    return " → ".join(f"{value:.1f}" for value in curve)


def _picture(means: Mapping[str, Curve]) -> str:
    names = {
        "plain": ("1/√d", "1/√d"),
        "log n": ("log n, base 64", "log n，底 64"),
        "nearest key": ("nearest key", "取最近的键"),
    }
    across = [torch.tensor(n).log2().item() for n in TESTED]
    return line_chart(
        [Series(names[name], across, list(mean), dots=True) for name, mean in means.items()],
        title=("Looking up a key, trained at 64 tokens", "按键查值，在 64 个 token 上训练"),
        x_label=("number of tokens, log₂ n", "token 数，log₂ n"),
        y_label=("accuracy, %", "准确率，%"),
        height=300,
    )


EXPERIMENT = Experiment(
    id="S07-lookup",
    system="S07",
    title_en="Looking up one key among more than were trained with",
    title_zh="键比训练时多，还能不能按键查到值",
    claim_en=(
        "A net that looks values up by key, trained at 64 tokens, loses less at greater lengths if "
        "its logits are scaled by log n."
    ),
    claim_zh=(
        "在 64 个 token 上学会按键查值的网络，打分按 log n 缩放后，用在更长的序列上准确率下降更少。"
    ),
    published="RoFormer, MLM trained at 64: 11.5 % plainly and 13.6 % with log n at 1,024",
    published_zh="RoFormer，MLM，训练长度 64，测试长度 1024：常规 11.5%，log n 13.6%",
    measure=measure,
)
