"""Talking heads: the function in blocks, the fused form of mixed logits, the layer."""

import math
import pickle

import pytest
import torch
from jaxtyping import TypeCheckError
from torch.nn import functional as F

from kexue.nn.head_rank import required_key_size
from kexue.nn.logit_mixing import logit_mixed_attention
from kexue.nn.talking_heads import check_heads, softmax_heads, talking_heads
from kexue.nn.talking_heads_attention import HeadMixing, TalkingHeadsAttention
from kexue.nn.wide_key import WideKeyAttention
from naive.talking_heads import naive_talking_heads

F64 = torch.float64
CLOSE = {"rtol": 0, "atol": 1e-12}
MASKS = {
    "right padding": [[1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]],
    "left padding": [[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]],
    "holes": [[1, 0, 1, 1, 0, 0, 1], [0, 1, 0, 1, 1, 1, 0]],
    "an empty sequence": [[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]],
}
LAYERS = {
    "both": {},
    "logits": {"mix": "logits"},
    "weights": {"mix": "weights"},
    "expanded": {"logit_heads": 2, "value_heads": 8, "block": 3},
    "dynamic": {"dynamic": True, "rope": True, "block": 2},
}


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def mask_of(name):
    return None if name is None else torch.tensor(MASKS[name], dtype=torch.bool)


def inputs(key_heads=2, heads=3, value_heads=4, q_len=5, k_len=7, *, dynamic=False, batch=2):
    """q, k, v, P_l, P_w of unequal numbers of heads."""
    front = (batch, q_len) if dynamic else ()
    return (
        draw(batch, key_heads, q_len, 3, seed=1),
        draw(batch, key_heads, k_len, 3, seed=2),
        draw(batch, value_heads, k_len, 2, seed=3),
        draw(*front, key_heads, heads, seed=4),
        draw(*front, heads, value_heads, seed=5),
    )


def built(d_model=8, num_heads=4, dtype=F64, **options):
    """A layer without a number that is 0 or 1 by its start."""
    torch.manual_seed(0)
    layer = TalkingHeadsAttention(d_model, num_heads, **options).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * draw(*parameter.shape, seed=5, dtype=dtype))
    return layer


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, *MASKS])
@pytest.mark.parametrize("block", [None, 2])
def test_values_and_gradients_equal_the_twin_written_out(dynamic, causal, mask, block):
    given, mask = inputs(dynamic=dynamic), mask_of(mask)
    bias = draw(2, 3, 5, 7, seed=6)
    visible = torch.ones(2, 5, 7, dtype=torch.bool)
    if causal:
        visible = visible.tril(2)
    if mask is not None:
        visible = visible & mask[:, None]
    found = []
    for fast in (True, False):
        leaves = [x.clone().requires_grad_() for x in (*given, bias)]
        q, k, v, P_l, P_w, more = leaves
        if fast:
            out = talking_heads(
                q, k, v, P_l, P_w, mask, causal=causal, offset=2, position_bias=more, block=block
            )
        else:
            each = [P if dynamic else P.expand(2, 5, -1, -1) for P in (P_l, P_w)]
            out, _ = naive_talking_heads(q, k, v, *each, visible, bias=more)
        found.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 9])
def test_the_size_of_a_block_changes_nothing(block):
    given = inputs()
    torch.testing.assert_close(
        talking_heads(*given, block=block), talking_heads(*given, block=5), **CLOSE
    )


@pytest.mark.parametrize("block", [None, 2])
def test_first_and_second_derivatives_are_those_of_differences(block):
    given = [x.requires_grad_() for x in inputs(q_len=3, k_len=3, batch=1)]
    mask = torch.tensor([[True, True, False]])

    def run(*leaves):
        return talking_heads(*leaves, mask, causal=True, block=block)

    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)


def test_a_backward_pass_in_blocks_keeps_no_map():
    """What autograd saves has Q · K elements with one block and none of that size with many."""
    sizes = {}
    for block in (64, 8):
        saved = []
        given = [x.requires_grad_() for x in inputs(q_len=64, k_len=64)]

        def keep(tensor, saved=saved):
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            talking_heads(*given, block=block)
        sizes[block] = max(saved)
    assert sizes[64] >= 2 * 3 * 64 * 64
    assert sizes[8] <= 2 * 4 * 64 * 3


