"""S30: Transformer-VQ attention, its layer and its cache, and the soft form between the rivals."""

import copy
import itertools
import math
import pickle
import re

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn
from torch.nn import functional as F

from kexue.nn import vq_blocks
from kexue.nn.code_search import nearest_code
from kexue.nn.distance_bias import RelativeBias
from kexue.nn.soft_vq import soft_assignment, soft_vq_attention
from kexue.nn.vq_attention import vq_attention
from kexue.nn.vq_cache import VQCache, sums_by_code
from kexue.nn.vq_layer import TransformerVQLayer, commitment_loss
from naive.vq_attention import naive_soft_vq, naive_vq_attention

F64 = torch.float64
GRID = list(itertools.product([1, 5, 13], [1, 2, 3, 20], [True, False]))
KEYS = torch.tensor([[[[0.9, 0.2], [0.1, 0.7], [0.6, 0.5], [0.2, 0.9]]]], dtype=F64)
QUERIES = torch.tensor([[[[1.0, 0], [0, 1], [1, 1], [2, -1]]]], dtype=F64)
VALUES = torch.tensor([[[[1.0], [2], [3], [4]]]], dtype=F64)


def random_inputs(n, *, B=2, H=2, d=3, d_v=2, c=5, seed=0, dtype=F64, grad=True):
    g = torch.Generator().manual_seed(seed)
    C = torch.randn(H, c, d, generator=g, dtype=dtype)
    codes = torch.randint(c, (B, H, n), generator=g)
    k_hat = C[torch.arange(H)[None, :, None], codes]
    q = torch.randn(B, H, n, d, generator=g, dtype=dtype)
    v = torch.randn(B, H, n, d_v, generator=g, dtype=dtype)
    return (*(x.requires_grad_(grad) for x in (q, k_hat)), codes, C, v.requires_grad_(grad))


