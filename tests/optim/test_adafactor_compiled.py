"""AdaFactor's schedules inside one compiled graph: the step count is a tensor there."""

import pytest
import torch
from torch import nn

from kexue.optim.adafactor import AdaFactor

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
]


@pytest.mark.parametrize(
    "options",
    [
        {"lr": None, "warmup_init": True, "scale_parameter": False},
        {"beta2": 0.99},
        {"beta2": 0.99, "bias_correction": False, "momentum_dtype": torch.bfloat16, "beta1": 0.9},
    ],
)
def test_a_compiled_step_is_the_eager_one(options):
    torch.compiler.reset()
    shapes = [(130, 140), (20,)]

    def draws(t):
        generator = torch.Generator().manual_seed(t)
        return [torch.randn(s, generator=generator) for s in shapes]

    ours, others = ([nn.Parameter(x) for x in draws(0)] for _ in range(2))
    optimizer, other = AdaFactor(ours, **options), AdaFactor(others, **options)
    step = torch.compile(optimizer.step, fullgraph=True)
    for t in range(1, 4):
        for a, b, g in zip(ours, others, draws(t), strict=True):
            a.grad, b.grad = g.clone(), g.clone()
        step()
        other.step()
    for a, b in zip(ours, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=3e-6)
    assert {state["step"].item() for state in optimizer.state.values()} == {3}
    torch.compiler.reset()
