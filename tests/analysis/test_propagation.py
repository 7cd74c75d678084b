"""S06: the identity path by formula and as measured, gradients against depth, gains, warm-up."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kexue.analysis.measured_path import evaluating
from kexue.analysis.norm_gains import gain_of
from kexue.analysis.path_weight import TRUNCATED
from kexue.analysis.propagation import (
    LinearWarmup,
    Stack,
    grad_profile,
    identity_path,
    ln_gain_report,
    measure_identity_path,
    second_moment,
    suggest_initializer_range,
    tied_logit_std,
)

BERT = Stack(768, 3072, 12, 0.02)
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "vocab_size": 2000}


def bert(**changes):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig(**(SIZES | HEADS | changes)), add_pooling_layer=False)


def encoder(std=None, *, norm_first=False, layers=3, width=256, activation="gelu"):
    """`nn.TransformerEncoder` with matrices of one std, drawn for every layer anew."""
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(
        width, 4, 4 * width, 0.0, activation, norm_first=norm_first, batch_first=True
    )
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=std or parameter.shape[1] ** -0.5)
    return model


def one_token(count=512, width=256):
    """Sequences of one token, where attention has nothing to mix: it is the identity."""
    return torch.randn(count, 1, width, generator=torch.Generator().manual_seed(2))


# --- worked numbers


@pytest.mark.parametrize(
    ("std", "truncated", "p", "attention", "feed_forward", "block", "twelve", "twenty_four"),
    [
        (0.02, True, 0.237693328, 0.056498118, 0.074822279, 0.938420110, 0.466409806, 0.217538107),
        (0.02, False, 0.3072, 0.094371840, 0.130848268, 0.898908272, 0.278345703, 0.077476330),
    ],
)
def test_the_table_of_bert_base(
    std, truncated, p, attention, feed_forward, block, twelve, twenty_four
):
    path = identity_path(BERT, truncated=truncated)
    assert 768 * (std * (TRUNCATED if truncated else 1)) ** 2 == pytest.approx(p, abs=5e-10)
    assert path.branch_variances[0] == pytest.approx(attention, abs=5e-10)
    assert path.branch_variances[1] == pytest.approx(feed_forward, abs=5e-10)
    assert path.per_sublayer[0] * path.per_sublayer[1] == pytest.approx(block, abs=5e-10)
    assert path.total == pytest.approx(twelve, abs=5e-10)
    deep = identity_path(Stack(768, 3072, 24, std), truncated=truncated)
    assert deep.total == pytest.approx(twenty_four, abs=5e-10)


def test_the_table_at_lecun_size_with_the_second_matrix_by_its_own_fan():
    """One matrix of every kind with E[w²] = 1 / fan_in, read from the weights."""
    model = encoder(layers=1)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.constant_(parameter, parameter.shape[1] ** -0.5)
    path = identity_path(model.double())
    assert path.branch_variances == pytest.approx((1.0, 0.425221482570299), abs=1e-7)
    assert path.total == pytest.approx(0.592302850, abs=1e-8)
    assert path.total**12 == pytest.approx(0.001864343, abs=1e-9)
    assert path.total**24 == pytest.approx(3.4757756e-06, abs=1e-12)


def test_worked_numbers_of_the_constants():
    pairs = {
        0.017592513220684797: 0.02 * TRUNCATED,
        0.036084391824351615: 768**-0.5,
        0.487538027696852: 0.02 * TRUNCATED * 768**0.5,
        0.5542562584220407: 0.02 * 768**0.5,
    }
    for printed, computed in pairs.items():
        assert computed == pytest.approx(printed, abs=1e-13)
    ratio = 0.02 * TRUNCATED * 768**0.5
    assert ratio / 16 == pytest.approx(0.030471126731, abs=1e-12)
    uniform = identity_path(BERT, "uniform", 128, truncated=True)
    block = uniform.per_sublayer[0] * uniform.per_sublayer[1]
    assert block == pytest.approx(0.9643525744262061, abs=1e-10)
    assert uniform.total == pytest.approx(0.6468895425201577, abs=1e-10)


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("relu", 0.5),
        ("relu2", 1.5),
        ("tanh", 0.394294490397841),
        ("silu", 0.355775519817352),
        ("gelu", 0.425221482570299),
        ("gelu_new", 0.425193711033099),
    ],
)
def test_second_moments_of_activations(name, moment):
    assert second_moment(name, 1.0) == pytest.approx(moment, abs=1e-10)


def test_second_moment_of_gelu_agrees_with_a_dense_sum_at_any_power():
    z = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    for power in (1e-6, 0.01, 0.3, 4.0, 400.0):
        values = nn.functional.gelu(math.sqrt(power) * z) ** 2 * density
        dense = float(torch.trapezoid(values, z))
        assert second_moment("gelu", power) == pytest.approx(dense, rel=1e-10)


# --- the formula


def test_weight_is_one_without_branches_and_falls_with_their_size_and_number():
    nothing = identity_path(Stack(64, 256, 5, 0.0))
    assert nothing.total == 1
    stds = [identity_path(Stack(64, 256, 5, std)).total for std in (0.01, 0.05, 0.1, 0.5)]
    layers = [identity_path(Stack(64, 256, n, 0.1)).total for n in (1, 2, 4, 8)]
    for values in (stds, layers):
        assert all(a > b for a, b in pairwise(values))


def test_with_branches_of_variance_one_the_weight_halves_every_two_sublayers():
    d = 64
    one = Stack(d, 2 * d, 12, d**-0.5, activation="relu")  # s_a² = 1, s_f² = 2d/d · 1/2 = 1
    path = identity_path(one)
    assert path.branch_variances == pytest.approx((1.0,) * 24, abs=1e-12)
    assert path.total == pytest.approx(0.000244140625, abs=1e-15)


@pytest.mark.parametrize("std", [0.005, 0.02, 0.125])
def test_squares_of_all_coefficients_add_up_to_the_variance_of_the_stream(std):
    path = identity_path(Stack(64, 256, 6, std))
    first, *branches = path.coefficients
    parts = [s2 * w * w for s2, w in zip(path.branch_variances, branches, strict=True)]
    assert first**2 + sum(parts) == pytest.approx(1.0, abs=1e-12)
    assert first == pytest.approx(path.total, abs=1e-15)
    assert path.share == path.total


def test_squares_of_coefficients_of_unit_branches_sum_to_one():
    path = identity_path(Stack(64, 128, 6, 0.125, activation="relu"))
    assert sum(w * w for w in path.coefficients) == pytest.approx(1.0, abs=1e-12)


def test_pre_norm_keeps_weight_one_and_its_variance_grows_by_each_branch():
    path = identity_path(Stack(64, 128, 6, 0.125, norm="pre", activation="relu"))
    assert path.per_sublayer == (1.0,) * 12
    assert path.total == 1
    assert path.coefficients == (1.0,) * 13
    assert path.stream == pytest.approx([1.0 + i for i in range(13)], abs=1e-12)
    assert path.share == pytest.approx(13**-0.5, abs=1e-12)


def test_fourfold_width_at_one_std_has_fourfold_power():
    attention = [identity_path(Stack(d, 4 * d, 1, 0.02)).branch_variances[0] for d in (256, 1024)]
    assert attention[1] / attention[0] == pytest.approx(16.0, abs=1e-12)  # p² of two matrices
    kept = [identity_path(Stack(d, 4 * d, 3, 0.5 * d**-0.5)).total for d in (256, 1024, 4096)]
    assert kept == pytest.approx([kept[0]] * 3, abs=1e-12)


def test_dropout_enlarges_a_branch_as_it_does_in_training():
    plain, dropped = identity_path(BERT), identity_path(BERT, dropout=0.1)
    assert np.array(dropped.branch_variances) * 0.9 == pytest.approx(plain.branch_variances)
    with pytest.raises(ValueError, match=r"dropout must be at least 0 and below 1, got 1"):
        identity_path(BERT, dropout=1.0)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("truncated", [True, False])
@pytest.mark.parametrize("layers", [1, 12, 48])
def test_the_suggested_std_leaves_what_was_asked_for(norm, truncated, layers):
    for target in (0.05, 0.4, 0.9):
        std = suggest_initializer_range(512, 2048, layers, norm, target, truncated)
        stack = Stack(512, 2048, layers, std, norm)
        assert identity_path(stack, truncated=truncated).share == pytest.approx(target, abs=1e-10)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_more_layers_get_a_smaller_std(norm):
    stds = [suggest_initializer_range(768, 3072, n, norm) for n in (1, 6, 12, 24, 96)]
    assert all(a > b for a, b in pairwise(stds))


def test_the_suggestion_for_bert_is_bert():
    std = suggest_initializer_range(768, 3072, 12, target=identity_path(BERT, truncated=True).total)
    assert std == pytest.approx(0.02, abs=1e-12)


# --- configs and models


def test_a_config_and_its_stack_agree():
    from transformers import BertConfig, GPT2Config, ModernBertConfig

    assert identity_path(BertConfig()).total == identity_path(BERT).total
    assert identity_path(BertConfig(), truncated=True).total == pytest.approx(0.466409806, abs=1e-9)
    assert identity_path(ModernBertConfig()).norm == "pre"
    gpt2 = identity_path(GPT2Config())  # n_inner is None; the last matrices are scaled by depth
    assert gpt2.norm == "pre"
    scaled = Stack(768, 3072, 12, 0.02, "pre", "gelu_new", residual_std=0.02 / 24**0.5)
    assert gpt2.branch_variances == identity_path(scaled).branch_variances


FAMILIES = {
    "Bert": SIZES | HEADS,
    "Roberta": SIZES | HEADS,
    "Electra": SIZES | HEADS | {"embedding_size": 256},
    "Albert": SIZES | HEADS | {"embedding_size": 256},
    "DebertaV2": SIZES | HEADS,
    "DistilBert": {"dim": 256, "hidden_dim": 1024, "n_layers": 2, "n_heads": 4, "vocab_size": 2000},
    "ModernBert": SIZES | HEADS | {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
    | {"bos_token_id": 1, "eos_token_id": 2},
    "GPT2": {"n_embd": 256, "n_layer": 2, "n_head": 4, "vocab_size": 2000}
    | {"bos_token_id": 1, "eos_token_id": 2},
    "GPTNeoX": SIZES | HEADS | {"use_parallel_residual": False, "eos_token_id": 2},
    "Bloom": {"hidden_size": 256, "n_layer": 2, "n_head": 4, "vocab_size": 2000},
    "OPT": {"hidden_size": 256, "ffn_dim": 1024, "num_hidden_layers": 2}
    | {"word_embed_proj_dim": 256} | HEADS,
    "Llama": SIZES | HEADS | {"num_key_value_heads": 2},
    "Qwen3": SIZES | HEADS | {"num_key_value_heads": 2, "head_dim": 64},
    "Phi3": SIZES | HEADS | {"num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2},
}  # fmt: skip


def build(family):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    return config, transformers.AutoModel.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_formula_and_measurement_agree_for_every_family(family):
    """Every token a sequence of its own, so that attention is the identity."""
    _, model = build(family)
    model.get_input_embeddings().weight.data.normal_()  # a stream of unit size, normalised or not
    ids = torch.arange(4, 1900).unsqueeze(1)
    measured, formula = measure_identity_path(model, {"input_ids": ids}), identity_path(model)
    assert measured.norm == formula.norm
    assert len(measured.names) == len(formula.names)
    weights = list(measured.per_sublayer)
    weights[0] *= min(1.0, measured.stream[0] ** 0.5)  # ALBERT's stream enters without a norm
    assert weights == pytest.approx(formula.per_sublayer, rel=0.05)
    if formula.norm == "post":
        assert measured.share == pytest.approx(formula.total, rel=0.05)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "ModernBert"])
def test_weights_and_config_describe_the_same_stack(family):
    """ModernBERT alone draws its last matrices smaller than its config says."""
    config, model = build(family)
    of_model, of_config = identity_path(model), identity_path(config)
    assert of_model.norm == of_config.norm
    assert of_model.branch_variances == pytest.approx(of_config.branch_variances, rel=0.06)


@pytest.mark.parametrize("ratio", [0.4875, 1.0])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_measured_weights_agree_with_the_formula_within_five_percent(ratio, activation):
    model = encoder(ratio / 16, activation=activation)
    measured, formula = measure_identity_path(model, one_token()), identity_path(model)
    assert measured.per_sublayer == pytest.approx(formula.per_sublayer, rel=0.05)
    assert measured.branch_variances == pytest.approx(formula.branch_variances, rel=0.05)
    assert measured.stream == pytest.approx([1.0] * 7, rel=0.05)


def test_uniform_attention_is_right_for_independent_tokens_in_the_first_block():
    x = torch.randn(8, 128, 256, generator=torch.Generator().manual_seed(3))
    model = encoder(0.4875 / 16, layers=1)
    measured = measure_identity_path(model, x)
    formula = identity_path(model, "uniform", 128)
    assert measured.per_sublayer == pytest.approx(formula.per_sublayer, rel=0.05)


def test_mixing_aligns_the_tokens_so_that_uniform_attention_is_too_kind_to_lecun():
    x = torch.randn(4, 64, 256, generator=torch.Generator().manual_seed(3))
    big = measure_identity_path(encoder(1 / 16, layers=12), x)
    assert big.per_sublayer[0] > 0.97
    assert big.per_sublayer[-2] < 0.8
    assert identity_path(encoder(1 / 16, layers=12), "uniform", 64).per_sublayer[-2] > 0.98
    half = encoder(0.4875 / 16, layers=12)
    measured, formula = measure_identity_path(half, x), identity_path(half, "uniform", 64)
    assert measured.per_sublayer == pytest.approx(formula.per_sublayer, rel=0.05)


def test_pre_norm_is_measured_not_refused():
    path = measure_identity_path(encoder(1 / 16, norm_first=True), one_token())
    assert path.norm == "pre"
    assert path.per_sublayer == pytest.approx([1.0] * 6, abs=0.05)
    expected = identity_path(encoder(1 / 16, norm_first=True))
    assert path.branch_variances == pytest.approx(expected.branch_variances, rel=0.05)
    assert path.stream == pytest.approx(expected.stream, rel=0.05)


def test_blocks_with_other_arrangements_are_measured_as_a_whole():
    class Branchy(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

        def forward(self, x):
            return x + self.norm(self.lin(x))

    model = nn.Sequential()
    model.layers = nn.ModuleList([Branchy(), Branchy()])
    model.forward = lambda x: model.layers[1](model.layers[0](x))
    path = measure_identity_path(model, torch.randn(50, 8))
    assert path.norm == "other"
    assert len(path.names) == 2


def test_padding_does_not_count():
    model = bert()
    ids = torch.arange(10, 26).view(2, 8)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    noise = torch.where(mask.bool(), ids, 1999)
    paths = [
        measure_identity_path(model, {"input_ids": one, "attention_mask": mask})
        for one in (ids, noise)
    ]
    assert paths[0].per_sublayer == pytest.approx(paths[1].per_sublayer, abs=1e-6)


def test_measuring_leaves_the_model_as_it_was():
    model = encoder().train()
    model.layers[0].eval()
    before = torch.backends.mha.get_fastpath_enabled()
    measure_identity_path(model, one_token(4))
    grad_profile(model, lambda net, x: net(x).square().mean(), one_token(4))
    assert model.training
    assert not model.layers[0].training
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_failing_forward_pass_leaves_no_hooks_behind():
    model = encoder()
    with pytest.raises(AssertionError, match="embedding dimension of 256"):
        measure_identity_path(model, torch.randn(2, 3, 7))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError


# --- gradients


def scaled(factor):
    return lambda net, x: factor * net(x)[..., :3].sum()


def test_adams_first_update_does_not_depend_on_the_scale_of_the_loss():
    model, x = encoder().double(), one_token(16).double()
    small, large = (grad_profile(model, scaled(f), x) for f in (1.0, 1000.0))
    assert large.update == pytest.approx(small.update, rel=1e-4)
    assert np.array(large.parameters) == pytest.approx(1000 * np.array(small.parameters), rel=1e-9)
    assert large.ratio == pytest.approx(small.ratio, rel=1e-9)
    steps = []
    for factor in (1.0, 1000.0):
        weight = nn.Parameter(torch.linspace(-1, 1, 50, dtype=torch.float64))
        optimizer = torch.optim.Adam([weight], lr=0.1)
        (factor * (weight**3).sum()).backward()
        before = weight.detach().clone()
        optimizer.step()
        steps.append(weight.detach() - before)
    assert torch.allclose(*steps, atol=1e-8)


def test_the_profile_is_what_autograd_says():
    model, x = encoder(layers=2).double(), one_token(8).double()
    states = [x.clone().requires_grad_()]
    for layer in model.layers:
        states.append(layer(states[-1]))
    loss = states[-1].square().sum() + states[-1][..., 0].sum()
    slopes = torch.autograd.grad(loss, [*states, *model.layers[0].parameters()])
    profile = grad_profile(model, lambda net, x: (y := net(x)).square().sum() + y[..., 0].sum(), x)
    assert profile.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    assert profile.stream == pytest.approx([float(g.norm()) for g in slopes[:3]], rel=1e-9)
    own = math.sqrt(sum(float(g.square().sum()) for g in slopes[3:]))
    assert profile.parameters[0] == pytest.approx(own, rel=1e-9)


def test_the_update_is_that_of_torch_adam():
    model, x = encoder(layers=1), one_token(8)
    profile = grad_profile(model, scaled(1.0), x)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    before = [p.detach().clone() for p in model.layers.parameters()]
    scaled(1.0)(model, x).backward()
    optimizer.step()
    after = [p.detach() for p in model.layers.parameters()]
    moved = sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))
    assert profile.update[0] == pytest.approx(
        math.sqrt(moved / sum(b.numel() for b in before)), rel=1e-3
    )


def test_gradients_already_there_are_kept():
    model, x = encoder(layers=1), one_token(4)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    grad_profile(model, scaled(1.0), x)
    assert all(bool((p.grad == 7).all()) for p in model.parameters())


def test_an_underflow_is_reported_as_zeros():
    model, x = encoder(layers=2), one_token(4)
    silent = grad_profile(model, scaled(0.0), x)
    assert silent.zeros == (1.0, 1.0)
    assert silent.update == (0.0, 0.0)
    assert silent.ratio == 0
    assert max(grad_profile(model, scaled(1.0), x).zeros) < 0.2


@pytest.mark.parametrize("loss", [lambda net, x: net(x), lambda net, x: torch.ones(())])
def test_a_loss_that_is_no_scalar_with_a_gradient_is_refused(loss):
    with pytest.raises(ValueError, match="the loss must be one number with a gradient"):
        grad_profile(encoder(layers=1), loss, one_token(4))


# --- gains and logits


def test_std_of_tied_logits_is_that_of_the_formula():
    torch.manual_seed(4)
    E, gain = 0.0176 * torch.randn(2000, 512), 0.5 + torch.rand(512)
    norm = nn.LayerNorm(512)
    norm.weight.data.copy_(gain)
    logits = norm(torch.randn(1000, 512)) @ E.T
    assert logits.std().item() == pytest.approx(tied_logit_std(E, gain), rel=0.02)
    bert_like = 0.02 * TRUNCATED * torch.ones(4, 768, dtype=torch.float64)
    assert tied_logit_std(bert_like) == pytest.approx(0.487538027696852, abs=1e-12)


@pytest.mark.parametrize("width", [2, 7, 64])
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_a_gain_is_measured_by_what_the_norm_does(width, kind):
    norm = kind(width, eps=1e-5)
    norm.weight.data.uniform_(-1, 2)
    if kind is nn.LayerNorm:
        norm.bias.data.uniform_(-1, 1)
    gain, bias = gain_of(norm)
    assert torch.allclose(gain, norm.weight.double(), atol=1e-9)
    if kind is nn.LayerNorm:
        assert torch.allclose(bias, norm.bias.double(), atol=1e-9)


def test_a_norm_that_stores_its_gain_less_one_is_understood():
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    norm = GemmaRMSNorm(16)
    norm.weight.data.fill_(0.25)
    assert torch.allclose(gain_of(norm)[0], torch.full((16,), 1.25).double(), atol=1e-6)


def test_the_last_norm_before_the_output_embeddings_is_found_to_be_the_largest():
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**(SIZES | HEADS)))
    fresh = ln_gain_report(model)
    assert [round(one.rms, 6) for one in fresh.norms] == [1.0] * 6
    width = math.sqrt(256)
    assert fresh.logit_std == pytest.approx(0.02 * width, rel=0.01)
    model.cls.predictions.transform.LayerNorm.weight.data.fill_(2.5)
    grown = ln_gain_report(model)
    assert grown.last_is_largest
    assert grown.largest.name == "cls.predictions.transform.LayerNorm"
    assert grown.logit_std == pytest.approx(2.5 * fresh.logit_std, rel=1e-9)
    model.bert.embeddings.LayerNorm.weight.data.fill_(3.0)
    assert not ln_gain_report(model).last_is_largest
    assert "rms 3.0000" in str(ln_gain_report(model))


def test_a_model_without_norms_is_refused():
    with pytest.raises(ValueError, match="Linear has no norm with a gain"):
        ln_gain_report(nn.Linear(2, 2))


# --- warm-up


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_warmup_climbs_in_equal_steps_and_no_step_is_idle(steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    warmup, rates = LinearWarmup(optimizer, steps), []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        warmup.step()
    expected = [0.5 * min((t + 1) / max(steps, 1), 1) for t in range(8)]
    assert rates == pytest.approx(expected, abs=1e-15)


def test_warmup_goes_on_where_it_stopped():
    def new():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, LinearWarmup(optimizer, 10)

    optimizer, warmup = new()
    for _ in range(3):
        optimizer.step()
        warmup.step()
    other, resumed = new()
    resumed.load_state_dict(warmup.state_dict())
    other.load_state_dict(optimizer.state_dict())
    other.step()
    resumed.step()
    assert resumed.get_last_lr() == pytest.approx([0.5])


# --- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: identity_path(BERT, "uniform"), "needs seq_len >= 1, got None"),
        (lambda: identity_path(BERT, "uniform", 0), "needs seq_len >= 1, got 0"),
        (lambda: identity_path(SimpleNamespace(hidden_size=8)), "gives no layers, no std"),
        (lambda: identity_path(nn.Linear(4, 4)), "Linear has no list of blocks"),
        (lambda: identity_path(encoder(), truncated=True), "weights are read as is"),
        (lambda: Stack(0, 1, 1, 0.1), "width must be at least 1, got 0"),
        (lambda: Stack(1, 1, 1, -0.1), "std must be finite and at least 0, got -0.1"),
        (lambda: Stack(1, 1, 1, math.nan), "std must be finite and at least 0, got nan"),
        (lambda: second_moment("gelu", -1.0), r"power must not be negative, got -1\.0"),
        (lambda: second_moment("gulp", 1.0), "activation 'gulp' is not known"),
        (lambda: suggest_initializer_range(8, 8, 2, target=1.0), "target must lie between 0 and 1"),
        (lambda: LinearWarmup(torch.optim.SGD([nn.Parameter(torch.ones(1))]), -1), "not be neg"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_config_of_an_unknown_family_is_refused_with_both_ways_out():
    from transformers import BertConfig

    config = BertConfig(**SIZES)
    config.model_type = "novel"
    with pytest.raises(ValueError, match=r"'novel' puts its norms.*Stack.*measure_identity_path"):
        identity_path(config)


def test_matrices_under_unknown_names_are_refused_by_name():
    model = encoder(layers=1)
    model.layers[0].surprise = model.layers[0].linear1
    del model.layers[0].linear1
    with pytest.raises(ValueError, match=r"layers\.0 \(TransformerEncoderLayer\): no up matrix"):
        identity_path(model)


def test_weights_on_the_meta_device_are_refused_by_name():
    with torch.device("meta"):
        model = encoder(layers=1)
    with pytest.raises(ValueError, match="is on the meta device and has no numbers"):
        identity_path(model)


# --- decoders with cross-attention, shared blocks


def test_cross_attention_is_a_sublayer_of_its_own():
    from transformers import BartConfig, BartModel

    torch.manual_seed(0)
    ffn = {"encoder_ffn_dim": 512, "decoder_ffn_dim": 512}
    depth = {"encoder_layers": 1, "decoder_layers": 2}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes = {"vocab_size": 2000, "d_model": 256, "init_std": 0.04}
    model = BartModel(BartConfig(**sizes, **ffn, **depth, **heads))
    formula = identity_path(model)
    ids = torch.arange(4, 1900).unsqueeze(1)  # every token a sequence of its own
    measured = measure_identity_path(model, {"input_ids": ids, "decoder_input_ids": ids})
    assert formula.names == measured.names
    parts = ("attention", "cross_attention", "feed_forward")
    assert [name.rpartition(".")[2] for name in formula.names] == [*parts, *parts]
    assert measured.per_sublayer[2::3] == pytest.approx(formula.per_sublayer[2::3], rel=0.05)
    assert formula.total == pytest.approx(math.prod(formula.per_sublayer), rel=1e-12)


def test_a_decoder_of_torch_is_read_like_its_encoder():
    layer = nn.TransformerDecoderLayer(64, 4, 256, batch_first=True)
    path = identity_path(nn.TransformerDecoder(layer, 3))
    assert (path.norm, len(path.names)) == ("post", 9)


def test_albert_may_run_several_blocks_per_layer():
    from transformers import AlbertConfig, AlbertModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "embedding_size": 16, "vocab_size": 64}
    config = AlbertConfig(**sizes, num_hidden_layers=3, num_attention_heads=4, inner_group_num=2)
    model = AlbertModel(config)
    measured = measure_identity_path(model, {"input_ids": torch.ones(2, 5, dtype=torch.int64)})
    assert len(measured.names) == len(identity_path(model).names) == 12
    assert len(identity_path(config).names) == 12


def test_a_block_in_two_places_is_measured_once_per_run():
    model = encoder(0.05, layers=2)
    model.layers[1] = model.layers[0]
    x = torch.randn(2, 5, model.layers[0].linear1.in_features)
    path, formula = measure_identity_path(model, x), identity_path(model)
    assert len(path.names) == len(formula.names) == 4
    profile = grad_profile(model, lambda net, x: net(x)[..., 0].mean(), x)
    assert profile.blocks == ("layers.0", "layers.0")


def test_nothing_is_measured_of_an_empty_batch_or_of_weights_without_numbers():
    model = encoder(0.05, layers=2)
    width = model.layers[0].linear1.in_features
    for shape in ((0, 5, width), (2, 0, width)):
        with pytest.raises(ValueError, match="a block got an empty tensor of shape"):
            measure_identity_path(model, torch.randn(shape))
    with pytest.raises(ValueError, match="weights on the meta device, which have no numbers"):
        measure_identity_path(model.to("meta"), torch.randn(2, 5, width, device="meta"))


def test_batch_norms_are_no_norms_of_the_stream():
    report = ln_gain_report(nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4)))
    assert [one.name for one in report.norms] == ["1"]