def masks(n):
    holes = torch.rand(2, n, generator=torch.Generator().manual_seed(n)) < 0.6
    left = torch.ones(2, n, dtype=torch.bool)
    left[0, : n // 2 + 1] = False
    return [None, holes, left]


def assert_same(found, wanted, leaves, tolerance=1e-11):
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    if not wanted.requires_grad:
        return
    weights = torch.randn(wanted.shape, dtype=wanted.dtype)
    pairs = [
        torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)
        for out in (found, wanted)
    ]
    for ours, theirs, leaf in zip(*pairs, leaves, strict=True):
        ours, theirs = (torch.zeros_like(leaf) if x is None else x for x in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def biases(n, block, causal, kind, H=2):
    """What we take and what the twin takes."""
    if kind is None:
        return None, None, None, []
    back = {"near": block, "window": 2 * block - 1, "relative": block}[kind]
    width = back + 1 if causal else 2 * back + 1
    if kind == "relative":
        query, key = torch.randn(2, H, n, 2, dtype=F64), torch.randn(H, width, 2, dtype=F64)
        pair = RelativeBias(query.requires_grad_(), key.requires_grad_())
        return pair, None, pair, list(pair)
    bias = torch.randn(H, width, dtype=F64, requires_grad=True)
    return bias, bias, None, [bias]


# -- worked numbers


def test_the_worked_example_has_its_codes_and_outputs():
    C = torch.eye(2, dtype=F64)[None]
    codes = nearest_code(KEYS, C)
    assert codes.flatten().tolist() == [0, 1, 0, 1]
    k_hat = C[0][codes]
    full = [2.268941421369995, 2.731058578630005, 2.5, 2.047425873177567]
    causal = [1, 1.7310585786300048, 2, 2.047425873177567]
    for block in (1, 2, 3, 512):
        out = vq_attention(QUERIES, k_hat, codes, C, VALUES, block, causal=False)
        assert out.flatten().tolist() == pytest.approx(full, abs=1e-10)
        out = vq_attention(QUERIES, k_hat, codes, C, VALUES, block)
        assert out.flatten().tolist() == pytest.approx(causal, abs=1e-10)


def test_the_exact_keys_of_the_worked_example_give_other_outputs():
    exact = [1, 1.6224593312018547, 2, 1.788966894699233]
    codes = torch.arange(4)[None, None]
    out = vq_attention(QUERIES, KEYS, codes, KEYS[0], VALUES, block=1)
    assert out.flatten().tolist() == pytest.approx(exact, abs=1e-10)


def test_softmax_normalised_keys_are_not_the_performer():
    omega = torch.tensor([[1.0, 1], [-1, 1], [1, -1]], dtype=F64)[None]
    q = torch.tensor([[[[0.5, 0], [0, 0.5]]]], dtype=F64)
    k = torch.tensor([[[[1.0, 0], [0.5, 0.5]]]], dtype=F64)
    v = torch.tensor([[[[1.0], [3.0]]]], dtype=F64)
    out = soft_vq_attention(q, k, v, omega, temperature=1.0)
    wanted = [1.9485699209583947, 2.1032205324392854]
    assert out.flatten().tolist() == pytest.approx(wanted, abs=1e-10)
    gauss = (-torch.cdist(k[0, 0], omega[0]).square() / 2).exp()  # the Performer: no division
    kernel = (q[0, 0] @ omega[0].T).exp() @ gauss.T
    performer = (kernel @ v[0, 0] / kernel.sum(1, keepdim=True)).flatten().tolist()
    assert performer == pytest.approx([1.969944078220949, 2.124353001771596], abs=1e-10)


# -- the linear form is the quadratic one


@pytest.mark.parametrize(("n", "block", "causal"), GRID)
@pytest.mark.parametrize("kind", [None, "near", "window", "relative"])
def test_values_and_gradients_are_those_of_the_quadratic_form(n, block, causal, kind):
    torch.manual_seed(n + block)
    for mask, through in itertools.product(masks(n), (False, True)):
        q, k_hat, codes, C, v = random_inputs(n)
        bias, table, rel, learned = biases(n, block, causal, kind)
        found = vq_attention(
            q, k_hat, codes, C, v, block, bias, causal, mask, cache_gradient=through
        )
        wanted = naive_vq_attention(
            q, k_hat, v, block, table, causal, mask, rel=rel, cache_gradient=through
        )
        assert_same(found, wanted, [q, k_hat, v, *learned])


@pytest.mark.parametrize("causal", [True, False])
def test_in_float32_the_linear_form_is_softmax_attention_of_the_quantised_keys(causal):
    q, k_hat, codes, C, v = random_inputs(300, d=16, d_v=16, c=32, dtype=torch.float32, grad=False)
    wanted = F.scaled_dot_product_attention(q, k_hat, v, is_causal=causal, scale=1.0)
    for block in (16, 50, 128, 300):
        out = vq_attention(q, k_hat, codes, C, v, block, causal=causal)
        torch.testing.assert_close(out, wanted, rtol=0, atol=5e-6)


@pytest.mark.parametrize("size", [1, 1 << 14, 1 << 30])
def test_the_number_of_blocks_worked_on_together_changes_nothing(monkeypatch, size):
    q, k_hat, codes, C, v = random_inputs(37)
    bias, table, rel, learned = biases(37, 4, True, "relative")
    monkeypatch.setattr(vq_blocks, "CPU_BYTES", size)
    found = vq_attention(q, k_hat, codes, C, v, 4, bias)
    assert_same(found, naive_vq_attention(q, k_hat, v, 4, table, rel=rel), [q, k_hat, v, *learned])


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_pass_gradcheck(causal):
    q, k_hat, codes, C, v = random_inputs(7, B=1)
    bias, _, _, learned = biases(7, 2, causal, "window")

    def distant_too(q, v, *_):
        return vq_attention(q, k_hat, codes, C, v, 2, bias, causal, cache_gradient=True)

    assert torch.autograd.gradcheck(distant_too, (q, v, *learned))


def test_a_codebook_that_holds_every_key_gives_exact_softmax_attention():
    g = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, 1, 2, 20, 4, generator=g, dtype=F64)
    codes = nearest_code(k, k[0])
    assert (codes == torch.arange(20)).all()
    for causal in (True, False):
        out = vq_attention(q, k, codes, k[0], v, 3, causal=causal)
        wanted = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1.0)
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)


def test_logits_move_by_no_more_than_the_length_of_q_times_the_error_of_k():
    g = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 50, 8, generator=g, dtype=F64)
    C = torch.randn(1, 10, 8, generator=g, dtype=F64)
    k_hat = C[0][nearest_code(k[None, None], C)[0, 0]]
    moved = (q @ (k - k_hat).T).abs()
    assert (moved <= q.norm(dim=1)[:, None] * (k - k_hat).norm(dim=1) + 1e-12).all()
    assert moved.max() > 0.1 * (q.norm(dim=1)[:, None] * (k - k_hat).norm(dim=1)).max()


