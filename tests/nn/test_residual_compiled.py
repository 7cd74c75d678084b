"""Residual wrappers and rewired models inside one compiled graph, forward and backward."""

import copy

import pytest
import torch
import transformers
from torch import nn

from kexue.nn.deepnorm import DeepNorm, deepnorm_constants
from kexue.nn.deepnorm_models import apply_deepnorm
from kexue.nn.residual import AlphaRamp, LayerScale, PostNorm, PreNorm, ScaledResidual, SkipInit

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # too
]


class Block(nn.Module):
    """Every wrapper around a branch of its own."""

    def __init__(self):
        super().__init__()
        self.wrappers = nn.ModuleList(
            (
                *(PostNorm(8), PreNorm(8, nn.RMSNorm), DeepNorm(8, 1.7)),
                *(SkipInit(0.5), LayerScale(8, 0.1), AlphaRamp(4)),
            )
        )
        self.branches = nn.ModuleList(nn.Linear(8, 8) for _ in self.wrappers)
        self.last = ScaledResidual(nn.Linear(8, 8), 0.25)

    def forward(self, x):
        for wrapper, branch in zip(self.wrappers, self.branches, strict=True):
            x = wrapper(x, branch)
        return self.last(x)


def compare(model, x, **tolerance):
    torch.compiler.reset()
    found = []
    for function in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        y = function(x)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)
    torch.compiler.reset()


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_wrappers_in_one_graph(dtype):
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 1}
    compare(Block().to(dtype), draw(4, 8).to(dtype), **tolerance)


def test_the_ramp_rises_without_compiling_again():
    ramp, x = AlphaRamp(4), torch.ones(2)
    torch.compiler.reset()
    with torch.compiler.set_stance("default"):
        compiled = torch.compile(ramp, fullgraph=True)
        assert torch.equal(compiled(x, x), x)
    with torch.compiler.set_stance("fail_on_recompile"):
        for expected in (1.25, 1.5, 1.75, 2.0, 2.0):
            ramp.step()
            assert torch.equal(compiled(x, x), torch.full((2,), expected))
    torch.compiler.reset()


def test_a_rewired_layer_of_torch():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    apply_deepnorm(layer)
    compare(layer, draw(2, 5, 16), rtol=1e-4, atol=1e-5)


def test_a_rewired_bert():
    sizes = {"vocab_size": 9, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, num_hidden_layers=1)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    plain = copy.deepcopy(model)
    apply_deepnorm(model)
    torch.compiler.reset()
    ids = torch.arange(9)[None]
    compiled = torch.compile(lambda ids: model(ids).last_hidden_state, fullgraph=True)
    found = compiled(ids)
    torch.testing.assert_close(found, model(ids).last_hidden_state, rtol=1e-4, atol=1e-5)
    assert (found - plain(ids).last_hidden_state).abs().max() > 1e-3  # alpha is in the graph
    torch.compiler.reset()


def test_unknown_rules_and_starts_are_refused_before_anything_changes():
    with pytest.raises(ValueError, match='rule must be "paper", "sgd", "adam" or "lamb"'):
        deepnorm_constants(6, rule="rmsprop")
    layer = nn.TransformerEncoderLayer(16, 2, 32)
    with pytest.raises(ValueError, match='"rescale", "xavier" or "keep", got \'he\''):
        apply_deepnorm(layer, init="he")
    assert not any(one._forward_hooks for one in layer.modules())
