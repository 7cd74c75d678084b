"""S25 under torch.compile: both layers in one graph, forward and backward."""

import pytest
import torch

from kexue.nn.talking_heads_attention import TalkingHeadsAttention
from kexue.nn.wide_key import WideKeyAttention

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
LAYERS = {
    "wide": lambda causal: WideKeyAttention(16, 4, 6, causal=causal),
    "wide with rope": lambda causal: WideKeyAttention(16, 4, 6, causal=causal, rope=True),
    "talking, one block": lambda causal: TalkingHeadsAttention(16, 4, causal=causal),
    "talking, blocks": lambda causal: TalkingHeadsAttention(16, 4, 2, 8, causal=causal, block=8),
    "talking, dynamic": lambda causal: TalkingHeadsAttention(
        16, 4, causal=causal, dynamic=True, block=8
    ),
    "talking, logits": lambda causal: TalkingHeadsAttention(16, 4, causal=causal, mix="logits"),
}


@pytest.mark.parametrize(
    ("name", "causal", "masked"),
    [
        ("wide", False, False),
        ("wide with rope", True, True),
        ("talking, one block", False, True),
        ("talking, blocks", True, False),
        ("talking, blocks", False, True),
        ("talking, dynamic", True, True),
        ("talking, logits", True, False),
    ],
)
def test_the_compiled_layer_is_the_plain_one(name, causal, masked):
    torch.compiler.reset()
    torch.manual_seed(0)
    plain = LAYERS[name](causal)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    compiled = torch.compile(plain, fullgraph=True)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, :5] = False
    x = torch.randn(2, 20, 16)
    found = []
    for layer in (plain, compiled):
        given = x.clone().requires_grad_()
        out = layer(given, mask) if masked else layer(given)
        grads = torch.autograd.grad(out.square().mean(), [given, *plain.parameters()])
        found.append((out.detach(), *grads))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