def test_permuting_the_codes_changes_nothing():
    q, k_hat, codes, C, v = random_inputs(23, grad=False)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(3))
    renamed = order.argsort()[codes]
    for causal in (True, False):
        out = vq_attention(q, k_hat, codes, C, v, 4, causal=causal)
        other = vq_attention(q, k_hat, renamed, C[:, order], v, 4, causal=causal)
        torch.testing.assert_close(other, out, rtol=0, atol=1e-13)


def test_duplicated_and_unused_codes_change_nothing():
    q, k_hat, codes, C, v = random_inputs(23, grad=False)
    wider = torch.cat([C, C, torch.full_like(C, 1e3)], dim=1)
    split = codes + 5 * (torch.arange(23) % 2)  # every second token has the duplicate of its code
    for causal in (True, False):
        out = vq_attention(q, k_hat, codes, C, v, 4, causal=causal)
        other = vq_attention(q, k_hat, split, wider, v, 4, causal=causal)
        torch.testing.assert_close(other, out, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_large_logits_neither_overflow_nor_lose_the_winner(dtype):
    q, k_hat, codes, C, v = random_inputs(40, dtype=dtype, grad=False)
    out = vq_attention(1e4 * q, k_hat, codes, C, v, 4)
    wanted = F.scaled_dot_product_attention(
        1e4 * q.double(), k_hat.double(), v.double(), is_causal=True, scale=1.0
    )
    rounding = (1e4 * q).norm(dim=-1).max() * C.norm(dim=-1).max() * torch.finfo(dtype).eps
    error = (out.double() - wanted).abs().max()
    assert error <= rounding * v.abs().max()


# -- masks, causality, positions


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", [None, "relative"])
def test_hidden_keys_may_hold_anything_and_nothing_moves(causal, kind):
    n = 23
    for mask in masks(n)[1:]:
        q, k_hat, codes, C, v = random_inputs(n)
        bias, _, _, learned = biases(n, 3, causal, kind)
        clean = vq_attention(q, k_hat, codes, C, v, 3, bias, causal, mask)
        dirty = [x.detach().clone() for x in (k_hat, v)]
        for x, bad in zip(dirty, (torch.nan, torch.inf), strict=True):
            x[~mask[:, None].expand(-1, 2, -1)] = bad
        garbage = codes.masked_fill(~mask[:, None], 4)
        k2, v2 = (x.requires_grad_() for x in dirty)
        out = vq_attention(q, k2, garbage, C, v2, 3, bias, causal, mask)
        assert torch.equal(out, clean)
        grads = torch.autograd.grad(out.square().sum(), [q, k2, v2, *learned])
        assert all(g.isfinite().all() for g in grads)


def test_a_row_without_a_visible_key_is_zero_and_so_is_its_gradient():
    q, k_hat, codes, C, v = random_inputs(11)
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[0] = False
    mask[1, :6] = False
    for causal, block in itertools.product((True, False), (3, 20)):
        out = vq_attention(q, k_hat, codes, C, v, block, causal=causal, key_mask=mask)
        assert (out[0] == 0).all()
        assert (out[1, :, :6] == 0).all() == causal
        grads = torch.autograd.grad(out.sum(), [q, k_hat, v])
        assert all((g[0] == 0).all() for g in grads)


def test_a_causal_output_ignores_every_later_token():
    n = 17
    base = random_inputs(n, grad=False)
    before = vq_attention(*base, block=3)
    for t in range(1, n):
        other = random_inputs(n, seed=9, grad=False)
        q, k_hat, codes, v = (
            torch.cat([x[:, :, :t], y[:, :, t:]], 2)
            for x, y in ((base[i], other[i]) for i in (0, 1, 2, 4))
        )
        after = vq_attention(q, k_hat, codes, base[3], v, block=3)
        assert torch.equal(after[:, :, :t], before[:, :, :t])
        assert (after[:, :, t] != before[:, :, t]).any()


@pytest.mark.parametrize("causal", [True, False])
def test_left_padding_shifts_blocks_but_not_outputs_while_the_bias_spans_one_block(causal):
    q, k_hat, codes, C, v = random_inputs(20, grad=False)
    bias = torch.randn(2, 5 if causal else 9, dtype=F64)
    plain = vq_attention(q, k_hat, codes, C, v, 4, bias, causal)
    for pad in (1, 3, 6):
        wide = [F.pad(x, (0, 0, pad, 0)) for x in (q, k_hat, v)]
        mask = F.pad(torch.ones(2, 20, dtype=torch.bool), (pad, 0), value=False)
        moved = vq_attention(
            wide[0], wide[1], F.pad(codes, (pad, 0)), C, wide[2], 4, bias, causal, mask
        )
        torch.testing.assert_close(moved[:, :, pad:], plain, rtol=0, atol=1e-12)


# -- where gradients go


def test_far_keys_and_values_get_no_gradient_and_near_ones_that_of_straight_through():
    q, k_hat, codes, C, v = random_inputs(12)
    out = vq_attention(q, k_hat, codes, C.requires_grad_(), v, block=3)
    leaves = [q, k_hat, v, C]
    last = torch.autograd.grad(out[:, :, 9:].sum(), leaves, allow_unused=True)
    assert last[3] is None
    assert (last[1][:, :, :6] == 0).all()
    assert (last[2][:, :, :6] == 0).all()
    assert (last[1][:, :, 6:] != 0).any()
    assert (last[0][:, :, 9:] != 0).all()
    through = vq_attention(q, k_hat, codes, C, v, block=3, cache_gradient=True)
    far = torch.autograd.grad(through[:, :, 9:].sum(), v, retain_graph=True)[0]
    assert (far[:, :, :6] != 0).all()
    assert_same(
        through, F.scaled_dot_product_attention(q, k_hat, v, is_causal=True, scale=1.0), [q, v]
    )


# -- the cache


@pytest.mark.parametrize("block", [1, 2, 3, 20])
@pytest.mark.parametrize("kind", [None, "window", "relative"])
def test_any_cut_into_calls_gives_the_outputs_of_one_pass(block, kind):
    n = 17
    for mask in masks(n):
        q, k_hat, codes, C, v = random_inputs(n, grad=False)
        bias, *_ = biases(n, block, True, kind)
        whole = vq_attention(q, k_hat, codes, C, v, block, bias, key_mask=mask).detach()
        for cuts in ([1] * n, [n], [5, 1, 1, 10], [2, 9, 6], [1, 16]):
            state, parts, at = VQCache(), [], 0
            for size in cuts:
                now = slice(at, at + size)
                at += size
                part = bias
                if kind == "relative":
                    part = RelativeBias(bias.query[:, :, now], bias.key)
                seen = None if mask is None else mask[:, now]
                step = (q[:, :, now], k_hat[:, :, now], codes[:, :, now], C, v[:, :, now])
                parts.append(vq_attention(*step, block, part, True, seen, state).detach())
            torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=0, atol=1e-12)
            assert state.length == n


