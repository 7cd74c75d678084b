"""S35 on two gloo processes, whose losses lie on both sides of the level."""

import pytest
import torch

from families.two_processes import alone_and_together

pytestmark = pytest.mark.distributed

SCRIPT = """
import os, sys
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from kexue.losses.flooding import FloodingLoss, flooding

together = "RANK" in os.environ
random = torch.Generator().manual_seed(1)
x = torch.randn(8, 4, generator=random, dtype=torch.float64)
y = torch.cat([torch.zeros(4), torch.full((4,), 2.0)]).double()
if together:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    x, y = x.chunk(2)[rank], y.chunk(2)[rank]

def gradient(level, sync, module=False):
    torch.manual_seed(0)
    net = nn.Linear(4, 1).double()
    model = DDP(net) if together else net
    losses = (model(x)[:, 0] - y).square()
    if module:
        loss = FloodingLoss(lambda one: one, level, sync=sync)(losses.mean())
    else:
        loss = flooding(losses.mean(), level, sync=sync)
    loss.backward()
    return net.weight.grad, loss.detach(), losses.mean().detach()

found = {f"{level} {sync} {module}": gradient(level, sync, module)
         for level in (0.5, 1.5, 30.0) for sync in (True, False) for module in (True, False)}
if together:
    weighted = flooding(torch.tensor([0.2, 1.0][rank]), 0.5, sync=True, weight=[3, 1][rank])
    empty = flooding(torch.tensor([torch.nan, 1.0][rank]), 2.0, sync=True, weight=[0, 1][rank])
    broken = flooding(torch.tensor([torch.nan, 1.0][rank]), 2.0, sync=True)
    found |= {"weighted": weighted, "empty": empty, "broken": broken}
torch.save(found, sys.argv[1] + (f".{rank}" if together else ".alone"))
if together:
    torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return alone_and_together(SCRIPT, tmp_path_factory.mktemp("flooding"))


@pytest.mark.parametrize("module", [False, True])
@pytest.mark.parametrize("level", [0.5, 1.5, 30.0])
def test_synchronised_processes_have_the_gradient_and_the_value_of_one(found, level, module):
    gradient, value, _ = found["alone"][f"{level} True {module}"]
    for rank in "01":
        ours, _, _ = found[rank][f"{level} True {module}"]
        torch.testing.assert_close(ours, gradient, rtol=0, atol=1e-12)
    values = [found[rank][f"{level} True {module}"][1] for rank in "01"]
    torch.testing.assert_close(sum(values) / 2, value, rtol=0, atol=1e-12)


def test_unsynchronised_processes_on_both_sides_of_the_level_do_something_else(found):
    raw = [found[rank]["1.5 False False"][2].item() for rank in "01"]
    assert min(raw) < 1.5 < max(raw)
    ours, alone = (found[rank]["1.5 False False"][0] for rank in ("0", "alone"))
    assert (ours - alone).norm() > 0.1


def test_processes_count_by_their_terms_and_one_without_terms_does_not_count(found):
    # (3 · 0.2 + 1.0) / 4 = 0.4 lies below 0.5: both turn
    assert [found[rank]["weighted"].item() for rank in "01"] == pytest.approx([0.8, 0.0])
    assert [found[rank]["empty"].item() for rank in "01"] == pytest.approx([0.0, 3.0])
    assert found["0"]["broken"].isnan()
    assert found["1"]["broken"].item() == 1.0  # nobody turns on a broken mean
