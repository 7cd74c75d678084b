"""A small clean set and a large noisy one: which is primary? (S16, article 8907)

Digits: 60 images with right labels, and 1,140 of which 60 % carry a wrong one (and once 40 %).
Article 8907 suggests to learn from the large noisy set (primary) unless a step would raise the loss
on the clean one (auxiliary with a veto). Its rivals: either set alone, their sum, equal tasks, the
roles exchanged, and dropping noisy samples whose gradient disagrees with the clean gradient.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.optim.multitask import multitask_backward
from kexue.report.charts import Bar, bar_chart

__all__ = ["EXPERIMENT", "METHODS", "Result", "gain", "train", "verdict"]

CLEAN, NOISY, WRONG, FEWER = 60, 1140, 0.6, 0.4
SEEDS, STEPS, BATCH, LR = 5, 400, 64, 0.1
METHODS = {
    "clean only": ("clean only", "只用干净数据"),
    "noisy only": ("noisy only", "只用带噪数据"),
    "sum": ("sum", "求和"),
    "min-norm": ("min-norm", "最小范数"),
    "noisy primary, clean veto": ("noisy primary, clean veto", "带噪为主，干净否决"),
    "clean primary, noisy veto": ("clean primary, noisy veto", "干净为主，带噪否决"),
    "clean protected": ("clean protected", "保护干净任务"),
    "disagreeing samples dropped": ("disagreeing samples dropped", "丢弃冲突样本"),
}
ARTICLE, REVERSE = "noisy primary, clean veto", "clean primary, noisy veto"
RIVALS = ("noisy only", REVERSE)


@dataclass(frozen=True)
class Result:
    """Test accuracy in percent, loss on the clean set, percent of steps in conflict."""

    accuracy: float
    clean_loss: float
    conflicts: float


def train(method: str, seed: int, wrong: float = WRONG, steps: int = STEPS) -> Result:
    """Train an MLP 64-128-10 with SGD and one of the `METHODS`."""
    x, y, clean, noisy, test = _digits(seed, wrong)
    torch_seed = torch.Generator().manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    for p in model.parameters():
        bound = 1 / p.shape[-1] ** 0.5 if p.ndim == 2 else 0.0
        torch.nn.init.uniform_(p, -bound, bound, generator=torch_seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    conflicts = 0
    for _ in range(steps):
        batch = noisy[torch.randperm(NOISY, generator=torch_seed)[:BATCH]]
        optimizer.zero_grad()
        if method == "disagreeing samples dropped":
            _agreeing(model, x, y, clean, batch).backward()
        else:
            losses = [F.cross_entropy(model(x[part]), y[part]) for part in (clean, batch)]
            conflicts += _backward(method, losses, list(model.parameters()))
        optimizer.step()
    with torch.no_grad():
        right = (model(x[test]).argmax(1) == y[test]).double().mean()
        loss = F.cross_entropy(model(x[clean]), y[clean])
    return Result(100 * float(right), float(loss), 100 * conflicts / steps)


def _backward(method: str, losses: Sequence[Tensor], params: list[Tensor]) -> bool:
    if method in ("clean only", "noisy only"):
        losses[method == "noisy only"].backward()
        return False
    kind = {"sum": "sum", "min-norm": "min_norm", "clean protected": "protect_primary"}
    primary = None
    if method in (ARTICLE, REVERSE, "clean protected"):
        primary = int(method == ARTICLE)
    step = multitask_backward(
        losses,
        shared_params=params,
        method=kind.get(method, "veto"),  # type: ignore[arg-type]
        primary=primary,
    )
    return bool(step.conflicts[0, 1])


def _agreeing(model: torch.nn.Module, x: Tensor, y: Tensor, clean: Tensor, batch: Tensor) -> Tensor:
    """Loss of the noisy samples whose gradient has ⟨g_i, g_clean⟩ ≥ 0."""
    params = list(model.parameters())
    pull = torch.autograd.grad(F.cross_entropy(model(x[clean]), y[clean]), params)
    each = F.cross_entropy(model(x[batch]), y[batch], reduction="none")  # (BATCH,)
    v = torch.ones_like(each, requires_grad=True)  # Σ v_i g_i is linear in v, so its slope is g_i
    mixed = torch.autograd.grad(each, params, v, create_graph=True)
    inner = sum(((g * p).sum() for g, p in zip(mixed, pull, strict=True)), torch.zeros(()))
    kept = torch.autograd.grad(inner, v, retain_graph=True)[0] >= 0
    return (each * kept).sum() / kept.sum().clamp(min=1)


def _digits(seed: int, share: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.data).float() / 16
    y = torch.from_numpy(digits.target).long()
    random = torch.Generator().manual_seed(1000 + seed)
    order = torch.randperm(len(y), generator=random)
    clean, noisy, test = order[:CLEAN], order[CLEAN : CLEAN + NOISY], order[CLEAN + NOISY :]
    wrong = noisy[torch.rand(NOISY, generator=random) < share]
    y[wrong] = (y[wrong] + torch.randint(1, 10, (len(wrong),), generator=random)) % 10
    return x, y, clean, noisy, test


def gain(found: dict[str, list[Result]], method: str, rival: str) -> tuple[float, float]:
    """Mean difference of accuracy over the seeds, in points, and its standard error."""
    pairs = zip(found[method], found[rival], strict=True)
    differences = [a.accuracy - b.accuracy for a, b in pairs]
    return statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5


def verdict(*levels: dict[str, list[Result]]) -> Verdict:
    """Holds if at every level of noise the article's roles beat both rivals by two errors."""
    pairs = [(found, rival) for found in levels for rival in RIVALS]
    gains = [gain(found, ARTICLE, rival) for found, rival in pairs]
    better = [mean > 2 * error for mean, error in gains]
    if all(better):
        return Verdict.HOLDS
    return Verdict.PARTLY if any(better) else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Train with every method and several seeds; scikit-learn brings the data."""
    del data
    seeds = range(seed * SEEDS, (seed + 1) * SEEDS)
    found = {m: [train(m, k) for k in seeds] for m in METHODS}
    fewer = {m: [train(m, k, FEWER) for k in seeds] for m in (ARTICLE, *RIVALS)}
    return _finding(found, fewer)


def _finding(found: dict[str, list[Result]], fewer: dict[str, list[Result]]) -> Finding:
    numbers: dict[str, Number] = {}
    accuracy: list[Bar] = []
    loss: list[Bar] = []
    for method, results in found.items():
        right, left = [r.accuracy for r in results], [r.clean_loss for r in results]
        numbers[method] = (
            f"{statistics.mean(right):.1f} ± {statistics.stdev(right):.1f} %, "
            f"{statistics.mean(left):.3f}"
        )
        name = METHODS[method]
        accuracy.append(Bar(name, statistics.mean(right), low=min(right), high=max(right)))
        loss.append(Bar(name, statistics.mean(left), low=min(left), high=max(left)))
    names_zh = {method: zh for method, (_, zh) in METHODS.items()}
    words = []
    pairs = [(found, WRONG, rival) for rival in (*RIVALS, "sum")]
    for runs, share, rival in [*pairs, *((fewer, FEWER, rival) for rival in RIVALS)]:
        mean, error = gain(runs, ARTICLE, rival)
        words.append(f"{mean:+.1f} ± {error:.1f}")
        numbers[f"veto of the clean set − {rival}, {share:.0%} wrong"] = words[-1]
        names_zh[f"veto of the clean set − {rival}, {share:.0%} wrong"] = (
            f"干净集否决 − {METHODS[rival][1]}，{share:.0%} 标错"
        )
    numbers["steps with a veto"] = f"{statistics.mean(r.conflicts for r in found[ARTICLE]):.0f} %"
    figure = bar_chart(
        accuracy,
        title=("Test accuracy, 60 % of the noisy labels wrong", "测试准确率，60% 的带噪标签有误"),
        unit=(f"percent; mean and range of {SEEDS} seeds", f"百分比；{SEEDS} 个种子的均值与范围"),
    ) + bar_chart(
        loss,
        title=("Loss on the 60 clean samples", "60 个干净样本上的损失"),
        unit=("nats; mean and range", "奈特；均值与范围"),
        digits=2,
    )
    return Finding(
        numbers=numbers,
        figure=figure,
        verdict=verdict(found, fewer),
        comment_en=(
            f"Points of accuracy gained by the article's roles with 60 % wrong labels: {words[0]} "
            f"against noisy data alone, {words[1]} against the reverse roles, {words[2]} against "
            f"the plain sum; with 40 %: {words[3]} and {words[4]} (paired over {SEEDS} seeds, "
            "± standard error; two errors count). The table gives accuracy and clean loss. A veto "
            "only removes: where both sets agree, the clean one adds nothing."
        ),
        comment_zh=(
            f"标签错 60% 时，文章的分工带来的准确率增益（百分点）：相对只用带噪数据 {words[0]}，"
            f"相对主次对调 {words[1]}，相对直接求和 {words[2]}；错 40% 时前两项为 {words[3]} 与 "
            f"{words[4]}（{SEEDS} 个种子配对，± 标准误；超过两个标准误才算数）。表中为准确率与"
            "干净损失。否决只做减法：两边一致时，干净数据不提供任何信号。"
        ),
        names_zh=names_zh | {"steps with a veto": "触发否决的步数"},
    )


EXPERIMENT = Experiment(
    id="S16-noisy-labels",
    system="S16",
    title_en="Noisy labels: who vetoes whom",
    title_zh="带噪标签：谁来否决谁",
    claim_en=(
        "With a small clean and a large noisy set, take the noisy one as primary and let the clean "
        "one veto: better than the noisy data alone and than the roles exchanged."
    ),
    claim_zh="有少量干净数据和大量带噪数据时，以带噪为主、由干净数据否决，好过只用带噪数据，也好过主次对调。",
    published="Proposed without numbers (article 8907).",
    published_zh="文章 8907 提出了这一用法，没有给出数值。",
    measure=measure,
)
