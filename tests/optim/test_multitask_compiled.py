"""S16 with compiled models: the features' way compiles as it is, the exact way needs its graph."""

import pytest
import torch
from torch import nn
from torch._functorch import config

from kexue.optim.multitask import multitask_backward
from kexue.optim.multitask.losses import combine_losses

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def net():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh())
    return encoder, [nn.Linear(5, 1) for _ in range(2)]


def gradients(compiled, through):
    encoder, heads = net()
    run = torch.compile(encoder, fullgraph=True) if compiled else encoder
    hidden = run(torch.linspace(-1, 1, 42).view(7, 6))
    losses = [(head(hidden) - (-1) ** k).square().mean() for k, head in enumerate(heads)]
    options = {"features": hidden} if through else {"shared_params": encoder.parameters()}
    step = multitask_backward(losses, method="min_norm", **options)
    return [p.grad for m in (encoder, *heads) for p in m.parameters()], step.weights


@pytest.mark.parametrize("through", [True, False])
def test_a_compiled_encoder_gives_the_same_step(through):
    torch.compiler.reset()
    # The exact way passes one compiled graph several times, so its buffers must not be given away.
    with config.patch(donated_buffer=through):
        found, weights = gradients(True, through)
    expected, other = gradients(False, through)
    torch.testing.assert_close(weights, other, rtol=1e-4, atol=1e-6)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["geometric", "dynamic", "power_mean"])
def test_a_combined_loss_compiles_whole(method):
    options = {"gamma": 2.0} if method == "power_mean" else {}

    def combined(losses):
        return combine_losses(losses, method, **options)

    found = []
    for function in (combined, torch.compile(combined, fullgraph=True, backend="aot_eager")):
        losses = torch.tensor([0.5, 2.0, 8.0], requires_grad=True)
        total = function(losses)
        total.backward()
        found.append((total.detach(), losses.grad))
    torch.testing.assert_close(*found)
