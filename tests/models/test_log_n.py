"""Log n attention in models of transformers, by name."""

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("transformers")

from transformers import (
    AttentionInterface,
    AutoModel,
    AutoModelForCausalLM,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    StaticCache,
)

from kexue.models.log_n import count_visible, register_log_n
from naive.attention_scale import naive_factor

# torch's own compiler uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "initializer_range": 0.6,
    "pad_token_id": 0,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 49}
CLOSE = {"rtol": 0, "atol": 1e-10}
BASE = 5
INNERS = ("sdpa", "eager")


def close_to(inner):
    """Eager attention of causal models is only right in float32, where its softmax is computed."""
    return CLOSE if inner == "sdpa" else {"rtol": 0, "atol": 1e-4, "check_dtype": False}


def naive_for(base=BASE, min_len=1, clip=False):
    """Attention whose scores are multiplied row by row, keys counted one by one."""

    def forward(module, query, key, value, attention_mask, scaling=None, **kwargs):
        batch, heads, q_len, size = query.shape
        key, value = (one.repeat_interleave(heads // one.shape[1], dim=1) for one in (key, value))
        scores = query @ key.mT * (size**-0.5 if scaling is None else scaling)
        factors = torch.ones(batch, 1, q_len, 1, dtype=query.dtype)
        for b in range(batch):
            for i in range(q_len):
                seen = key.shape[2]
                if attention_mask is not None:
                    seen = sum(entry > -1 for entry in attention_mask[b, 0, i].tolist())
                factors[b, 0, i] = naive_factor(seen, base, min_len, clip)
        scores = scores * factors
        if attention_mask is not None:
            scores = scores + attention_mask
        return (scores.softmax(dim=-1) @ value).transpose(1, 2), None

    return forward


@pytest.fixture(scope="module", autouse=True)
def names():
    from transformers import AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    for inner in INNERS:
        register_log_n(f"{inner}_logn", inner, base=BASE)
    register_log_n("sdpa_clipped", "sdpa", base=BASE, min_len=3, clip=True)
    for name, options in [("naive", {}), ("naive_clipped", {"min_len": 3, "clip": True})]:
        AttentionInterface.register(name, naive_for(**options))
        AttentionMaskInterface.register(name, eager_mask)


def model_of(kind, config_kind, attention, **options):
    torch.manual_seed(0)
    sizes = GROUPED if "num_key_value_heads" in vars(config_kind()) else SIZES
    config = config_kind(**sizes | options, attn_implementation=attention)
    eager_causal = attention == "eager_logn" and kind is not BertModel
    return kind(config).to(torch.float32 if eager_causal else torch.float64).eval()


def llama(attention, **options):
    return model_of(LlamaForCausalLM, LlamaConfig, attention, **options)


def bert(attention, **options):
    return model_of(BertModel, BertConfig, attention, **options)


def tokens(*shape, seed=0):
    return torch.randint(3, 49, shape, generator=torch.Generator().manual_seed(seed))


PADDED = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [0] * 4 + [1] * 5])


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("mask", [None, PADDED])
def test_bert_equals_the_naive_computation(inner, mask):
    x = tokens(3, 9)
    found = [bert(name)(x, attention_mask=mask) for name in (f"{inner}_logn", "naive", inner)]
    ours, naive, plain = (one.last_hidden_state for one in found)
    seen = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(ours[seen], naive[seen], **CLOSE)
    assert (ours - plain)[seen].abs().max() > 1e-2


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("mask", [None, PADDED])
def test_gradients_of_bert_equal_those_of_the_naive_computation(inner, mask):
    found = []
    for name in (f"{inner}_logn", "naive"):
        model = bert(name)
        out = model(tokens(3, 9), attention_mask=mask).last_hidden_state
        seen = slice(None) if mask is None else mask.bool()
        out[seen].square().sum().backward()
        found.append([p.grad for p in model.encoder.parameters()])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("mask", [None, PADDED])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_causal_model_with_grouped_heads_equals_the_naive_computation(inner, mask, kind):
    build = llama
    if kind == "mistral":

        def build(name):
            return model_of(MistralForCausalLM, MistralConfig, name, sliding_window=4)

    x, seen = tokens(3, 9), slice(None) if mask is None else mask.bool()
    ours, naive, plain = (
        build(name)(x, attention_mask=mask).logits[seen]
        for name in (f"{inner}_logn", "naive", "sdpa")
    )
    torch.testing.assert_close(ours, naive, **close_to(inner))
    assert (ours - plain).abs().max() > 1e-2


