"""S30 under torch.compile: the layer in one graph, with the step of its codebook."""

import copy

import pytest
import torch

from kexue.nn.soft_vq import soft_vq_attention
from kexue.nn.vq_layer import TransformerVQLayer

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.mark.parametrize(
    ("causal", "masked", "backend"),
    [(True, True, "inductor"), (True, False, "aot_eager"), (False, True, "aot_eager")],
)
def test_three_training_steps_of_the_layer_are_the_plain_ones(causal, masked, backend):
    torch.compiler.reset()
    torch.manual_seed(0)
    plain = TransformerVQLayer(
        16, num_codes=8, heads=2, head_dim=8, block=8, reseed_below=0.5, causal=causal
    )
    twin = copy.deepcopy(plain)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    mask = torch.ones(2, 28, dtype=torch.bool)
    mask[0, :9] = False
    for _ in range(3):
        x = torch.randn(2, 28, 16)
        found = []
        for module, owner in ((plain, plain), (compiled, twin)):
            given = x.clone().requires_grad_()
            out = module(given, mask) if masked else module(given)
            (out.square().mean() + owner.commit_loss).backward()
            found.append((out.detach(), given.grad, owner.output.weight.grad.clone()))
            owner.zero_grad()
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twin.quantizer.codebook, plain.quantizer.codebook)


@pytest.mark.parametrize("causal", [True, False])
def test_soft_vq_is_the_plain_one(causal):
    torch.compiler.reset()
    torch.manual_seed(0)
    C = torch.randn(2, 8, 4)
    found = []
    for run in (
        soft_vq_attention,
        torch.compile(soft_vq_attention, fullgraph=True, backend="aot_eager"),
    ):
        g = torch.Generator().manual_seed(1)
        q, k, v = (torch.randn(1, 2, 20, 4, generator=g).requires_grad_() for _ in range(3))
        out = run(q, k, v, C, 0.5, causal, None, 8)
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
