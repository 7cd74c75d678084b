"""Tiger and hidden accumulation under torch.compile."""

import pytest
import torch
from torch import nn

from kexue.optim.hidden_accumulation import HiddenAccumulation
from kexue.optim.tiger import Tiger

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*lr_scheduler:UserWarning"),
]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))


def tiger(k):
    return lambda net: Tiger(net, lr=0.01, accum_steps=k)


def adam(net):
    return HiddenAccumulation(torch.optim.AdamW(net.parameters(), lr=0.01), 2)


def gradients(net, seed):
    ids = torch.randint(20, (6,), generator=torch.Generator().manual_seed(seed))
    net(ids).square().sum().backward()
    if seed == 3:
        net[1].weight.grad[0, 0] = torch.nan


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(tiger(1), id="tiger-1"),
        pytest.param(tiger(3), id="tiger-3"),
        pytest.param(adam, id="adam-2"),
    ],
)
def test_a_compiled_step_does_what_the_plain_one_does(make):
    ends = []
    for compiled in (False, True):
        torch._dynamo.reset()
        net = model()
        optimizer = make(net)
        step = optimizer.step
        if compiled:
            step = torch.compile(step, fullgraph=True)
        for seed in range(7):
            gradients(net, seed)
            step()
            optimizer.zero_grad()
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*ends, rtol=0, atol=2e-6)


def test_a_compiled_model_trains_with_the_plain_step():
    ends = []
    for compiled in (False, True):
        torch._dynamo.reset()
        net = model()
        optimizer = Tiger(net, lr=0.01)
        forward = torch.compile(net, fullgraph=True) if compiled else net
        for seed in range(4):
            ids = torch.randint(20, (6,), generator=torch.Generator().manual_seed(seed))
            forward(ids).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)
