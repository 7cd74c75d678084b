"""What Tiger takes each parameter for."""

import pytest
import torch
from torch import nn

from kexue.optim.kinds import KINDS, parameter_kinds, tiger_param_groups
from kexue.optim.tiger import Tiger


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 8, padding_idx=0)
        self.attention = nn.MultiheadAttention(8, 2, bias=True, add_bias_kv=True)
        self.recurrent = nn.LSTM(8, 8)
        self.conv = nn.Conv1d(8, 8, 3)
        self.norms = nn.ModuleList(
            [nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 8), nn.BatchNorm1d(8)]
        )
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.scale = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 10)


EXPECTED = {
    "words.weight": "embedding",
    "attention.in_proj_weight": "matrix",
    "attention.in_proj_bias": "bias",
    "attention.bias_k": "bias",
    "attention.out_proj.weight": "matrix",
    "attention.out_proj.bias": "bias",
    "recurrent.weight_hh_l0": "matrix",
    "recurrent.bias_ih_l0": "bias",
    "conv.weight": "matrix",
    "conv.bias": "bias",
    "norms.0.weight": "gain",
    "norms.0.bias": "shift",
    "norms.1.weight": "gain",
    "norms.2.weight": "gain",
    "norms.2.bias": "shift",
    "norms.3.weight": "gain",
    "norms.3.bias": "shift",
    "instance.weight": "gain",
    "instance.bias": "shift",
    "scale": "matrix",
    "head.weight": "matrix",
    "head.bias": "bias",
}


@pytest.mark.parametrize("name", list(EXPECTED))
def test_the_type_of_the_module_decides(name):
    assert parameter_kinds(Wide())[name] == EXPECTED[name]


def test_a_table_shared_with_the_head_is_an_embedding_once():
    for order in ((0, 1), (1, 0)):
        parts = [nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)]
        parts[1].weight = parts[0].weight
        model = nn.Sequential(*[parts[i] for i in order])
        assert list(parameter_kinds(model).values()) == ["embedding"]


def test_norms_are_known_by_the_name_of_their_class():
    class LlamaRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma, self.beta = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    assert parameter_kinds(LlamaRMSNorm()) == {"gamma": "gain", "beta": "shift"}


def test_overrides_go_by_name_and_the_first_that_fits_wins():
    kinds = parameter_kinds(Wide(), {r"^scale$": "gain", "head": "embedding", "weight": "matrix"})
    assert kinds["scale"] == "gain"
    assert kinds["head.weight"] == kinds["head.bias"] == "embedding"
    assert kinds["norms.0.weight"] == "matrix"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"weight": "table"}, "the kind of 'weight' must be one of .*, got 'table'"),
        (
            {"wieght": "gain"},
            "no parameter's name fits 'wieght'; the names are scale, words.weight",
        ),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiger_param_groups(Wide(), overrides)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match="this Tanh has no parameters"):
        tiger_param_groups(nn.Tanh())


def test_groups_hold_every_parameter_once_by_kind_with_its_name():
    model = Wide()
    groups = Tiger(model).param_groups
    names = {
        name: (group["kind"], parameter)
        for group in groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    assert {n: k for n, (k, _) in names.items()} == parameter_kinds(model)
    assert all(names[n][1] is p for n, p in model.named_parameters())
    assert [g["kind"] for g in groups] == [k for k in KINDS if k in EXPECTED.values()]


def test_the_norms_of_transformers_are_known_and_those_kept_less_one_have_centre_zero():
    from transformers import GemmaConfig, GemmaModel, LlamaConfig, LlamaModel, T5Config, T5Model

    size = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    for model, kind in (
        (LlamaModel(LlamaConfig(**size, **heads)), "gain"),
        (GemmaModel(GemmaConfig(**size, **heads, head_dim=4, pad_token_id=0)), "shift"),
        (
            T5Model(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)),
            "gain",
        ),
    ):
        norms = {n: k for n, k in parameter_kinds(model).items() if "norm" in n}
        assert norms
        assert set(norms.values()) == {kind}
        for module in model.modules():  # the classes in question do what their kind says
            if "Norm" in type(module).__name__:
                with torch.no_grad():
                    module.weight.zero_()
                    assert bool(module(torch.ones(1, 8)).any()) == (kind == "shift")


def test_bert_has_all_kinds():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    kinds = parameter_kinds(BertModel(config))
    assert kinds["embeddings.position_embeddings.weight"] == "embedding"
    assert kinds["embeddings.LayerNorm.weight"] == "gain"
    assert kinds["encoder.layer.0.output.LayerNorm.bias"] == "shift"
    assert kinds["pooler.dense.weight"] == "matrix"
    assert set(kinds.values()) == set(KINDS)
