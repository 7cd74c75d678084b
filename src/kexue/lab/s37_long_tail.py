"""Losses on long-tailed digits: which ones keep the rare classes (S37).

Class k of scikit-learn's digits keeps 100·0.03^{k/9} training images, 100 of "0" down to 3 of "9";
the test set has 60 of each. A network 64-64-10 takes 400 full-batch steps of Adam. All seeds train
at once, as one batch of independent networks: Adam moves every weight by itself, so each is trained
as if it were alone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.losses.imbalance import (
    class_balanced_weights,
    inverse_frequency_weights,
    ldam_loss,
    ldam_margins,
    logit_adjusted_loss,
    posthoc_adjusted,
    prior_from_counts,
    softmax_cross_entropy,
    softmax_focal_loss,
)
from kexue.report.charts import Bar, Series, bar_chart, line_chart

__all__ = ["COUNTS", "EXPERIMENT", "clearly_above", "long_tail", "recalls", "verdict"]

SEEDS, STEPS, TEST, HIDDEN = 8, 400, 60, 64
COUNTS = [round(100 * 0.03 ** (k / 9)) for k in range(10)]
PRIOR = prior_from_counts(COUNTS, smoothing=0.0)
POST_HOC = "cross-entropy, adjusted after"


def smooth_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """−p of the right class."""
    return -logits.softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def softened_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """−softmax(−z)_y log softmax(z)_y, the author's form for several classes."""
    index = labels.unsqueeze(-1)
    weight = (-logits).softmax(-1).gather(-1, index)
    return -(weight * logits.log_softmax(-1).gather(-1, index)).squeeze(-1)


each = partial(partial, reduction="none")
LOSSES: dict[str, Callable[..., Any]] = {
    "cross-entropy": each(softmax_cross_entropy),
    "weights 1/n": each(softmax_cross_entropy, class_weight=inverse_frequency_weights(COUNTS)),
    "class-balanced 0.99": each(
        softmax_cross_entropy, class_weight=class_balanced_weights(COUNTS, beta=0.99)
    ),
    "adjusted, τ = 0.5": each(logit_adjusted_loss, prior=PRIOR, tau=0.5),
    "adjusted, τ = 1": each(logit_adjusted_loss, prior=PRIOR, tau=1.0),
    "adjusted, τ = 1.5": each(logit_adjusted_loss, prior=PRIOR, tau=1.5),
    "focal, γ = 2": each(softmax_focal_loss, gamma=2.0),
    "LDAM, s = 1": each(ldam_loss, margins=ldam_margins(COUNTS), scale=1.0),
    "accuracy, −p": smooth_accuracy,
    "softened softmax": softened_softmax,
}
NAMES_ZH = {
    "cross-entropy": "交叉熵",
    POST_HOC: "交叉熵，事后调整",
    "weights 1/n": "权重 1/n",
    "class-balanced 0.99": "class-balanced 0.99",
    "adjusted, τ = 0.5": "logit 调整，τ = 0.5",
    "adjusted, τ = 1": "logit 调整，τ = 1",
    "adjusted, τ = 1.5": "logit 调整，τ = 1.5",
    "accuracy, −p": "准确率，−p",
    "softened softmax": "多分类软化",
}


