"""Multi-head attention with a log n, learnt or plain scale."""

import math
import pickle

import pytest
import torch
from torch.nn import functional as F

from kexue.nn.key_value_cache import KeyValueCache
from kexue.nn.log_n_attention import LogNAttention
from kexue.nn.rotary import apply_rotary
from kexue.nn.row_scale import LogNScale, SSMaxScale
from naive.attention_scale import dense_visible, naive_log_n_attention

# torch's own compiler uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)

F64 = torch.float64
CLOSE = {"rtol": 0, "atol": 1e-12}
MASKS = {
    "right padding": [[1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]],
    "left padding": [[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]],
    "holes": [[1, 0, 1, 1, 0, 0, 1], [0, 1, 0, 1, 1, 1, 0]],
    "an empty sequence": [[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]],
}


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def built(*sizes, dtype=F64, **options):
    """A layer whose biases are not zero."""
    torch.manual_seed(0)
    layer = LogNAttention(*sizes, **options).to(dtype)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * draw(*parameter.shape, seed=5, dtype=dtype))
    return layer


def mask_of(name):
    return torch.tensor(MASKS[name], dtype=torch.bool)


def naive(layer, x, mask, *, base, positions=None):
    """The layer written out over a dense mask."""
    batch, length, _ = x.shape
    if mask is not None:
        x = torch.where(mask[..., None], x, 0.0)
    q = layer.query(x).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
    k, v = (
        part.unflatten(-1, (layer.num_kv_heads, -1)).transpose(1, 2)
        for part in layer.key_value(x).chunk(2, dim=-1)
    )
    if layer.rope:
        at = torch.arange(length)[None] if positions is None else positions
        q, k = (apply_rotary(one, at[:, None], layer.rope_base) for one in (q, k))
    visible = dense_visible(length, length, mask, causal=layer.causal, batch=batch)
    heads = naive_log_n_attention(q, k, v, visible, base=base)
    out = layer.output(heads.transpose(1, 2).flatten(2))
    return out if mask is None else torch.where(mask[..., None], out, 0.0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("base", [512, 3.0, None])
@pytest.mark.parametrize("mask", [None, *MASKS])
def test_values_and_gradients_equal_the_row_by_row_twin(causal, base, mask):
    layer = built(8, 4, 2, causal=causal, base=base, rope=True, rope_base=100.0)
    mask = None if mask is None else mask_of(mask)
    x = draw(2, 7, 8)
    found = []
    for function in (layer, lambda *given: naive(layer, *given, base=base)):
        leaf = x.clone().requires_grad_()
        out = function(leaf, mask)
        found.append((out, *torch.autograd.grad(out.square().sum(), [leaf, *layer.parameters()])))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)


def test_at_the_base_the_layer_is_plain_attention():
    x = draw(1, 16, 8)
    plain, ours = (built(8, 2, base=base) for base in (None, 16))
    torch.testing.assert_close(ours(x), plain(x), **CLOSE)


def test_plain_attention_is_that_of_torch():
    layer, theirs = (
        built(8, 2, base=None),
        torch.nn.MultiheadAttention(8, 2, batch_first=True).to(F64),
    )
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat((layer.query.weight, layer.key_value.weight)))
        theirs.in_proj_bias.copy_(torch.cat((layer.query.bias, layer.key_value.bias)))
    theirs.out_proj.load_state_dict(layer.output.state_dict())
    x, mask = draw(2, 7, 8), mask_of("right padding")
    wanted = theirs(x, x, x, key_padding_mask=~mask)[0]
    torch.testing.assert_close(layer(x, mask)[mask], wanted[mask], **CLOSE)


def test_a_causal_row_is_the_last_row_of_the_bidirectional_layer_over_its_prefix():
    causal, both = (built(8, 2, causal=flag, rope=True) for flag in (True, False))
    x = draw(2, 9, 8)
    whole = causal(x)
    for i in range(9):
        torch.testing.assert_close(whole[:, i], both(x[:, : i + 1])[:, -1], **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
def test_appended_padding_changes_nothing(causal):
    layer = built(8, 2, causal=causal, rope=True)
    x = draw(2, 5, 8)
    padded = F.pad(x, (0, 0, 0, 4), value=9.0)
    mask = torch.arange(9).expand(2, -1) < 5
    out = layer(padded, mask)
    torch.testing.assert_close(out[:, :5], layer(x), **CLOSE)
    assert torch.equal(out[:, 5:], torch.zeros(2, 4, 8, dtype=F64))


@pytest.mark.parametrize("causal", [False, True])
def test_left_padding_changes_nothing_with_positions_or_without(causal):
    layer = built(8, 2, causal=causal, rope=True)
    x = draw(2, 5, 8)
    padded = F.pad(x, (0, 0, 4, 0), value=9.0)
    mask = torch.arange(9).expand(2, -1) >= 4
    positions = (torch.arange(9) - 4).clamp(min=0).expand(2, -1)
    for given in (None, positions):
        torch.testing.assert_close(layer(padded, mask, given)[:, 4:], layer(x), **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_masked_tokens_may_hold_anything(causal, name, junk):
    layer, mask, clean = (
        built(8, 2, causal=causal, scale=SSMaxScale(2)),
        mask_of(name),
        draw(2, 7, 8),
    )
    found = []
    for fill in (0.0, junk):
        x = clean.masked_fill(~mask[..., None], fill).requires_grad_()
        out = layer(x, mask)
        found.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])))
    for mine, theirs in zip(*found, strict=True):
        assert mine.isfinite().all()
        assert torch.equal(mine, theirs)


