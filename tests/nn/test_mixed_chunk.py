import math
import pickle
from itertools import pairwise

import pytest
import torch

from kexue.nn.chunk_loop import ChunkLoop
from kexue.nn.flash_cache import FlashCache
from kexue.nn.flash_layer import FlashLayer
from kexue.nn.gau_attention import gau_attention
from kexue.nn.mixed_chunk import check_chunks, mixed_chunk_attention, mixed_chunks
from naive.gau import naive_base, silu
from naive.mixed_chunk import naive_flash, naive_mixed

MAPS = ("relu2_ns", "relu2_n2")
NORMALIZERS = ("count", "chunk", "length")
SIZES = ((8, 4), (7, 3), (5, 1), (6, 6), (3, 10), (1, 2))  # tokens, chunk


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def five(batch, tokens, size=4, width=6):
    """Four maps and values, with gradients."""
    shapes = [(batch, tokens, size)] * 4 + [(batch, tokens, width)]
    return [draw(*shape, seed=n).requires_grad_() for n, shape in enumerate(shapes)]


def layer(**options):
    torch.manual_seed(1)
    made = FlashLayer(**{"d_model": 6, "key_size": 4, "chunk_size": 3} | options).double()
    for parameter in made.parameters():  # no bias or beta at 0
        torch.nn.init.normal_(parameter, std=0.7)
    return made