def test_the_cache_has_the_same_size_after_any_length_and_can_be_reordered():
    q, k_hat, codes, C, v = random_inputs(40, grad=False)
    state, sizes = VQCache(), set()
    for t in range(40):
        now = slice(t, t + 1)
        step = (q[:, :, now], k_hat[:, :, now], codes[:, :, now], C, v[:, :, now])
        out = vq_attention(*step, block=3, state=state)
        sizes.add(sum(x.numel() for x in vars(state).values() if isinstance(x, torch.Tensor)))
    assert len(sizes) == 1
    assert state.length - state.folded <= 6
    state.reorder(torch.tensor([1, 1]))
    again = vq_attention(*(x if x is C else x.flip(0)[[0, 0]] for x in step), block=3, state=state)
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], out[1])


def test_a_cache_of_another_batch_is_refused():
    q, k_hat, codes, C, v = random_inputs(4, grad=False)
    state = VQCache()
    vq_attention(q, k_hat, codes, C, v, 3, state=state)
    with pytest.raises(ValueError, match=r"cache holds .*= \(2, 2, 6, 3\), the call has \(1, 2"):
        vq_attention(q[:1], k_hat[:1], codes[:1], C, v[:1], 3, state=state)


def test_sums_by_code_are_sums_over_one_hot_vectors_in_a_fixed_order():
    *_, codes, _, v = random_inputs(11)
    for mask in masks(11):
        one_hot = F.one_hot(codes, 5).to(F64)
        if mask is not None:
            one_hot = one_hot * mask[:, None, :, None]
        padded = F.pad(one_hot, (0, 0, 0, 1)).unflatten(2, (3, 4))
        values = F.pad(v, (0, 0, 0, 1)).unflatten(2, (3, 4))
        counts, sums = sums_by_code(codes, v, mask, 5, 4)
        torch.testing.assert_close(counts, padded.sum(3), rtol=0, atol=0)
        torch.testing.assert_close(sums, padded.mT @ values, rtol=0, atol=1e-14)
        assert torch.equal(sums, sums_by_code(codes, v, mask, 5, 4)[1])