@pytest.mark.parametrize("inner", INNERS)
def test_packed_documents_are_counted_each_for_itself(inner):
    model = llama(f"{inner}_logn")
    x = tokens(1, 9)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    packed = model(x, position_ids=positions, use_cache=False).logits
    alone = [model(x[:, part]).logits for part in (slice(5), slice(5, 9))]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), **close_to(inner))


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("mask", [None, PADDED[[0, 2]]])
def test_cached_decoding_equals_the_full_pass(inner, kind, sliding, mask):
    name = f"{inner}_logn"
    model = (
        model_of(MistralForCausalLM, MistralConfig, name, sliding_window=4)
        if sliding
        else llama(name)
    )
    x = tokens(2, 9)
    positions = None if mask is None else (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        whole = model(x, attention_mask=mask, position_ids=positions).logits
        cache = (
            DynamicCache(config=model.config)
            if kind == "dynamic"
            else StaticCache(config=model.config, max_cache_len=16)
        )
        parts = []
        for start, end in [(0, 5), (5, 7), (7, 8), (8, 9)]:
            parts.append(
                model(
                    x[:, start:end],
                    attention_mask=None if mask is None else mask[:, :end],
                    position_ids=None if positions is None else positions[:, start:end],
                    past_key_values=cache,
                ).logits
            )
    seen = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(torch.cat(parts, dim=1)[seen], whole[seen], **close_to(inner))


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_equals_greedy_search_by_full_passes(inner, cache):
    model, x, mask = llama(f"{inner}_logn"), tokens(2, 5), PADDED[[0, 2], 1:6]
    made = model.generate(
        x,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        cache_implementation=None if cache == "dynamic" else "static",
        disable_compile=True,
    )
    for _ in range(6):
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = model(x, attention_mask=mask, position_ids=positions).logits[:, -1]
        x = torch.cat((x, logits.argmax(dim=-1, keepdim=True)), dim=1)
        mask = F.pad(mask, (0, 1), value=1)
    assert torch.equal(made, x)


@pytest.mark.parametrize("inner", INNERS)
def test_cross_attention_counts_the_kept_keys_of_the_encoder(inner):
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "vocab_size": 50}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "init_std": 0.6}
    torch.manual_seed(0)
    config = BartConfig(**sizes, **heads, attn_implementation=f"{inner}_logn")
    model = BartModel(config).double().eval()
    x, target = tokens(1, 7), tokens(1, 5, seed=1)
    mask = torch.tensor([[1] * 4 + [0] * 3])
    padded = model(x, attention_mask=mask, decoder_input_ids=target).last_hidden_state
    short = model(x[:, :4], decoder_input_ids=target).last_hidden_state
    torch.testing.assert_close(padded, short, **CLOSE)


def test_a_custom_mask_is_counted_row_by_row_and_head_by_head():
    x = tokens(1, 6)
    shapes = torch.rand(1, 4, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    visible = shapes | torch.eye(6, dtype=torch.bool)
    additive = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -torch.inf)
    ours = llama("sdpa_logn")(x, attention_mask=visible).logits
    torch.testing.assert_close(
        llama("eager_logn")(x, attention_mask=additive).logits, ours, **close_to("eager")
    )
    same = visible[:, :1].expand_as(visible)
    assert (llama("sdpa_logn")(x, attention_mask=same).logits - ours).abs().max() > 1e-3


def test_a_mask_changed_in_place_is_counted_again():
    model, x = bert("sdpa_logn"), tokens(1, 6)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    before = model(x, attention_mask=mask).last_hidden_state
    with torch.inference_mode():
        torch.testing.assert_close(model(x, attention_mask=mask).last_hidden_state, before, **CLOSE)
    mask[..., 4:] = False
    fresh = model(x, attention_mask=mask.clone()).last_hidden_state
    torch.testing.assert_close(model(x, attention_mask=mask).last_hidden_state, fresh, **CLOSE)
    assert (fresh - before).abs().max() > 1e-3


def test_with_clip_short_rows_stay_as_they_were():
    x = tokens(1, 9)
    ours, naive, plain = (llama(n)(x).logits for n in ("sdpa_clipped", "naive_clipped", "sdpa"))
    torch.testing.assert_close(ours, naive, **CLOSE)
    torch.testing.assert_close(ours[:, :BASE], plain[:, :BASE], **CLOSE)
    assert (ours - plain)[:, BASE + 1 :].abs().max() > 1e-3
    short, usual = (llama(n)(x[:, :1]).logits for n in ("sdpa_clipped", "sdpa"))
    torch.testing.assert_close(short, usual, **CLOSE)


