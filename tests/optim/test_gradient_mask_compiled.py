"""The mask beside torch.compile: a compiled model, and a compiled optimizer step."""

import pytest
import torch
from torch import nn

from kexue.optim.gradient_mask import GradientMask

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
]


def train(mode, *, model_compiled=False, step_compiled=False):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    run = torch.compile(model, backend="aot_eager") if model_compiled else model
    # compiled, torch's AdamW corrects its bias in float32; SGD is the same to the last digits
    optimizer = torch.optim.SGD(run.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    options = {"keep_prob": 0.3}
    if mode == "fixed":
        options = {"masks": {"0.weight": torch.eye(8, 4, dtype=torch.bool)}}
    mask = GradientMask(optimizer, mode, model=run, include="0", **options)
    step = torch.compile(optimizer.step, backend="aot_eager") if step_compiled else optimizer.step
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        optimizer.zero_grad()
        run(torch.randn(5, 4, dtype=torch.float64, generator=generator)).square().mean().backward()
        step()
    assert mask.step == 4
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("mode", ["random", "update", "fixed"])
def test_a_compiled_model_trains_the_same(mode):
    torch.testing.assert_close(train(mode, model_compiled=True), train(mode))


@pytest.mark.parametrize("mode", ["random", "update", "fixed"])
def test_a_compiled_optimizer_step_still_masks_anew_in_every_step(mode):
    torch.testing.assert_close(train(mode, step_compiled=True), train(mode))
