"""Attention whose keys are wider (or narrower) than its values."""

import math
import pickle

import pytest
import torch
from torch.nn import functional as F

from kexue.nn.wide_key import WideKeyAttention, wide_key_attention

F64 = torch.float64
CLOSE = {"rtol": 0, "atol": 1e-12}
MASKS = {
    "right padding": [[1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]],
    "left padding": [[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]],
    "holes": [[1, 0, 1, 1, 0, 0, 1], [0, 1, 0, 1, 1, 1, 0]],
    "an empty sequence": [[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]],
}
SIZES = [(2, 2), (5, 2), (2, 5), (40, 2)]


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def mask_of(name):
    return None if name is None else torch.tensor(MASKS[name], dtype=torch.bool)


def built(*sizes, dtype=F64, **options):
    """A layer whose biases are not zero."""
    torch.manual_seed(0)
    layer = WideKeyAttention(*sizes, **options).to(dtype)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * draw(*parameter.shape, seed=5, dtype=dtype))
    return layer


def written_out(q, k, v, visible, bias=None):
    """Row by row over the visible keys."""
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                keys = visible[b, i].nonzero().flatten()
                if len(keys):
                    logits = k[b, h, keys] @ q[b, h, i] / math.sqrt(q.shape[3])
                    logits = logits if bias is None else logits + bias[b, h, i, keys]
                    out[b, h, i] = logits.softmax(0) @ v[b, h, keys]
    return out


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, *MASKS])
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_equal_attention_row_by_row(sizes, causal, mask, biased):
    mask = mask_of(mask)
    given = (draw(2, 3, 5, sizes[0], seed=1), draw(2, 3, 7, sizes[0], seed=2))
    given += (draw(2, 3, 7, sizes[1], seed=3), draw(2, 3, 5, 7, seed=4))
    visible = torch.ones(2, 5, 7, dtype=torch.bool)
    visible = visible.tril(2) if causal else visible
    visible = visible if mask is None else visible & mask[:, None]
    found = []
    for fast in (True, False):
        leaves = [x.clone().requires_grad_() for x in given][: 3 + biased]
        q, k, v, *bias = leaves
        more = bias[0] if biased else None
        if fast:
            out = wide_key_attention(q, k, v, mask, causal=causal, offset=2, position_bias=more)
        else:
            out = written_out(q, k, v, visible, more)
        found.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)


@pytest.mark.parametrize("sizes", SIZES)
def test_without_a_mask_causal_rows_are_those_of_torch(sizes):
    q, k = draw(2, 2, 3, 6, sizes[0]).unbind()
    v = draw(2, 3, 6, sizes[1], seed=1)
    wanted = (q @ k.mT / math.sqrt(sizes[0])).masked_fill(
        torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf
    )
    torch.testing.assert_close(
        wide_key_attention(q, k, v, causal=True), wanted.softmax(-1) @ v, **CLOSE
    )


def test_only_queries_and_keys_grow_with_the_key_size():
    def sizes(key_size):
        layer = WideKeyAttention(48, 6, key_size)
        names = ("query", "key", "value", "output")
        count = [sum(p.numel() for p in getattr(layer, n).parameters()) for n in names]
        assert layer(torch.randn(1, 3, 48)).shape == (1, 3, 48)
        return count

    plain, wide, wider = sizes(None), sizes(16), sizes(32)
    assert plain == sizes(8)
    assert plain[2:] == wide[2:] == wider[2:]
    assert [wider[i] / wide[i] for i in (0, 1)] == [2, 2]


def test_at_the_default_size_it_is_the_attention_of_torch():
    layer, theirs = built(8, 4), torch.nn.MultiheadAttention(8, 4, batch_first=True).to(F64)
    with torch.no_grad():
        parts = (layer.query, layer.key, layer.value)
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.out_proj.load_state_dict(layer.output.state_dict())
    x, mask = draw(2, 7, 8), mask_of("holes")
    wanted, weights = theirs(x, x, x, key_padding_mask=~mask, average_attn_weights=False)
    torch.testing.assert_close(layer(x, mask)[mask], wanted[mask], **CLOSE)
    mine = layer.attention_weights(x, mask).transpose(1, 2)[mask]
    torch.testing.assert_close(mine, weights.transpose(1, 2)[mask], **CLOSE)
    causal = built(8, 4, causal=True)
    causal.load_state_dict(layer.state_dict())
    later = torch.ones(7, 7, dtype=torch.bool).triu(1)
    torch.testing.assert_close(causal(x), theirs(x, x, x, attn_mask=later)[0], **CLOSE)


