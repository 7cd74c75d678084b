"""Statistics of two processes are those of one with all rows."""

import pytest
import torch

from families.two_processes import alone_and_together

pytestmark = pytest.mark.distributed

SCRIPT = """
import os, sys
import torch
from torch import distributed as dist
from kexue.probability.softmax_layer import ClosedFormSoftmax

together = "RANK" in os.environ
if together:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
generator = torch.Generator().manual_seed(0)
y = torch.arange(90) % 3
x = torch.randn(90, 4, generator=generator, dtype=torch.float64) + 1e4
x += 2 * y[:, None] * torch.linspace(0, 1, 4)
parts = {
    "uneven": [slice(0, 20), slice(20, 90)],
    "sorted": [y == 0, y != 0],
    "idle": [slice(0, 90), slice(0, 0)],
}
found = {}
for name, rows in parts.items():
    model = ClosedFormSoftmax(3, "oas")
    mine = rows[rank] if together else slice(0, 90)
    if not (together and name == "idle" and rank == 1):
        with torch.inference_mode():
            model.partial_fit(x[mine], y[mine])
    model.all_reduce().finalize()
    found[name] = torch.cat((model.weight, model.bias[:, None]), dim=1)
if together:
    for again in (model.all_reduce, lambda: model.partial_fit(x, y)):
        try:
            again()
        except ValueError as error:
            assert "all_reduce" in str(error)
        else:
            raise AssertionError("rows were counted twice")
    ragged = ClosedFormSoftmax(3).partial_fit(x[:, : 2 + rank], y)
    try:
        ragged.all_reduce()
    except ValueError as error:
        assert "the processes hold rows of [2, 3] features" in str(error), error
    else:
        raise AssertionError("rows of different width were summed")
    empty = ClosedFormSoftmax(3).all_reduce()
    assert empty.statistics is None
torch.save(found, sys.argv[1] + "." + (str(rank) if together else "alone"))
if together:
    dist.destroy_process_group()
"""


def test_two_processes_have_the_layer_of_one_also_when_one_of_them_is_idle(tmp_path):
    found = alone_and_together(SCRIPT, tmp_path)
    for name, layer in found["alone"].items():
        assert torch.equal(found["0"][name], found["1"][name])
        torch.testing.assert_close(found["0"][name], layer, rtol=1e-10, atol=1e-10)
