"""Models of transformers with log n attention inside one compiled graph."""

import pytest
import torch

pytest.importorskip("transformers")

from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from kexue.models.log_n import register_log_n

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch about itself
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # too
]

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "initializer_range": 0.3,
}
PADDED = torch.tensor([[1] * 16, [1] * 11 + [0] * 5, [0] * 4 + [1] * 12])


def tokens(*shape):
    return torch.randint(3, 49, shape, generator=torch.Generator().manual_seed(0))


def model_of(kind, config_kind, attention):
    torch.manual_seed(0)
    options = {"num_key_value_heads": 1} if kind is LlamaForCausalLM else {}
    config = config_kind(**SIZES, **options, attn_implementation=attention)
    return kind(config).eval()


@pytest.mark.parametrize(
    ("kind", "inner", "mask"),
    [
        (BertModel, "sdpa", None),
        (LlamaForCausalLM, "sdpa", None),
        (LlamaForCausalLM, "eager", PADDED),
    ],
)
def test_the_whole_model_is_one_graph(kind, inner, mask):
    torch.compiler.reset()
    register_log_n("compiled_logn", inner, base=5)
    model = model_of(kind, BertConfig if kind is BertModel else LlamaConfig, "compiled_logn")
    found = []
    for one in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        options = {} if kind is BertModel else {"use_cache": False}
        out = one(tokens(3, 16), attention_mask=mask, **options)[0]
        seen = slice(None) if mask is None else mask.bool()
        out[seen].square().mean().backward()
        used = [p for name, p in model.named_parameters() if "pooler" not in name]
        grads = [p.grad.clone() for p in used]
        found.append((out.detach()[seen], *grads))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")
@pytest.mark.parametrize("mask", [None, PADDED])
def test_flex_attention_is_counted_from_the_pairs_of_its_block_mask(mask):
    torch.compiler.reset()
    register_log_n("flex_attention_logn", "flex_attention", base=5)
    register_log_n("sdpa_logn", "sdpa", base=5)
    found = []
    for name in ("flex_attention_logn", "sdpa_logn"):
        with torch.no_grad():
            found.append(model_of(LlamaForCausalLM, LlamaConfig, name)(tokens(3, 16), mask).logits)
    seen = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(found[0][seen], found[1][seen], rtol=1e-4, atol=1e-4)
    torch.compiler.reset()