def test_with_identities_it_is_multi_head_attention():
    q, k, v = draw(3, 2, 4, 9, 5)
    eye = torch.eye(4, dtype=F64)
    wanted = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(talking_heads(q, k, v, eye, eye), wanted, **CLOSE)
    assert torch.equal(talking_heads(q, k, v, eye, eye), talking_heads(q, k, v))


def test_heads_and_rows_of_the_logit_mixing_may_be_permuted_together():
    q, k, v, P_l, P_w = inputs(key_heads=4)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        talking_heads(q[:, order], k[:, order], v, P_l[order], P_w),
        talking_heads(q, k, v, P_l, P_w),
        **CLOSE,
    )


def test_rows_of_softmax_heads_sum_to_one_and_mixed_ones_to_the_columns_of_the_mixing():
    q, k, v, P_l, P_w = inputs(value_heads=4)
    W = softmax_heads(q, k, P_l)
    torch.testing.assert_close(W.sum(-1), torch.ones(2, 3, 5, dtype=F64), **CLOSE)
    sums = talking_heads(q, k, torch.ones_like(v), P_l, P_w)[..., 0]
    torch.testing.assert_close(sums, P_w.sum(0)[None, :, None].expand(2, -1, 5), **CLOSE)


def test_the_softmax_maps_give_the_output():
    q, k, v, P_l, P_w = inputs()
    mask = mask_of("holes")
    W = softmax_heads(q, k, P_l, mask, causal=True, offset=2)
    U = torch.einsum("bgqk,gf->bfqk", W, P_w)
    wanted = talking_heads(q, k, v, P_l, P_w, mask, causal=True, offset=2)
    torch.testing.assert_close(U @ v, wanted, **CLOSE)


def test_one_head_is_a_scale_of_the_logits_and_of_the_output():
    q, k, v = draw(3, 2, 1, 6, 4)
    P_l, P_w = torch.tensor([[1.7]], dtype=F64), torch.tensor([[-0.3]], dtype=F64)
    wanted = -0.3 * F.scaled_dot_product_attention(q, k, v, scale=1.7 / 2)
    torch.testing.assert_close(talking_heads(q, k, v, P_l, P_w), wanted, **CLOSE)


def test_with_one_key_the_maps_are_the_column_sums_whatever_the_logits():
    q = torch.tensor([1.0, 3.0], dtype=F64).view(1, 2, 1, 1)
    k = torch.ones_like(q)
    P_w = torch.tensor([[0.5, -2.0], [0.25, 7.0]], dtype=F64)
    for seed in range(5):
        out = talking_heads(q, k, torch.ones_like(q), draw(2, 2, seed=seed), P_w, scale=1.0)
        torch.testing.assert_close(out.flatten(), torch.tensor([0.75, 5.0], dtype=F64), **CLOSE)


@pytest.mark.parametrize("block", [None, 2])
def test_masked_keys_may_hold_anything_and_weigh_nothing(block):
    q, k, v, P_l, P_w = inputs()
    mask = mask_of("holes")
    hidden = ~mask[:, None, :, None]
    found = []
    for fill in (0.0, math.nan, math.inf):
        given = [
            x.requires_grad_()
            for x in (q.clone(), k.masked_fill(hidden, fill), v.masked_fill(hidden, fill), P_l, P_w)
        ]
        out = talking_heads(*given, mask, block=block)
        found.append((out, *torch.autograd.grad(out.square().sum(), given)))
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            assert theirs.isfinite().all()
            assert torch.equal(mine, theirs)
    assert (softmax_heads(q, k, P_l, mask).masked_select(~mask[:, None, None]) == 0).all()


def test_a_row_without_a_key_is_zeros():
    q, k, v, P_l, P_w = inputs()
    out = talking_heads(q, k, v, P_l, P_w, mask_of("left padding"), causal=True, block=2)
    assert torch.equal(out[0, :, :2], torch.zeros(4, 2, 2, dtype=F64))
    assert torch.equal(out[1], torch.zeros(4, 5, 2, dtype=F64))
    assert (out[0, :, 2:] != 0).any()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, *MASKS])
def test_the_fused_form_of_mixed_logits_is_the_same(dynamic, causal, mask):
    q, k, _, P_l, _ = inputs(dynamic=dynamic)
    v, mask = draw(2, 3, 7, 2, seed=3), mask_of(mask)
    bias = draw(1, 3, 5, 7, seed=6)
    for more in (None, bias):
        options = {"causal": causal, "offset": 2, "position_bias": more}
        found = []
        for function in (
            logit_mixed_attention,
            lambda *g, **o: talking_heads(*g[:4], None, g[4], **o),
        ):
            leaves = [x.clone().requires_grad_() for x in (q, k, v, P_l)]
            out = function(*leaves, mask, **options)
            found.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, **CLOSE)


