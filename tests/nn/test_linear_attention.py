"""Linear attention and its stable form for exponential features: S30."""

from itertools import pairwise

import pytest
import torch

from kexue.nn.favor_attention import FavorState, favor_attention
from kexue.nn.linear_attention import LinearState, linear_attention
from kexue.nn.random_features import favor_features, orthogonal_gaussian
from naive import linear_attention as naive

B, H, L, D, V, M = 2, 3, 37, 5, 4, 11
DOUBLE = torch.float64
NAN = float("nan")


def normal(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def problem(scale=1.0, dtype=DOUBLE, length=L):
    q, k = (scale * normal(B, H, length, D, seed=seed, dtype=dtype) for seed in (1, 2))
    omega = normal(M, D, seed=4, dtype=dtype)
    return q, k, normal(B, H, length, V, seed=3, dtype=dtype), omega


def masks():
    """None; holes; left padding with a row that sees nothing at all."""
    holes = torch.rand(B, L, generator=torch.Generator().manual_seed(5)) > 0.4
    padded = torch.ones(B, L, dtype=torch.bool)
    padded[0, :9] = False
    padded[1] = False
    return [None, holes, padded]


def forms(q, k, v, omega):
    """Both functions and their twins on the same problem, as functions of (q, k, v)."""

    def phi(x):
        return favor_features(x, omega, stabilizer=None)

    def plain(q, k, v, **options):
        return linear_attention(phi(q), phi(k), v, **options)

    def stable(q, k, v, **options):
        return favor_attention(q, k, v, omega, **options)

    def plain_twin(q, k, v, **options):
        return naive.linear_attention(phi(q), phi(k), v, **options)

    def stable_twin(q, k, v, **options):
        return naive.favor_attention(q, k, v, omega, **options)

    return {"linear": (plain, plain_twin), "favor": (stable, stable_twin)}


@pytest.fixture(params=["linear", "favor"])
def form(request):
    return lambda omega: forms(None, None, None, omega)[request.param]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_mask", masks(), ids=["all", "holes", "padded"])
@pytest.mark.parametrize("chunk", [1, 4, 16, 64])
def test_it_is_the_dense_kernel_divided_by_its_row_sums_in_values_and_gradients(
    form, causal, key_mask, chunk
):
    q, k, v, omega = problem()
    fast, twin = form(omega)
    inputs = [one.requires_grad_() for one in (q, k, v)]
    ours, _ = fast(*inputs, causal=causal, key_mask=key_mask, chunk=chunk)
    theirs = twin(*inputs, causal=causal, key_mask=key_mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weight = normal(*ours.shape, seed=6)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, weight),
        torch.autograd.grad(theirs, inputs, weight),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
def test_the_stable_form_passes_gradcheck(causal):
    q, k, v, omega = problem(length=5)
    mask = torch.ones(B, 5, dtype=torch.bool)
    mask[0, 2] = mask[1, 0] = False
    inputs = [one[:, :1].contiguous().requires_grad_() for one in (q, k, v)]

    def outputs(q, k, v):
        return favor_attention(q, k, v, omega, causal=causal, key_mask=mask, chunk=2)[0]

    assert torch.autograd.gradcheck(outputs, inputs)


def test_a_gradient_of_a_gradient_is_refused_not_wrong():
    q, k, v, omega = problem(length=5)
    q.requires_grad_()
    out, _ = favor_attention(q, k, v, omega)
    (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


@pytest.mark.parametrize("cuts", [(0, 37), (0, 1, 2, 37), (0, 16, 20, 36, 37), tuple(range(38))])
@pytest.mark.parametrize("key_mask", masks(), ids=["all", "holes", "padded"])
def test_passing_the_state_on_is_the_full_pass_at_any_cut(form, cuts, key_mask):
    q, k, v, omega = problem()
    fast, _ = form(omega)
    full, last = fast(q, k, v, causal=True, key_mask=key_mask)
    state, parts = None, []
    for start, end in pairwise(cuts):
        part = [one[:, :, start:end] for one in (q, k, v)]
        mask = None if key_mask is None else key_mask[:, start:end]
        out, state = fast(*part, causal=True, key_mask=mask, state=state, chunk=8)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 2), full, rtol=1e-11, atol=1e-12)
    if key_mask is None:  # where nothing was seen, the shift is that of any key
        for mine, other in zip(state, last, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)


