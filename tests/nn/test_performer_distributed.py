"""Two processes draw the same directions, whatever their own seeds were (S30)."""

import pytest
import torch

from families.two_processes import alone_and_together

SCRIPT = """
import os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from kexue.nn.performer import PerformerAttention

rank = os.environ.get("RANK")
torch.manual_seed(0 if rank is None else int(rank))
net = PerformerAttention(8, 2, causal=True, redraw_every=2).train()
wrapped = net
if rank is not None:
    dist.init_process_group("gloo")
    wrapped = DistributedDataParallel(net)
optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.1), []
x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(3))
for step in range(5):
    optimizer.zero_grad()
    wrapped(x if rank is None else x[int(rank) : int(rank) + 1]).square().mean().backward()
    optimizer.step()
    seen.append(net.omega.clone())
found = {"omega": torch.stack(seen), "weight": net.qkv.weight.detach(), "calls": net.calls}
torch.save(found, f"{sys.argv[1]}.{'alone' if rank is None else rank}")
if rank is not None:
    dist.destroy_process_group()
"""


@pytest.mark.distributed
def test_two_processes_train_as_one_and_redraw_together(tmp_path):
    found = alone_and_together(SCRIPT, tmp_path)
    for rank in ("0", "1"):
        for name in ("omega", "calls"):
            assert torch.equal(found[rank][name], found["alone"][name]), name
        torch.testing.assert_close(found[rank]["weight"], found["alone"]["weight"])
    omega = found["0"]["omega"]
    assert torch.equal(omega[0], omega[1])
    assert not torch.equal(omega[1], omega[2])  # redrawn before the third call