def test_logits_of_a_mixed_head_have_the_rank_of_all_heads_together():
    q, k = draw(1, 4, 30, 2, seed=1), draw(1, 4, 30, 2, seed=2)
    W = softmax_heads(q, k, draw(4, 4, seed=3))
    plain = softmax_heads(q, k)
    assert required_key_size(plain).tolist() == [[2, 2, 2, 2]]
    assert required_key_size(W).tolist() == [[8, 8, 8, 8]]


def test_dropped_weights_are_zeros_of_the_softmax_and_the_mean_is_kept():
    q, k, v = draw(3, 1, 2, 20, 4)
    P_w = torch.tensor([[1.0, 1.0], [-1.0, 0.0]], dtype=F64)
    torch.manual_seed(0)
    runs = [talking_heads(q, k, v, None, P_w, dropout=0.3, block=7) for _ in range(600)]
    mean = torch.stack(runs).mean(0)
    error = torch.stack(runs).std(0) / 600**0.5
    exact = talking_heads(q, k, v, None, P_w)
    assert ((mean - exact).abs() <= 5 * error).all()
    assert not torch.equal(runs[0], exact)


def test_a_dropped_backward_pass_draws_what_the_forward_pass_drew():
    given = [x.requires_grad_() for x in inputs(q_len=6, k_len=6)]

    def run(v):
        torch.manual_seed(3)
        return talking_heads(*given[:2], v, *given[3:], dropout=0.5, block=2)

    torch.manual_seed(3)
    out = run(given[2])
    (grad,) = torch.autograd.grad(out.sum(), given[2])
    step = draw(*given[2].shape, seed=8)
    with torch.no_grad():  # linear in v: the difference is the derivative
        change = (run(given[2] + step) - run(given[2])).sum()
    torch.testing.assert_close(change, (grad * step).sum(), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_and_its_softmax_is_float32(dtype):
    given = inputs()
    out = talking_heads(*(x.to(dtype) for x in given))
    assert out.dtype == dtype
    exact = talking_heads(*(x.to(dtype).double() for x in given))
    torch.testing.assert_close(out.double(), exact, rtol=0.02, atol=0.02)
    assert softmax_heads(given[0].to(dtype), given[1].to(dtype)).dtype == torch.float32


# The layer.


@pytest.mark.parametrize("mask", [None, *MASKS])
@pytest.mark.parametrize("causal", [False, True])
def test_a_new_layer_is_plain_attention(mask, causal):
    torch.manual_seed(0)
    plain = WideKeyAttention(8, 4, causal=causal).to(F64)
    talking = TalkingHeadsAttention(8, 4, causal=causal).to(F64)
    talking.load_state_dict(plain.state_dict(), strict=False)
    x, mask = draw(2, 7, 8), mask_of(mask)
    torch.testing.assert_close(talking(x, mask), plain(x, mask), **CLOSE)


def test_plain_attention_is_that_of_torch():
    torch.manual_seed(0)
    layer = TalkingHeadsAttention(8, 4).to(F64)
    theirs = torch.nn.MultiheadAttention(8, 4, batch_first=True).to(F64)
    with torch.no_grad():
        parts = (layer.query, layer.key, layer.value)
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    theirs.out_proj.load_state_dict(layer.output.state_dict())
    x, mask = draw(2, 7, 8), mask_of("right padding")
    wanted = theirs(x, x, x, key_padding_mask=~mask)[0]
    torch.testing.assert_close(layer(x, mask)[mask], wanted[mask], **CLOSE)
    context = draw(2, 7, 8, seed=4)
    wanted = theirs(x, context, context, key_padding_mask=~mask)[0]
    torch.testing.assert_close(layer(x, mask, context=context), wanted, **CLOSE)


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_a_causal_row_sees_nothing_later(options):
    layer, x = built(causal=True, **options), draw(2, 7, 8)
    whole = layer(x)
    for i in range(7):
        later = x.clone()
        later[:, i + 1 :] = 9.0
        torch.testing.assert_close(layer(later)[:, : i + 1], whole[:, : i + 1], **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(causal, options, left):
    layer, x = built(causal=causal, **options), draw(2, 5, 8)
    padded = F.pad(x, (0, 0, 4, 0) if left else (0, 0, 0, 4), value=math.nan)
    mask = torch.arange(9).expand(2, -1)
    mask = mask >= 4 if left else mask < 5
    positions = (torch.arange(9) - (4 if left else 0)).clamp(min=0).expand(2, -1)
    out = layer(padded, mask, positions)
    torch.testing.assert_close(out[mask], layer(x).flatten(0, 1), **CLOSE)
    assert (out[~mask] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_masked_tokens_may_hold_anything(causal, name, options):
    layer, mask, clean = built(causal=causal, **options), mask_of(name), draw(2, 7, 8)
    found = []
    for fill in (0.0, math.nan, math.inf):
        x = clean.masked_fill(~mask[..., None], fill).requires_grad_()
        out = layer(x, mask)
        found.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])))
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            assert mine.isfinite().all()
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("sizes", [[1] * 7, [3, 4], [4, 1, 2], [1, 6]])
@pytest.mark.parametrize("mask", [None, *MASKS])
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_decoding_in_any_pieces_is_the_full_pass(sizes, mask, options):
    layer, x, mask = built(causal=True, **options), draw(2, 7, 8), mask_of(mask)
    cache, parts, start = layer.new_cache(), [], 0
    with torch.no_grad():
        for size in sizes:
            cut = slice(start, start + size)
            parts.append(layer(x[:, cut], None if mask is None else mask[:, cut], cache=cache))
            start += size
        torch.testing.assert_close(torch.cat(parts, dim=1), layer(x, mask), **CLOSE)
    assert cache.length == 7


