"""Two processes train as one does: averaged gradients (DDP) and shared weights (FSDP2)."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from families import optimizers as family

pytestmark = pytest.mark.distributed

TESTS = Path(__file__).resolve().parents[1]
STEPS = 5
SCRIPT = """
import sys, torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from families import optimizers as family

def train(model, optimizer, dtype, poison=None):
    for seed in range(int(sys.argv[2])):
        optimizer.zero_grad()
        inputs, targets = (t[rank::2].to(dtype) for t in family.batch(seed))
        F.mse_loss(model(inputs), targets).backward()
        if seed == poison and rank == 0:
            model[0].weight.grad.to_local()[0, 0] = torch.nan
        optimizer.step()

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, found = dist.get_rank(), {"processes": dist.get_world_size()}
for name, build in family.OPTIMIZERS.items():
    for dtype in (torch.float64, torch.float32):
        model = DistributedDataParallel(family.network(seed=rank).to(dtype))
        optimizer = build(model.parameters())
        train(model, optimizer, dtype)
        found[f"{name} {dtype}"] = family.tensors_of(optimizer)
    half = family.network(seed=0).bfloat16()  # the same draws on all processes
    optimizer = build(half.parameters(), stochastic_rounding=True, seed=5)
    inputs, targets = (t.bfloat16() for t in family.batch(0))
    F.mse_loss(half(inputs), targets).backward()
    optimizer.step()
    found[f"{name} rounded"] = family.tensors_of(optimizer)
    try:
        optimizer.step_in_backward(half)
    except ValueError as error:
        found[f"{name} refused"] = str(error)
for name in family.KINDS:
    model = family.network().double()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = family.OPTIMIZERS[name](model.parameters(), nonfinite="skip")
    train(model, optimizer, torch.float64, poison=2)
    found[f"{name} sharded"] = [p.full_tensor().detach() for p in model.parameters()]
torch.save(found, f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What two processes found; started once for all optimizers."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    started = [
        subprocess.Popen(
            [sys.executable, str(folder / "script.py"), str(folder), str(STEPS)],
            env={**os.environ, **common, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for one in started:
        _, errors = one.communicate(timeout=180)
        assert one.returncode == 0, errors
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert [one["processes"] for one in found] == [2, 2]
    return found


def alone(name, poison=None, **options):
    model = family.network(seed=0).double()
    optimizer = family.OPTIMIZERS[name](model.parameters(), **options)
    for seed in range(STEPS):
        optimizer.zero_grad()
        inputs, targets = (t.double() for t in family.batch(seed))
        F.mse_loss(model(inputs), targets).backward()
        if seed == poison:
            model[0].weight.grad[0, 0] = torch.nan
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("name", family.OPTIMIZERS)
def test_two_processes_train_as_one(processes, name):
    _, optimizer = alone(name)
    for found in processes:
        for one, wanted in zip(
            found[f"{name} torch.float64"], family.tensors_of(optimizer), strict=True
        ):
            torch.testing.assert_close(one, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", family.KINDS)
def test_two_processes_that_share_a_sharded_model_train_as_one(processes, name):
    """FSDP2, with a NaN in the part of one process: all of them leave the tensor alone."""
    model, _ = alone(name, poison=2, nonfinite="skip")
    for found in processes:
        for one, wanted in zip(found[f"{name} sharded"], model.parameters(), strict=True):
            torch.testing.assert_close(one, wanted.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["torch.float32", "torch.float64", "rounded"])
@pytest.mark.parametrize("name", family.OPTIMIZERS)
def test_both_processes_hold_the_same_bits(processes, name, kind):
    family.assert_same(*(found[f"{name} {kind}"] for found in processes))


@pytest.mark.parametrize("name", family.OPTIMIZERS)
def test_stepping_in_backward_is_refused_before_gradients_are_averaged(processes, name):
    for found in processes:
        assert "before they are averaged" in found[f"{name} refused"]