def cuts(length, sizes):
    start = 0
    for size in sizes:
        yield slice(start, min(start + size, length))
        start += size


@pytest.mark.parametrize("sizes", [[1] * 7, [7], [3, 4], [4, 1, 2], [1, 6]])
@pytest.mark.parametrize("mask", [None, *MASKS])
@pytest.mark.parametrize("rope", [False, True])
def test_decoding_in_any_pieces_is_the_full_pass(sizes, mask, rope):
    layer = built(8, 4, 2, causal=True, rope=rope)
    x = draw(2, 7, 8)
    mask = None if mask is None else mask_of(mask)
    cache, parts = layer.new_cache(), []
    with torch.no_grad():
        for cut in cuts(7, sizes):
            part = None if mask is None else mask[:, cut]
            parts.append(layer(x[:, cut], part, cache=cache))
        torch.testing.assert_close(torch.cat(parts, dim=1), layer(x, mask), **CLOSE)
    assert cache.length == 7


def test_a_mask_may_come_and_go_while_decoding():
    layer, x = built(8, 2, causal=True), draw(2, 7, 8)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 3:5] = torch.tensor([[True, False], [False, False]])
    cache = layer.new_cache()
    with torch.no_grad():
        parts = [layer(x[:, :3], cache=cache), layer(x[:, 3:5], mask[:, 3:5], cache=cache)]
        parts.append(layer(x[:, 5:], cache=cache))
        torch.testing.assert_close(torch.cat(parts, dim=1), layer(x, mask), **CLOSE)


@pytest.mark.parametrize("mask", [None, "left padding"])
def test_beams_are_reordered_with_their_keys_and_masks(mask):
    layer, x, rows = built(8, 2, causal=True), draw(2, 7, 8), torch.tensor([1, 1, 0])
    mask = None if mask is None else mask_of(mask)
    cache = layer.new_cache()
    with torch.no_grad():
        layer(x[:, :6], None if mask is None else mask[:, :6], cache=cache)
        cache.reorder(rows)
        last = layer(x[rows, 6:], cache=cache)
        wanted = layer(x, mask)[rows, 6:]
    torch.testing.assert_close(last, wanted, **CLOSE)


def test_an_empty_cache_can_be_reordered():
    cache = KeyValueCache()
    cache.reorder(torch.tensor([0, 0]))
    assert cache.length == 0


def test_the_room_of_a_cache_grows_by_doubling():
    layer, cache = built(8, 2, causal=True), None
    cache, rooms = layer.new_cache(), set()
    with torch.no_grad():
        for _ in range(100):
            layer(draw(1, 1, 8), cache=cache)
            rooms.add(cache.keys.shape[2])
    assert sorted(rooms) == [1, 4, 10, 22, 46, 94, 190]


def test_ssmax_starts_as_log_n_and_learns():
    x = draw(2, 7, 8)
    ours, learnt = built(8, 2, base=512), built(8, 2, scale=SSMaxScale(2, base=512))
    learnt.load_state_dict(ours.state_dict(), strict=False)
    learnt.scale.reset_parameters()
    torch.testing.assert_close(learnt(x), ours(x), **CLOSE)
    learnt(x).square().sum().backward()
    assert (learnt.scale.slope.grad != 0).all()
    assert (learnt.scale.bias.grad != 0).all()


def test_ssmax_has_a_factor_per_head():
    scale = SSMaxScale(3, base=math.e).to(F64)
    with torch.no_grad():
        scale.slope.copy_(torch.tensor([0.0, 1.0, 2.0]))
        scale.bias.copy_(torch.tensor([1.0, 0.0, 0.5]))
    found = scale(torch.tensor([[0, 1, 8]], dtype=F64))
    logs = torch.tensor([0.0, 0.0, math.log(8)], dtype=F64)  # a row without keys counts as one
    torch.testing.assert_close(found, (logs[:, None] * scale.slope + scale.bias)[None], **CLOSE)


