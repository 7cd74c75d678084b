"""S31 on two processes: each draws its own numbers, also through DDP and its shared buffers."""

import socket

import pytest
import torch
from torch import nn
from torch.multiprocessing import spawn

from kexue.losses.exposure import RandomReplace

pytestmark = pytest.mark.distributed


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.replace, self.table = RandomReplace(1.0, 0.5, seed=3), nn.Embedding(40, 2)

    def forward(self, inputs, labels):
        read = self.replace(inputs, labels)
        return self.table(read).sum(), read


def batch():
    words = torch.arange(3, 33).view(3, 10)
    return torch.cat([torch.zeros(3, 1, dtype=torch.long), words], 1), torch.cat(
        [words, torch.ones(3, 1, dtype=torch.long)], 1
    )


def process(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(Reader())
    reads = []
    for _ in range(3):
        loss, read = model(*batch())
        loss.backward()
        reads.append(read)
    state = model.module.replace.stream.state
    torch.manual_seed(5)  # as trainers do on every process
    unseeded = RandomReplace(1.0, 0.5)(*batch())
    shared = RandomReplace(1.0, 0.5, seed=3, rank=0)(*batch())
    torch.save((torch.stack(reads), state, unseeded, shared), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_draw_their_own_numbers_from_one_stream(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(process, (port, str(tmp_path)), nprocs=2)
    (a, state_a, free_a, shared_a), (b, state_b, free_b, shared_b) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    assert torch.equal(state_a, state_b)  # what a checkpoint of either holds
    assert not any(torch.equal(a[i], b[j]) for i in range(3) for j in range(3))
    assert not torch.equal(free_a, free_b)
    assert torch.equal(shared_a, shared_b)
    alone = Reader()
    assert torch.equal(torch.stack([alone(*batch())[1] for _ in range(3)]), a)  # rank 0