# -- soft VQ


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
def test_soft_vq_is_its_sum_over_pairs(causal, temperature):
    g = torch.Generator().manual_seed(4)
    q, k, v = torch.randn(3, 1, 1, 9, 3, generator=g, dtype=F64)
    C = torch.randn(1, 4, 3, generator=g, dtype=F64)
    wanted = naive_soft_vq(q[0, 0], k[0, 0], v[0, 0], C[0], temperature, causal)
    for chunk in (1, 4, 128):
        out = soft_vq_attention(q, k, v, C, temperature, causal, chunk=chunk)[0, 0]
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_soft_vq_at_temperature_zero_is_vq_and_at_infinity_the_mean_of_the_values(causal):
    g = torch.Generator().manual_seed(5)
    q, k, v = torch.randn(3, 2, 2, 30, 3, generator=g, dtype=F64)
    C = torch.randn(2, 6, 3, generator=g, dtype=F64)
    codes = nearest_code(k, C)
    k_hat = C[torch.arange(2)[None, :, None], codes]
    hard = vq_attention(q, k_hat, codes, C, v, 4, causal=causal)
    errors = [
        (soft_vq_attention(q, k, v, C, t, causal) - hard).abs().max().item()
        for t in (1.0, 0.1, 0.01, 1e-4, 1e-6)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12
    mean = v.cumsum(2) / torch.arange(1, 31)[:, None] if causal else v.mean(2, keepdim=True)
    flat = soft_vq_attention(q, k, v, C, 1e12, causal)
    torch.testing.assert_close(flat, mean.expand_as(flat), rtol=0, atol=1e-9)


@pytest.mark.parametrize("causal", [True, False])
def test_soft_vq_is_stable_and_differentiable_at_extreme_logits(causal):
    g = torch.Generator().manual_seed(6)
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 1, 40, 8, generator=g).unbind())
    C = torch.randn(1, 5, 8, generator=g).requires_grad_()
    for scale, temperature in ((100.0, 1e-3), (1.0, 1e-6), (1e3, 1e6)):
        out = soft_vq_attention(scale * q, k, v, C, temperature, causal)
        assert (out <= v.max() + 1e-4).all()
        assert (out >= v.min() - 1e-4).all()
        grads = torch.autograd.grad(out.square().sum(), [q, k, v, C])
        assert all(x.isfinite().all() for x in grads)


@pytest.mark.parametrize("causal", [True, False])
def test_soft_vq_ignores_hidden_keys(causal):
    g = torch.Generator().manual_seed(7)
    q, k, v = torch.randn(3, 2, 1, 12, 3, generator=g, dtype=F64)
    C = torch.randn(1, 4, 3, generator=g, dtype=F64)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, :5] = False
    k[0, :, :5], v[0, :, :5] = torch.nan, torch.inf
    for x in (k, v):
        x.requires_grad_()
    out = soft_vq_attention(q, k, v, C, 0.5, causal, mask, chunk=4)
    short = soft_vq_attention(q[:1, :, 5:], k[:1, :, 5:], v[:1, :, 5:], C, 0.5, causal)
    torch.testing.assert_close(out[:1, :, 5:], short, rtol=0, atol=1e-12)
    assert not causal or (out[0, :, :5] == 0).all()
    for grad in torch.autograd.grad(out.square().sum(), [k, v]):
        assert grad.isfinite().all()
        assert (grad[0, :, :5] == 0).all()


def test_soft_assignments_sum_to_one_and_a_tie_is_shared():
    C = torch.eye(2, dtype=F64)[None]
    k = torch.tensor([[[[0.5, 0.5], [0.9, 0.2]]]], dtype=F64)
    p = soft_assignment(k, C, 1e-3).exp()
    torch.testing.assert_close(p.sum(-1), torch.ones(1, 1, 2, dtype=F64))
    assert p[0, 0, 0].tolist() == pytest.approx([0.5, 0.5])


# -- the layer