def long_tail(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels with `COUNTS` of each class, then test images and labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for k, count in enumerate(COUNTS):
        members = (labels == k).nonzero().squeeze(-1)
        members = members[torch.randperm(len(members), generator=generator)]
        test.append(members[:TEST])
        train.append(members[TEST : TEST + count])
    train_rows, test_rows = torch.cat(train), torch.cat(test)
    return images[train_rows], labels[train_rows], images[test_rows], labels[test_rows]


def recalls(loss: Callable[..., Any], seeds: Sequence[int], steps: int) -> dict[str, Tensor]:
    """Recall of every class in percent, (seeds, 10), read from the logits as they are.

    Under "after" the same with the prior taken out of the logits.
    """
    x, y, x_test, y_test = (
        torch.stack(one) for one in zip(*(long_tail(s) for s in seeds), strict=True)
    )
    parameters = _networks(seeds)
    optimizer = torch.optim.Adam(parameters, lr=3e-3, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(_logits(parameters, x), y).mean(dim=1).sum().backward()
        optimizer.step()
    with torch.no_grad():
        logits = _logits(parameters, x_test)  # (seeds, test, 10)
    return {
        name: 100 * (z.argmax(-1) == y_test).float().view(len(seeds), 10, TEST).mean(-1)
        for name, z in (("as trained", logits), ("after", posthoc_adjusted(logits, PRIOR)))
    }


def _networks(seeds: Sequence[int]) -> list[Tensor]:
    """One network per seed, side by side, initialised as nn.Linear is."""
    shapes = [(64, HIDDEN, 64), (1, HIDDEN, 64), (HIDDEN, 10, HIDDEN), (1, 10, HIDDEN)]
    drawn = []
    for rows, columns, fan_in in shapes:
        one = [
            torch.rand(rows, columns, generator=torch.Generator().manual_seed(10_000 * s + rows))
            for s in seeds
        ]
        drawn.append(((torch.stack(one) * 2 - 1) / fan_in**0.5).requires_grad_())
    return drawn


def _logits(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    first, first_bias, last, last_bias = parameters
    return torch.relu(x @ first + first_bias) @ last + last_bias


def clearly_above(ours: Tensor, other: Tensor) -> bool:
    """Whether the mean difference over the same seeds exceeds twice its standard error."""
    difference = (ours - other).double()
    error = difference.std() / len(difference) ** 0.5
    return bool(difference.mean() > 2 * error)


def verdict(balanced: Mapping[str, Tensor]) -> Verdict:
    """From the balanced accuracies per seed: inside the logarithm against outside; −p against both.

    Holds if logit adjustment (τ = 1) is clearly above both class weights, and accuracy itself
    clearly below cross-entropy; partly if one of the two is so.
    """
    adjusted = balanced["adjusted, τ = 1"]
    inside = all(
        clearly_above(adjusted, balanced[name]) for name in ("weights 1/n", "class-balanced 0.99")
    )
    fails = clearly_above(balanced["cross-entropy"], balanced["accuracy, −p"])
    if inside and fails:
        return Verdict.HOLDS
    return Verdict.PARTLY if inside or fails else Verdict.FAILS


def measure(seed: int, data: Path | None) -> Finding:
    """Train every loss on the same splits; the data are not needed."""
    del data
    seeds = [seed + k for k in range(SEEDS)]
    found: dict[str, Tensor] = {}
    for name, loss in LOSSES.items():
        both = recalls(loss, seeds, STEPS)
        found[name] = both["as trained"]
        if name == "cross-entropy":
            found[POST_HOC] = both["after"]
    balanced = {name: one.mean(dim=1) for name, one in found.items()}
    numbers: dict[str, Number] = {
        name: (
            f"{balanced[name].mean():.1f} ± {balanced[name].std():.1f} %, "
            f"{one[:, :3].mean():.1f} / {one[:, -3:].mean():.1f} %"
        )
        for name, one in found.items()
    }
    picture = _accuracy_picture(balanced) + _recall_picture(found)
    return Finding(numbers, picture, verdict(balanced), *_comment(balanced), NAMES_ZH)


def _accuracy_picture(balanced: Mapping[str, Tensor]) -> str:
    bars = [
        Bar(
            (name, NAMES_ZH.get(name, name)),
            float(one.mean()),
            chance=10.0,
            low=float(one.min()),
            high=float(one.max()),
        )
        for name, one in balanced.items()
    ]
    return bar_chart(
        bars,
        title=("Balanced accuracy on long-tailed digits", "长尾手写数字上的平衡准确率"),
        unit=(f"percent, mean and range of {SEEDS} seeds", f"百分比，{SEEDS} 个种子的均值与范围"),
        top=100,
    )


def _recall_picture(found: Mapping[str, Tensor]) -> str:
    shown = ("cross-entropy", "weights 1/n", "adjusted, τ = 1", "focal, γ = 2", "accuracy, −p")
    lines = [
        Series(
            (name, NAMES_ZH.get(name, name)), range(10), found[name].mean(dim=0).tolist(), dots=True
        )
        for name in (*shown, "softened softmax")
    ]
    return line_chart(
        lines,
        title=("Recall of every class", "各类别的召回率"),
        x_label=(
            f"digit; training images from {COUNTS[0]} of 0 to {COUNTS[-1]} of 9",
            f"数字；训练图片从 0 的 {COUNTS[0]} 张到 9 的 {COUNTS[-1]} 张",
        ),
        y_label=("percent of the test images of the class", "占该类测试图片的百分比"),
        height=340,
    )


def _comment(balanced: Mapping[str, Tensor]) -> tuple[str, str]:
    mean = {name: float(one.mean()) for name, one in balanced.items()}
    values = [
        mean[name]
        for name in ("adjusted, τ = 1", "weights 1/n", "class-balanced 0.99", "cross-entropy")
    ]
    failed = [mean["accuracy, −p"], mean["softened softmax"]]
    return (
        "Balanced accuracy: the prior inside the logarithm {:.1f} %, weights outside {:.1f} and "
        "{:.1f} %, cross-entropy {:.1f} %. ".format(*values)
        + "Maximising accuracy itself gives {:.1f} %, the softened form for several classes "
        "{:.1f} %. ".format(*failed)
        + "The numbers are mean ± standard deviation, then the recall of the three most frequent "
        "and the three rarest classes.",
        "平衡准确率：先验放在对数里 {:.1f}%，权重放在对数外 {:.1f}% 和 {:.1f}%，"
        "交叉熵 {:.1f}%。".format(*values)
        + "直接最大化准确率只有 {:.1f}%，多分类的软化形式只有 {:.1f}%。".format(*failed)
        + "各行数字依次是均值 ± 标准差，以及最常见三类、最稀有三类的召回率。",
    )


EXPERIMENT = Experiment(
    id="S37-long-tail",
    system="S37",
    title_en="Losses on a long tail",
    title_zh="长尾数据上的各种损失",
    claim_en=(
        "A prior inside the logarithm (logit adjustment) finds rare classes better than weights "
        "outside it, and maximising a smooth accuracy fails."
    ),
    claim_zh=(
        "把先验放进对数里（logit 调整）比在对数外加权更能照顾稀有类别；直接最大化光滑准确率行不通。"
    ),
    published="the article argues it from the gradients; no experiment of its own",
    published_zh="文章从梯度出发论证，没有给实验",
    measure=measure,
)
