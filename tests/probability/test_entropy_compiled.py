"""Entropy normalisation inside one compiled graph, forward and backward."""

import pytest
import torch

from kexue.probability.entropy import entropy_normalize, entropy_normalized_softmax

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # too
]


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def compare(function, x, weights):
    torch.compiler.reset()
    found = []
    for one in (function, torch.compile(function, fullgraph=True)):
        leaf = x.clone().requires_grad_()
        value = one(leaf)
        (value * weights).sum().backward()
        found.append((value.detach(), leaf.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


def test_distributions_and_attention_rows():
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    compare(
        lambda s: (
            entropy_normalize(logits=s, perplexity=3.0) * 0.5
            + entropy_normalized_softmax(s, 2.5, mask=mask)
        ),
        draw(2, 6, 6),
        draw(6),
    )


def test_graphs_of_any_shape_know_the_limits():
    torch.compiler.reset()

    def normalised(logits):
        return entropy_normalize(
            logits=logits, perplexity=3.0, on_unreachable="clamp", return_gamma=True
        )

    compiled = torch.compile(normalised, fullgraph=True, dynamic=True)
    for shape in ((4, 9), (6, 13)):
        logits = draw(*shape)
        logits[1, 2:] = -torch.inf
        logits[2] = -torch.inf
        logits[3] = 0
        for mine, theirs in zip(compiled(logits), normalised(logits), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


def test_a_bad_row_is_named_from_inside_the_graph():
    torch.compiler.reset()
    compiled = torch.compile(lambda p: entropy_normalize(p, perplexity=2.0), fullgraph=True)
    with pytest.raises(ValueError, match="row 1 of p sums to 0"):
        compiled(torch.tensor([[0.5, 0.4, 0.1], [0.0, 0.0, 0.0]]))
    torch.compiler.reset()
