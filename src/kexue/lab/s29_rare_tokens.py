"""Lion/Tiger优化器训练下的Embedding异常和对策 (S29): what becomes of a token that is seen no more.

A model learns which token follows which, half of the time; else any token may follow. One token
occurs in the first batches only. Under a sign optimizer its row of the embedding table keeps moving
by the sign of an old momentum, until the decay stops it at ±1/λ; with lazy rows it stays where it
was, and under AdamW it hardly moves.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.optim.lion import Lion
from kexue.optim.tiger import AUTHOR_EXACT, Tiger
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "largest_entries", "verdict"]

TOKENS, DIM, BATCH = 64, 16, 32
STEPS, SEEN, EVERY = 3000, 20, 50
ALPHA, DECAY = 5e-3, 0.01
RARE = 0
BOUND = 1 / DECAY

MAKERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "Tiger, as published": lambda m: Tiger(m, lr=ALPHA, weight_decay=DECAY, **AUTHOR_EXACT),
    "Tiger, lazy rows": lambda m: Tiger(m, lr=ALPHA, weight_decay=DECAY),
    "Lion": lambda m: Lion(m.parameters(), lr=1e-3, weight_decay=DECAY),
    "AdamW": lambda m: AdamW(m.parameters(), lr=1e-3, weight_decay=DECAY),
}
NAMES_ZH = {"Tiger, as published": "Tiger（原版）", "Tiger, lazy rows": "Tiger（惰性行）"}


def largest_entries(
    make: Callable[[nn.Module], Optimizer], seed: int, steps: int = STEPS
) -> tuple[list[float], float]:
    """The largest |entry| of the rare row every so many steps, and of all other rows at the end."""
    torch.manual_seed(seed)
    table = nn.Embedding(TOKENS, DIM)
    nn.init.normal_(table.weight, std=0.02)
    model = nn.Sequential(table, nn.Linear(DIM, TOKENS))
    optimizer = make(model)
    follows = torch.randperm(TOKENS)
    path = []
    for step in range(steps + 1):
        if step % EVERY == 0:
            path.append(table.weight[RARE].abs().max().item())
        ids = torch.randint(1, TOKENS, (BATCH,))
        if step < SEEN:
            ids[0] = RARE
        noise = torch.randint(TOKENS, (BATCH,))
        target = torch.where(torch.rand(BATCH) < 0.5, follows[ids], noise)
        F.cross_entropy(model(ids), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return path, table.weight[1:].abs().max().item()


def verdict(paths: dict[str, list[float]]) -> Verdict:
    """Published Tiger ends within 1 % of 1/λ; lazy rows stay; AdamW's moves less than 1."""
    first = math.ceil(SEEN / EVERY)
    lazy, adamw = paths["Tiger, lazy rows"], paths["AdamW"]
    said = (
        abs(paths["Tiger, as published"][-1] - BOUND) <= 0.01 * BOUND,
        lazy[-1] == lazy[first],
        abs(adamw[-1] - adamw[first]) < 1,
    )
    if all(said):
        return Verdict.HOLDS
    return Verdict.PARTLY if any(said) else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Train with each optimizer; the data are made here."""
    del data
    state = torch.get_rng_state()
    found = {name: largest_entries(make, seed) for name, make in MAKERS.items()}
    torch.set_rng_state(state)
    paths = {name: path for name, (path, _) in found.items()}
    numbers: dict[str, Number] = {
        f"rare row, {name}": f"{path[math.ceil(SEEN / EVERY)]:.3f} → {path[-1]:.3f}"
        for name, path in paths.items()
    }
    numbers |= {f"other rows, {name}": round(others, 2) for name, (_, others) in found.items()}
    return Finding(
        numbers=numbers,
        figure=_picture(paths),
        verdict=verdict(paths),
        comment_en=(
            f"Largest |entry| of the row {EVERY} steps into training and at the end ({STEPS:,} "
            f"steps); the token occurs in the first {SEEN} batches. 1/λ is {BOUND:g}. Lion's steps "
            "do not grow with the row, so it drifts in a straight line to the same bound."
        ),
        comment_zh=(
            f"该行最大分量：第 {EVERY} 步与结束时（{STEPS:,} 步）；"
            f"这个 token 只在前 {SEEN} 个批次出现。1/λ 为 {BOUND:g}。"
            "Lion 的步长不随该行变大，所以沿直线漂向同一个界。"
        ),
        names_zh={
            **{f"rare row, {n}": f"罕见 token 的行，{NAMES_ZH.get(n, n)}" for n in paths},
            **{f"other rows, {n}": f"其余各行，{NAMES_ZH.get(n, n)}" for n in paths},
        },
    )


def _picture(paths: dict[str, list[float]]) -> str:
    return line_chart(
        [
            Series(
                (name, NAMES_ZH.get(name, name)),
                [EVERY * i / 1000 for i in range(len(path))],
                [math.log10(value) for value in path],
            )
            for name, path in paths.items()
        ],
        title=("The row of a token that is seen no more", "不再出现的 token 的那一行"),
        x_label=("thousands of steps", "步数（千步）"),
        y_label=("log10 of the largest |entry|", "最大分量绝对值的 log10"),
        reference=("1/λ", math.log10(BOUND)),
    )


EXPERIMENT = Experiment(
    id="S29-rare-tokens",
    system="S29",
    title_en="A token that is seen no more runs away to ±1/λ",
    title_zh="不再出现的 token，词向量漂到 ±1/λ",
    claim_en=(
        "Under Tiger as published, the embedding row of a token that no longer occurs runs to "
        "±1/λ; with lazy rows it stays, and under Adam there is no such drift."
    ),
    claim_zh=(
        "用原版 Tiger 训练时，不再出现的 token，其词向量会漂到 ±1/λ；"
        "惰性行能让它不动，Adam 则没有这种漂移。"
    ),
    published="7B pretraining with Tiger, λ = 0.01: components at exactly ±100",
    published_zh="用 Tiger 预训练 7B 模型，λ = 0.01：分量恰为 ±100",
    measure=measure,
)
