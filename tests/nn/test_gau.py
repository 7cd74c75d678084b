import math
import pickle
from itertools import pairwise

import pytest
import torch

from kexue.nn.gau import GatedAttentionUnit
from kexue.nn.gau_attention import check_attention_map, gau_attention, gau_weights
from kexue.nn.key_value_cache import KeyValueCache
from naive.gau import naive_gau, naive_weights, silu

MAPS = ("softmax_plus", "softmax", "relu2_ns", "relu2_n2", "laplace", "relu2_norm")
X = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]], dtype=torch.float64)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(**options):
    torch.manual_seed(1)
    layer = GatedAttentionUnit(**{"d_model": 6, "key_size": 4} | options).double()
    for parameter in layer.parameters():  # no bias or beta at 0
        torch.nn.init.normal_(parameter, std=0.7)
    return layer


def worked(attention, causal=False):
    """The layer of the worked numbers."""
    layer = GatedAttentionUnit(2, 1.5, 2, attention, rope=False, causal=causal, bias=False).double()
    u, v = [[1, 0, 0.5], [0, 1, -0.5]], [[0.5, 1, 0], [1, -0.5, 1]]
    with torch.no_grad():
        layer.gate_value.weight.copy_(torch.tensor([a + b for a, b in zip(u, v, strict=True)]).T)
        layer.base.projection.weight.copy_(torch.tensor([[1, 0.5], [-0.5, 1]]).T)
        layer.output.weight.copy_(torch.tensor([[1, 0], [0, 1], [0.5, 0.5]]).T)
    return layer


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=torch.float64), rtol=0, atol=atol)


def test_relu2_ns_gives_the_worked_numbers():
    layer = worked("relu2_ns")
    q, k = layer.base(X, torch.arange(3)[None]).unbind(1)
    row = (0.06642550178604777, 0.0013357859511897777, 0.1169823836736567)
    close(gau_weights(q, k, "relu2_ns")[0, 0], row)
    out = layer(X)[0]
    close(out[0], (-0.005060211905858984, -0.00474389806651209))
    close(out[2], (-0.06673922203467622, -0.19213535223856715))
    close(worked("relu2_ns", causal=True)(X)[0, 0], (0.04534080874234223, 0.0))


def test_softmax_gives_the_worked_numbers():
    close(worked("softmax")(X)[0, 0], (0.16249497099900054, 0.010259922043924695))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", MAPS)
def test_every_map_is_its_formula_pair_by_pair(attention, causal):
    q, k, bias = draw(2, 5, 4), draw(2, 5, 4, seed=1), draw(1, 5, 5, seed=2)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1]]).bool()
    for options in ({}, {"position_bias": bias}, {"attention_mask": mask}, {"length": 7}):
        names = {"position_bias": "bias", "attention_mask": "mask", "length": "length"}
        expected = naive_weights(
            q, k, attention, causal=causal, **{names[n]: o for n, o in options.items()}
        )
        close(gau_weights(q, k, attention, causal=causal, **options), expected, 1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", MAPS)
def test_attention_is_the_weights_times_the_values(attention, causal):
    q, k, v = draw(2, 6, 4), draw(2, 6, 4, seed=1), draw(2, 6, 10, seed=2)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0]]).bool()
    for options in ({}, {"position_bias": draw(1, 6, 6)}, {"attention_mask": mask}):
        options["causal"] = causal
        expected = gau_weights(q, k, attention, **options) @ v
        close(gau_attention(q, k, v, attention, **options), expected, 1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", MAPS)
def test_the_layer_and_its_gradients_are_those_of_the_naive_twin(attention, causal):
    layer = unit(attention=attention, causal=causal)
    x = draw(2, 5, 6).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]]).bool()
    for given in (None, mask):
        fast, slow = layer(x, given), naive_gau(layer, x, given)
        keep = torch.ones(2, 5, dtype=torch.bool) if given is None else given
        close(fast[keep], slow[keep], 1e-11)
        weight = draw(2, 5, 6, seed=3) * keep.unsqueeze(-1)
        inputs = [x, *layer.parameters()]
        ours = torch.autograd.grad((fast * weight).sum(), inputs)
        theirs = torch.autograd.grad((slow * weight).sum(), inputs)
        for a, b in zip(ours, theirs, strict=True):
            close(a, b, 1e-10)


