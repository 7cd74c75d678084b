"""S16 on two gloo processes: the step of half the batch each is the step of the whole batch."""

import pytest
import torch

from families.two_processes import alone_and_together

pytestmark = pytest.mark.distributed

SCRIPT = """
import os, sys
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from kexue.optim.multitask import MultiTaskGradients, multitask_backward

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        self.heads = nn.ModuleList(nn.Linear(3, 1).double() for _ in range(3))

    def forward(self, x):
        hidden = self.encoder(x)
        return hidden, [head(hidden) for head in self.heads]

def losses(outputs, y):
    return [(o[:, 0] - (-1) ** k * y).square().mean() for k, o in enumerate(outputs)]

def run(net, model, x, y, kind, together):
    heads = list(net.heads.parameters())
    if kind == "features":
        hidden, outputs = model(x)
        step = multitask_backward(losses(outputs, y), features=hidden, method="min_norm")
    else:
        shared = net.encoder.parameters()
        gradients = MultiTaskGradients(shared, task_params=heads, method="min_norm")
        for a, b in zip(x.split(2), y.split(2)):
            if together:
                with model.no_sync():
                    outputs = model(a)[1]
            else:
                outputs = model(a)[1]
            gradients.add([one * len(a) / len(x) for one in losses(outputs, b)])
        step = gradients.resolve()
    grads = {name: p.grad for name, p in net.named_parameters()}
    return {"weights": step.weights, "gram": step.gram, **grads}

random = torch.Generator().manual_seed(1)
x = torch.randn(8, 4, generator=random, dtype=torch.float64)
y = torch.randn(8, generator=random, dtype=torch.float64)
together = "RANK" in os.environ
found = {}
if together:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    x, y = x.chunk(2)[rank], y.chunk(2)[rank]
for kind in ("exact", "features"):
    net = Net()
    found[kind] = run(net, DDP(net) if together else net, x, y, kind, together)
if together:
    net = Net()
    try:
        multitask_backward(losses(net(x)[1], y), shared_params=net.encoder.parameters())
    except ValueError as error:
        found["error"] = str(error)
torch.save(found, sys.argv[1] + (f".{rank}" if together else ".alone"))
if together:
    torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return alone_and_together(SCRIPT, tmp_path_factory.mktemp("multitask"))


@pytest.mark.parametrize("kind", ["exact", "features"])
def test_two_processes_take_the_step_of_one(found, kind):
    for rank in ("0", "1"):
        assert found[rank][kind].keys() == found["alone"][kind].keys()
        for name, expected in found["alone"][kind].items():
            torch.testing.assert_close(
                found[rank][kind][name], expected, rtol=0, atol=1e-13, msg=f"{rank} {name}"
            )
    weights = found["alone"][kind]["weights"]
    assert (weights > 0).sum() > 1  # the tasks conflict, so that the weights matter


def test_heads_that_nobody_listed_are_not_forgotten_in_silence(found):
    assert "pass task_params" in found["0"]["error"]