def test_without_a_mask_of_time_the_state_adds_keys_of_earlier_calls(form):
    q, k, v, omega = problem()
    fast, twin = form(omega)
    _, state = fast(q, k[:, :, :20], v[:, :, :20])
    out, _ = fast(q, k[:, :, 20:], v[:, :, 20:], state=state)
    torch.testing.assert_close(out, twin(q, k, v), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("at", [0, 9, 20, 36])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_no_earlier_row_moves_by_a_bit_when_a_later_key_grows(form, at, scale):
    q, k, v, omega = problem(dtype=torch.float32)
    fast, _ = form(omega)
    plain, _ = fast(q, k, v, causal=True, chunk=8)
    k, v = k.clone(), v.clone()
    k[:, :, at:] *= scale
    k[:, :, at:] += 1
    v[:, :, at:] = -1e6
    out, _ = fast(q, k, v, causal=True, chunk=8)
    assert torch.equal(out[:, :, :at], plain[:, :, :at])


@pytest.mark.parametrize("name", ["linear", "favor"])
@pytest.mark.parametrize("causal", [False, True])
def test_masked_keys_may_hold_nan_and_inf_and_pull_on_nothing(name, causal):
    q, k, v, omega = problem()
    q, k, mask = q.abs(), k.abs(), masks()[1]
    hidden = ~mask[:, None, :, None].expand(B, H, L, 1)
    dirty = [torch.where(hidden, bad, one) for one, bad in ((k, NAN), (v, torch.inf))]
    dirty = [one.requires_grad_() for one in dirty]
    clean = [one.masked_fill(hidden, 7.0) for one in (k, v)]
    outs = [
        linear_attention(q, *one, causal=causal, key_mask=mask)[0]
        if name == "linear"
        else favor_attention(q, *one, omega, causal=causal, key_mask=mask)[0]
        for one in (dirty, clean)
    ]
    assert torch.equal(*outs)
    for one in torch.autograd.grad(outs[0].square().sum(), dirty):
        assert one.isfinite().all()
        assert (one[hidden.expand_as(one)] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_outputs_are_convex_combinations_of_the_visible_values(form, causal):
    q, k, v, omega = problem()
    fast, _ = form(omega)
    ones = torch.ones_like(v)
    torch.testing.assert_close(fast(q, k, ones, causal=causal)[0], ones, rtol=1e-13, atol=0)
    out, _ = fast(q, k, v, causal=causal)
    low, high = v.amin(2, keepdim=True), v.amax(2, keepdim=True)
    assert ((out >= low) & (out <= high)).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 4.0])
def test_float32_keeps_six_digits_at_the_norms_where_features_estimate(causal, scale):
    q, k, v, omega = problem(scale)
    exact = naive.favor_attention(q, k, v, omega, causal)
    single = [one.float() for one in (q, k, v, omega)]
    out, _ = favor_attention(*single, causal=causal, chunk=16)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-6 * max(1.0, scale))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [10.0, 100.0, 1e4])
def test_at_huge_norms_rows_stay_convex_and_gradients_finite(causal, scale):
    q, k, v, omega = (one.float() for one in problem(scale))
    inputs = [one.requires_grad_() for one in (q, k, v)]
    out, state = favor_attention(*inputs, omega, causal=causal, chunk=16)
    low, high = v.amin(2, keepdim=True) - 1e-5, v.amax(2, keepdim=True) + 1e-5
    assert ((out >= low) & (out <= high)).all()
    ones, _ = favor_attention(q, k, torch.ones_like(v), omega, causal=causal, chunk=16)
    torch.testing.assert_close(ones, torch.ones_like(v), rtol=1e-5, atol=0)
    for grad in torch.autograd.grad(out.square().sum(), inputs):
        assert grad.isfinite().all()
    assert all(one.isfinite().all() for one in state)


@pytest.mark.parametrize("scale", [10.0, 100.0])
def test_without_causality_the_shifts_are_exact_at_any_norm(scale):
    q, k, v, omega = problem(scale)
    exact = naive.favor_attention(q, k, v, omega)
    single = [one.float() for one in (q, k, v, omega)]
    torch.testing.assert_close(
        favor_attention(*single)[0].double(), exact, rtol=0, atol=1e-5 * scale
    )
    torch.testing.assert_close(favor_attention(q, k, v, omega)[0], exact, rtol=0, atol=1e-9)