def test_with_identity_attention_the_unit_is_a_gated_feed_forward_network():
    layer = unit(attention="softmax")
    x = draw(7, 1, 6)  # one token sees itself alone: A = I
    u, v = silu(layer.gate_value(x)).chunk(2, dim=-1)
    close(layer(x), layer.output(u * v), 1e-12)
    # many tokens, with products so large that softmax is the identity
    layer = unit(attention="softmax", rope=False)
    with torch.no_grad():
        layer.base.projection.weight.zero_()
        layer.base.projection.weight[:, :4] = 1000 * torch.eye(4)
        layer.base.projection.bias.zero_()
        layer.base.gamma.fill_(1)
        layer.base.beta.zero_()
    x = torch.eye(4, 6, dtype=torch.float64)[None]
    u, v = silu(layer.gate_value(x)).chunk(2, dim=-1)
    close(layer(x), layer.output(u * v), 1e-12)


@pytest.mark.parametrize("attention", MAPS)
def test_with_a_gate_of_one_the_unit_is_attention(attention):
    layer = unit(attention=attention)
    one = 1.278464542761074  # silu(one) = 1
    with torch.no_grad():
        layer.gate_value.weight[:12] = 0
        layer.gate_value.bias[:12] = one
    x = draw(2, 5, 6)
    q, k = layer.base(x, torch.arange(5)[None]).unbind(1)
    v = silu(layer.gate_value(x)).chunk(2, dim=-1)[1]
    close(layer(x), layer.output(gau_attention(q, k, v, attention)), 1e-12)


@pytest.mark.parametrize("attention", MAPS)
def test_no_output_depends_on_later_tokens(attention):
    layer, x = unit(attention=attention, causal=True), draw(1, 7, 6)
    before = layer(x)
    for t in range(7):
        changed = x.clone()
        changed[:, t] += 1
        after = layer(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", MAPS)
@pytest.mark.parametrize("filler", [0.0, math.nan, math.inf])
def test_padding_on_either_side_changes_nothing(attention, causal, filler):
    layer, x = unit(attention=attention, causal=causal), draw(2, 5, 6)
    plain = layer(x)
    for left, right in ((0, 3), (4, 0), (1, 2)):
        padded = torch.full((2, left + 5 + right, 6), filler, dtype=torch.float64)
        padded[:, left : left + 5] = x
        padded.requires_grad_()
        mask = torch.zeros(2, left + 5 + right, dtype=torch.bool)
        mask[:, left : left + 5] = True
        out = layer(padded, mask)
        close(out[:, left : left + 5], plain, 1e-12)
        assert out[~mask].count_nonzero() == 0
        layer.zero_grad()
        out.sum().backward()
        assert padded.grad.isfinite().all()
        assert padded.grad[~mask].count_nonzero() == 0
        assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("attention", MAPS)
def test_a_sequence_without_visible_tokens_is_zeros(attention):
    layer = unit(attention=attention)
    mask = torch.tensor([[False] * 3, [True] * 3])
    x = draw(2, 3, 6).requires_grad_()
    out = layer(x, mask)
    assert out[0].count_nonzero() == 0
    out.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("attention", MAPS)
def test_decoding_gives_the_full_pass_at_any_cut(attention):
    layer, x = unit(attention=attention, causal=True), draw(3, 9, 6)
    mask = torch.tensor([[1] * 9, [0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0, 1, 1, 1]]).bool()
    for given in (None, mask):
        full = layer(x, given)
        for cuts in ([0, 4, 9], [0, 1, 2, 9], list(range(10)), [0, 8, 9]):
            cache, parts = layer.new_cache(), []
            with torch.no_grad():
                for a, b in pairwise(cuts):
                    part = None if given is None else given[:, a:b]
                    parts.append(layer(x[:, a:b], part, cache=cache))
            close(torch.cat(parts, dim=1), full.detach(), 1e-12)
            assert cache.length == 9


@pytest.mark.parametrize("attention", MAPS)
def test_many_causal_rows_are_worked_on_in_parts_that_change_nothing(attention, monkeypatch):
    q, k, v = (draw(2, 7, n, seed=n).requires_grad_() for n in (4, 4, 6))
    k = torch.cat((k[:, :, :3], q[:, :, :1]), dim=-1)
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 0, 1, 1]]).bool()
    for options in ({}, {"position_bias": draw(1, 7, 7)}, {"attention_mask": mask}):
        results = []
        for rows in (100, 3):
            monkeypatch.setattr("kexue.nn.gau_attention.ROWS", rows)
            attended = gau_attention(q, k, v, attention, causal=True, **options)
            gradients = torch.autograd.grad(attended.square().sum(), (q, v))
            later = gau_attention(
                q[:, 2:],
                k,
                v,
                attention,
                causal=True,
                offset=2,
                **{
                    name: option[:, 2:] if name == "position_bias" else option
                    for name, option in options.items()
                },
            )
            close(later, attended[:, 2:], 1e-12)
            results.append((attended, *gradients))
        for whole, parted in zip(*results, strict=True):
            close(parted, whole, 1e-12)


