"""A rewired model (S19) whose batch two processes share."""

import pytest
import torch

from families.two_processes import alone_and_together

REWIRED = """
import os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from kexue.nn.deepnorm_models import apply_deepnorm

rank = os.environ.get("RANK", "alone")
torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).double()
apply_deepnorm(model)
x = torch.randn(4, 5, 16, dtype=torch.float64)
if rank != "alone":
    dist.init_process_group("gloo")
    model = DistributedDataParallel(model)
    x = x.chunk(2)[int(rank)]
model(x)[..., 0].mean().backward()
torch.save(
    {name.removeprefix("module."): one.grad for name, one in model.named_parameters()},
    f"{sys.argv[1]}.{rank}",
)
if rank != "alone":
    dist.destroy_process_group()
"""


@pytest.mark.distributed
def test_two_processes_have_the_gradient_of_the_whole_batch(tmp_path):
    found = alone_and_together(REWIRED, tmp_path)
    for name, gradient in found["alone"].items():
        for rank in ("0", "1"):
            torch.testing.assert_close(found[rank][name], gradient, rtol=1e-10, atol=1e-14)
