"""Copying by pointer with ever smaller heads, and the two cures (S25).

A sequence of 32 tokens; token i holds one of 16 symbols, its position, and a pointer π(i), with π a
fresh random permutation for every sequence. The answer at i is the symbol at position π(i): one
attention layer of width 64 between embeddings and a linear output, trained from nothing. Every head
has to find one position among 32, with 64/H numbers per key. Three layers, for H = 1 … 32:

    multi-head attention     key size 64/H
    wide keys                key size 32 (64/H where that is more)
    talking heads            key size 64/H, logits and weights mixed, starting at the identity
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.nn.talking_heads_attention import TalkingHeadsAttention
from kexue.nn.wide_key import WideKeyAttention
from kexue.report.charts import Series, line_chart

__all__ = ["DESIGNS", "EXPERIMENT", "PointerNet", "accuracy", "judge"]

TOKENS, WIDTH, SYMBOLS, KEY_SIZE = 32, 64, 16, 32
HEADS, STEPS, BATCH, RATE, TESTED = (1, 2, 4, 8, 16, 32), 200, 32, 5e-3, 256
COLLAPSE, NEAR = 10.0, 2.0
"""Points of accuracy: lost at least, to count as a collapse; lost at most, to count as restored."""
DESIGNS: dict[str, Callable[[int], nn.Module]] = {
    "plain": lambda heads: WideKeyAttention(WIDTH, heads),
    "wide": lambda heads: WideKeyAttention(WIDTH, heads, max(KEY_SIZE, WIDTH // heads)),
    "talking": lambda heads: TalkingHeadsAttention(WIDTH, heads),
}
NAMES = {
    "plain": ("multi-head attention", "多头注意力"),
    "wide": ("key size 32", "key size 32"),
    "talking": ("talking heads", "头间混合"),
}
Table = Mapping[str, Mapping[int, float]]


class PointerNet(nn.Module):
    """Embeddings, one attention layer without residual, a linear output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.symbol = nn.Embedding(SYMBOLS, WIDTH)
        self.pointer = nn.Embedding(TOKENS, WIDTH)
        self.position = nn.Embedding(TOKENS, WIDTH)
        self.layer = layer
        self.output = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, symbols: Tensor, pointers: Tensor) -> Tensor:
        x = self.symbol(symbols) + self.pointer(pointers) + self.position.weight
        logits: Tensor = self.output(self.layer(x))
        return logits


def _draw(rows: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    symbols = torch.randint(SYMBOLS, (rows, TOKENS), generator=source)
    return symbols, torch.rand(rows, TOKENS, generator=source).argsort(dim=1)


def accuracy(design: str, heads: int, *, steps: int = STEPS, seed: int = 0) -> float:
    """Percent of answers on fresh sequences that are right after training."""
    source = torch.Generator().manual_seed(25_800 + seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(25_900 + seed)
        net = PointerNet(DESIGNS[design](heads))
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(steps):
        symbols, pointers = _draw(BATCH, source)
        wanted = symbols.gather(1, pointers)
        loss = F.cross_entropy(net(symbols, pointers).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        symbols, pointers = _draw(TESTED, source)
        right = net(symbols, pointers).argmax(dim=-1) == symbols.gather(1, pointers)
    return 100 * float(right.double().mean())


def judge(found: Table) -> tuple[Verdict, list[bool]]:
    """Three statements: many small heads lose; wide keys restore; talking heads restore."""
    best = max(found["plain"].values())
    most = max(found["plain"])
    kept = [
        found["plain"][most] <= best - COLLAPSE,
        min(found["wide"].values()) >= best - NEAR,
        min(found["talking"].values()) >= best - NEAR,
    ]
    if all(kept):
        return Verdict.HOLDS, kept
    return Verdict.PARTLY if kept[0] and any(kept[1:]) else Verdict.FAILS, kept


def measure(seed: int, data: Path | None) -> Finding:
    """All designs with all numbers of heads; the data are not needed."""
    del data
    found = {
        design: {heads: accuracy(design, heads, seed=seed) for heads in HEADS} for design in DESIGNS
    }
    verdict, kept = judge(found)
    numbers: dict[str, Number] = {}
    names_zh = {}
    for design, (english, chinese) in NAMES.items():
        key = f"H = {', '.join(map(str, HEADS))}: {english}"
        numbers[key] = ", ".join(f"{found[design][heads]:.1f}" for heads in HEADS) + " %"
        names_zh[key] = f"H = {'、'.join(map(str, HEADS))}：{chinese}"
        size = sum(p.numel() for p in DESIGNS[design](HEADS[-1]).parameters())
        numbers[f"parameters at H = 32: {english}"] = size
        names_zh[f"parameters at H = 32: {english}"] = f"H = 32 时的参数量：{chinese}"
    words = [("yes", "是") if one else ("no", "否") for one in kept]
    return Finding(
        numbers,
        _picture(found),
        verdict,
        f"One run of {STEPS} steps per point, one seed; chance is {100 / SYMBOLS:.1f} %. 32 heads "
        f"of size 2 lose at least {COLLAPSE:g} points: {words[0][0]}; with keys of size 32 no "
        f"number of heads loses more than {NEAR:g}: {words[1][0]}; nor with talking heads: "
        f"{words[2][0]}. Wide keys do it with more parameters, talking heads with 2 H² more. A "
        "head of size 2 could point at any position in principle; it is training that does not "
        "get there in this time.",
        f"每个点训练 {STEPS} 步，一个种子；瞎猜为 {100 / SYMBOLS:.1f}%。32 个维数为 2 的头至少掉 "
        f"{COLLAPSE:g} 个点：{words[0][1]}；key size 为 32 时，无论多少个头掉点都不超过 {NEAR:g}："
        f"{words[1][1]}；头间混合也是如此：{words[2][1]}。加宽的键多用了参数，"
        "头间混合只多 2 H² 个。维数为 2 的头原则上也能指向任何位置，只是这么多步训练不到。",
        names_zh,
    )


def _picture(found: Table) -> str:
    lines = [
        Series(
            label,
            [heads.bit_length() - 1 for heads in HEADS],
            [found[design][heads] for heads in HEADS],
            dots=True,
        )
        for design, label in NAMES.items()
    ]
    return line_chart(
        lines,
        title=("Copying by pointer, width 64", "按指针复制，宽度 64"),
        x_label=("log₂ of the number of heads", "头数的 log₂"),
        y_label=("percent right", "正确率（%）"),
    )


EXPERIMENT = Experiment(
    id="S25-permutation",
    system="S25",
    title_en="Many small heads lose their way; two cures",
    title_zh="头多而小就找不到位置：两种补救",
    claim_en=(
        "At fixed width, attention with many small heads fails where few large heads succeed; a "
        "larger key size or talking heads restore it."
    ),
    claim_zh=(
        "宽度固定时，头多而小的注意力做不到头少而大时能做到的事；加大 key size 或头间混合可以恢复。"
    ),
    published="at fixed width plain attention degrades with many heads, talking heads do not",
    published_zh="宽度固定时，头多了常规注意力变差，头间混合不会",
    measure=measure,
)