def test_a_mask_may_come_after_calls_without_one():
    layer, x = unit(causal=True), draw(2, 6, 6)
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 1, 1]]).bool()
    cache = layer.new_cache()
    parts = [
        layer(x[:, :3], cache=cache),
        layer(x[:, 3:5], mask[:, 3:5], cache=cache),
        layer(x[:, 5:], cache=cache),
    ]
    close(torch.cat(parts, dim=1), layer(x, mask), 1e-12)


def test_a_reordered_cache_goes_on_with_other_sequences():
    layer, x = unit(causal=True), draw(3, 6, 6)
    cache, rows = layer.new_cache(), torch.tensor([2, 0])
    with torch.no_grad():
        cache.reorder(rows)  # an empty cache has nothing to reorder
        layer(x[:, :4], cache=cache)
        cache.reorder(rows)
        part = layer(x[rows, 4:], cache=cache)
        close(part, layer(x[rows])[:, 4:], 1e-12)
        with pytest.raises(ValueError, match="the cache holds 2 sequences, got 3"):
            layer(x, cache=cache)


def test_relu2_grows_with_the_square_of_the_scores_and_its_normalised_form_not_at_all():
    q, k = draw(1, 6, 4), draw(1, 6, 4, seed=1)
    for factor in (1e-3, 0.5, 3.0, 1e3):
        grown = gau_weights(q * factor, k, "relu2_ns")
        torch.testing.assert_close(grown, factor**2 * gau_weights(q, k, "relu2_ns"))
        same = gau_weights(q * factor, k, "relu2_norm")
        close(same, gau_weights(q, k, "relu2_norm"), 1e-12)


@pytest.mark.parametrize("attention", MAPS)
def test_with_rope_only_distances_count(attention):
    layer, x = unit(attention=attention), draw(2, 5, 6)
    positions = torch.tensor([[0, 1, 2, 3, 4]])
    close(layer(x, position_ids=positions + 1000), layer(x), 1e-9)
    assert not torch.allclose(layer(x, position_ids=2 * positions), layer(x), rtol=1e-6)


def test_without_rope_a_layer_that_is_not_causal_knows_no_order():
    layer, x, order = unit(rope=False), draw(1, 5, 6), torch.tensor([3, 1, 4, 0, 2])
    close(layer(x[:, order]), layer(x)[:, order], 1e-12)


@pytest.mark.parametrize("attention", ["relu2_ns", "relu2_n2", "laplace"])
def test_a_frozen_length_keeps_the_weights_when_hidden_keys_are_added(attention):
    q, k = draw(1, 4, 4), draw(1, 4, 4, seed=1)
    more = torch.cat((k, draw(1, 4, 4, seed=2)), dim=1)
    frozen = [gau_weights(q, keys, attention, length=4) for keys in (k, more)]
    assert torch.equal(frozen[0], frozen[1][:, :, :4])
    assert not torch.allclose(gau_weights(q, more, attention)[:, :, :4], frozen[0])


def test_softmax_plus_is_softmax_at_the_length_of_training():
    q, k = draw(1, 8, 4), draw(1, 8, 4, seed=1)
    close(gau_weights(q, k, train_length=8), gau_weights(q, k, "softmax"), 1e-14)
    assert torch.equal(gau_weights(q, k, min_length=16), gau_weights(q, k, length=16))


