"""FAVOR+ features and the Performer layer: S30."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kexue.nn.favor_attention import favor_attention
from kexue.nn.linear_attention import linear_attention
from kexue.nn.performer import PerformerAttention
from kexue.nn.random_features import favor_features, orthogonal_gaussian
from naive import linear_attention as naive

DOUBLE = torch.float64
OMEGA = torch.tensor([[1, 1], [-1, 1], [1, -1]], dtype=DOUBLE)
Q = torch.tensor([[0.5, 0], [0, 0.5]], dtype=DOUBLE)
K = torch.tensor([[1, 0], [0.5, 0.5]], dtype=DOUBLE)
VALUES = torch.tensor([[1.0], [3.0]], dtype=DOUBLE)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, dtype=dtype, generator=generator(seed))


def same(ours, theirs, tolerance=1e-12):
    theirs = torch.as_tensor(theirs, dtype=ours.dtype).reshape(ours.shape)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


# Worked numbers


def test_the_features_of_the_worked_example():
    phi = favor_features(Q, OMEGA, stabilizer=None)
    same(phi[0], [0.840039684898413, 0.30903332984226267, 0.840039684898413])


def test_the_estimated_and_the_exact_kernel_of_the_worked_example():
    phi_q, phi_k = (favor_features(x, OMEGA, stabilizer=None) for x in (Q, K))
    same(
        phi_q @ phi_k.mT,
        [[1.6390611854003054, 1.5434091072211222], [1.202008221303348, 1.5434091072211222]],
    )
    same((Q @ K.mT).exp(), [[1.6487212707001282, 1.2840254166877414], [1, 1.2840254166877414]])


WORKED = [1.969944078220949, 2.124353001771596]


def test_the_outputs_of_the_worked_example_by_every_way():
    q, k, v = (one[None, None] for one in (Q, K, VALUES))
    same(favor_attention(q, k, v, OMEGA)[0], WORKED)
    for stabilizer in (None, "per_head", "per_token"):
        phi_q = favor_features(q, OMEGA, stabilizer=stabilizer)
        phi_k = favor_features(k, OMEGA, stabilizer=stabilizer and "per_head")
        same(linear_attention(phi_q, phi_k, v)[0], WORKED)
    same((Q @ K.mT).softmax(-1) @ VALUES, [1.8756469982284036, 2.124353001771596])


def gaussian_form(q, k, v, omega, normalise=False):
    """Queries exp(<w, q>), keys exp(−|k − w|²/2): a soft assignment of keys to directions."""
    distances = (k.unsqueeze(-2) - omega).square().sum(-1) / 2
    keys = (-distances).softmax(-1) if normalise else (-distances).exp()
    kernel = (q @ omega.mT).exp() @ keys.mT
    return kernel / kernel.sum(-1, keepdim=True) @ v


def test_the_worked_example_in_gaussian_form_and_what_normalising_the_keys_changes():
    same(gaussian_form(Q, K, VALUES, OMEGA), WORKED)
    soft = gaussian_form(Q, K, VALUES, OMEGA, normalise=True)
    same(soft, [1.9485699209583947, 2.1032205324392854])


def test_with_directions_of_equal_length_performer_is_the_gaussian_form():
    q, k, v = (0.7 * normal(1, 2, 9, 6, seed=seed) for seed in (1, 2, 3))
    equal = orthogonal_gaussian(10, 6, "sqrt_d", generator(), dtype=DOUBLE)
    same(favor_attention(q, k, v, equal)[0], gaussian_form(q, k, v, equal))
    unequal = orthogonal_gaussian(10, 6, "chi", generator(), dtype=DOUBLE)
    difference = favor_attention(q, k, v, unequal)[0] - gaussian_form(q, k, v, unequal)
    assert difference.abs().max() > 1e-3


# The estimate


DRAWS, PAIRS = 6_000, 64


def directions(draws, m, d, orthogonal):
    """Independent sets of m directions in one matrix; m is a multiple of d."""
    if orthogonal:
        return orthogonal_gaussian(draws * m, d, "chi", generator(10), dtype=DOUBLE)
    return normal(draws * m, d, seed=11)


def estimates(q, k, omega, kind, m):
    """Of exp(<q, k>) for one pair, by every set of m directions."""
    phi_q, phi_k = (favor_features(x, omega, kind, None)[0] for x in (q, k))
    draws = len(omega) // m
    return (phi_q * phi_k).view(-1, draws, m).sum((0, 2)) * draws


def relative_errors(norm, m, orthogonal, d=16):
    """Squares of estimate / exact − 1 of exp(<q, k>), pairs of length `norm` in every draw."""
    q, k = (normal(DRAWS, PAIRS, d, seed=seed) for seed in (8, 9))
    q, k = (norm * nn.functional.normalize(x, dim=-1) for x in (q, k))
    omega = directions(DRAWS, m, d, orthogonal).view(DRAWS, m, d)
    a, b = ((x @ omega.mT - norm**2 / 2).exp() for x in (q, k))
    errors = (a * b).mean(-1) / (q * k).sum(-1).exp() - 1  # (draws, pairs)
    expected = ((q + k).square().sum(-1).exp() - 1).mean() / m
    return errors.square().mean(-1), expected


@pytest.mark.parametrize("kind", ["positive", "hyperbolic"])
@pytest.mark.parametrize("orthogonal", [False, True])
def test_the_estimate_is_unbiased(kind, orthogonal):
    d, m, draws = 8, 16, 20_000
    q, k = 0.35 * normal(1, d, seed=1), 0.4 * normal(1, d, seed=2)
    found = estimates(q, k, directions(draws, m, d, orthogonal), kind, m)
    assert abs(found.mean() - (q @ k.mT).exp()) < 4 * found.std() / math.sqrt(draws)


@pytest.mark.parametrize("norm", [0.5, 1.0])
def test_the_variance_of_one_feature_is_the_formula(norm):
    d, draws = 16, 400_000
    q, k = (norm * nn.functional.normalize(normal(d, seed=s), dim=0) for s in (1, 5))
    omega = normal(draws, d, seed=6)
    one = (omega @ (q + k) - norm**2).exp()
    expected = math.exp(2 * q @ k) * (math.exp((q + k).square().sum()) - 1)
    spread = (one - one.mean()).square()
    assert abs(spread.mean() - expected) < 4 * spread.std() / math.sqrt(draws)


@pytest.mark.parametrize(("norm", "published"), [(0.5, (0.038, 0.031)), (1.0, (0.50, 0.38))])
def test_orthogonal_directions_have_less_error_at_moderate_norms(norm, published):
    found = []
    for orthogonal in (False, True):
        squares, expected = relative_errors(norm, 16, orthogonal)
        found.append((squares.mean().item(), squares.std().item() / math.sqrt(DRAWS)))
    (plain, plain_error), (ours, our_error) = found
    assert plain - ours > 3 * math.hypot(plain_error, our_error)
    assert abs(plain - expected) < 4 * plain_error  # the variance formula, without orthogonality
    for (value, _), known in zip(found, published, strict=True):
        assert value == pytest.approx(known, rel=0.15)  # those were of other pairs


def test_hyperbolic_features_have_less_error_than_twice_as_many_positive_ones():
    d, draws = 8, 20_000
    q, k = (0.7 * nn.functional.normalize(normal(1, d, seed=s), dim=-1) for s in (1, 2))
    exact = (q @ k.mT).exp()
    omega = directions(draws, 16, d, orthogonal=False)
    plain = (estimates(q, k, omega, "positive", 16) / exact - 1).square().flatten()
    half = omega.view(draws, 16, d)[:, :8].flatten(0, 1)
    pairs = (estimates(q, k, half, "hyperbolic", 8) / exact - 1).square().flatten()
    difference = plain - pairs
    assert difference.mean() > 3 * difference.std() / math.sqrt(draws)


@pytest.mark.parametrize("kind", ["positive", "hyperbolic", "relu"])
def test_features_are_positive_and_twice_as_many_when_hyperbolic(kind):
    omega, x = orthogonal_gaussian(10, 4, generator=generator(), dtype=DOUBLE), normal(2, 7, 4)
    phi = favor_features(x, omega, kind, eps=1e-3)
    assert (phi > 0).all()
    assert phi.shape == (2, 7, 20 if kind == "hyperbolic" else 10)


def test_the_hyperbolic_features_are_those_of_w_and_minus_w():
    omega, x = normal(5, 4), normal(7, 4, seed=1)
    parts = [favor_features(x, w, stabilizer=None) for w in (omega, -omega)]
    same(favor_features(x, omega, "hyperbolic", None), torch.cat(parts, -1) / math.sqrt(2))


def test_relu_features_are_the_rectified_projections_and_eps():
    omega, x = normal(5, 4), normal(7, 4, seed=1)
    same(favor_features(x, omega, "relu", eps=0.25), (x @ omega.mT).clamp(min=0) + 0.25)


def test_the_shift_of_the_keys_is_taken_over_visible_keys_of_one_head_and_sequence():
    omega, x = normal(5, 4), normal(2, 3, 7, 4, seed=1)
    mask = torch.ones(2, 1, 7, dtype=torch.bool)
    mask[0, 0, 3] = False
    phi = favor_features(x, omega, mask=mask)
    seen = phi.masked_fill(~mask.unsqueeze(-1), 0.0).amax((-2, -1)) * math.sqrt(5)
    same(seen, torch.ones(2, 3))
    other = x.clone()
    other[1] *= 3
    other[0, :, 3] *= 2
    again = favor_features(other, omega, mask=mask)
    assert torch.equal(again[0, :, :3], phi[0, :, :3])  # neither batch nor masked tokens reach in


def test_eps_draws_attention_towards_the_mean_of_all_values():
    q, k, v = (normal(1, 1, 40, 6, seed=seed) for seed in (1, 2, 3))
    omega = orthogonal_gaussian(64, 6, generator=generator(), dtype=DOUBLE)

    def distance(eps):
        phi_q = favor_features(q, omega, stabilizer="per_token", eps=eps)
        out, _ = linear_attention(phi_q, favor_features(k, omega, eps=eps), v)
        return (out - v.mean(2, keepdim=True)).norm().item()

    distances = [distance(eps) for eps in (0.0, 1e-4, 1e-2, 1.0, 100.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.01 * distances[0]


@pytest.mark.parametrize(("m", "d"), [(1, 1), (3, 8), (8, 8), (20, 8)])
@pytest.mark.parametrize("norm", ["chi", "sqrt_d"])
def test_rows_of_one_block_are_orthogonal(m, d, norm):
    omega = orthogonal_gaussian(m, d, norm, generator(), dtype=DOUBLE)
    assert omega.shape == (m, d)
    for block in omega.split(d):
        gram = block @ block.mT
        same(gram, gram.diagonal().diag())
    if norm == "sqrt_d":
        same(omega.norm(dim=-1), [math.sqrt(d)] * m)
    assert torch.equal(omega, orthogonal_gaussian(m, d, norm, generator(), dtype=DOUBLE))
    if m > 1:  # a single row of length 1 is +1 or −1
        assert not torch.equal(omega, orthogonal_gaussian(m, d, norm, generator(1), dtype=DOUBLE))


def test_every_row_is_gaussian_by_itself():
    rows = orthogonal_gaussian(16_000, 4, "chi", generator(), dtype=DOUBLE)
    n = len(rows)
    assert (rows.mean(0).abs() < 4 / math.sqrt(n)).all()
    covariance = rows.mT @ rows / n
    assert ((covariance - torch.eye(4)).abs() < 6 / math.sqrt(n)).all()
    fourth = rows.pow(4).mean()
    assert abs(fourth - 3) < 4 * rows.pow(4).std() / math.sqrt(rows.numel())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: orthogonal_gaussian(0, 4), "at least 1, got 0, 4"),
        (lambda: favor_features(Q, OMEGA, eps=-1.0), "eps must not be negative, got -1.0"),
        (lambda: PerformerAttention(10, 3), "positive multiple of heads, got 10 and 3"),
        (lambda: PerformerAttention(8, 2, num_features=0), "at least 1, got 0, 4"),
        (lambda: PerformerAttention(8, 2, redraw_every=0), "redraw_every must be at least 1"),
        (lambda: PerformerAttention(6, 2, rope=True), "must be even with rope, got 3"),
        (lambda: PerformerAttention(8, 2, chunk=0), "chunk must be at least 1"),
        (lambda: PerformerAttention(8, 2).new_cache(), "build it with causal=True"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The layer

KINDS = ("positive", "hyperbolic", "relu")


def layer(kind="positive", causal=True, dtype=DOUBLE, **options):
    torch.manual_seed(0)
    return PerformerAttention(12, 3, causal=causal, kind=kind, chunk=4, **options).to(dtype).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
def test_the_layer_is_projections_around_the_kernel_attention(kind, causal):
    net, x = layer(kind, causal), normal(2, 9, 12)
    q, k, v = net.qkv(x).view(2, 9, 3, 3, 4).permute(2, 0, 3, 1, 4)
    q, k = q / math.sqrt(2), k / math.sqrt(2)  # d^(−1/4), d = 4
    eps = 1e-3 if kind == "relu" else 0.0
    phi_q, phi_k = (favor_features(one, net.omega, kind, None, eps) for one in (q, k))
    mixed = naive.linear_attention(phi_q, phi_k, v, causal)
    same(net(x), net.out(mixed.transpose(1, 2).reshape(2, 9, 12)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 5, 9])
def test_decoding_with_a_cache_is_the_full_pass(kind, rope, cut):
    net, x = layer(kind, rope=rope), normal(3, 9, 12)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[0, :4] = mask[1, 2] = mask[2, 6:] = False
    cache = net.new_cache()
    parts = [
        net(a, m, cache=cache) for a, m in zip(x.split(cut, 1), mask.split(cut, 1), strict=True)
    ]
    same(torch.cat(parts, 1), net(x, mask))
    assert cache.length == 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_follows_the_beams(kind):
    net, x = layer(kind), normal(3, 8, 12)
    cache, rows = net.new_cache(), torch.tensor([2, 0, 0])
    cache.reorder(rows)  # an empty cache has no rows
    net(x[:, :5], cache=cache)
    cache.reorder(rows)
    out = net(x[rows, 5:], cache=cache)
    same(out, net(x[rows])[:, 5:])


@pytest.mark.parametrize("kind", KINDS)
def test_rope_sees_distances_only(kind):
    net, x = layer(kind, rope=True, causal=False), normal(2, 6, 12)
    at = torch.arange(6)[None]
    if kind == "relu":
        assert (net(x, position_ids=at + 100) - net(x)).abs().max() > 1e-6  # an absolute kernel
    moved = net(x, position_ids=at * 2)
    assert (moved - net(x)).abs().max() > 1e-6
    same(net(x, position_ids=at), net(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
def test_padding_on_either_side_changes_nothing_and_may_hold_anything(kind, causal):
    net, x = layer(kind, causal), normal(2, 6, 12)
    alone = net(x)
    for left, right in ((3, 0), (0, 3), (2, 2)):
        padded = torch.full((2, 6 + left + right, 12), float("nan"), dtype=DOUBLE)
        padded[:, left : left + 6] = x
        padded.requires_grad_()
        mask = torch.zeros(padded.shape[:2], dtype=torch.bool)
        mask[:, left : left + 6] = True
        out = net(padded, mask)
        same(out[:, left : left + 6], alone)
        assert out.isfinite().all()
        if causal:
            assert (out[:, :left] == 0).all()
        (grad,) = torch.autograd.grad(out.square().sum(), padded)
        assert grad.isfinite().all()


def test_a_row_that_sees_nothing_is_zero():
    net = layer(causal=False, bias=True)
    mask = torch.tensor([[False] * 5, [True] * 5])
    out = net(normal(2, 5, 12), mask)
    assert (out[0] == 0).all()
    assert (out[1] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_past_does_not_move_by_a_bit_when_the_future_changes(kind):
    net, x = layer(kind, dtype=torch.float32), normal(2, 9, 12, dtype=torch.float32)
    plain = net(x)
    for t in range(1, 9):
        other = x.clone()
        other[:, t:] = 50 * normal(2, 9 - t, 12, seed=t, dtype=torch.float32)
        assert torch.equal(net(other)[:, :t], plain[:, :t])


def test_a_mask_of_numbers_a_wrong_shape_and_a_cache_without_time_are_refused():
    net, x = layer(causal=False, dtype=torch.float32), normal(2, 5, 12, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"\(2, 5\), got \(2, 4\)|[Tt]ype"):
        net.forward.__wrapped__(net, x, torch.ones(2, 4, dtype=torch.bool)) if hasattr(
            net.forward, "__wrapped__"
        ) else net(x, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="takes no cache"):
        net(x, cache=layer().new_cache())


def test_the_default_number_of_features_is_d_ln_d():
    assert PerformerAttention(128, 2).num_features == int(64 * math.log(64)) == 266


# Redrawing


def train(net, steps, start=0):
    net.train()
    for step in range(start, start + steps):
        net(normal(1, 4, 12, seed=step, dtype=net.out.weight.dtype))
    return net.omega.clone()


def test_directions_are_redrawn_every_so_many_training_calls_and_never_in_evaluation():
    net = layer(redraw_every=3)
    first = net.omega.clone()
    assert torch.equal(train(net, 3), first)
    second = train(net, 1)
    assert not torch.equal(second, first)
    net.eval()
    for _ in range(7):
        net(normal(1, 4, 12))
    assert torch.equal(net.omega, second)
    assert torch.equal(train(net, 2), second)
    assert not torch.equal(train(net, 1), second)
    assert int(net.calls) == 7
    never = layer(redraw_every=None)
    before = never.omega.clone()
    assert torch.equal(train(never, 5), before)


def test_the_seed_decides_all_directions():
    runs = [train(layer(redraw_every=2, seed=seed), 9) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_a_resumed_layer_draws_what_the_first_would_have_drawn(way):
    net = layer(redraw_every=4)
    train(net, 6)
    if way == "state_dict":
        again = layer(redraw_every=4, seed=77)
        train(again, 3)
        again.load_state_dict(net.state_dict())
    else:
        again = pickle.loads(pickle.dumps(net)) if way == "pickle" else copy.deepcopy(net)
    for _ in range(3):
        assert torch.equal(train(again, 3), train(net, 3))


def test_recomputing_a_checkpointed_layer_neither_counts_nor_redraws():
    plain, saved = layer(redraw_every=2), layer(redraw_every=2)
    saved.load_state_dict(plain.state_dict())
    for step in range(5):
        x = normal(1, 4, 12, seed=step)
        for net in (plain.train(), saved.train()):
            net.zero_grad()
            out = net(x) if net is plain else checkpoint(net, x, use_reentrant=False)
            out.square().sum().backward()
        same(saved.qkv.weight.grad, plain.qkv.weight.grad)
        assert int(saved.calls) == step + 1


def test_a_redraw_between_two_forwards_leaves_the_first_backward_alone():
    net = layer(redraw_every=1).train()
    x = normal(1, 4, 12)
    outs = [net(x) for _ in range(2)]  # two draws, one graph
    sum(out.sum() for out in outs).backward()
    assert net.qkv.weight.grad.isfinite().all()
    assert (outs[0] - outs[1]).abs().max() > 1e-6


def test_a_redraw_by_hand_is_reproducible():
    net = layer()
    first = net.omega.clone()
    net.redraw(seed=5)
    second = net.omega.clone()
    net.redraw(seed=5)
    assert torch.equal(net.omega, second)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    net.redraw()
    third = net.omega.clone()
    torch.manual_seed(3)
    net.redraw()
    assert torch.equal(net.omega, third)


def test_under_autocast_features_are_float32_and_the_output_that_of_the_matmul():
    net, x = layer(dtype=torch.float32), normal(2, 9, 12, dtype=torch.float32)
    plain = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), plain, rtol=0, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_in_half_precision_returns_half(dtype):
    net, x = layer(dtype=dtype), normal(2, 9, 12, dtype=dtype)
    out = net(x)
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_gradients_reach_every_parameter():
    net = layer()
    net(normal(2, 9, 12)).square().sum().backward()
    assert all(one.grad.abs().max() > 0 for one in net.parameters())
    assert "causal=True" in repr(net)
