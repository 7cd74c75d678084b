"""Which post-norm stacks of 24 blocks learn with warm-up, and which without? (S06)

A masked language model, 24 post-norm blocks of width 32 (4 heads, feed-forward 128, GELU), on a
Markov corpus with topics: the 32 words belong to 8 topics of 4, and a text of 16 words stays in its
topic, each word one of the four at random. Of every text 15 % are hidden. Whoever reads the topic
off the visible words has a loss of ln 4 = 1.39; whoever does not, ln 32 = 3.47.

    half size       σ = 0.4875 / √fan-in, BERT's: 0.02, truncated, at width 768
    usual size      σ = 1 / √fan-in, LeCun's

Adam at 1e-3 for 80 steps, with a linear warm-up over the first 40 or with none.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.analysis.path_weight import TRUNCATED
from kexue.analysis.propagation import LinearWarmup
from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "MaskedModel", "judge", "texts", "train"]

BLOCKS, WIDTH, HEADS = 24, 32, 4
TOPICS, WORDS_PER_TOPIC, LENGTH, ROWS = 8, 4, 16, 16
WORDS = TOPICS * WORDS_PER_TOPIC
MASKED = 0.15
RATE, STEPS, WARMUP, TAIL, SEEDS = 1e-3, 80, 40, 10, 3
HALF = 0.02 * TRUNCATED * math.sqrt(768)  # 0.4875
CHANCE, BEST = math.log(WORDS), math.log(WORDS_PER_TOPIC)
RUNS = {
    (HALF, WARMUP): ("half size, warm-up", "一半大小，预热"),
    (HALF, 0): ("half size, none", "一半大小，不预热"),
    (1.0, WARMUP): ("usual size, warm-up", "通常大小，预热"),
    (1.0, 0): ("usual size, none", "通常大小，不预热"),
}
Setting = tuple[float, int]
Losses = Sequence[float]


def texts(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Words with some hidden, the words themselves, and where they are hidden; (ROWS, LENGTH)."""
    topic = torch.randint(TOPICS, (ROWS, 1), generator=generator)
    within = torch.randint(WORDS_PER_TOPIC, (ROWS, LENGTH), generator=generator)
    words = topic * WORDS_PER_TOPIC + within
    hidden = torch.rand(ROWS, LENGTH, generator=generator) < MASKED
    hidden[:, 0] = True  # one at least
    return words.masked_fill(hidden, WORDS), words, hidden


class MaskedModel(nn.Module):
    """A post-norm encoder with tied output embeddings whose matrices have σ = size / √fan-in."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.word = nn.Embedding(WORDS + 1, WIDTH)
        self.place = nn.Parameter(torch.empty(LENGTH, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        block = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(block, BLOCKS, enable_nested_tensor=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=size / math.sqrt(parameter.shape[1]))

    def forward(self, words: Tensor) -> Tensor:
        states = self.encoder(self.norm(self.word(words) + self.place))
        logits: Tensor = states @ self.word.weight[:WORDS].T
        return logits


def train(setting: Setting, seed: int, steps: int = STEPS) -> list[float]:
    """The loss of every step."""
    size, warmup = setting
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MaskedModel(size)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    rates, losses = LinearWarmup(optimizer, warmup), []
    for _ in range(steps):
        shown, words, hidden = texts(generator)
        loss = F.cross_entropy(model(shown)[hidden], words[hidden])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        losses.append(loss.item())
    return losses


def judge(runs: Mapping[Setting, Sequence[Losses]]) -> Verdict:
    """Of the losses by setting and seed: the mean over seeds of the last ten steps.

    Learnt is a loss more than half of the way from chance to the best; NaN has not. Fails unless
    the half size learns both ways and the usual size does not without warm-up; holds if the usual
    size learns with warm-up, else partly.
    """

    def learnt(size: float, warmup: int) -> bool:
        end = fmean(fmean(losses[-TAIL:]) for losses in runs[size, warmup])
        return end < (CHANCE + BEST) / 2

    if not (learnt(HALF, WARMUP) and learnt(HALF, 0)) or learnt(1.0, 0):
        return Verdict.FAILS
    return Verdict.HOLDS if learnt(1.0, WARMUP) else Verdict.PARTLY


def measure(seed: int, data: Path | None) -> Finding:
    """Three seeds of four settings; no data are needed."""
    del data
    seeds = range(SEEDS * seed, SEEDS * seed + SEEDS)
    runs = {setting: [train(setting, one) for one in seeds] for setting in RUNS}
    numbers: dict[str, Number] = {
        name: ", ".join(f"{fmean(losses[-TAIL:]):.2f}" for losses in runs[setting])
        for setting, (name, _) in RUNS.items()
    }
    return Finding(
        numbers=numbers,
        figure=_picture(runs),
        verdict=judge(runs),
        comment_en=(
            f"Mean loss of the last {TAIL} of {STEPS} steps by seed; chance is {CHANCE:.2f}, the "
            f"best possible {BEST:.2f}. Adam at {RATE:g}, warm-up over {WARMUP} steps."
        ),
        comment_zh=(
            f"各种子在 {STEPS} 步中最后 {TAIL} 步的平均损失；瞎猜是 {CHANCE:.2f}，最好是 "
            f"{BEST:.2f}。Adam 学习率 {RATE:g}，预热 {WARMUP} 步。"
        ),
        names_zh=dict(RUNS.values()),
    )


def _picture(runs: Mapping[Setting, Sequence[Losses]]) -> str:
    lines = []
    for setting, name in RUNS.items():
        mean = [fmean(step) for step in zip(*runs[setting], strict=True)]
        smooth = [fmean(mean[max(0, step - 4) : step + 1]) for step in range(len(mean))]
        lines.append(Series(name, [float(step) for step in range(1, len(mean) + 1)], smooth))
    return line_chart(
        lines,
        title=("24 post-norm blocks learn to read a topic", "24 个后置归一化块学着认话题"),
        x_label=("step of Adam", "Adam 步数"),
        y_label=("loss, mean over seeds and 5 steps", "损失（各种子与 5 步平均）"),
        reference=(("chance", "瞎猜"), CHANCE),
        height=330,
    )


EXPERIMENT = Experiment(
    id="S06-warmup",
    system="S06",
    title_en="24 post-norm blocks with and without warm-up",
    title_zh="24 个后置归一化块，预热与不预热",
    claim_en=(
        "A post-norm stack of the usual size does not learn without warm-up; with warm-up, or at "
        "half the size as in BERT, it does."
    ),
    claim_zh=(
        "通常大小的后置归一化模型不预热就学不动；加上预热，或者像 BERT 那样取一半大小，就能学会。"
    ),
    published="Argued without measurements",
    published_zh="只有论证，没有测量",
    measure=measure,
)
