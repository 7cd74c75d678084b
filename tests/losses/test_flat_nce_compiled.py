"""The contrastive losses inside one compiled graph, forward and backward."""

import pytest
import torch

from kexue.losses.flat_nce import FlatNCELoss, InfoNCELoss, flat_nce_loss, info_nce_loss

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # too
]


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def compare(loss, x):
    torch.compiler.reset()
    found = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        leaf = x.clone().requires_grad_()
        value = function(leaf)
        value.backward()
        found.append((value.detach(), leaf.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


@pytest.mark.parametrize("loss", [flat_nce_loss, info_nce_loss])
def test_losses_of_scores(loss):
    ignore = torch.zeros(6, 9, dtype=torch.bool)
    ignore[0, 3] = True
    compare(lambda s: loss(s, torch.arange(6), ignore=ignore), draw(6, 9))


@pytest.mark.parametrize(("module", "chunk_size"), [(FlatNCELoss, None), (InfoNCELoss, 6)])
def test_losses_of_embeddings_whole_and_in_chunks(module, chunk_size):
    loss = module(0.2, chunk_size=chunk_size)
    groups = torch.tensor([0, 1, 2, 0, 3, 4])
    compare(lambda x: loss(x, groups=groups), draw(12, 8))
