"""Tiger in two processes: momenta averaged instead of gradients, and weights cut into shards."""

import os
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.distributed

# Each process sees its own gradients; process 0 also knows those of process 1, to check by itself.
AVERAGED = """
import torch
from torch import distributed as dist, nn
from kexue.optim.tiger import Tiger

dist.init_process_group("gloo")
rank, k = dist.get_rank(), 2

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(12, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2))

def backward(net, rank, step):
    ids = torch.randint(12, (4,), generator=torch.Generator().manual_seed(100 * rank + step))
    net(ids).square().sum().backward()
    if (rank, step) in {(1, 4), (0, 7)}:
        net[1].weight.grad = None  # one process alone lacks a gradient

options = {"lr": 0.01, "accum_steps": k, "nonfinite": "skip"}
ours, alone = model(), model()
averaging = Tiger(ours, average_momentum=True, **options)
plain = Tiger(alone, **options)
in_backward = averaging.step_in_backward(ours)
for step in range(10):
    if step == 5:
        in_backward.remove()
    backward(ours, rank, step)
    averaging.step(), averaging.zero_grad()
    total = {}
    for other in range(2):
        if step < 5 and (other, step) == (1, 4):  # used in the backward pass, before it was dropped
            ids = torch.randint(12, (4,), generator=torch.Generator().manual_seed(104))
            alone(ids).square().sum().backward()
        else:
            backward(alone, other, step)
        for name, p in alone.named_parameters():
            if p.grad is not None:
                total[name] = total.get(name, 0) + p.grad
        alone.zero_grad()
    for name, p in alone.named_parameters():
        p.grad = total[name] / 2 if name in total else None
    plain.step(), plain.zero_grad()
    for a, b in zip(ours.parameters(), alone.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)

state = torch.cat([p.detach().flatten() for p in ours.parameters()])
both = [torch.empty_like(state) for _ in range(2)]
dist.all_gather(both, state)
assert torch.equal(*both)
try:
    plain.step_in_backward(alone)
except ValueError as error:
    assert "before they are averaged" in str(error)
else:
    raise AssertionError("gradients would have been used before they were averaged")
print("averaged", rank, flush=True)
"""


SHARDED = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from kexue.optim.hidden_accumulation import HiddenAccumulation

def train(make, sharded):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(12, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    if sharded:
        fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = make(net)
    for step in range(6):
        ids = torch.randint(9, (4,), generator=torch.Generator().manual_seed(step))
        net(ids).square().sum().backward()
        if step == 3:
            net[1].weight.grad.mul_(float("nan"))
        optimizer.step(), optimizer.zero_grad()
    return [p.full_tensor() if sharded else p for p in net.parameters()]

for k in (1, 2):
    for make in (
        lambda net: Tiger(net, lr=0.01, accum_steps=k),
        lambda net: HiddenAccumulation(torch.optim.AdamW(net.parameters(), lr=0.01), k),
    ):
        for a, b in zip(train(make, False), train(make, True)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
dist.destroy_process_group()
print("sharded", rank)
"""


@pytest.fixture(scope="module")
def told():
    """What both processes printed, and their complaints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", AVERAGED + SHARDED],
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
            | {"MASTER_PORT": port, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=90) for process in running]
    return "".join(out for out, _ in said), "".join(errors for _, errors in said)


def test_two_processes_average_their_momenta_once_per_update(told):
    out, errors = told
    assert {"averaged 0", "averaged 1"} <= set(out.splitlines()), errors


def test_weights_in_shards_take_the_same_steps(told):
    out, errors = told
    assert {"sharded 0", "sharded 1"} <= set(out.splitlines()), errors