def layer_of(block=4, **options):
    torch.manual_seed(0)
    sizes = {"num_codes": 6, "heads": 2, "head_dim": 4, "value_dim": 3, "block": block}
    return TransformerVQLayer(8, **(sizes | options)).double()


def formula(layer, x, mask):
    """(1) to (5) of the layer, written out with dense attention."""
    H, d, n = layer.heads, layer.head_dim, x.shape[1]
    parts = (x @ layer.projection.weight.T).split(layer.sizes, dim=-1)
    q, k, v, g = (p.unflatten(-1, (H, -1)).transpose(1, 2) for p in parts)
    q, k = (t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() / d**0.25 for t in (q, k))
    C = layer.quantizer.codebook
    k_hat = C[torch.arange(H)[None, :, None], nearest_code(k, C)]
    u, w = layer.content_bias / d**0.25, layer.distance_bias / d**0.25
    logits = torch.einsum("bhid,bhjd->bhij", q + u[:, None], k_hat)
    for i, j in itertools.product(range(n), repeat=2):
        t = i - j
        if abs(t) <= layer.block:
            angle = [t * layer.base ** (-2 * m / layer.dim) for m in range(layer.dim // 2)]
            wave = [math.sin(a) for a in angle] + [math.cos(a) for a in angle]
            r = torch.tensor(wave, dtype=F64) @ layer.distance.weight.T / d**0.25
            pull = (q[:, :, i] + w) * r.view(H, d)
            logits[:, :, i, j] = logits[:, :, i, j] + pull.sum(-1)
        if layer.causal and j > i:
            logits[:, :, i, j] = -torch.inf
    logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
    out = logits.softmax(-1).nan_to_num(0.0) @ F.silu(v)
    return (out * F.silu(g)).transpose(1, 2).flatten(2) @ layer.output.weight.T


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [1, 3, 19])
def test_the_layer_is_its_formula(causal, n):
    layer = layer_of(causal=causal).eval()
    nn.init.normal_(layer.content_bias)
    nn.init.normal_(layer.distance_bias)
    x = torch.randn(2, n, 8, dtype=F64)
    mask = torch.ones(2, n, dtype=torch.bool)
    mask[0, : n // 3] = False
    out, wanted = layer(x, mask), formula(layer, x, mask)
    torch.testing.assert_close(out[mask], wanted[mask], rtol=0, atol=1e-11)


@pytest.mark.parametrize("cuts", [[1] * 19, [7, 1, 11], [19]])
def test_the_layer_decodes_what_it_computes_in_one_pass(cuts):
    layer = layer_of(causal=True).eval()
    x, mask = torch.randn(2, 19, 8, dtype=F64), torch.ones(2, 19, dtype=torch.bool)
    mask[0, :5] = False
    x[0, :5] = torch.nan
    cache = layer.new_cache()
    with torch.no_grad():
        pairs = zip(x.split(cuts, 1), mask.split(cuts, 1), strict=True)
        parts = [layer(a, b, cache=cache) for a, b in pairs]
        torch.testing.assert_close(torch.cat(parts, 1), layer(x, mask), rtol=0, atol=1e-12)


def test_beams_keep_their_own_past():
    layer = layer_of(causal=True).eval()
    x, rows = torch.randn(3, 12, 8, dtype=F64), torch.tensor([2, 0, 0])
    with torch.no_grad():
        cache = layer.new_cache()
        layer(x[:, :11], cache=cache)
        cache.reorder(rows)
        step = layer(x[rows, 11:], cache=cache)
        torch.testing.assert_close(step, layer(x[rows])[:, 11:], rtol=0, atol=1e-12)


def test_training_uses_the_codebook_of_its_codes_and_leaves_padding_out_of_it():
    layer = layer_of(causal=True)
    x, mask = torch.randn(2, 19, 8, dtype=F64), torch.ones(2, 19, dtype=torch.bool)
    mask[0, :5] = False
    layer(x, mask)  # places the codebook on data
    frozen, bad = copy.deepcopy(layer).eval(), x.clone()
    bad[0, :5] = torch.nan
    torch.testing.assert_close(layer(bad, mask), frozen(x, mask), rtol=0, atol=1e-12)
    assert not torch.equal(layer.quantizer.codebook, frozen.quantizer.codebook)
    assert layer.quantizer.codebook.isfinite().all()


def test_a_training_step_lowers_the_loss_and_every_parameter_gets_a_gradient():
    layer = layer_of(causal=True)
    x, y = torch.randn(2, 2, 30, 8, dtype=F64).unbind()
    losses = []
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for _ in range(30):
        loss = (layer(x) - y).square().mean() + 1e-4 * commitment_loss(layer)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_a_layer_can_be_copied_and_pickled_right_after_a_forward_pass():
    layer = layer_of(causal=True)
    x = torch.randn(1, 9, 8, dtype=F64)
    layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.commit_loss is None
        assert torch.equal(twin.eval()(x), copy.deepcopy(layer).eval()(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_output_has_the_dtype_of_x_and_of_the_products_under_autocast(dtype):
    layer = layer_of(causal=True).to(dtype).eval()
    assert layer(torch.randn(1, 9, 8, dtype=dtype)).dtype == dtype
    assert layer.quantizer.codebook.dtype in (torch.float32, F64)
    plain = layer_of(causal=True).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = plain(torch.randn(1, 9, 8))
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in plain.parameters())


def test_ten_times_the_length_fits_into_ten_times_the_saved_tensors():
    sizes = []
    for n in (64, 640):
        saved = []
        q, k_hat, codes, C, v = random_inputs(n, d=8, d_v=8, c=16)

        def keep(x, saved=saved):
            saved.append(x.untyped_storage().nbytes())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            vq_attention(q, k_hat, codes, C, v, 16)
        sizes.append(sum(saved))
    assert sizes[1] <= 10 * sizes[0]


# -- bad input


def call(**changed):
    q, k_hat, codes, C, v = random_inputs(5, grad=False)
    state = changed.pop("state", None)
    given = {"q": q, "k_hat": k_hat, "codes": codes, "codebook": C, "v": v, "block": 2} | changed
    return vq_attention(**given, state=state)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"block": 0}, "block must be at least 1, got 0"),
        (
            {"codebook": torch.zeros(2, 5, 4, dtype=F64)},
            r"= \(2, c, 3\) to match .* got \(2, 5, 4\)",
        ),
        ({"codebook": torch.zeros(1, 5, 3, dtype=F64)}, r"got \(1, 5, 3\)"),
        (
            {"bias": torch.zeros(2, 5, dtype=F64)},
            "reaches 4 tokens back, beyond .* block=2 at most 3",
        ),
        ({"bias": torch.zeros(1, 2, dtype=F64)}, r"one row per head, 2, got shape \(1, 2\)"),
        ({"bias": torch.zeros(2, 4, dtype=F64), "causal": False}, "odd width.* got 4"),
        (
            {
                "bias": RelativeBias(
                    torch.zeros(2, 2, 5, 1, dtype=F64), torch.zeros(2, 4, 1, dtype=F64)
                )
            },
            "reaches 3 tokens back.*at most 2",
        ),
        ({"causal": False, "state": VQCache()}, "a state needs causal=True"),
        ({"key_mask": torch.ones(2, 4, dtype=torch.bool)}, r"key_mask must have shape .*\(2, 5\)"),
    ],
)
def test_bad_input_is_refused_with_a_way_out(changed, message):
    with pytest.raises((ValueError, TypeCheckError)) as refused:  # the hook may be first
        call(**changed)
    assert isinstance(refused.value, TypeCheckError) or re.search(message, str(refused.value))


def test_bad_layers_and_calls_are_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"dim must be even and positive .* got 7"):
        TransformerVQLayer(7)
    with pytest.raises(ValueError, match="heads must be at least 1, got 0"):
        TransformerVQLayer(8, heads=0)
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        TransformerVQLayer(8, block=0)
    x = torch.randn(1, 3, 8, dtype=F64)
    with pytest.raises(ValueError, match="causal=True"):
        layer_of()(x, cache=VQCache())
    with pytest.raises(ValueError, match=r"call \.eval\(\)"):
        layer_of(causal=True)(x, cache=VQCache())
    with pytest.raises(ValueError, match="2 Transformer-VQ layers, 0 of them called"):
        commitment_loss(nn.Sequential(layer_of(), layer_of()))
    k, C = torch.zeros(1, 1, 2, 3), torch.zeros(1, 4, 3)
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0\.0"):
        soft_vq_attention(k, k, k, C, 0.0)
    with pytest.raises((ValueError, TypeCheckError), match="codebook"):
        soft_vq_attention(k, k, k, C[..., :2], 1.0)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        soft_vq_attention(k, k, k, C, 1.0, chunk=0)