def test_ssmax_gradients_equal_those_of_scaled_logits():
    layer, x = built(8, 2, causal=True, scale=SSMaxScale(2)), draw(2, 6, 8)
    wanted = layer(x)
    q = layer.query(x).unflatten(-1, (2, -1)).transpose(1, 2)
    k, v = (
        part.unflatten(-1, (2, -1)).transpose(1, 2) for part in layer.key_value(x).chunk(2, dim=-1)
    )
    logs = torch.arange(1, 7, dtype=F64).log()
    factor = layer.scale.slope[:, None] * logs + layer.scale.bias[:, None]  # (H, L)
    logits = (q @ k.mT) / 2 * factor[None, :, :, None]
    logits = logits.masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -torch.inf)
    ours = layer.output((logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours, wanted, **CLOSE)
    parameters = list(layer.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(ours.square().sum(), parameters),
        torch.autograd.grad(wanted.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, **CLOSE)


def test_any_module_from_counts_to_factors_can_be_the_scale():
    x = draw(2, 7, 8)
    floored = built(8, 2, scale=LogNScale(64, min_len=16))
    assert torch.allclose(floored(x), naive_floor(floored, x), atol=1e-7)
    clipped = built(8, 2, scale=LogNScale(64, clip=True))
    torch.testing.assert_close(clipped(x), built(8, 2, base=None)(x), **CLOSE)


def naive_floor(layer, x):
    return naive(layer, x, None, base=7 ** (math.log(64) / math.log(16)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_output_has_the_dtype_of_the_input(dtype):
    layer, mask = built(16, 2, causal=True, dtype=dtype, rope=True), mask_of("holes")
    out = layer(draw(2, 7, 16, dtype=dtype), mask)
    assert out.dtype == dtype
    assert out.isfinite().all()


@pytest.mark.parametrize("scale", [None, SSMaxScale(2)])
def test_under_autocast_the_result_is_close_to_float32(scale):
    layer, x = built(16, 2, causal=True, dtype=torch.float32, scale=scale), draw(2, 7, 16)
    wanted = layer(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x.float())
    torch.testing.assert_close(out.float(), wanted, rtol=0.03, atol=0.03)


def test_weights_survive_saving_and_pickling():
    layer, x = built(8, 4, 2, causal=True, scale=SSMaxScale(4)), draw(1, 5, 8)
    other = LogNAttention(8, 4, 2, causal=True, scale=SSMaxScale(4)).to(F64)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


def test_dropout_acts_in_training_only():
    layer, x = built(8, 2, dropout=0.5), draw(1, 6, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_projections_start_glorot_uniform_each_for_itself():
    torch.manual_seed(0)
    layer = LogNAttention(64, 4, 2)
    for weight in (layer.query.weight, *layer.key_value.weight.chunk(2), layer.output.weight):
        bound = math.sqrt(6 / sum(weight.shape))
        assert bound * 0.95 < weight.abs().max() <= bound
    assert layer.query.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 10, "num_heads": 3}, "multiple of num_heads, or head_dim given"),
        ({"num_heads": 4, "num_kv_heads": 3}, "multiple of num_kv_heads, got 4 and 3"),
        ({"num_heads": 0}, "num_heads must be positive"),
        ({"head_dim": 0}, "head_dim must be positive"),
        ({"head_dim": 3, "rope": True}, "head_dim must be even"),
        ({"base": 1}, "base must be above 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LogNAttention(**{"d_model": 8, "num_heads": 2} | options)


def test_scales_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="num_heads must be positive"):
        SSMaxScale(0)
    for scale in (lambda: SSMaxScale(2, base=1), lambda: LogNScale(base=0.5)):
        with pytest.raises(ValueError, match="base must be above 1"):
            scale()


def test_a_cache_needs_a_causal_layer():
    layer = built(8, 2)
    with pytest.raises(ValueError, match="needs a causal layer"):
        layer(draw(1, 2, 8), cache=layer.new_cache())


def test_factors_for_another_number_of_heads_are_refused():
    layer = LogNAttention(16, 4, scale=SSMaxScale(3))
    with pytest.raises(ValueError, match="gives factors for 3 heads"):
        layer(draw(1, 2, 16).float())


@pytest.mark.parametrize("causal", [True, False])
def test_a_learnt_scale_under_autocast_is_near_the_float32_layer(causal):
    torch.manual_seed(0)
    layer, x = LogNAttention(32, 2, causal=causal, scale=SSMaxScale(2)), torch.randn(2, 300, 32)
    whole = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
        half.float().square().sum().backward()
    torch.testing.assert_close(half.float(), whole, atol=0.02, rtol=0.05)
    assert layer.scale.slope.grad.abs().min() > 0
    assert all(one.grad.isfinite().all() for one in layer.parameters())
