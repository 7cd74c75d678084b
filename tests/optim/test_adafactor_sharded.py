"""AdaFactor on a model that FSDP2 shards is AdaFactor on the whole model; FSDP1 is refused."""

import os
import socket

import pytest
import torch
from torch import distributed, multiprocessing, nn

from kexue.optim.adafactor import AdaFactor

pytestmark = pytest.mark.distributed

OPTIONS = [{}, {"beta1": 0.9, "weight_decay": 0.1}, {"min_dim_size_to_factor": 1000, "lr": None}]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(130, 201), nn.Tanh(), nn.Linear(201, 150))


def train(net, options, steps=3):
    optimizer = AdaFactor(net.parameters(), **options)
    for t in range(steps):
        optimizer.zero_grad()
        net(
            torch.randn(16, 130, generator=torch.Generator().manual_seed(t))
        ).square().mean().backward()
        optimizer.step()
    return optimizer


def process(rank, port, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = []
    for options in OPTIONS:
        whole, parts = model(), model()
        fully_shard(parts, mesh=init_device_mesh("cpu", (2,)))
        train(whole, options)
        train(parts, options)
        pairs = zip(parts.parameters(), whole.parameters(), strict=True)
        found.append([((p.full_tensor() - q).norm() / q.norm()).item() for p, q in pairs])
    messages = []
    for keep in (True, False):
        old = FullyShardedDataParallel(model(), use_orig_params=keep, device_id=torch.device("cpu"))
        try:
            AdaFactor(old.parameters())
        except ValueError as error:
            messages.append(str(error))
    torch.save((found, messages), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(process, args=(port, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", range(len(OPTIONS)))
def test_two_processes_with_half_the_rows_each_do_what_one_does(results, case):
    for found, _ in results:
        assert max(found[case]) < 1e-6


def test_the_flattened_parameters_of_fsdp1_are_refused(results):
    for _, messages in results:
        assert len(messages) == 2
        assert all("was flattened by FSDP" in message for message in messages)
