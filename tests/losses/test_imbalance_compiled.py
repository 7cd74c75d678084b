"""The losses of S37 inside torch.compile: one graph, the same values, gradients and statistics."""

import pytest
import torch

from kexue.losses.imbalance import (
    GHMCLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    SmoothF1WeightedBCE,
    ldam_loss,
    ldam_margins,
    logit_adjusted_loss,
    sigmoid_dice_loss,
    sigmoid_focal_loss,
    sigmoid_hard_truncated_loss,
    sigmoid_soft_truncated_loss,
    softmax_cross_entropy,
    softmax_focal_loss,
    zlpr_loss,
)

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
PRIOR, COUNTS = [0.5, 0.3, 0.1, 0.1], [50, 30, 10, 10]
MARGINS = ldam_margins(COUNTS)
GENERATOR = torch.Generator().manual_seed(0)
Z = torch.randn(6, 4, dtype=torch.float64, generator=GENERATOR) * 2
CLASSES = torch.tensor([0, 3, -100, 1, 2, 0])
LABELS = (torch.rand(6, 4, generator=GENERATOR) < 0.3).long()
MASK = torch.tensor([True, True, True, True, False, True])


def value_and_grad(loss_of, z):
    z = z.detach().clone().requires_grad_()
    loss = loss_of(z)
    return loss.detach(), torch.autograd.grad(loss.sum(), z)[0]


def softmax_losses(z):
    options = {"mask": MASK, "reduction": "none"}
    return torch.stack(
        [
            softmax_cross_entropy(
                z, CLASSES, class_weight=[1.0, 2.0, 3.0, 4.0], label_smoothing=0.1, **options
            ),
            logit_adjusted_loss(z, CLASSES, PRIOR, 0.8, **options),
            softmax_focal_loss(z, CLASSES, 1.5, alpha=[1.0, 2.0, 3.0, 4.0], **options),
            ldam_loss(z, CLASSES, MARGINS, 3.0, **options),
        ]
    )


def sigmoid_losses(z):
    options = {"mask": MASK}
    return torch.stack(
        [
            sigmoid_focal_loss(z, LABELS, 0.5, alpha=0.25, **options),
            sigmoid_hard_truncated_loss(z, LABELS, 0.6, **options),
            sigmoid_soft_truncated_loss(z, LABELS.double() * 0.9, 3.0, **options),
            sigmoid_dice_loss(z, LABELS, per_example=True, **options),
            zlpr_loss(z, LABELS, valid=torch.ones_like(LABELS).bool(), **options),
        ]
    )


@pytest.mark.parametrize("losses", [softmax_losses, sigmoid_losses])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_forward_and_backward_are_one_graph_and_the_eager_ones(losses, backend):
    torch.compiler.reset()
    compiled = torch.compile(losses, fullgraph=True, backend=backend)
    torch.testing.assert_close(
        value_and_grad(compiled, Z), value_and_grad(losses, Z), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize(
    ("make", "labels"),
    [
        (lambda: LogitAdjustedLoss(PRIOR), CLASSES),
        (lambda: LDAMLoss(COUNTS, scale=1.0), CLASSES),
        (SmoothF1WeightedBCE, LABELS),
        (GHMCLoss, LABELS),
    ],
    ids=["adjusted", "ldam", "F1", "GHM"],
)
def test_modules_and_their_running_statistics_are_the_eager_ones(make, labels):
    torch.compiler.reset()
    ours, other = make(), make()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for scale in (1.0, 0.5):
        torch.testing.assert_close(
            value_and_grad(lambda z: compiled(z, labels), scale * Z),
            value_and_grad(lambda z: other(z, labels), scale * Z),
            rtol=1e-12,
            atol=1e-13,
        )
    for (name, mine), theirs in zip(ours.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)