def close(a, b, atol=1e-11):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def all_at_once(parts, kept, chunk, causal, attention, normalizer, gated=False):
    """The form of accelerators, on a CPU: what a compiler sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        *maps, x = parts
        return mixed_chunks(maps, x, kept, chunk, causal, attention, normalizer, gated)


def test_mixed_chunks_give_the_worked_numbers():
    t = torch.arange(1.0, 5.0, dtype=torch.float64)
    q = torch.stack((t / 4, 1 - t / 4), dim=-1)[None]
    k = torch.stack((torch.ones_like(t), t / 2), dim=-1)[None]
    q_lin = torch.stack((t / 2, -t / 4), dim=-1)[None]
    k_lin = torch.stack((t / 4, torch.full_like(t, 0.5)), dim=-1)[None]
    v = t[None, :, None]
    zero = torch.zeros_like(q)
    expected = {
        False: ((0.59765625, 0.640625, 2.51171875, 1.75), (0.625, 1.25, 1.875, 2.5)),
        True: ((0.09765625, 0.640625, 0.94921875, 1.75), (0, 0, 0.375, 0.5)),
    }
    for causal, (quadratic, linear) in expected.items():
        for parts, numbers in (
            ((q, k, zero, zero), quadratic),
            ((zero, zero, q_lin, k_lin), linear),
            ((q, k, q_lin, k_lin), [a + b for a, b in zip(quadratic, linear, strict=True)]),
        ):
            got = mixed_chunk_attention(*parts, v, 2, causal)[0, :, 0]
            close(got, torch.tensor(numbers, dtype=torch.float64), 1e-10)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", MAPS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize(("tokens", "chunk"), SIZES)
def test_both_forms_and_their_gradients_are_the_naive_twin(
    tokens, chunk, normalizer, attention, causal
):
    parts = five(2, tokens)
    slow = sum(naive_mixed(*parts, chunk, causal, None, attention, normalizer))
    weight = draw(*slow.shape, seed=9)
    theirs = torch.autograd.grad((slow * weight).sum(), parts, materialize_grads=True)
    options = {"attention": attention, "global_normalizer": normalizer}
    for fast in (
        mixed_chunk_attention(*parts, chunk, causal, **options),
        all_at_once(parts, None, chunk, causal, attention, normalizer),
    ):
        close(fast, slow)
        ours = torch.autograd.grad((fast * weight).sum(), parts, materialize_grads=True)
        for a, b in zip(ours, theirs, strict=True):
            close(a, b)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_the_backward_of_the_loop_passes_gradcheck(causal, gated):
    maps, x = [draw(2, 7, 2, seed=n).requires_grad_() for n in range(4)], draw(2, 7, 4, seed=4)
    keep = torch.tensor([[1.0] * 7, [1.0] * 5 + [0.0] * 2], dtype=torch.float64).unsqueeze(-1)
    inverse = draw(2, 3, seed=5).abs()

    def loop(q, k, q_lin, k_lin, x):
        return ChunkLoop.apply(q, k, q_lin, k_lin, x, keep, inverse, 3, 0.4, causal, gated)[0]

    assert torch.autograd.gradcheck(loop, (*maps, x.requires_grad_()))


def test_triangles_larger_than_a_tile_are_multiplied_whole():
    parts = five(2, 400, 8, 5)
    for causal in (True, False):
        loop = mixed_chunk_attention(*parts, 150, causal)
        dense = all_at_once(parts, None, 150, causal, "relu2_ns", "count")
        close(loop, dense)
        weight = draw(*loop.shape, seed=9)
        ours = torch.autograd.grad((loop * weight).sum(), parts)
        theirs = torch.autograd.grad((dense * weight).sum(), parts)
        for a, b in zip(ours, theirs, strict=True):
            close(a, b, 1e-10)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", MAPS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_the_layer_and_its_gradients_are_those_of_the_naive_twin(attention, normalizer, causal):
    flash = layer(attention=attention, global_normalizer=normalizer, causal=causal)
    x = draw(2, 8, 6).requires_grad_()
    mask = torch.tensor([[1] * 8, [0, 1, 1, 0, 1, 1, 1, 0]]).bool()
    for given in (None, mask):
        fast, slow = flash(x, given), naive_flash(flash, x, given)
        keep = torch.ones(2, 8, dtype=torch.bool) if given is None else given
        close(fast[keep], slow[keep])
        weight = draw(2, 8, 6, seed=3) * keep.unsqueeze(-1)
        inputs = [x, *flash.parameters()]
        ours = torch.autograd.grad((fast * weight).sum(), inputs)
        theirs = torch.autograd.grad((slow * weight).sum(), inputs)
        for a, b in zip(ours, theirs, strict=True):
            close(a, b, 1e-10)


def test_one_chunk_without_linear_keys_is_the_quadratic_unit_with_n_replaced_by_c():
    q, k, q_lin, k_lin, v = five(2, 6)
    for chunk in (6, 10):
        mixed = mixed_chunk_attention(q, k, q_lin, torch.zeros_like(k_lin), v, chunk)
        close(mixed, gau_attention(q, k, v, "relu2_ns", length=chunk))


def test_the_global_part_is_linear_attention_over_all_or_over_earlier_chunks():
    q, k, q_lin, k_lin, v = five(2, 7)
    zero = torch.zeros_like(q)
    close(mixed_chunk_attention(zero, k, q_lin, k_lin, v, 3), q_lin @ (k_lin.mT @ v) / 7)
    chunk_of = torch.arange(7) // 3
    earlier = (chunk_of[:, None] > chunk_of).double()  # block-strict lower triangle
    count = (chunk_of * 3).clamp(min=1)[:, None]
    dense = ((q_lin @ k_lin.mT) * earlier / count) @ v
    close(mixed_chunk_attention(zero, k, q_lin, k_lin, v, 3, causal=True), dense)


def test_dividing_by_the_chunk_lets_the_global_part_grow_with_the_chunk_number():
    ones = torch.ones(1, 12, 1, dtype=torch.float64)
    zero = torch.zeros_like(ones)
    by = {
        name: mixed_chunk_attention(zero, zero, ones, ones, ones, 3, True, global_normalizer=name)
        for name in NORMALIZERS
    }
    assert by["count"].flatten().tolist() == [0.0] * 3 + [1.0] * 9
    close(by["chunk"].flatten()[::3], torch.tensor([0.0, 1, 2, 3], dtype=torch.float64))
    close(by["length"].flatten()[::3], torch.tensor([0.0, 3, 6, 9], dtype=torch.float64) / 12)


def test_no_output_depends_on_later_tokens_within_chunks_and_across_their_borders():
    flash, x = layer(causal=True), draw(1, 10, 6)
    before = flash(x)
    for t in range(10):
        changed = x.clone()
        changed[:, t] += 1
        after = flash(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


def test_a_token_is_seen_by_later_chunks_through_the_linear_part():
    flash, x = layer(causal=True), draw(1, 10, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(flash(x)[0, 9].sum(), x)
    assert gradient[0].abs().sum(dim=-1).gt(0).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("filler", [0.0, math.nan, math.inf])
def test_padding_on_either_side_changes_nothing(normalizer, causal, filler):
    flash, x = layer(global_normalizer=normalizer, causal=causal), draw(2, 7, 6)
    plain = flash(x)
    for left, right in ((0, 4), (4, 0), (1, 2), (3, 0)):
        padded = torch.full((2, left + 7 + right, 6), filler, dtype=torch.float64)
        padded[:, left : left + 7] = x
        padded.requires_grad_()
        mask = torch.zeros(2, left + 7 + right, dtype=torch.bool)
        mask[:, left : left + 7] = True
        out = flash(padded, mask)
        close(out[:, left : left + 7], plain)
        assert out[~mask].count_nonzero() == 0
        flash.zero_grad()
        out.sum().backward()
        assert padded.grad.isfinite().all()
        assert padded.grad[~mask].count_nonzero() == 0
        assert all(p.grad.isfinite().all() for p in flash.parameters())


@pytest.mark.parametrize("causal", [False, True])
def test_masked_tokens_of_the_function_may_hold_anything(causal):
    parts = five(2, 8)
    mask = torch.tensor([[1] * 8, [0, 1, 1, 0, 1, 1, 1, 0]]).bool()
    expected = sum(naive_mixed(*parts, 3, causal, mask))
    spoilt = [
        one.detach().masked_fill(~mask.unsqueeze(-1), math.nan).requires_grad_() for one in parts
    ]
    mixed = mixed_chunk_attention(*spoilt, 3, causal, mask)
    close(mixed, expected)
    mixed.square().sum().backward()
    theirs = torch.autograd.grad(expected.square().sum(), parts)
    for ours, other in zip(spoilt, theirs, strict=True):
        close(ours.grad, other)


@pytest.mark.parametrize("causal", [False, True])
def test_a_sequence_without_visible_tokens_is_zeros(causal):
    flash, mask = layer(causal=causal), torch.tensor([[False] * 5, [True] * 5])
    x = draw(2, 5, 6).requires_grad_()
    out = flash(x, mask)
    assert out[0].count_nonzero() == 0
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_outputs_depend_on_where_the_chunk_grid_starts():
    flash, x = layer(causal=True), draw(1, 9, 6)
    late = flash(x[:, 1:], position_ids=torch.arange(1, 9)[None])
    assert not torch.allclose(late[:, -1], flash(x)[:, -1])


CUTS = ([0, 4, 11], [0, 3, 6, 11], [0, 1, 2, 3, 11], list(range(12)), [0, 10, 11], [0, 11])


@pytest.mark.parametrize("normalizer", ["count", "chunk"])
@pytest.mark.parametrize("masked", [False, True])
def test_decoding_gives_the_full_pass_at_any_cut(normalizer, masked):
    flash, x = layer(causal=True, global_normalizer=normalizer), draw(3, 11, 6)
    mask = torch.ones(3, 11, dtype=torch.bool)
    mask[1, :4] = mask[2, 2] = mask[2, 9] = False
    given = mask if masked else None
    full = flash(x, given).detach()
    for cuts in CUTS:
        cache, parts = flash.new_cache(), []
        for a, b in pairwise(cuts):
            parts.append(flash(x[:, a:b], None if given is None else given[:, a:b], cache=cache))
        close(torch.cat(parts, dim=1).detach(), full)
        assert cache.length == 11


def test_left_padded_prompts_go_on_without_a_mask():
    flash, x = layer(causal=True), draw(2, 9, 6)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, :2] = False
    cache = flash.new_cache()
    parts = [flash(x[:, :5], mask[:, :5], cache=cache)]
    parts += [flash(x[:, t : t + 1], cache=cache) for t in range(5, 9)]
    close(torch.cat(parts, dim=1), flash(x, mask))


def test_a_reordered_cache_goes_on_with_other_sequences():
    flash, x = layer(causal=True), draw(3, 8, 6)
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[2, :3] = False
    cache, rows = flash.new_cache(), torch.tensor([2, 0, 0])
    cache.reorder(rows)  # an empty cache has nothing to reorder
    flash(x[:, :5], mask[:, :5], cache=cache)
    cache.reorder(rows)
    close(flash(x[rows, 5:], cache=cache), flash(x[rows], mask[rows])[:, 5:])
    with pytest.raises(ValueError, match="the cache holds 3 sequences, got 2"):
        flash(x[:2], cache=cache)


def test_the_cache_does_not_grow():
    flash = layer(causal=True)
    cache = flash.new_cache()
    sizes = set()
    for _ in range(5):
        flash(draw(2, 10, 6), cache=cache)
        sizes.add(sum(t.numel() for t in (cache.state, *cache.open)))
    assert sizes == {2 * (4 * 12 + 3 * (2 * 4 + 12))}
    assert cache.length == 50


def test_with_rope_only_distances_count():
    flash, x = layer(), draw(2, 7, 6)
    close(flash(x, position_ids=torch.arange(1000, 1007)[None]), flash(x), 1e-9)


def test_relu2_n2_differs_from_relu2_ns_by_a_factor_of_s_over_c():
    parts = five(1, 8)
    parts[3] = torch.zeros_like(parts[3])
    ns, n2 = (mixed_chunk_attention(*parts, 2, attention=name) for name in MAPS)
    close(n2, ns * 4 / 2)


@pytest.mark.parametrize("causal", [False, True])
def test_float16_squares_scores_that_it_cannot_hold(causal):
    q = torch.full((1, 8, 128), 6.0, dtype=torch.float16)  # q·k/sqrt(s) = 407, its square 165,953
    v = torch.full((1, 8, 4), 0.01, dtype=torch.float16)
    mixed = mixed_chunk_attention(q, q, q / 10, q / 10, v, 4, causal)
    exact = mixed_chunk_attention(*(one.double() for one in (q, q, q / 10, q / 10, v)), 4, causal)
    assert mixed.dtype == torch.float16
    torch.testing.assert_close(mixed.double(), exact, rtol=5e-3, atol=0)
    v.requires_grad_()
    (0.01 * mixed_chunk_attention(q, q, q / 10, q / 10, v, 4, causal)).sum().backward()
    assert v.grad.isfinite().all()


def test_sums_over_many_chunks_do_not_round_in_bfloat16():
    ones = torch.ones(1, 4096, 1, dtype=torch.bfloat16)  # bfloat16 itself counts to 256
    zero = torch.zeros_like(ones)
    for causal in (False, True):
        for normalizer in ("count", "length"):
            mixed = mixed_chunk_attention(
                zero, zero, ones, ones, ones, 8, causal, global_normalizer=normalizer
            )
            exact = mixed_chunk_attention(
                *(one.double() for one in (zero, zero, ones, ones, ones)),
                8,
                causal,
                global_normalizer=normalizer,
            )
            torch.testing.assert_close(mixed.double(), exact, rtol=4e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
def test_under_autocast_outputs_and_gradients_are_those_of_float32_to_its_precision(dtype, causal):
    flash, x = layer(causal=causal).float(), draw(2, 10, 6).float().requires_grad_()
    exact = flash(x)
    with torch.autocast("cpu", dtype=dtype):
        low = flash(x)
        (gradient,) = torch.autograd.grad(low.float().sum(), x)  # inside autocast, as some loops do
    assert low.dtype == dtype
    assert (low.float() - exact).abs().max() < 0.05 * exact.abs().max()
    (expected,) = torch.autograd.grad(exact.sum(), x)
    assert (gradient - expected).abs().max() < 0.05 * expected.abs().max()


def test_dropout_works_in_training_alone():
    flash, x = layer(dropout=0.5), draw(1, 8, 6)
    assert not torch.equal(flash(x), flash(x))
    flash.eval()
    assert torch.equal(flash(x), flash(x))


def test_a_second_derivative_is_refused_rather_than_wrong():
    parts = five(1, 6)
    gradient = torch.autograd.grad(
        mixed_chunk_attention(*parts, 3).square().sum(), parts[0], create_graph=True
    )[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_layer_survives_pickling_and_its_state_dict():
    flash, x = layer(), draw(1, 7, 6)
    copy = pickle.loads(pickle.dumps(flash))
    other = layer()
    other.reset_parameters()
    assert not torch.equal(other(x), flash(x))
    other.load_state_dict(flash.state_dict())
    assert torch.equal(copy(x), flash(x))
    assert torch.equal(other(x), flash(x))


def test_the_maps_of_a_layer_are_four_affine_images_of_one_base():
    flash, x = layer(rope=False), draw(1, 5, 6)
    z = silu(flash.base.projection(x))
    for r, one in enumerate(naive_base(flash, x)):
        close(one, flash.base.gamma[r] * z + flash.base.beta[r])


def test_wrong_sizes_names_and_caches_are_refused():
    with pytest.raises(ValueError, match=r"key_size must be even with rope .* got 5"):
        FlashLayer(6, key_size=5)
    with pytest.raises(ValueError, match="chunk must be at least 1 token, got 0"):
        FlashLayer(6, chunk_size=0)
    with pytest.raises(ValueError, match="attention must be one of relu2_ns, relu2_n2, got 'soft"):
        check_chunks(4, "softmax", "count")
    with pytest.raises(ValueError, match="must be one of count, chunk, length, got 'n'"):
        check_chunks(4, "relu2_ns", "n")
    with pytest.raises(ValueError, match="a cache needs a causal layer"):
        layer()(draw(1, 2, 6), cache=FlashCache())
    with pytest.raises(ValueError, match="a cache cannot divide by a length not yet known"):
        layer(causal=True, global_normalizer="length")(draw(1, 2, 6), cache=FlashCache())


@torch.no_grad()
def test_a_cache_filled_under_autocast_goes_on_without_it_and_the_other_way_round():
    for first in (True, False):
        flash, x = layer(causal=True).float(), draw(2, 11, 6).float()
        cache, found = flash.new_cache(), []
        for part, low in ((x[:, :5], first), (x[:, 5:], not first)):
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                found.append(flash(part, cache=cache).float())
        exact = flash(x)
        assert (torch.cat(found, dim=1) - exact).abs().max() < 0.05 * exact.abs().max()