@pytest.mark.parametrize("rope", [False, True])
def test_at_the_start_the_diagonal_alone_gives_the_published_scale(rope):
    """nu^6 s / n for A_ii; the full output is larger, because off-diagonal terms add up."""
    torch.manual_seed(0)
    nu2, s, d = 0.3557755198, 128, 768
    layer = GatedAttentionUnit(d, 2.0, s, "relu2_ns", rope=rope)
    grown = {False: {128: 1.9, 512: 4.7}, True: {128: 1.5, 512: 2.3}}[rope]
    for n in (128, 512):
        x = torch.randn(1, n, d)
        with torch.no_grad():
            u, v = torch.nn.functional.silu(layer.gate_value(x)).chunk(2, dim=-1)
            q, k = layer.base(x, torch.arange(n)[None]).unbind(1)
            diagonal = gau_weights(q, k, "relu2_ns").diagonal(dim1=1, dim2=2).unsqueeze(-1)
            alone = layer.output(u * diagonal * v).square().mean().sqrt()
            full = layer(x).square().mean().sqrt()
        law = s * nu2**3 / n
        assert abs(alone.item() / law - 1) < 0.3
        assert full.item() / law == pytest.approx(grown[n], rel=0.15)
    assert law == pytest.approx(0.01125818, rel=1e-6)


def test_scaling_all_matrices_scales_the_output_by_the_seventh_power_of_large_scales():
    layer, x = unit(attention="relu2_ns", bias=False), draw(1, 6, 6)
    with torch.no_grad():
        layer.base.gamma.fill_(1)
        outputs = []
        for factor in (1e3, 2.0):  # at a large scale silu is relu, homogeneous
            for weight in (
                layer.gate_value.weight,
                layer.base.projection.weight,
                layer.output.weight,
            ):
                weight.mul_(factor)
            outputs.append(layer(x).norm())
    assert (outputs[1] / outputs[0]).item() == pytest.approx(2**7, rel=1e-6)


def test_a_base_unit_has_the_parameters_of_half_a_transformer_block():
    layer = GatedAttentionUnit(768, bias=False)
    count = sum(p.numel() for p in layer.parameters())
    assert count == 6 * 768**2 + 768 * 128 + 2 * 128 == 3_637_504


def test_half_precision_squares_scores_that_float16_cannot():
    q = torch.full((1, 4, 128), 6.0, dtype=torch.float16)  # q·k/sqrt(s) = 407, its square 165,953
    weights = gau_weights(q, q, "relu2_ns")
    assert weights.dtype == torch.float32
    exact = gau_weights(q.double(), q.double(), "relu2_ns")
    torch.testing.assert_close(weights.double(), exact, rtol=2e-3, atol=0)


@pytest.mark.parametrize("attention", MAPS)
def test_under_autocast_the_output_is_that_of_float32_to_bfloat16(attention):
    layer, x = unit(attention=attention, causal=True).float(), draw(2, 7, 6).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    exact = layer(x)
    assert (low.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_dropout_works_in_training_alone():
    for attention in ("softmax", "relu2_ns"):
        layer, x = unit(attention=attention, dropout=0.5), draw(1, 8, 6)
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))
        means = torch.stack([layer.train()(x) for _ in range(400)]).mean(dim=0)
        close(means, layer.eval()(x), 0.3 * means.abs().max().item())


def test_a_layer_survives_pickling_and_its_state_dict():
    layer, x = unit(attention="laplace"), draw(1, 4, 6)
    copy = pickle.loads(pickle.dumps(layer))
    other = unit(attention="laplace")
    other.reset_parameters()
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(copy(x), layer(x))
    assert torch.equal(other(x), layer(x))


def test_wrong_sizes_names_masks_and_caches_are_refused():
    with pytest.raises(ValueError, match=r"key_size must be even with rope .* got 5"):
        GatedAttentionUnit(6, key_size=5)
    GatedAttentionUnit(6, key_size=5, rope=False)
    with pytest.raises(ValueError, match=r"attention must be one of .*relu2_norm, got 'relu'"):
        check_attention_map("relu")
    with pytest.raises(ValueError, match="d_model must be positive, got 0"):
        GatedAttentionUnit(0)
    with pytest.raises(ValueError, match="key_size must be positive, got 0"):
        GatedAttentionUnit(6, key_size=0)
    with pytest.raises(ValueError, match=r"whole number, got 1.25 \* 6 = 7.5"):
        GatedAttentionUnit(6, 1.25)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        GatedAttentionUnit(6, dropout=1.0)
    with pytest.raises(ValueError, match="length must be positive or None, got 0"):
        GatedAttentionUnit(6, length=0)
    with pytest.raises(ValueError, match="length must be positive, got 0"):
        gau_weights(draw(1, 2, 2), draw(1, 2, 2), length=0)
    with pytest.raises(ValueError, match="a cache needs a causal layer"):
        unit()(draw(1, 2, 6), cache=KeyValueCache())
