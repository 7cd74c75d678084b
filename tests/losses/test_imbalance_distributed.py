"""S37 on two gloo processes: statistics summed over both are those of the whole batch."""

import os
import socket
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.distributed

SCRIPT = """
import os, sys
import torch
from kexue.losses.imbalance import GHMCLoss, SmoothF1WeightedBCE

random = torch.Generator().manual_seed(0)
z = torch.randn(2, 12, 5, generator=random, dtype=torch.float64)
y = (torch.rand(2, 12, 5, generator=random) < 0.3).long()
y[:, :7] = 0  # the first process sees one row with positives only
together = "RANK" in os.environ
if together:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    rows = slice(0, 6) if rank == 0 else slice(6, 12)
    z, y = z[:, rows], y[:, rows]
found = {}
for sync in (True, False):
    for name, make in {"F1": SmoothF1WeightedBCE, "GHM": GHMCLoss}.items():
        loss = make(sync=sync, reduction="sum").double()
        total = sum(loss(a, b) for a, b in zip(z, y))
        found[name, sync] = {"buffers": dict(loss.named_buffers()), "loss": total}
torch.save(found, f"{sys.argv[1]}/{rank if together else 'alone'}.pt")
if together:
    torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What one process found with the whole batch, and two with half of it each."""
    folder = tmp_path_factory.mktemp("runs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "OMP_NUM_THREADS": "1"}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder)],
            env={**common, **({} if rank is None else {**where, "RANK": str(rank)})},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (None, 0, 1)
    ]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    return {name: torch.load(folder / f"{name}.pt") for name in ("alone", "0", "1")}


@pytest.mark.parametrize("name", ["F1", "GHM"])
def test_synchronised_statistics_are_those_of_one_process_on_every_rank(runs, name):
    whole = runs["alone"][name, True]["buffers"]
    for rank in ("0", "1"):
        torch.testing.assert_close(runs[rank][name, True]["buffers"], whole, rtol=1e-12, atol=0)
    first, second = (runs[rank][name, True]["buffers"] for rank in ("0", "1"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_sum_of_the_losses_is_that_of_one_process(runs):
    total = sum(runs[rank]["F1", True]["loss"] for rank in ("0", "1"))
    torch.testing.assert_close(total, runs["alone"]["F1", True]["loss"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["F1", "GHM"])
def test_without_it_every_rank_keeps_its_own(runs, name):
    first, second = (runs[rank][name, False]["buffers"] for rank in ("0", "1"))
    assert any(not torch.equal(first[key], second[key]) for key in first)
