"""Sampling minimises a metric that likelihood training leaves behind (S26).

A linear classifier of scikit-learn's breast-cancer data (380 to train, 189 to test) is paid for by
a cost without gradient: 5 for a missed malignant case, 1 for a false alarm, per case. After 150
steps of gradient descent on the logistic loss, three go on for 300 steps each:

    likelihood   the same gradient descent
    around zero  MGS without the gradient, π = 1
    MGS          half the candidates around the likelihood's step, π = 1/2
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.optim.guided_search import MGS
from kexue.report.charts import Series, line_chart

__all__ = ["EXPERIMENT", "Split", "cost", "curves", "gain", "judge", "split"]

TEST, RATE, START, STEPS, SEEDS = 189, 0.2, 150, 300, 5
CANDIDATES, SIGMA, TEMPERATURE = 8, 0.05, 0.003
METHODS = {
    "likelihood": ("likelihood", "最大似然"),
    "zero": ("sampling around zero", "只在零附近采样"),
    "mgs": ("MGS", "MGS"),
}
Split = tuple[Tensor, Tensor, Tensor, Tensor]


def split(seed: int) -> Split:
    """Standardised features and labels (1 malignant) of the training and the test cases."""
    from sklearn.datasets import load_breast_cancer

    x, benign = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng((26, seed)).permutation(len(x))
    test, train = order[:TEST], order[TEST:]
    x = (x - x[train].mean(0)) / x[train].std(0)
    features, malignant = torch.tensor(x, dtype=torch.float64), torch.tensor(1.0 - benign)
    return features[train], malignant[train], features[test], malignant[test]


def cost(scores: Tensor, malignant: Tensor) -> Tensor:
    """5 per missed malignant case and 1 per false alarm, averaged over the cases."""
    found, sick = scores > 0, malignant > 0.5
    return (5.0 * (sick & ~found) + 1.0 * (found & ~sick)).mean()


def curves(seed: int, *, steps: int = STEPS) -> dict[str, tuple[list[float], float]]:
    """Method → cost on the training cases at the start and after every step, cost on the test."""
    x, y, test_x, test_y = split(seed)

    def task_loss(model: nn.Module, batch: None) -> Tensor:
        return cost(model(x)[:, 0], y)

    def log_loss(model: nn.Module, batch: None) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(x)[:, 0], y)

    found = {}
    for method in METHODS:
        model = nn.Linear(x.shape[1], 1, dtype=torch.float64)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        descent = torch.optim.SGD(model.parameters(), lr=RATE)
        search = MGS(
            model,
            task_loss,
            log_loss,
            n_candidates=CANDIDATES,
            sigma=SIGMA,
            noise="absolute",
            mixture=1.0 if method == "zero" else 0.5,
            temperature=TEMPERATURE,
            step_size=RATE,
            max_grad_norm=None,
            score_current=False,
            seed=seed,
        )
        trained: list[float] = []
        for step in range(START + steps):
            if step >= START:
                trained.append(_now(task_loss, model))
            if step < START or method == "likelihood":
                descent.zero_grad()
                log_loss(model, None).backward()
                descent.step()
            else:
                search.step(None)
        with torch.no_grad():
            unseen = cost(model(test_x)[:, 0], test_y).item()
        found[method] = ([*trained, _now(task_loss, model)], unseen)
    return found


def _now(loss: Callable[[nn.Module, None], Tensor], model: nn.Module) -> float:
    with torch.no_grad():
        return loss(model, None).item()


def gain(likelihood: Sequence[float], mgs: Sequence[float]) -> tuple[float, float]:
    """Mean difference over the splits and its standard error."""
    gains = [a - b for a, b in zip(likelihood, mgs, strict=True)]
    return mean(gains), stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf


def judge(start: Sequence[float], likelihood: Sequence[float], mgs: Sequence[float]) -> Verdict:
    """Holds if MGS ends below its start and below likelihood by two standard errors."""
    difference, error = gain(likelihood, mgs)
    if difference <= 0 or mean(mgs) >= mean(start):
        return Verdict.FAILS
    return Verdict.HOLDS if difference > 2 * error else Verdict.PARTLY


def measure(seed: int, data: Path | None) -> Finding:
    """Five splits, each with its own noise; scikit-learn brings the data."""
    del data
    runs = [curves(SEEDS * seed + k) for k in range(SEEDS)]
    ends = {m: [run[m][0][-1] for run in runs] for m in METHODS}
    tests = {m: mean(run[m][1] for run in runs) for m in METHODS}
    start = [run["mgs"][0][0] for run in runs]
    difference, error = gain(ends["likelihood"], ends["mgs"])
    numbers: dict[str, Number] = {"training cost at the start": f"{mean(start):.4f}"}
    for method, (name, _) in METHODS.items():
        numbers[f"training cost, {name}"] = f"{mean(ends[method]):.4f}"
    numbers["MGS below likelihood by"] = f"{difference:.4f} ± {error:.4f}"
    for method, (name, _) in METHODS.items():
        numbers[f"test cost, {name}"] = f"{tests[method]:.4f}"
    names_zh = {
        "training cost at the start": "训练代价，起点",
        "MGS below likelihood by": "MGS 比最大似然低",
    }
    for name, name_zh in METHODS.values():
        names_zh[f"training cost, {name}"] = f"训练代价，{name_zh}"
        names_zh[f"test cost, {name}"] = f"测试代价，{name_zh}"
    lines = [
        Series(
            METHODS[m],
            [float(step) for step in range(0, STEPS + 1, 2)],
            [mean(run[m][0][step] for run in runs) for step in range(0, STEPS + 1, 2)],
        )
        for m in METHODS
    ]
    picture = line_chart(
        lines,
        title=("The metric itself, on the training cases", "训练集上的指标本身"),
        x_label=("step after the likelihood start", "从最大似然的起点算起的步数"),
        y_label=("cost per case: missed 5, false alarm 1", "每例代价：漏诊 5，误报 1"),
    )
    return Finding(
        numbers, picture, judge(start, ends["likelihood"], ends["mgs"]), *_comment(tests), names_zh
    )


def _comment(tests: dict[str, float]) -> tuple[str, str]:
    over = tests["mgs"] > tests["likelihood"]
    en, zh = (
        ("the metric of 380 cases is over-fitted, so hold data out", "380 例的指标被过拟合了")
        if over
        else ("no over-fitting shows here", "这里看不出过拟合")
    )
    mgs, likelihood = f"{tests['mgs']:.3f}", f"{tests['likelihood']:.3f}"
    return (
        f"Means over {SEEDS} splits with {CANDIDATES} candidates per step. On the cases not "
        f"trained on, MGS pays {mgs} and likelihood {likelihood}: {en}.",
        f"{SEEDS} 种划分的平均，每步 {CANDIDATES} 个候选。在未参与训练的样本上，MGS 的代价为 "
        f"{mgs}，最大似然为 {likelihood}：{zh}。",
    )


EXPERIMENT = Experiment(
    id="S26-metric",
    system="S26",
    title_en="A metric without gradient, minimised by sampling",
    title_zh="用采样直接优化没有梯度的指标",
    claim_en=(
        "Sampled updates weighted by a cost without gradient lower that cost further than more "
        "likelihood training does."
    ),
    claim_zh="按不可导的代价给采样出的更新量加权，比继续做最大似然训练更能降低这一代价。",
    published="arXiv 2006.03158: gains on text generation metrics with 4 candidates per step",
    published_zh="arXiv 2006.03158：每步 4 个候选，文本生成指标即有提升",
    measure=measure,
)
