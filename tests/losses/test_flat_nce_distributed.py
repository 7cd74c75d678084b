"""Negatives from all processes: two of them under DDP do what one does with the whole batch."""

import pytest

from families.two_processes import launched

pytestmark = pytest.mark.distributed

GATHERED = """
import torch
from torch import distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel
from kexue.losses.flat_nce import FlatNCELoss, InfoNCELoss

dist.init_process_group("gloo")
rank, n = dist.get_rank(), 3
generator = torch.Generator().manual_seed(0)
views = torch.randn(2, 2 * n, 5, generator=generator, dtype=torch.float64)
groups = torch.tensor([0, 1, 2, 1, 3, 4])

def net():
    torch.manual_seed(0)
    return nn.Linear(5, 4).double()

mine = slice(rank * n, rank * n + n)
for module in (FlatNCELoss, InfoNCELoss):
    for chunk in (None, 2):
        for pairing in ("two_views", "in_batch"):
            alone, model = net(), net()
            ours = DistributedDataParallel(model)
            whole = module(0.3, pairing)
            parts = module(0.3, pairing, gather_distributed=True, chunk_size=chunk)
            if pairing == "two_views":
                expected = whole(alone(views.flatten(0, 1)), groups=groups)
                value = parts(ours(views[:, mine].flatten(0, 1)), groups=groups[mine])
            else:
                a, b = alone(views.flatten(0, 1)).chunk(2)
                expected = whole(a, b, groups=groups)
                a, b = ours(views[:, mine].flatten(0, 1)).chunk(2)
                value = parts(a, b, groups=groups[mine])
            expected.backward()
            value.backward()
            mean = value.detach().clone()
            dist.all_reduce(mean)
            torch.testing.assert_close(mean / 2, expected.detach(), rtol=1e-12, atol=0)
            for p, q in zip(model.parameters(), alone.parameters()):
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-14)

try:
    InfoNCELoss(gather_distributed=True)(views[:, : 2 + rank].flatten(0, 1))
except ValueError as error:
    assert "processes hold [4, 6] rows" in str(error), error
else:
    raise AssertionError("unequal batches were accepted")
dist.destroy_process_group()
open(f"{rank}.done", "w").write("gathered")
"""


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path):
    launched(GATHERED, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.done")) == ["0.done", "1.done"]