def test_attention_weights_can_be_returned_by_the_eager_form():
    out = bert("eager_logn")(tokens(2, 5), output_attentions=True)
    assert out.attentions[0].shape == (2, 4, 5, 5)
    torch.testing.assert_close(out.attentions[0].sum(dim=-1), torch.ones(2, 4, 5).double())


def test_a_saved_model_is_loaded_with_it_by_name(tmp_path):
    model, x = llama("sdpa"), tokens(1, 7)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa_logn")
    torch.testing.assert_close(again.double()(x).logits, llama("sdpa_logn")(x).logits, **CLOSE)
    model.set_attn_implementation("sdpa_logn")
    torch.testing.assert_close(model(x).logits, again(x).logits, **CLOSE)
    model.save_pretrained(tmp_path)
    forgotten = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert forgotten.config._attn_implementation == "sdpa"


def test_an_encoder_is_loaded_with_it_by_name(tmp_path):
    bert("sdpa").save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, attn_implementation="eager_logn").double()
    x = tokens(2, 7)
    ours = bert("sdpa_logn")(x).last_hidden_state
    torch.testing.assert_close(again(x).last_hidden_state, ours, **CLOSE)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "default", "llama_4_scaling_beta": 0.1},
    ],
)
def test_a_model_that_scales_by_length_already_is_refused_unless_allowed(rope):
    options = {"rope_parameters": {"rope_theta": 10000.0} | rope}
    with pytest.raises(ValueError, match="sharpened twice"):
        llama("sdpa_logn", **options)(tokens(1, 4))
    register_log_n("sdpa_both", base=BASE, allow_other_scales=True)
    assert llama("sdpa_both", **options)(tokens(1, 4)).logits.isfinite().all()


def test_yarn_without_its_factor_is_accepted():
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    rope |= {"rope_theta": 10000.0, "attention_factor": 1.0}
    assert llama("sdpa_logn", rope_parameters=rope)(tokens(1, 4)).logits.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sdpa"}, "is an attention of its own"),
        ({"name": "eager"}, "is an attention of its own"),
        ({"name": "flash_logn"}, "leave out 'flash'"),
        ({"name": "a/b"}, "leave out 'flash'"),
        ({"name": "new", "inner": "nothing"}, "inner 'nothing' is not registered"),
        ({"name": "new", "inner": "flash_attention_2"}, "use inner='sdpa'"),
        ({"name": "new", "inner": "maskless"}, "has no mask function"),
        ({"name": "new", "base": 1}, "base must be above 1"),
        ({"name": "new", "min_len": 0}, "min_len must be at least 1"),
    ],
)
def test_names_and_settings_that_make_no_sense_are_refused(arguments, message):
    AttentionInterface.register("maskless", naive_for())
    with pytest.raises(ValueError, match=message):
        register_log_n(**arguments)


def test_any_registered_attention_can_be_wrapped():
    register_log_n("naive_logn", "naive", base=BASE**2)
    x = tokens(1, 9)
    once = llama("naive")(x).logits
    model = llama("naive_logn")
    assert (model(x).logits - once).abs().max() > 1e-3


@pytest.mark.parametrize("k_len", [1, 7, 8, 64, 2039, 2040, 2041, 2048, 3000])
def test_counting_eight_at_a_time_counts_all(k_len):
    mask = torch.rand(2, 3, k_len, generator=torch.Generator().manual_seed(0)) < 0.9
    assert torch.equal(count_visible(mask), mask.sum(dim=-1))
    full = torch.ones(1, 2, k_len, dtype=torch.bool)
    assert count_visible(full).tolist() == [[k_len, k_len]]
    assert torch.equal(count_visible(mask.transpose(0, 1)), mask.transpose(0, 1).sum(dim=-1))
    assert torch.equal(count_visible(full.expand(4, -1, -1)), torch.full((4, 2), k_len))


def test_half_precision_models_run():
    model = llama("sdpa_logn").bfloat16()
    assert model(tokens(1, 7), attention_mask=torch.ones(1, 7)).logits.isfinite().all()
    assert bert("eager_logn").bfloat16()(tokens(1, 7)).last_hidden_state.isfinite().all()
