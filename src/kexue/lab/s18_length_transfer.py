"""Trained at one length, read at others: which attention map travels (S18).

A text is a chain of random words of five letters, each written four times; 15 % of the letters are
hidden and have to be guessed from the other copies, which are near at any length of text. Two gated
attention units with one of the six maps learn at 128 letters alone and are then read from 32 to
512. `relu2_ns` is read once more with its n frozen at 128, which needs no other training.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.nn.gau import GatedAttentionUnit
from kexue.nn.gau_attention import AttentionMap
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "Reader", "damage", "losses", "texts", "train", "verdict"]

LETTERS, GAP, HIDDEN = 26, 26, 27
WORD, COPIES = 5, 4
TRAINED = 128
LENGTHS = (32, 64, 128, 256, 512)
MAPS = get_args(AttentionMap)
COUNTED, FROZEN = "relu2_ns", "relu2_ns, n frozen"
REMEDIES = (FROZEN, "relu2_norm", "softmax", "softmax_plus")
CLEAR = 0.02
"""Nats of loss that count as a difference; a repeated reading differs by less."""

Losses = Mapping[str, Sequence[float]]
"""By name of the map, the loss at each of `LENGTHS`."""


def texts(rows: int, length: int, random: np.random.Generator) -> Tensor:
    """Words of five random letters, each written four times, as (rows, length) letter numbers."""
    made = np.empty((rows, length), dtype=np.int64)
    for row in made:
        text: list[int] = [GAP] * int(random.integers(0, WORD + 2))
        while len(text) < length:
            text += [*random.integers(0, LETTERS, WORD).tolist(), GAP] * COPIES
        row[:] = text[:length]
    return torch.from_numpy(made)


def hide(text: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The text with 15 % of its letters hidden, and where."""
    hidden = torch.from_numpy(random.random(text.shape) < 0.15) & (text != GAP)
    return text.masked_fill(hidden, HIDDEN), hidden


class Reader(nn.Module):
    """Letters in, scores of letters out: two units, each normed after its residual."""

    def __init__(self, attention: AttentionMap, d_model: int = 48) -> None:
        super().__init__()
        self.letters = nn.Embedding(HIDDEN + 1, d_model)
        self.units = nn.ModuleList(
            GatedAttentionUnit(d_model, key_size=32, attention=attention) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(2))
        self.scores = nn.Linear(d_model, LETTERS)

    def freeze(self, length: int | None) -> None:
        """The n of every row: a number, or None for the count."""
        units: Any = self.units
        for unit in units:
            unit.length = length

    def forward(self, text: Tensor) -> Tensor:
        x = self.letters(text)
        for unit, norm in zip(self.units, self.norms, strict=True):
            x = norm(x + unit(x))
        scores: Tensor = self.scores(x)
        return scores

    def loss(self, text: Tensor, random: np.random.Generator) -> Tensor:
        """Mean cross-entropy of the hidden letters, in nats."""
        shown, hidden = hide(text, random)
        return F.cross_entropy(self(shown)[hidden], text[hidden])


def train(attention: AttentionMap, steps: int, seed: int) -> Reader:
    """A reader that has seen `TRAINED` letters at a time, and no other length."""
    torch.manual_seed(seed)
    random = np.random.default_rng((seed, 0))
    reader = Reader(attention)
    optimizer = torch.optim.Adam(reader.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, step / 20) * (1 - step / steps)
    )
    for _ in range(steps):
        optimizer.zero_grad()
        reader.loss(texts(8, TRAINED, random), random).backward()
        optimizer.step()
        schedule.step()
    return reader


