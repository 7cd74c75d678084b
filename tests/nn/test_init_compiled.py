"""NTKLinear and UnitMoment (S04) under torch.compile: one graph, the same numbers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.nn.moments import UnitMoment
from kexue.nn.ntk_linear import NTKLinear

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def test_a_compiled_step_is_the_plain_one():
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(NTKLinear(12, 16), UnitMoment(F.gelu, centred=True), NTKLinear(16, 3))
        run = torch.compile(model, fullgraph=True) if compiled else model
        x = torch.randn(5, 12, requires_grad=True)
        loss = run(x).square().sum()
        loss.backward()
        found.append([loss.detach(), x.grad, *(p.grad for p in model.parameters())])
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(plain, other, rtol=1e-5, atol=1e-6)
