"""The gated layers under torch.compile, forward and backward, against eager."""

import pytest
import torch

from kexue.nn.flash_layer import FlashLayer
from kexue.nn.gau import GatedAttentionUnit

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def same_compiled(run, inputs):
    """Value and gradients, compiled and eager."""
    compiled = torch.compile(run, fullgraph=True)
    expected, got = run(), compiled()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    ours = torch.autograd.grad((got * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("causal", "masked"), [(False, False), (True, True)])
def test_a_flash_layer_compiles_to_one_graph(causal, masked):
    torch.manual_seed(0)
    layer = FlashLayer(16, key_size=8, chunk_size=4, causal=causal)
    x = torch.randn(2, 10, 16, requires_grad=True)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, :3] = False
    same_compiled(lambda: layer(x, mask if masked else None), [x, *layer.parameters()])


@pytest.mark.parametrize("attention", ["softmax_plus", "relu2_norm"])
def test_a_gated_attention_unit_compiles_to_one_graph(attention):
    torch.manual_seed(0)
    layer = GatedAttentionUnit(16, key_size=8, attention=attention, causal=True)
    x = torch.randn(2, 10, 16, requires_grad=True)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, :3] = False
    same_compiled(lambda: layer(x, mask), [x, *layer.parameters()])