@torch.no_grad()
def losses(reader: Reader, seed: int, letters: int = 32768) -> list[float]:
    """The loss at each length, on the same texts for every reader."""
    found = []
    for length in LENGTHS:
        random = np.random.default_rng((seed, 1, length))
        found.append(reader.loss(texts(letters // length, length, random), random).item())
    return found


def damage(row: Sequence[float], longer: bool) -> float:
    """How much higher the loss is at the worst of the longer or shorter lengths than at 128."""
    other = [
        x for x, n in zip(row, LENGTHS, strict=True) if (n > TRAINED if longer else n < TRAINED)
    ]
    return max(other) - row[LENGTHS.index(TRAINED)]


def verdict(measured: Losses) -> Verdict:
    """Holds if a counted n clearly harms, more than each remedy, on both sides; partly on one."""
    sides = []
    for longer in (False, True):
        counted = damage(measured[COUNTED], longer)
        least = min(counted - damage(measured[name], longer) for name in REMEDIES)
        sides.append(counted > CLEAR and least > CLEAR)
    if all(sides):
        return Verdict.HOLDS
    return Verdict.PARTLY if any(sides) else Verdict.FAILS


def measure(seed: int, data: Path | None, steps: int = 300) -> Finding:
    """Train one reader per map, read at every length; the data are not needed."""
    del data
    measured: dict[str, list[float]] = {}
    for attention in MAPS:
        reader = train(attention, steps, seed)
        measured[attention] = losses(reader, seed)
        if attention == COUNTED:
            reader.freeze(TRAINED)
            measured[FROZEN] = losses(reader, seed)
    return finding(measured)


def finding(measured: Losses) -> Finding:
    """Numbers, picture, verdict and words."""
    numbers: dict[str, Number] = {
        name: " / ".join(f"{loss:.2f}" for loss in row) for name, row in measured.items()
    }
    harm = {
        name: [f"{damage(row, longer):+.2f}" for longer in (False, True)]
        for name, row in measured.items()
    }
    shorter, longer = (
        sorted(REMEDIES, key=lambda name: damage(measured[name], side)) for side in (False, True)
    )
    return Finding(
        numbers=numbers,
        figure=_picture(measured),
        verdict=verdict(measured),
        comment_en=(
            f"Loss in nats at {' / '.join(map(str, LENGTHS))} letters, trained at {TRAINED}; "
            f"knowing nothing is {math.log(LETTERS):.2f}. Worst change on shorter and on longer "
            f"texts: n counted {harm[COUNTED][0]} and {harm[COUNTED][1]}, the same network with n "
            f"frozen {harm[FROZEN][0]} and {harm[FROZEN][1]}. Best of the remedies are "
            f"{shorter[0]} on shorter ({harm[shorter[0]][0]}) and {longer[0]} on longer texts "
            f"({harm[longer[0]][1]}); worst {shorter[-1]} ({harm[shorter[-1]][0]}) and "
            f"{longer[-1]} ({harm[longer[-1]][1]}). It holds where all remedies beat the counted n "
            "on both sides, partly where they do on one."
        ),
        comment_zh=(
            f"长度 {' / '.join(map(str, LENGTHS))} 处的损失（nat），训练长度为 {TRAINED}；瞎猜为 "
            f"{math.log(LETTERS):.2f}。在更短、更长文本上的最坏变化：n 取实际长度为 "
            f"{harm[COUNTED][0]}、{harm[COUNTED][1]}，同一个网络把 n 固定后为 {harm[FROZEN][0]}、"
            f"{harm[FROZEN][1]}。各种补救中，短文本上最好的是 {shorter[0]}"
            f"（{harm[shorter[0]][0]}），长文本上最好的是 {longer[0]}（{harm[longer[0]][1]}）；"
            f"最差的分别是 {shorter[-1]}"
            f"（{harm[shorter[-1]][0]}）和 {longer[-1]}（{harm[longer[-1]][1]}）。"
            "若两侧都是所有补救优于实际长度，则判为成立；只有一侧则为部分成立。"
        ),
        names_zh={FROZEN: "relu2_ns，n 固定"},
    )


def _picture(measured: Losses) -> str:
    def lines(names: Sequence[str]) -> list[Series]:
        labels = {FROZEN: (FROZEN, "relu2_ns，n 固定")}
        steps = [math.log2(length) for length in LENGTHS]
        return [Series(labels.get(n, n), steps, measured[n], dots=True) for n in names]

    return _lines(
        lines(MAPS), ("Six maps away from their length", "六种注意力离开训练长度")
    ) + _lines(
        lines([COUNTED, FROZEN]),
        ("relu2_ns, n counted or frozen", "relu2_ns：n 取实际长度或固定"),
    )


def _lines(series: Sequence[Series], title: tuple[str, str]) -> str:
    return line_chart(
        series,
        title=title,
        x_label=("log2 of the length; trained at 7 (128)", "长度的 log2；训练长度为 7（128）"),
        y_label=("loss of hidden letters, nats", "被遮字母的损失（nat）"),
    )


EXPERIMENT = Experiment(
    id="S18-length-transfer",
    system="S18",
    title_en="Attention maps away from the length they were trained at",
    title_zh="注意力函数离开训练长度之后",
    claim_en=(
        "relu² attention divided by the actual length transfers badly to other lengths; freezing "
        "n, normalising by the sum, or softmax transfers better."
    ),
    claim_zh=(
        "relu² 注意力若除以实际长度，换到别的长度效果变差；"
        "固定 n、除以总和或改用 softmax 迁移得更好。"
    ),
    published="fine-tuning after pretraining at 512 is worse with the actual n than with n = 512",
    published_zh="定长预训练之后微调：n 取实际长度不如固定为 512",
    measure=measure,
)
