"""S04: the audit of scales: weights against LeCun, moments, gradients, gains, and what is wrong."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kexue.analysis.scale_findings import HALF
from kexue.analysis.scales import audit_scales
from kexue.analysis.transformer_blocks import matrices

SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3}
SMALL = SIZES | {"num_attention_heads": 4, "vocab_size": 200}


def bert(**changes):
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**(SMALL | {"initializer_range": 0.06} | changes)))


def gpt2(**changes):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200, "bos_token_id": 1}
    model = GPT2LMHeadModel(GPT2Config(**(sizes | {"eos_token_id": 2} | changes)))
    model.loss_type = "ForCausalLM"
    return model


def batch(rows=4, length=12):
    ids = torch.randint(5, 200, (rows, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


def stack(layers=2, width=64, std=None, norm_first=False):
    torch.manual_seed(2)
    layer = nn.TransformerEncoderLayer(
        width, 4, 4 * width, 0.0, norm_first=norm_first, batch_first=True
    )
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    if std is not None:
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=std)
    return model


def features(rows=4, width=64):
    return torch.randn(rows, 8, width, generator=torch.Generator().manual_seed(3))


def row(audit, name):
    return next(one for one in audit.rows if one.name == name)


def said(audit, level=None):
    return [one.en for one in audit.findings if level in (None, one.level)]


def test_rows_hold_the_moments_that_a_plain_forward_pass_has():
    model, x = stack(1), features()
    layer = model.layers[0]
    audit = audit_scales(model, x)
    model.eval()
    h = layer.norm1(x + layer.self_attn(x, x, x)[0])
    up = layer.linear1(h)
    inner = row(audit, "layers.0.linear1")
    assert inner.input == pytest.approx(h.square().mean().item(), rel=1e-5)
    assert inner.output == pytest.approx(up.square().mean().item(), rel=1e-5)
    assert inner.std == pytest.approx(layer.linear1.weight.square().mean().sqrt().item(), rel=1e-5)
    assert inner.lecun == 1 / 8
    assert inner.ratio == pytest.approx(inner.std * 8, rel=1e-12)


def test_gradient_norms_are_those_of_autograd():
    model = bert()
    audit = audit_scales(model, batch())
    model.eval()
    model(**batch()).loss.backward()
    grads = {name.removesuffix(".weight"): p.grad for name, p in model.named_parameters()}
    compared = 0
    for one in audit.rows:
        if one.name in grads and one.kind != "other":
            assert one.gradient == pytest.approx(grads[one.name].norm().item(), rel=1e-4)
            compared += 1
    assert compared > 20


def test_tied_weights_show_their_gradient_in_both_places():
    audit = audit_scales(bert(), batch())
    tied = row(audit, "bert.embeddings.word_embeddings").gradient
    assert row(audit, "cls.predictions.decoder").gradient == tied > 0


def test_conv1d_is_read_from_inputs_to_outputs_and_packed_parts_apart():
    model = gpt2()
    attention = model.transformer.h[0].attn
    attention.c_attn.weight.data[:, 128:] *= 5.0
    audit = audit_scales(model, batch())
    parts = [row(audit, f"transformer.h.0.attn.c_attn[{part}]") for part in "qkv"]
    assert [one.shape for one in parts] == [(64, 64)] * 3
    assert [round(one.std, 2) for one in parts] == [0.02, 0.02, 0.1]
    wide = row(audit, "transformer.h.0.mlp.c_proj")
    assert wide.shape == (64, 256)
    assert wide.lecun == 1 / 16
    assert len({one.gradient for one in parts}) == 3


def test_gradients_of_packed_parts_are_the_rows_of_the_whole():
    model, x = stack(1), features()
    audit = audit_scales(model, x, lambda net, x: net(x)[..., 0].sum())
    model.eval()
    model(x)[..., 0].sum().backward()
    cut = model.layers[0].self_attn.in_proj_weight.grad.chunk(3)
    for part, gradient in zip("qkv", cut, strict=True):
        found = row(audit, f"layers.0.self_attn.in_proj[{part}]").gradient
        assert found == pytest.approx(gradient.norm().item(), rel=1e-4)


def test_grouped_and_per_head_packing_are_cut_where_they_lie():
    weight = torch.arange(24.0)[:, None].expand(24, 2)
    model = linear = nn.Linear(2, 24)
    linear.weight.data = weight.clone()
    model.config = SimpleNamespace(num_attention_heads=4, num_key_value_heads=1)
    rows = [len(one.weight) for one in matrices(model, "qkv_proj", linear)]
    assert rows == [16, 4, 4]
    model.config = SimpleNamespace(num_attention_heads=2, model_type="bloom")
    value = matrices(model, "query_key_value", linear)[2]
    assert value.weight[:, 0].tolist() == [8, 9, 10, 11, 20, 21, 22, 23]


def test_embeddings_have_no_fan_and_norms_a_gain():
    model = bert()
    model.bert.encoder.layer[1].output.LayerNorm.weight.data.fill_(1.5)
    audit = audit_scales(model, batch())
    table = row(audit, "bert.embeddings.word_embeddings")
    assert (table.kind, table.lecun, table.ratio) == ("embedding", None, None)
    norm = row(audit, "bert.encoder.layer.1.output.LayerNorm")
    assert norm.gain == pytest.approx(1.5, abs=1e-6)
    assert not audit.fresh
    assert audit_scales(bert(), batch()).fresh


def test_linear_default_is_a_third_of_lecun_and_said_so():
    audit = audit_scales(stack(), features())
    (text,) = said(audit, "warn")
    assert text.startswith("nn.Linear's default U(±1/√m): a third of LeCun")
    assert row(audit, "layers.0.linear1").ratio == pytest.approx(3**-0.5, rel=0.02)
    assert "layers.0.self_attn.out_proj (+5)" in [one.where for one in audit.findings]


def test_bert_at_base_width_is_not_mistaken_for_the_default():
    """0.02 · sqrt(768) = 0.554 is close to 0.577, but a normal has no bound."""
    audit = audit_scales(stack(1, 768, 0.02), features(1, 768))
    assert not said(audit)


def test_a_std_that_is_too_large_for_the_width_is_named_with_its_power():
    audit = audit_scales(stack(1, 1024, 0.04), features(1, 1024))
    assert any("std 0.04 at width 1024: p = 1.6" in text for text in said(audit, "warn"))
    assert audit.suggested is not None
    assert any(f"initializer_range of {audit.suggested:.4f}" in text for text in said(audit))


def test_a_std_that_is_far_too_small_is_worth_a_note_but_not_at_the_end_of_a_scaled_branch():
    found = audit_scales(gpt2(), batch()).findings
    assert [one.level for one in found] == ["note"]
    assert "far below LeCun" in found[0].en
    assert not any("c_proj" in one.where for one in found)


def test_modules_of_one_width_share_a_finding_though_their_std_differs_by_its_draw():
    found = audit_scales(stack(6, 64, 1 / 8), features()).findings
    assert [one.where for one in found if "at width 256" in one.en] == ["layers.0.linear2 (+5)"]


def test_trained_weights_are_not_judged_against_lecun():
    model = bert(initializer_range=0.3)
    assert any("larger than LeCun" in text for text in said(audit_scales(model, batch())))
    model.bert.embeddings.LayerNorm.weight.data.mul_(1.01)
    assert not any("LeCun" in text for text in said(audit_scales(model, batch())))


def test_a_deep_post_norm_stack_of_usual_size_is_warned_about():
    audit = audit_scales(stack(12, 64, 1 / 8), features())
    (text,) = [text for text in said(audit, "warn") if "post-norm keeps only" in text]
    assert f"initializer_range={audit.suggested:.4f} and a warm-up" in text
    assert audit.path.share < 0.05
    mended = audit_scales(stack(12, 64, audit.suggested), features())
    assert mended.path.share > 0.3
    assert not any("keeps only" in text for text in said(mended))


def test_the_suggestion_outside_post_norm_is_berts_share_of_lecun():
    assert audit_scales(gpt2(), batch()).suggested == pytest.approx(HALF / 8, abs=1e-12)


@pytest.mark.parametrize("place", ["weight", "gradient"])
def test_what_is_not_finite_comes_first_and_says_where(place):
    model, x = stack(), features()
    if place == "weight":
        model.layers[1].linear2.weight.data[0, 0] = math.nan
        audit = audit_scales(model, x)
        assert "weight" in next(f.en for f in audit.findings if "linear2" in f.where)
    else:
        audit = audit_scales(model, x, lambda net, x: net(x).sum() * math.inf)
        assert any("gradient" in text for text in said(audit, "bad"))
    assert audit.findings[0].level == "bad"
    assert audit.findings[0].zh.startswith("出现 NaN 或无穷大")
    json.dumps(audit.as_json(), allow_nan=False)


def test_a_dead_branch_is_seen_by_its_gradient():
    model = stack()
    model.layers[1].linear2.weight.data.zero_()
    audit = audit_scales(model, features())
    (dead,) = [one for one in audit.findings if one.level == "bad"]
    assert dead.where == "layers.1.linear1"
    assert "gradient exactly 0" in dead.en


def test_float16_is_warned_before_it_overflows():
    model, x = stack(1, std=0.1, norm_first=True), features()
    for factor, level in ((1e3, None), (5e3, "note"), (1e5, "warn")):
        found = [f for f in audit_scales(model, factor * x).findings if f.where == "activations"]
        assert [one.level for one in found] == ([level] if level else [])


def test_a_gradient_that_fades_is_told_with_its_factor():
    class Shut(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.lin, self.scale = nn.Linear(16, 16), scale

        def forward(self, x):
            return self.scale * (x + self.lin(x))

    class Net(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.layers = nn.ModuleList([Shut(scale) for _ in range(4)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    assert any(
        "fades towards the input" in t for t in said(audit_scales(Net(0.1), torch.ones(3, 16)))
    )
    assert any(
        "grows towards the input" in t for t in said(audit_scales(Net(9.0), torch.ones(3, 16)))
    )


def test_gains_of_a_trained_model_are_remarked_on():
    model = bert()
    norm = model.cls.predictions.transform.LayerNorm
    norm.weight.data.fill_(3.0)
    audit = audit_scales(model, batch())
    (text,) = said(audit, "note")
    assert text.startswith("the largest gain of all norms, 3.00 (median 1.00)")
    norm.weight.data.fill_(1e-3)
    assert any("the norm closes" in t for t in said(audit_scales(model, batch()), "warn"))


def test_worst_comes_first():
    model = stack(12, 64, 1 / 8)
    model.layers[3].linear1.weight.data[0, 0] = math.inf
    levels = [one.level for one in audit_scales(model, features()).findings]
    assert levels == sorted(levels, key=["bad", "warn", "note"].index)
    assert levels[0] == "bad"


def test_padding_does_not_count_for_the_moments():
    model, given = bert(), batch(2, 8)
    mask = torch.tensor([[1] * 8, [1] * 4 + [0] * 4])
    labels = torch.where(mask.bool(), given["labels"], -100)
    audits = []
    for filler in (0, 199):
        ids = torch.where(mask.bool(), given["input_ids"], filler)
        full = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        audits.append(audit_scales(model, full))
    name = "bert.encoder.layer.1.intermediate.dense"
    assert row(audits[0], name).output == pytest.approx(row(audits[1], name).output, rel=1e-5)


def test_the_model_and_its_gradients_are_left_as_they_were():
    model = stack().train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    audit_scales(model, features())
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(bool((p.grad == 1).all()) for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_the_same_batch_gives_the_same_audit():
    model = bert()
    assert audit_scales(model, batch()) == audit_scales(model, batch())


def test_half_precision_is_read_in_full():
    model = bert().to(torch.bfloat16)
    audit = audit_scales(model, batch())
    assert row(audit, "bert.embeddings.LayerNorm").output == pytest.approx(1.0, rel=0.01)
    assert audit.fresh


def test_the_table_is_plain_and_the_text_names_every_module():
    audit = audit_scales(stack(1), features())
    assert {"name", "kind", "std", "lecun", "input", "output", "gradient"} <= audit.table()[
        0
    ].keys()
    assert all(one.name in str(audit) for one in audit.rows)
    assert json.loads(json.dumps(audit.as_json()))["path"]["norm"] == "post"


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Sequential has no list of blocks"):
        audit_scales(nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4))
