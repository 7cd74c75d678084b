"""Two processes draw the same masks (DDP), or independent ones for their shards (FSDP2)."""

import os
import socket
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.distributed

SCRIPT = '''
import sys, torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from kexue.optim.gradient_mask.fisher import fisher_diagonal
from kexue.optim.gradient_mask import GradientMask
from kexue.optim.gradient_mask.top_share import topk_masks

folder, world = sys.argv[1], int(sys.argv[2])
if world > 1:
    dist.init_process_group("gloo")
rank = dist.get_rank() if world > 1 else 0

def data(step):
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x, x[:, :3].argmax(-1)

def mine(*tensors):
    return tuple(t[rank::world] for t in tensors)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.ModuleList([nn.Linear(6, 10), nn.Linear(10, 3)]).double()
    def forward(self, x):
        return self.layer[1](self.layer[0](x).tanh())

def child(model):
    """Each process sees its own part of the data; the sum is everybody's."""
    fisher = fisher_diagonal(model, [mine(*data(99))])
    if world > 1:
        for value in fisher.values():
            dist.all_reduce(value)
    return topk_masks(fisher, 0.3)

def train(kind, mode):
    model = Net()
    options = {"masks": child(model)} if mode == "fixed" else {"keep_prob": 0.3}
    run = model
    if kind == "ddp" and world > 1:
        run = DistributedDataParallel(model)
    if kind == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    optimizer = torch.optim.AdamW(run.parameters(), lr=0.05)
    mask = GradientMask(optimizer, mode, model=run, **options)
    drawn = []
    for step in range(4):
        drawn.append(mask.mask("layer.0.weight").bool())
        optimizer.zero_grad()
        x, y = mine(*data(step))
        nn.functional.cross_entropy(run(x), y).backward()
        optimizer.step()
    full = lambda p: p.full_tensor() if kind == "fsdp" else p
    whole = {n: full(p.detach()) for n, p in model.named_parameters()}
    state = mask.state_dict()
    return {"weights": whole, "drawn": torch.stack(drawn), "masks": state.get("masks")}

found = {m: train("ddp", m) for m in ("random", "update", "fixed")}
if world > 1:
    found |= {"sharded " + m: train("fsdp", m) for m in ("random", "update", "fixed")}
torch.save(found, f"{folder}/{world}-{rank}.pt")
if world > 1:
    dist.destroy_process_group()
'''


def launch(folder, world):
    script = folder / "train.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(world)],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in started:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"{world}-{r}.pt", weights_only=True) for r in range(world)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    [alone] = launch(folder, 1)
    return alone, launch(folder, 2)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("mode", ["random", "update", "fixed"])
def test_two_processes_draw_the_same_masks_and_train_like_one(runs, mode):
    alone, (first, second) = runs
    assert torch.equal(first[mode]["drawn"], second[mode]["drawn"])
    assert torch.equal(first[mode]["drawn"], alone[mode]["drawn"])
    assert first[mode]["drawn"].any()
    same(first[mode]["weights"], second[mode]["weights"])
    same(first[mode]["weights"], alone[mode]["weights"])


def test_sharded_fixed_masks_train_like_one_process_and_are_saved_whole(runs):
    alone, pair = runs
    for one in pair:
        same(one["sharded fixed"]["weights"], alone["fixed"]["weights"])
        same(one["sharded fixed"]["masks"], alone["fixed"]["masks"])


@pytest.mark.parametrize("mode", ["random", "update"])
def test_shards_draw_masks_of_their_own(runs, mode):
    _, (first, second) = runs
    a, b = (one[f"sharded {mode}"]["drawn"] for one in (first, second))
    assert a.shape == b.shape == (4, 5, 6)
    assert not torch.equal(a, b)
    same(first[f"sharded {mode}"]["weights"], second[f"sharded {mode}"]["weights"])
