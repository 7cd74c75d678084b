"""S31 under torch.compile: replacement and a training step in one graph."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.losses.exposure import ParallelScheduledSampling, RandomReplace
from naive import exposure as naive

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

V = 19


def batch(rows=5, n=8):
    words = torch.randint(3, V, (rows, n), generator=torch.Generator().manual_seed(0))
    inputs = torch.cat([torch.zeros(rows, 1, dtype=torch.long), words], 1)
    return inputs, torch.cat([words, torch.ones(rows, 1, dtype=torch.long)], 1)


class Step(nn.Module):
    def __init__(self, pool):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.Embedding(V, 6), nn.Linear(6, V)
        self.replace = RandomReplace(
            0.7, 0.5, pool, (0, 1, 2), vocab_size=V if pool == "vocab" else None, seed=4
        )

    def forward(self, inputs, labels):
        read = self.replace(inputs, labels)
        return F.cross_entropy(self.out(self.table(read)).flatten(0, 1), labels.flatten()), read


@pytest.mark.parametrize("pool", ["target", "vocab"])
def test_a_compiled_step_draws_the_same_tokens_anew_in_every_call(pool):
    inputs, labels = batch()
    plain, model = Step(pool), Step(pool)
    compiled = torch.compile(model, fullgraph=True)
    reads = []
    for _ in range(4):
        expected, tokens = plain(inputs, labels)
        loss, read = compiled(inputs, labels)
        expected.backward()
        loss.backward()
        assert torch.equal(read, tokens)
        torch.testing.assert_close(loss, expected)
        reads.append(read)
    torch.testing.assert_close(model.table.weight.grad, plain.table.weight.grad)
    assert not torch.equal(reads[0], reads[1])
    assert torch.equal(model.replace.stream.state, torch.tensor([4, 4]))


@pytest.mark.parametrize("mix", ["sample"])
def test_the_mixing_of_two_passes_compiles_too(mix):
    inputs, labels = batch()
    logits = naive.Causal(V)(inputs).detach()
    plain, inner = (ParallelScheduledSampling(0.4, mix, seed=2) for _ in range(2))
    compiled = torch.compile(inner, fullgraph=True)
    for _ in range(3):
        assert torch.equal(compiled(inputs, labels, logits), plain(inputs, labels, logits))
