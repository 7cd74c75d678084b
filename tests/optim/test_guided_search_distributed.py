"""S26 over two gloo processes: one update, the same on both and the same as one process makes."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.optim.guided_search import MGS

pytestmark = pytest.mark.distributed

SHARED = """
import torch
from torch import nn
from torch.nn import functional as F

def data():
    x = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0] > 0).long()

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()

calls = []

def metric(model, batch):
    calls.append(type(model).__name__)
    return model(batch[0]).softmax(1).gather(1, 1 - batch[1][:, None]).mean()

def likelihood(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])
"""
RANK = """
import os, sys
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from kexue.optim.guided_search import MGS

folder, rank = sys.argv[1], int(os.environ["RANK"])
store = f"file://{folder}/store"
distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
x, y = data()
half = x[rank::2], y[rank::2]
ends = {"world": distributed.get_world_size()}

def run(name, model, batch, **options):
    calls.clear()
    search = MGS(model, metric, likelihood, **options)
    reports = [search.step(batch) for _ in range(3)]
    plain = getattr(model, "module", model)
    ends[name] = {
        "state": plain.state_dict(), "losses": reports[-1]["losses"], "loss": reports[-1]["loss"],
        "calls": list(calls), "seed": search.seed,
    }

run("halves", network(), half, seed=5 + rank)
run("ddp", DistributedDataParallel(network()), half, seed=5)
run("split", network(), (x, y), seed=5, split_candidates=True)
torch.save(ends, f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "rank.py"
    script.write_text(SHARED + RANK)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env={**os.environ, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    ends = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert [end["world"] for end in ends] == [2, 2]
    return ends


@pytest.fixture(scope="module")
def alone():
    """The same three steps in one process on the whole batch."""
    names = {"torch": torch, "nn": nn, "F": F}
    exec(SHARED, names)
    model, batch = names["network"](), names["data"]()
    search = MGS(model, names["metric"], names["likelihood"], seed=5)
    reports = [search.step(batch) for _ in range(3)]
    return {"state": model.state_dict(), **reports[-1]}


@pytest.mark.parametrize("name", ["halves", "ddp", "split"])
def test_every_process_makes_the_same_update_to_the_bit(ranks, name):
    one, other = (end[name] for end in ranks)
    assert one["seed"] == other["seed"] == 5  # rank 0's, whatever the others were given
    assert torch.equal(one["losses"], other["losses"])
    assert one["loss"] == other["loss"]
    for key, value in one["state"].items():
        assert torch.equal(value, other["state"][key])


@pytest.mark.parametrize("name", ["halves", "ddp", "split"])
def test_two_processes_make_the_update_of_one(ranks, alone, name):
    torch.testing.assert_close(ranks[0][name]["losses"], alone["losses"], rtol=1e-12, atol=0)
    for key, value in ranks[0][name]["state"].items():
        torch.testing.assert_close(value, alone["state"][key], rtol=0, atol=1e-12)


def test_split_candidates_are_scored_once_over_all_processes(ranks):
    assert [len(end["split"]["calls"]) for end in ranks] == [3 * 3, 3 * 2]  # 4 and θ, three steps
    assert [len(end["halves"]["calls"]) for end in ranks] == [3 * 5, 3 * 5]


def test_the_metric_is_given_the_model_without_its_wrapper(ranks):
    assert set(ranks[0]["ddp"]["calls"]) == {"Sequential"}
