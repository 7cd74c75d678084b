"""One rule for whole models (S04): roles by type, ties, packed matrices, transformers' models."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from kexue.nn.init_rules import RULES, Rule, apply_init, t5_init_
from kexue.nn.ntk_linear import NTKLinear
from kexue.nn.weight_roles import weight_roles


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def check_deviations(model, report):
    """Every weight has the deviation that the report says; constants are what they are."""
    parameters = dict(model.named_parameters())
    for one in report.settings:
        values = parameters[one.name].detach().double()
        assert tuple(values.shape) == one.shape
        if one.role in ("zeros", "ones"):
            assert (values == float(one.role == "ones")).all(), one.name
        else:
            error = 6 / math.sqrt(2 * values.numel())
            deviation = values.square().mean().sqrt().item()
            assert deviation == pytest.approx(one.std, rel=error + 0.005), one.name


class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 64, padding_idx=3)
        self.conv = nn.Conv1d(64, 32, 3, groups=2, stride=2)
        self.up = nn.ConvTranspose1d(32, 64, 4, stride=2)
        self.attention = nn.MultiheadAttention(64, 4, kdim=32, vdim=16)
        self.packed = nn.MultiheadAttention(64, 4)
        self.qkv = nn.Linear(64, 192, bias=False)
        self.norm = nn.LayerNorm(64)
        self.batch = nn.BatchNorm1d(64)
        self.rms = nn.RMSNorm(64)
        self.recurrent = nn.GRU(64, 8)
        self.normed = weight_norm(nn.Linear(8, 8, bias=False))
        self.ntk = NTKLinear(8, 8)
        self.head = nn.Linear(64, 50)
        self.head.weight = self.embedding.weight
        for p in self.parameters():
            nn.init.constant_(p, 0.123) if p.ndim < 2 else None


@pytest.mark.parametrize("rule", [*RULES, Rule(3.0, "fan_out", embedding_std=0.5)])
def test_every_weight_has_the_deviation_of_the_rule(rule):
    model = Zoo()
    report = apply_init(model, rule, seeded())
    model.embedding.weight.data[3] = model.embedding.weight.data[4]  # the padding row was zero
    check_deviations(model, report)
    chosen = RULES[rule] if isinstance(rule, str) else rule
    fans = {
        "conv.weight": (96, 24),
        "up.weight": (64, 256),
        "packed.in_proj_weight": (64, 64),
        "attention.k_proj_weight": (32, 64),
        "qkv.weight": (64, 64),
    }
    for name, (m, n) in fans.items():
        one = report[name]
        assert (one.forward, one.backward) == pytest.approx((m * one.std**2, n * one.std**2))
        if chosen.std is not None:
            assert one.std == chosen.std
        elif chosen.mode == "fan_in":
            assert one.forward == pytest.approx(chosen.scale)
        elif chosen.mode == "geometric":
            assert one.forward * one.backward == pytest.approx(1)
        elif chosen.mode == "arithmetic":
            assert one.forward + one.backward == pytest.approx(2)


def test_what_is_not_recognised_is_kept_and_named():
    model = Zoo()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = apply_init(model, "lecun")
    kept = {name.split(".")[0] for name in report.kept}
    assert kept == {"recurrent", "normed", "ntk"}
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name in report.kept), name
    assert {*report.kept, *(one.name for one in report.settings)} == set(before)


def test_a_tied_weight_is_set_once_for_its_use_as_a_matrix():
    model = Zoo()
    report = apply_init(model, "xavier", seeded())
    assert [one.name for one in report.settings].count("embedding.weight") == 1
    assert report["embedding.weight"].role == "tied"
    assert report["embedding.weight"].std == 64**-0.5
    assert model.head.weight is model.embedding.weight


def test_an_embedding_is_never_averaged_with_the_vocabulary_and_its_padding_row_is_zero():
    for rule in ("lecun", "xavier", "geometric"):
        embedding = nn.Embedding(5000, 16, padding_idx=0)
        report = apply_init(embedding, rule, seeded())
        assert report["weight"].std == 1.0
        assert (embedding.weight[0] == 0).all()
        assert embedding.weight[1:].std().item() == pytest.approx(1, rel=0.02)


def test_bert_is_the_original_with_its_cut():
    model = nn.Linear(512, 512)
    report = apply_init(model, "bert", seeded())
    assert report["weight"].std == pytest.approx(0.02 * 0.8796256610342398, rel=1e-12)
    assert model.weight.abs().max().item() <= 0.04


def test_the_same_generator_gives_the_same_model():
    one, two = Zoo(), Zoo()
    for model in (one, two):
        apply_init(model, "he", seeded(5))
    for name in ("qkv.weight", "conv.weight", "embedding.weight"):
        assert torch.equal(one.get_parameter(name), two.get_parameter(name))


def test_a_model_on_the_meta_device_gets_a_report_and_stays():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4))
    report = apply_init(model, "lecun")
    assert report["0.weight"].std == pytest.approx(8**-0.5)
    assert model[0].weight.is_meta


def test_the_report_is_a_table():
    text = str(apply_init(nn.Sequential(nn.Linear(4, 16), NTKLinear(16, 1)), "lecun"))
    assert text.splitlines()[0].split() == ["rule", "lecun", "role", "std", "forward", "backward"]
    assert text.splitlines()[1].split() == ["0.weight", "matrix", "0.5", "1", "4"]
    assert text.splitlines()[-1].split() == ["1.bias", "kept"]


def test_unknown_rules_and_lazy_layers_are_refused():
    with pytest.raises(ValueError, match=r"one of lecun, he, .*, t5 or a Rule; got 'orthodox'"):
        apply_init(nn.Linear(2, 2), "orthodox")
    with pytest.raises(ValueError, match=r"^weight has no shape yet: run one batch"):
        apply_init(nn.LazyLinear(4), "lecun")
    with pytest.raises(ValueError, match=r"std must be a number of at least 0, got -0\.1"):
        Rule(std=-0.1)
    with pytest.raises(ValueError, match="the mean must be one of"):
        Rule(mode="middle")


def attention(d=96, heads=4, size=32):
    layers = {name: nn.Linear(d, heads * size, bias=False) for name in "qkv"}
    return nn.ModuleDict({**layers, "o": nn.Linear(heads * size, d, bias=False)})


def test_the_t5_rule_gives_products_of_variance_one_like_dividing_by_the_root():
    random, d, heads, size = seeded(1), 96, 64, 32
    found = {}
    for rule in ("t5", "lecun"):
        model = attention(d, heads, size)
        _ = t5_init_(model, head_dim=size, generator=random) if rule == "t5" else None
        _ = apply_init(model, "lecun", random) if rule == "lecun" else None
        x, y = torch.randn(2, 400, d, generator=random).unbind()
        q, k = (model[n](z).unflatten(1, (heads, size)) for n, z in (("q", x), ("k", y)))
        scores = (q * k).sum(2) / (1 if rule == "t5" else math.sqrt(size))
        found[rule] = scores.square().mean().item()
    assert found["t5"] == pytest.approx(1, rel=0.05)
    assert found["lecun"] == pytest.approx(1, rel=0.05)


def test_the_t5_rule_sets_every_deviation():
    report = t5_init_(attention(), head_dim=32, generator=seeded())
    deviations = {one.name: one.std for one in report.settings}
    assert deviations == pytest.approx(
        {
            "q.weight": (96 * 32) ** -0.5,
            "k.weight": 96**-0.5,
            "v.weight": 96**-0.5,
            "o.weight": 128**-0.5,
        }
    )


def test_the_t5_rule_refuses_attention_that_is_not_its_own():
    with pytest.raises(ValueError, match="no module holds a linear layer called 'q'"):
        t5_init_(nn.MultiheadAttention(8, 2))
    with pytest.raises(ValueError, match="size of a head of the module is not known: pass head_"):
        t5_init_(attention())
    scaled = nn.Sequential(attention())
    scaled[0].scaling = 32**-0.5
    with pytest.raises(ValueError, match=r"0 divides its scores already \(scaling = 0\.1768\)"):
        t5_init_(scaled, head_dim=32)


def test_roles_of_lookalikes_are_told_by_shape():
    class Conv1D(nn.Module):
        def __init__(self, nf):
            super().__init__()
            self.nf, self.weight = nf, nn.Parameter(torch.zeros(4, 12))

    assert [one.fans for one in weight_roles(Conv1D(12))] == [(4, 12)]
    assert weight_roles(Conv1D(4)) == []
    packed = nn.ModuleDict({"c_attn": Conv1D(12), "qkv_proj": nn.Linear(16, 24)})
    fans = [one.fans for one in weight_roles(packed) if one.role == "matrix"]
    assert fans == [(4, 4), (16, 24)]  # grouped keys and values are one matrix


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=32,
    )
    return transformers.BertForMaskedLM(config)


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=32, bos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def t5():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=300,
        d_model=64,
        d_kv=16,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize("build", [bert, gpt2, t5])
@pytest.mark.parametrize("rule", ["lecun", "geometric", "bert"])
def test_models_of_transformers_are_set_completely(build, rule):
    model = build()
    for p in model.parameters():
        nn.init.constant_(p, 0.5)
    report = apply_init(model, rule, seeded())
    assert report.kept == []
    for one in (m for m in model.modules() if isinstance(m, nn.Embedding)):
        if one.padding_idx is not None:
            assert (one.weight[one.padding_idx] == 0).all()
            one.weight.data[one.padding_idx] = one.weight.data[-1]
    check_deviations(model, report)
    assert sum(one.role == "tied" for one in report.settings) == 1


def test_gpt2s_packed_matrix_is_three_and_lies_on_its_side():
    report = apply_init(gpt2(), "xavier", seeded())
    packed, wide = (
        report[f"transformer.h.0.{name}.weight"] for name in ("attn.c_attn", "mlp.c_fc")
    )
    assert packed.shape == (64, 192)
    assert packed.std == pytest.approx(1 / 8)
    assert (wide.forward, wide.backward) == pytest.approx((0.4, 1.6))


def test_a_model_of_transformers_computes_after_every_rule():
    model = bert().eval()
    for rule in RULES:
        apply_init(model, rule, seeded())
        out = model(torch.arange(1, 9)[None]).logits
        assert out.isfinite().all()


def test_the_t5_rule_is_that_of_transformers():
    torch.manual_seed(0)
    theirs, ours = t5(), t5()
    report = apply_init(ours, "t5", seeded())
    check_deviations(ours, report)
    assert report.kept == []
    wanted = dict(theirs.named_parameters())
    for one in report.settings:
        peer = wanted[one.name].detach().square().mean().sqrt().item()
        mine = 1.0 if one.role == "ones" else one.std
        assert mine == pytest.approx(peer, rel=6 / math.sqrt(2 * wanted[one.name].numel())), one
    query = report["encoder.block.0.layer.0.SelfAttention.q.weight"]
    assert query.std == pytest.approx((64 * 16) ** -0.5)