@pytest.mark.parametrize("mask", [None, "left padding"])
def test_beams_are_reordered_with_their_keys_and_masks(mask):
    layer, x = built(causal=True, value_heads=2), draw(2, 7, 8)
    rows, mask = torch.tensor([1, 1, 0]), mask_of(mask)
    cache = layer.new_cache()
    with torch.no_grad():
        layer(x[:, :6], None if mask is None else mask[:, :6], cache=cache)
        cache.reorder(rows)
        last = layer(x[rows, 6:], cache=cache)
        torch.testing.assert_close(last, layer(x, mask)[rows, 6:], **CLOSE)


def test_a_mask_may_come_and_go_while_decoding():
    layer, x = built(causal=True), draw(2, 7, 8)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 3:5] = torch.tensor([[True, False], [False, False]])
    cache = layer.new_cache()
    with torch.no_grad():
        parts = [layer(x[:, :3], cache=cache), layer(x[:, 3:5], mask[:, 3:5], cache=cache)]
        parts.append(layer(x[:, 5:], cache=cache))
        torch.testing.assert_close(torch.cat(parts, dim=1), layer(x, mask), **CLOSE)


def test_cross_attention_ignores_what_is_masked_and_is_zero_where_all_is():
    layer, x, context = built(), draw(2, 5, 8), draw(2, 7, 8, seed=4)
    mask = mask_of("an empty sequence")
    mask[0, 4:] = False
    out = layer(x, mask, context=context.masked_fill(~mask[..., None], math.nan))
    assert torch.equal(out[1], torch.zeros(5, 8, dtype=F64))
    torch.testing.assert_close(out[:1], layer(x[:1], context=context[:1, :4]), **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
def test_a_position_bias_is_added_to_the_mixed_logits(causal):
    layer, x, bias = built(causal=causal, logit_heads=2), draw(2, 7, 8), draw(1, 4, 7, 7, seed=6)
    weights = layer.attention_weights(x, position_bias=bias)
    logits = layer.attention_weights(x).log() + bias
    torch.testing.assert_close(weights, logits.softmax(-1), **CLOSE)
    mask = mask_of("right padding")
    torch.testing.assert_close(
        layer(x, mask, position_bias=bias)[0, :5],
        layer(x[:1, :5], position_bias=bias[..., :5, :5])[0],
        **CLOSE,
    )


@pytest.mark.parametrize("start", ["identity", "normal"])
def test_no_two_heads_start_as_copies(start):
    torch.manual_seed(0)
    P = HeadMixing(4, 9, init=start).weight
    assert (torch.cdist(P.T, P.T) + torch.eye(9) > 1e-3).all()
    if start == "identity":
        assert torch.equal(P[:, :4], torch.eye(4))
    assert torch.equal(HeadMixing(9, 4).weight, torch.eye(9, 4))
    many = HeadMixing(400, 300, init="normal").weight
    assert many.std().item() == pytest.approx(1 / 20, rel=0.01)


def test_dynamic_mixing_starts_static_and_learns_from_the_token():
    torch.manual_seed(0)
    layer = TalkingHeadsAttention(8, 4, dynamic=True).to(F64)
    static = TalkingHeadsAttention(8, 4).to(F64)
    static.load_state_dict({k: v for k, v in layer.state_dict().items() if "by_token" not in k})
    x = draw(2, 7, 8)
    torch.testing.assert_close(layer(x), static(x), **CLOSE)
    layer(x).square().sum().backward()
    for mixing in (layer.logit_mixing, layer.weight_mixing):
        assert (mixing.by_token.weight.grad != 0).any()


def test_mixing_adds_two_small_matrices_only():
    plain, talking = WideKeyAttention(48, 6), TalkingHeadsAttention(48, 6)
    count = [sum(p.numel() for p in layer.parameters()) for layer in (plain, talking)]
    assert count[1] - count[0] == 2 * 6 * 6
    assert TalkingHeadsAttention(48, 6, mix="logits").weight_mixing is None
    assert TalkingHeadsAttention(48, 6, mix="weights").logit_mixing is None


def test_autocast_keeps_the_softmax_in_float32():
    layer = built(dtype=torch.float32, block=3)
    x = draw(2, 7, 8, dtype=torch.float32)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
        assert layer.attention_weights(x).dtype == torch.float32
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_a_layer_can_be_pickled_and_loaded():
    layer, x = built(logit_heads=2, dynamic=True), draw(2, 7, 8)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: TalkingHeadsAttention(8, 4, key_size=0), ValueError, "key_size must be positive"),
        (lambda: TalkingHeadsAttention(8, 0), ValueError, "num_heads must be positive, got 0"),
        (lambda: TalkingHeadsAttention(8, 3), ValueError, "or key_size given"),
        (lambda: TalkingHeadsAttention(8, 4, value_heads=3), ValueError, "or value_size given"),
        (lambda: TalkingHeadsAttention(8, 4, mix="none"), ValueError, "mix must be both"),
        (lambda: TalkingHeadsAttention(8, 4, init="zero"), ValueError, "init must be identity"),
        (
            lambda: TalkingHeadsAttention(8, 4, value_heads=2, mix="logits"),
            ValueError,
            "value_heads must be num_heads=4 with mix='logits', got 2",
        ),
        (lambda: TalkingHeadsAttention(12, 4, rope=True), ValueError, "must be even with rope"),
        (lambda: TalkingHeadsAttention(8, 4, dropout=1.0), ValueError, r"dropout must be in \[0"),
    ],
)
def test_sizes_that_make_no_layer_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_bad_input_is_refused():
    q, k, v, P_l, P_w = inputs()
    with pytest.raises(ValueError, match="value heads"):
        check_heads(q, k, v[:, :3], P_l, P_w)
    with pytest.raises(ValueError, match="with 2 key heads as in q"):
        check_heads(q, k, v, P_w, None)
    with pytest.raises(ValueError, match="without weight_mixing v must have 3 heads"):
        check_heads(q, k, v, P_l, None)
    with pytest.raises(ValueError, match="block must be a positive"):
        talking_heads(q, k, v, P_l, P_w, block=0)
    with pytest.raises((ValueError, TypeCheckError), match="attention_mask"):
        talking_heads(q, k, v, P_l, P_w, torch.ones(2, 6, dtype=torch.bool))
    layer, x = built(), draw(2, 7, 8)
    with pytest.raises(ValueError, match="a cache needs a causal layer"):
        layer(x, cache=built(causal=True).new_cache())
    with pytest.raises(ValueError, match="cross attention knows no common order"):
        built(causal=True)(x, context=x)
    causal = built(causal=True)
    cache = causal.new_cache()
    with pytest.raises(ValueError, match="without a cache"):
        causal.attention_weights(x, cache=cache)


@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_a_mask_that_is_not_boolean_is_refused(dtype):
    with pytest.raises((TypeError, TypeCheckError), match="attention_mask"):
        talking_heads(*inputs(), torch.ones(2, 7, dtype=dtype))
