"""S15 on two gloo processes: penalties, FGM, PGD and finite differences stay equal on all ranks."""

import pytest
import torch

from families.two_processes import alone_and_together

pytestmark = pytest.mark.distributed

SCRIPT = """
import os, sys
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from kexue.losses.adversarial import FGM, PGD
from kexue.losses.gradient_penalty import EmbeddingGradientPenalty, finite_difference_backward
from kexue.losses.r_drop import RDropLoss, twice

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, 4).double()
        self.dense = nn.Linear(4, 3).double()

    def forward(self, ids):
        return self.dense(self.embedding(ids).tanh().mean(1))

ids = torch.randint(0, 9, (8, 5), generator=torch.Generator().manual_seed(1))
y = torch.arange(8) % 3
together = "RANK" in os.environ
if together:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    ids, y = ids.chunk(2)[rank], y.chunk(2)[rank]
found = {}
for kind in ("penalty", "fgm", "pgd", "finite", "r_drop"):
    net = Net()
    model = DDP(net) if together else net
    def loss(m=model):
        return F.cross_entropy(m(ids), y)
    if kind == "penalty":
        one = loss()
        extra = EmbeddingGradientPenalty(net.embedding, coef=1.0)(one)
        (one + extra).backward()
        if not together:  # the mean over the processes of their penalised losses
            halves = zip(ids.chunk(2), y.chunk(2))
            parts = [F.cross_entropy(net(i), t) for i, t in halves]
            net.zero_grad()
            (sum(p + EmbeddingGradientPenalty(net.embedding, 1.0)(p) for p in parts) / 2).backward()
    elif kind == "fgm":
        loss().backward()
        with FGM(net.embedding, 0.5).perturbed():
            found["fgm table"] = net.embedding.weight.detach().clone()
            loss().backward()
    elif kind == "pgd":
        with PGD(net.embedding, 0.5, 0.2, 3).perturbed(lambda: loss(net)):
            found["pgd table"] = net.embedding.weight.detach().clone()
            loss().backward()
    elif kind == "finite":
        finite_difference_backward(loss, net.parameters())
    else:
        RDropLoss()(model(twice(ids)), y).backward()
    found |= {f"{kind} {name}": p.grad for name, p in net.named_parameters()}
torch.save(found, sys.argv[1] + (f".{rank}" if together else ".alone"))
if together:
    torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    found = alone_and_together(SCRIPT, tmp_path_factory.mktemp("penalties"))
    return found["alone"], found["0"], found["1"]


@pytest.mark.parametrize("kind", ["penalty", "fgm", "pgd", "finite", "r_drop"])
def test_two_processes_take_the_step_of_one(found, kind):
    alone, first, second = found
    names = [name for name in alone if name.startswith(kind)]
    assert len(names) >= 3
    for name in names:
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], alone[name], rtol=1e-9, atol=1e-12)