def test_decoding_goes_on_where_the_maximum_of_the_keys_rises_by_hundreds():
    q, k, v, omega = (one.float() for one in problem(length=12))
    k = k * torch.linspace(8, 0, 12)[:, None]  # −|k|²/2 rises from −160 to 0
    exact = naive.favor_attention(*(one.double() for one in (q, k, v, omega)), causal=True)
    state, parts, shifts = None, [], []
    for t in range(12):
        token = slice(t, t + 1)
        out, state = favor_attention(
            q[:, :, token], k[:, :, token], v[:, :, token], omega, causal=True, state=state
        )
        parts.append(out)
        shifts.append(state.shift.amax().item())
    torch.testing.assert_close(torch.cat(parts, 2).double(), exact, rtol=0, atol=1e-5)
    assert shifts == sorted(shifts)
    assert (state.sums[..., -1] >= 1 - 1e-6).all()  # the denominator of every later query is >= 1


def test_the_state_after_100000_tokens_is_no_larger_and_as_exact():
    length = 100_000
    q, k = (0.3 * normal(1, 1, length, 4, seed=s, dtype=torch.float32) for s in (1, 2))
    v, omega = normal(1, 1, length, 2, seed=3, dtype=torch.float32), normal(8, 4).float()
    begin, end = slice(0, length - 1), slice(length - 1, length)
    _, state = favor_attention(q[:, :, begin], k[:, :, begin], v[:, :, begin], omega, causal=True)
    assert state.shift.shape == (1, 1, 8)
    assert state.sums.shape == (1, 1, 8, 3)
    last = naive.favor_attention(*(one.double() for one in (q[:, :, end], k, v, omega)))
    token = (one[:, :, end] for one in (q, k, v))
    out, _ = favor_attention(*token, omega, causal=True, state=state)
    torch.testing.assert_close(out.double(), last, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_returned_in_half(form, dtype):
    q, k, v, omega = (one.to(dtype) for one in problem())
    fast, _ = form(omega)
    wide, _ = forms(None, None, None, omega.float())["favor"][0](q.float(), k.float(), v.float())
    out, state = fast(q, k, v)
    assert out.dtype == dtype
    assert all(one.dtype == torch.float32 for one in state)
    torch.testing.assert_close(out.float(), wide, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("causal", [False, True])
def test_autocast_does_not_touch_the_sums(form, causal):
    q, k, v, omega = (one.float() for one in problem())
    fast, _ = form(omega)
    inputs = [one.requires_grad_() for one in (q, k, v)]
    plain, _ = fast(*inputs, causal=causal)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = fast(*inputs, causal=causal)
    grads = torch.autograd.grad(out.sum(), inputs)
    torch.testing.assert_close(out, plain, rtol=0, atol=0)
    for mine, other in zip(grads, torch.autograd.grad(plain.sum(), inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_features_that_are_all_zero_give_zeros():
    phi, v = torch.zeros(1, 1, 3, 2), torch.ones(1, 1, 3, 1, requires_grad=True)
    for causal in (False, True):
        out, _ = linear_attention(phi, phi, v, causal=causal)
        assert torch.equal(out, torch.zeros_like(out))
        assert torch.equal(torch.autograd.grad(out.sum(), v)[0], torch.zeros_like(v))


def test_bad_input_is_refused_with_a_way_out():
    q, k, v, omega = problem()
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        favor_attention(q, k, v, omega, chunk=0)
    with pytest.raises(ValueError, match="chunk must be at least 1, got -1"):
        linear_attention(q.abs(), k.abs(), v, chunk=-1)
    with pytest.raises(ValueError, match="as many queries as keys, got 3 and 37: give earlier"):
        favor_attention(q[:, :, :3], k, v, omega, causal=True)
    with pytest.raises(ValueError, match="as many queries as keys, got 3 and 37: give earlier"):
        linear_attention(q[:, :, :3].abs(), k.abs(), v, causal=True)
    with pytest.raises(ValueError, match=r"pass omega\.detach\(\)"):
        favor_attention(q, k, v, omega.requires_grad_())


def test_a_width_that_does_not_fit_is_named_where_shapes_are_not_checked():
    check = getattr(favor_attention, "__wrapped__", favor_attention)
    q, k, v, _ = problem()
    with pytest.raises((ValueError, TypeError), match=r"omega|shape|type"):
        check(q, k, v, orthogonal_gaussian(4, 3))


def test_states_are_named_tuples_of_constant_size():
    q, k, v, omega = problem()
    _, state = favor_attention(q, k, v, omega)
    assert isinstance(state, FavorState)
    assert [tuple(one.shape) for one in state] == [(B, H, M), (B, H, M, V + 1)]
    _, state = linear_attention(q.abs(), k.abs(), v)
    assert isinstance(state, LinearState)
    assert [tuple(one.shape) for one in state] == [(B, H, D, V), (B, H, D)]