def test_the_weights_are_those_of_the_output():
    layer, x = built(8, 2, 6, causal=True, rope=True), draw(2, 7, 8)
    for mask in (None, mask_of("left padding")):
        W = layer.attention_weights(x, mask)
        v = layer.value(x if mask is None else x * mask[..., None])
        heads = W @ v.unflatten(-1, (2, -1)).transpose(1, 2)
        wanted = layer.output(heads.transpose(1, 2).flatten(2))
        kept = slice(None) if mask is None else mask
        torch.testing.assert_close(layer(x, mask)[kept], wanted[kept], **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(causal, left):
    layer, x = built(8, 2, 6, causal=causal, rope=True), draw(2, 5, 8)
    padded = F.pad(x, (0, 0, 4, 0) if left else (0, 0, 0, 4), value=math.nan)
    mask = torch.arange(9).expand(2, -1)
    mask = mask >= 4 if left else mask < 5
    out = layer(padded, mask)  # rotary positions are relative: a shift is no change
    torch.testing.assert_close(out[mask], layer(x).flatten(0, 1), **CLOSE)
    assert (out[~mask] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_masked_tokens_may_hold_anything(causal, name):
    layer, mask, clean = built(8, 2, 6, causal=causal), mask_of(name), draw(2, 7, 8)
    found = []
    for fill in (0.0, math.nan, math.inf):
        x = clean.masked_fill(~mask[..., None], fill).requires_grad_()
        out = layer(x, mask)
        found.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])))
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            assert mine.isfinite().all()
            assert torch.equal(mine, theirs)


def test_a_causal_row_sees_nothing_later():
    layer, x = built(8, 2, 6, causal=True), draw(2, 7, 8)
    whole = layer(x)
    for i in range(7):
        later = x.clone()
        later[:, i + 1 :] = 9.0
        torch.testing.assert_close(layer(later)[:, : i + 1], whole[:, : i + 1], **CLOSE)


@pytest.mark.parametrize("sizes", [[1] * 7, [3, 4], [4, 1, 2], [1, 6]])
@pytest.mark.parametrize("mask", [None, *MASKS])
@pytest.mark.parametrize("rope", [False, True])
def test_decoding_in_any_pieces_is_the_full_pass(sizes, mask, rope):
    layer, x, mask = built(8, 2, 6, causal=True, rope=rope), draw(2, 7, 8), mask_of(mask)
    cache, parts, start = layer.new_cache(), [], 0
    with torch.no_grad():
        for size in sizes:
            cut = slice(start, start + size)
            parts.append(layer(x[:, cut], None if mask is None else mask[:, cut], cache=cache))
            start += size
        torch.testing.assert_close(torch.cat(parts, dim=1), layer(x, mask), **CLOSE)


def test_beams_are_reordered_with_their_keys():
    layer, x, rows = built(8, 2, 6, causal=True), draw(2, 7, 8), torch.tensor([1, 1, 0])
    cache = layer.new_cache()
    with torch.no_grad():
        layer(x[:, :6], cache=cache)
        cache.reorder(rows)
        torch.testing.assert_close(layer(x[rows, 6:], cache=cache), layer(x)[rows, 6:], **CLOSE)


def test_dropout_keeps_the_mean_and_is_off_in_evaluation():
    layer, x = built(8, 2, 6, dropout=0.3), draw(1, 7, 8)
    with torch.no_grad():
        torch.manual_seed(0)
        runs = torch.stack([layer(x) for _ in range(3000)])
        exact = layer.eval()(x)
    assert ((runs.mean(0) - exact).abs() <= 5 * runs.std(0) / 3000**0.5).all()
    assert torch.equal(layer(x), exact)


def test_half_precision_and_autocast_give_half_precision():
    layer, x = built(8, 2, 6, dtype=torch.float32), draw(2, 7, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.05)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_a_layer_can_be_pickled():
    layer, x = built(8, 2, 6), draw(2, 7, 8)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


@pytest.mark.parametrize(
    ("sizes", "options", "words"),
    [
        ((8, 4, 0), {}, "key_size must be positive, got 0"),
        ((8, 4, -2), {}, "key_size must be positive, got -2"),
        ((8, 4, 2, 0), {}, "value_size must be positive, got 0"),
        ((8, 0), {}, "number of key heads must be positive, got 0"),
        ((0, 4), {}, "d_model must be positive, got 0"),
        ((8, 3), {}, "got d_model=8 and 3 heads"),
        ((8, 4, 3), {"rope": True}, "key_size must be even with rope"),
        ((8, 4), {"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
    ],
)
def test_sizes_that_make_no_layer_are_refused(sizes, options, words):
    with pytest.raises(ValueError, match=words):
        WideKeyAttention(*sizes, **options)
