"""S36 under torch.compile: the penalty in a compiled loss, the decay behind a compiled step."""

import pytest
import torch
from torch import nn

from kexue.losses.weissi import product_penalty, weissi_parameters, weissi_penalty
from kexue.optim.weissi_decay import WeissiDecay

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()


def penalty(weights):
    return weissi_penalty(weights, 0.3, 0.1) + product_penalty(weights, 0.01)


def test_the_penalties_compile_whole():
    torch.compiler.reset()
    found = []
    for run in (penalty, torch.compile(penalty, fullgraph=True)):
        weights = dict(weissi_parameters(network()))
        value = run(weights)
        value.backward()
        found.append([value.detach(), *(w.grad for w in weights.values())])
    torch.testing.assert_close(*found)


def test_a_compiled_training_step_decays_the_same():
    found = []
    for compiled in (False, True):
        torch.compiler.reset()
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        WeissiDecay(optimizer, weissi_parameters(net), 0.3)
        run = torch.compile(net) if compiled else net
        step = torch.compile(optimizer.step, backend="aot_eager") if compiled else optimizer.step
        generator = torch.Generator().manual_seed(0)
        for _ in range(4):
            optimizer.zero_grad()
            x = torch.randn(5, 4, dtype=torch.float64, generator=generator)
            run(x).square().mean().backward()
            step()
        found.append([p.detach() for p in net.parameters()])
    torch.testing.assert_close(*found)
    start = network()
    assert found[1][0].norm() < start[0].weight.norm()
