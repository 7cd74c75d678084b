"""Log n attention inside one compiled graph, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from kexue.nn.attention_scale import row_counts, scaled_queries
from kexue.nn.log_n_attention import LogNAttention
from kexue.nn.row_scale import SSMaxScale

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # too
]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compare(function, parameters, *inputs):
    torch.compiler.reset()
    found = []
    for one in (function, torch.compile(function, fullgraph=True)):
        x = inputs[0].clone().requires_grad_()
        out = one(x, *inputs[1:])
        found.append((out, *torch.autograd.grad(out.square().sum(), [x, *parameters])))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("masked", [False, True])
def test_scaled_queries_before_torchs_attention(masked):
    mask = torch.arange(12).expand(2, -1) >= torch.tensor([[0], [3]])

    def attention(q, k, v):
        n = row_counts(mask if masked else None, causal=True, q_len=12, k_len=12)
        return F.scaled_dot_product_attention(scaled_queries(q, n), k, v, is_causal=True)

    compare(attention, [], *(draw(2, 2, 12, 8, seed=s) for s in range(3)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", ["log n", "SSMax"])
def test_the_layer(causal, masked, scale):
    torch.manual_seed(0)
    learnt = SSMaxScale(4) if scale == "SSMax" else None
    layer = LogNAttention(16, 4, 2, causal=causal, scale=learnt, rope=True, rope_base=100.0)
    mask = torch.arange(12).expand(2, -1) >= torch.tensor([[0], [3]]) if masked else None
    compare(layer, list(layer.parameters()), draw(2, 12, 16), mask)


def test_one_graph_serves_all_lengths():
    torch.compiler.reset()
    layer = LogNAttention(16, 2, causal=True)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for length in (5, 9, 33):
        x = draw(1, length, 16)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)
    torch.compiler.reset()
