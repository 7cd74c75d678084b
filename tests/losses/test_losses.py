"""Over all losses that are made of independent terms: parts add up, dtypes, NaN, determinism."""

from functools import partial

import pytest
import torch

from kexue.losses import (
    f1_weighted_bce,
    flat_nce_loss,
    info_nce_loss,
    ldam_loss,
    logit_adjusted_loss,
    multilabel_cross_entropy,
    r_drop_loss,
    sigmoid_dice_loss,
    sigmoid_focal_loss,
    sigmoid_ghm_loss,
    sigmoid_hard_truncated_loss,
    sigmoid_soft_truncated_loss,
    softmax_cross_entropy,
    softmax_focal_loss,
    zlpr_loss,
)
from kexue.losses.flooding import flooding

ROWS, CLASSES = 12, 5
PRIOR = [0.4, 0.3, 0.15, 0.1, 0.05]


def labels():
    return torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(1))


def elements():
    generator = torch.Generator().manual_seed(2)
    return (torch.rand(ROWS, CLASSES, generator=generator) < 0.4).double()


def positives():
    return torch.stack([labels(), torch.full((ROWS,), -1)], dim=1)


def other_logits():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64)


def sparse(scores, index, reduction):
    return multilabel_cross_entropy(scores, positive_index=index, reduction=reduction)


def flooded_samples(scores, label, reduction):
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    terms = torch.nn.functional.cross_entropy(wide, label, reduction="none")
    return flooding(terms, 1.5, mode="sample", reduction=reduction)


GHM = {"counts": torch.arange(1.0, 11.0)}
LOSSES = {
    "info_nce": (info_nce_loss, labels),
    "flat_nce": (flat_nce_loss, labels),
    "multilabel, dense": (multilabel_cross_entropy, elements),
    "multilabel, sparse": (sparse, positives),
    "softmax cross-entropy": (softmax_cross_entropy, labels),
    "softmax cross-entropy, weighted": (
        partial(softmax_cross_entropy, class_weight=[1.0, 2.0, 0.5, 3.0, 1.0]),
        labels,
    ),
    "softmax focal": (softmax_focal_loss, labels),
    "sigmoid focal": (sigmoid_focal_loss, elements),
    "logit adjustment": (partial(logit_adjusted_loss, prior=PRIOR), labels),
    "LDAM": (partial(ldam_loss, margins=[0.1, 0.2, 0.3, 0.4, 0.5], scale=2.0), labels),
    "hard truncated": (sigmoid_hard_truncated_loss, elements),
    "soft truncated": (sigmoid_soft_truncated_loss, elements),
    "F1-weighted, F given": (partial(f1_weighted_bce, f1=0.4), elements),
    "Dice by example": (partial(sigmoid_dice_loss, per_example=True), elements),
    "GHM, counts given": (partial(sigmoid_ghm_loss, **GHM), elements),
    "ZLPR": (zlpr_loss, elements),
    "R-Drop": (r_drop_loss, other_logits),
    "flooding by sample": (flooded_samples, labels),
}
every = pytest.mark.parametrize("name", LOSSES)


def scores(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64).to(dtype)


@every
def test_accumulated_parts_have_the_gradient_of_the_large_batch(name):
    loss, targets = LOSSES[name]
    whole, parts, y = scores().requires_grad_(), scores().requires_grad_(), targets()
    mean = loss(whole, y, reduction="mean")
    mean.backward()
    pairs = [
        loss(parts[rows], y[rows], reduction="sum_and_count")
        for rows in (slice(0, 5), slice(5, 6), slice(6, ROWS))
    ]
    count = sum(float(count) for _, count in pairs)
    for total, _ in pairs:
        (total / count).backward()
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(sum(total for total, _ in pairs).detach() / count, mean.detach())


@every
def test_the_four_reductions_agree(name):
    loss, targets = LOSSES[name]
    y = targets()
    total, count = loss(scores(), y, reduction="sum_and_count")
    torch.testing.assert_close(loss(scores(), y, reduction="sum"), total)
    torch.testing.assert_close(loss(scores(), y, reduction="none").sum(), total)
    torch.testing.assert_close(loss(scores(), y, reduction="mean"), total / count)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32(name, dtype):
    loss, targets = LOSSES[name]
    y = targets()
    if name == "R-Drop":
        y = y.to(dtype)
    value = loss(scores(dtype), y, reduction="mean")
    exact = loss(scores(dtype).double(), y.double() if name == "R-Drop" else y, reduction="mean")
    assert value.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(value.double(), exact, rtol=2e-6, atol=1e-6)


@every
def test_an_unknown_reduction_is_refused_with_those_known(name):
    loss, targets = LOSSES[name]
    with pytest.raises((ValueError, TypeError), match=r"avg|reduction"):
        loss(scores(), targets(), reduction="avg")


@every
def test_the_order_of_the_rows_does_not_matter(name):
    loss, targets = LOSSES[name]
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(4))
    a = loss(scores(), targets(), reduction="none")
    b = loss(scores()[order], targets()[order], reduction="none")
    torch.testing.assert_close(b, a[order])
