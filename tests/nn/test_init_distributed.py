"""Initialisation (S04) of a weight that two processes hold together."""

import pytest
import torch

from families.two_processes import alone_and_together

SHARDED = """
import sys, os, warnings
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from kexue.nn.init import trunc_normal_, variance_scaling_

warnings.filterwarnings("ignore", "DTensor random operators")
rank = os.environ.get("RANK", "alone")
if rank == "alone":
    torch.save({}, sys.argv[1] + ".alone")
else:
    dist.init_process_group("gloo")
    mesh, found = init_device_mesh("cpu", (2,)), {}
    for dtype in (torch.float32, torch.bfloat16):
        for cut in (2.0, 6.0):
            weight = torch.nn.Parameter(
                distribute_tensor(torch.zeros(300, 200, dtype=dtype), mesh, [Shard(0)])
            )
            trunc_normal_(weight, std=0.02, a=-cut, b=cut,
                          generator=torch.Generator().manual_seed(int(rank)))
            found[f"{dtype} {cut}"] = weight.full_tensor().detach()
    weight = distribute_tensor(torch.zeros(300, 200), mesh, [Shard(1)])
    variance_scaling_(weight, mode="geometric", distribution="normal",
                      generator=torch.Generator().manual_seed(int(rank)))
    found["geometric"] = weight.full_tensor()
    torch.save(found, sys.argv[1] + "." + rank)
    dist.destroy_process_group()
"""


@pytest.mark.distributed
def test_shards_of_a_weight_get_the_deviation_and_fans_of_the_whole(tmp_path):
    found = alone_and_together(SHARDED, tmp_path)
    for name, weight in found["0"].items():
        assert torch.equal(weight, found["1"][name])
        wanted = 60_000**-0.25 if name == "geometric" else 0.02
        assert weight.float().std().item() == pytest.approx(wanted, rel=0.02)
        assert not torch.equal(weight[:150], weight[150:])
