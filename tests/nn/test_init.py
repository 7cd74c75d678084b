"""Variance rules (S04): second moments through layers, fans of every layout, worked numbers."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.nn.fans import fan_in_out
from kexue.nn.init import he_normal_, lecun_normal_, variance_scaling_, xavier_normal_
from kexue.nn.moments import gain


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def moment(x):
    return x.square().mean().item()


@pytest.mark.parametrize("n", [512, 2048])
@pytest.mark.parametrize("positive", [False, True])
def test_a_linear_layer_keeps_the_second_moment_whatever_the_mean_of_its_input(n, positive):
    random = seeded()
    x = torch.randn(8, 512, generator=random)
    x = x.abs() if positive else x
    x /= x.square().mean(1, keepdim=True).sqrt()
    draws = math.ceil(40_000 / n)
    found = [
        moment(x @ lecun_normal_(torch.empty(n, 512), generator=random).T) for _ in range(draws)
    ]
    assert sum(found) / draws == pytest.approx(1, rel=0.03)


def test_relu_and_he_keep_the_second_moment_through_fifty_layers():
    random, width = seeded(4), 4096
    x, weight = torch.randn(2, width, generator=random), torch.empty(width, width)
    start = moment(x)
    for _ in range(50):
        x = torch.relu(x) @ he_normal_(weight, generator=random).T
    assert 0.5 < moment(x) / start < 2


def test_deep_relu_chains_keep_he_and_halve_under_lecun_on_average():
    """Width 256, ten layers: the mean over draws is 1 and 2^-10, a single draw spreads."""
    random, draws, depth, width = seeded(), 120, 10, 256
    ratios = []
    for _ in range(draws):
        x = torch.randn(4, width, generator=random)
        y = x
        for _ in range(depth):
            y = torch.relu(y) @ he_normal_(torch.empty(width, width), generator=random).T
        ratios.append(moment(y) / moment(x))
    found = torch.tensor(ratios)
    error = found.std() / math.sqrt(draws)
    assert abs(found.mean() - 1) < 3 * error
    assert error < 0.06
    logs = found.log()
    assert logs.std().item() == pytest.approx(math.sqrt(5 * depth / width), rel=0.25)


def test_lecun_loses_half_of_the_moment_with_every_relu():
    random, width = seeded(1), 2048
    x = torch.randn(64, width, generator=random)
    weight = torch.empty(width, width)
    for _ in range(4):
        before = moment(x)
        x = torch.relu(x) @ lecun_normal_(weight, generator=random).T
        assert moment(x) / before == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("phi", [torch.relu, torch.tanh, F.gelu, F.silu, torch.sigmoid])
def test_the_gain_of_an_activation_keeps_unit_moments(phi):
    random = seeded(2)
    weight = torch.empty(1024, 512)
    variance_scaling_(weight, gain(phi) ** 2, "fan_in", "normal", generator=random)
    out = phi(torch.randn(256, 512, generator=random)) @ weight.T
    assert moment(out) == pytest.approx(1, rel=0.05)


def test_worked_deviations_of_a_feed_forward_layer():
    m, n = fan_in_out((3072, 768))
    assert (m, n) == (768, 3072)
    random = seeded()
    for fill, std in (
        (lecun_normal_, 0.03608439182435161),
        (he_normal_, 0.05103103630798288),
        (xavier_normal_, 0.02282177322938192),
    ):
        weight = fill(torch.empty(3072, 768), generator=random)
        assert weight.std().item() == pytest.approx(std, rel=0.002)
    weight = variance_scaling_(torch.empty(3072, 768), 1.0, "fan_avg", "uniform", generator=random)
    assert weight.std().item() == pytest.approx(0.02282177322938192, rel=0.002)
    assert weight.abs().max().item() == pytest.approx(0.03952847075210474, rel=1e-4)


@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform", "orthogonal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_distribution_has_the_variance_in_every_dtype(distribution, dtype):
    weight = torch.empty(192, 512, dtype=dtype)
    variance_scaling_(weight, 2.0, "geometric", distribution, generator=seeded())
    wanted = math.sqrt(2 / math.sqrt(192 * 512))
    assert weight.dtype == dtype
    assert weight.double().square().mean().sqrt().item() == pytest.approx(wanted, rel=0.01)
    assert abs(weight.double().mean().item()) < 4 * wanted / math.sqrt(weight.numel())


def test_the_peers_agree_where_they_do_the_same():
    m, n = 300, 700
    for ours, theirs in (
        (xavier_normal_, nn.init.xavier_normal_),
        (he_normal_, nn.init.kaiming_normal_),
    ):
        mine, other = ours(torch.empty(n, m), generator=seeded()), theirs(torch.empty(n, m))
        assert mine.std().item() == pytest.approx(other.std().item(), rel=0.01)


def test_torchs_own_layers_start_elsewhere():
    torch.manual_seed(0)
    linear = nn.Linear(512, 512)
    assert moment(linear.weight) == pytest.approx(1 / (3 * 512), rel=0.02)
    packed = nn.MultiheadAttention(256, 4).in_proj_weight
    assert moment(packed) == pytest.approx(2 / (4 * 256), rel=0.02)


@pytest.mark.parametrize(
    ("shape", "axes", "fans"),
    [
        ((3072, 768), {}, (768, 3072)),
        ((768, 3072), {"layout": "linear_transposed"}, (768, 3072)),
        ((2304, 768), {"parts": 3}, (768, 768)),
        ((768, 2304), {"layout": "linear_transposed", "parts": 3}, (768, 768)),
        ((64, 32, 3, 3), {"layout": "conv"}, (288, 576)),
        ((64, 16, 3, 3), {"layout": "conv", "groups": 2}, (144, 288)),
        ((64, 1, 3), {"layout": "conv", "groups": 64}, (3, 3)),
        ((64, 32, 4, 4), {"layout": "conv", "stride": 2}, (512, 256)),
        ((64, 32, 4, 4), {"layout": "conv", "stride": (2, 1)}, (512, 512)),
        ((64, 32, 3, 3), {"layout": "conv_transposed"}, (576, 288)),
        ((64, 16, 4), {"layout": "conv_transposed", "groups": 2, "stride": 2}, (64, 64)),
    ],
)
def test_fans_count_connections(shape, axes, fans):
    assert fan_in_out(shape, **axes) == fans


CONVOLUTIONS = [
    (nn.Conv1d(64, 128, 3, bias=False), (64, 400)),
    (nn.Conv2d(32, 64, 3, groups=4, bias=False), (32, 30, 30)),
    (nn.Conv2d(32, 64, 4, stride=2, bias=False), (32, 60, 60)),
    (nn.ConvTranspose1d(64, 32, 4, stride=2, bias=False), (64, 300)),
    (nn.ConvTranspose2d(32, 64, 3, groups=2, bias=False), (32, 30, 30)),
]


def inside(y):
    """Positions that no kernel reaches over the border from."""
    return y[:, :, 4:-4] if y.ndim == 3 else y[:, :, 4:-4, 4:-4]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_convolutions_keep_moments_forwards_or_backwards_away_from_the_border(layer, shape, mode):
    random = seeded(3)
    layout = "conv_transposed" if layer.transposed else "conv"
    axes = {"layout": layout, "groups": layer.groups, "stride": layer.stride}
    found = []
    for _ in range(8):
        variance_scaling_(layer.weight, 1.0, mode, "normal", generator=random, **axes)
        x = torch.randn(2, *shape, generator=random).requires_grad_()
        y = layer(x)
        if mode == "fan_in":
            found.append(moment(inside(y.detach())))
        else:
            slope = torch.randn(y.shape, generator=random)
            found.append(moment(inside(torch.autograd.grad(y, x, slope)[0])))
    assert sum(found) / 8 == pytest.approx(1, rel=0.06)


def test_packed_query_key_value_get_the_deviation_of_each_alone():
    packed = xavier_normal_(torch.empty(1536, 512), parts=3, generator=seeded())
    for part in packed.chunk(3):
        assert part.std().item() == pytest.approx(1 / math.sqrt(512), rel=0.01)
    orthogonal = variance_scaling_(
        torch.empty(192, 64), 1.0, "fan_in", "orthogonal", parts=3, generator=seeded()
    )
    for part in orthogonal.chunk(3):
        torch.testing.assert_close(part @ part.T, torch.eye(64), rtol=0, atol=1e-5)
    sideways = variance_scaling_(
        torch.empty(64, 192),
        distribution="orthogonal",
        layout="linear_transposed",
        parts=3,
        generator=seeded(),
    )
    for part in sideways.chunk(3, dim=1):
        torch.testing.assert_close(part @ part.T, torch.eye(64), rtol=0, atol=1e-5)


def test_orthogonal_groups_are_orthogonal_each():
    weight = torch.empty(32, 16, 3, dtype=torch.float64)
    variance_scaling_(weight, distribution="orthogonal", layout="conv", groups=4)
    for group in weight.chunk(4):
        values = torch.linalg.svdvals(group.flatten(1))
        torch.testing.assert_close(values, values[0].expand(8), rtol=1e-10, atol=0)
        assert group.square().mean().item() == pytest.approx(1 / 48)


@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_orthogonal_matrices_are_uniform_and_reproducible(shape):
    one, two = (
        variance_scaling_(torch.empty(shape), distribution="orthogonal", generator=seeded(9))
        for _ in range(2)
    )
    assert torch.equal(one, two)
    first = torch.stack(
        [
            variance_scaling_(torch.empty(4, 4), distribution="orthogonal", generator=random)
            for random in [seeded()]
            for _ in range(500)
        ]
    )
    assert first.mean(0).abs().max() < 0.1  # no sign of the entries is preferred


def test_meta_tensors_stay():
    random = seeded()
    before = random.get_state()
    for kind in ("normal", "truncated_normal", "uniform", "orthogonal"):
        t = torch.empty(4, 4, device="meta")
        assert variance_scaling_(t, distribution=kind, generator=random) is t
    assert torch.equal(random.get_state(), before)


def test_far_apart_fans_are_announced_with_both_gains():
    with pytest.warns(UserWarning, match=r"768 and fan-out 2 .* 19\.6 forwards and 0\.051 back"):
        variance_scaling_(torch.empty(2, 768), mode="geometric")
    with pytest.warns(UserWarning, match="fan-in 50000 and fan-out 768") as seen:
        xavier_normal_(torch.empty(768, 50_000))
    assert len(seen) == 1
    lecun_normal_(torch.empty(2, 768))
    xavier_normal_(torch.empty(768, 3072))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((5,), {}, r"two axes or more, got shape \(5,\)"),
        ((8, 4, 3), {}, "declare layout='conv' or layout='conv_transposed'"),
        ((8, 4, 3), {"layout": "linear"}, "has two axes"),
        ((8, 4), {"layout": "dense"}, "one of linear, .*got 'dense'"),
        ((8, 0), {}, "holds no weights"),
        ((8, 4), {"parts": 3}, "8 outputs do not divide into groups × parts = 3"),
        ((8, 4), {"groups": 2}, "has no groups"),
        ((8, 4, 3), {"layout": "conv", "stride": (1, 2)}, "one stride per spatial axis"),
        ((8, 4, 3), {"layout": "conv", "groups": 0}, "must be positive"),
        ((9, 4, 3), {"layout": "conv_transposed", "groups": 2}, "9 inputs do not divide"),
        ((8, 4, 3), {"layout": "conv_transposed", "parts": 3}, "4 outputs do not divide"),
    ],
)
def test_shapes_that_have_no_fans_are_refused_with_a_way_out(shape, options, message):
    with pytest.raises(ValueError, match=message):
        lecun_normal_(torch.empty(shape), **options)


def test_bad_scales_modes_and_distributions_are_refused():
    with pytest.raises(ValueError, match="scale must be a number of at least 0, got -1"):
        variance_scaling_(torch.empty(3, 3), -1.0)
    with pytest.raises(ValueError, match="the mean must be one of"):
        variance_scaling_(torch.empty(3, 3), mode="fan_middle")
    with pytest.raises(ValueError, match="distribution must be one of"):
        variance_scaling_(torch.empty(3, 3), distribution="cauchy")
    with pytest.raises(TypeError, match="floating tensors"):
        lecun_normal_(torch.empty(3, 3, dtype=torch.long))


SATURATION = [
    (64, False, 0.723, 0.011, 0.380, 0.012),
    (64, True, 0.027, 0.001, 0.995, 0.001),
    (128, False, 0.811, 0.008, 0.265, 0.010),
]


@pytest.mark.parametrize(("d", "scaled", "top", "top_sd", "trace", "trace_sd"), SATURATION)
def test_without_the_scale_the_softmax_of_attention_saturates(
    d, scaled, top, top_sd, trace, trace_sd
):
    random, tops, traces = seeded(d), [], []
    for _ in range(20):
        q, k = torch.randn(2, 512, d, generator=random, dtype=torch.float64)
        p = (q @ k.T / (math.sqrt(d) if scaled else 1)).softmax(1)
        tops.append(p.max(1).values.mean().item())
        traces.append((p * (1 - p)).sum(1).mean().item())
    assert sum(tops) / 20 == pytest.approx(top, abs=top_sd)
    assert sum(traces) / 20 == pytest.approx(trace, abs=trace_sd)


@pytest.mark.parametrize("d", [16, 64, 256])
def test_the_squared_product_of_query_and_key_is_the_size_of_the_head_if_one_has_mean_zero(d):
    random = seeded(d)
    q = torch.randn(40_000, d, generator=random)
    shifted = (1 + torch.randn(40_000, d, generator=random)) / math.sqrt(2)
    assert (q * shifted).sum(1).square().mean().item() == pytest.approx(d, rel=0.05)
    other = (1 + torch.randn(40_000, d, generator=random)) / math.sqrt(2)
    both = (other * shifted).sum(1).square().mean().item()
    assert both == pytest.approx(d * (d - 1) / 4 + d, rel=0.05)  # of order d²


@pytest.mark.parametrize("factor", [0.3, 1.0, 7.0])
def test_layer_norm_ignores_shift_and_scale_and_rms_norm_the_scale_alone(factor):
    x = torch.randn(6, 32, generator=seeded(), dtype=torch.float64)
    layer = nn.LayerNorm(32, eps=0.0, dtype=torch.float64)
    rms = nn.RMSNorm(32, eps=0.0, dtype=torch.float64)
    torch.testing.assert_close(layer(factor * x + 3), layer(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(rms(factor * x), rms(x), rtol=0, atol=1e-12)
    for norm in (layer, rms):
        torch.testing.assert_close(norm(-factor * x), -norm(x), rtol=0, atol=1e-12)
    assert (rms(factor * x + 3) - rms(x)).abs().max() > 0.1


@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform", "orthogonal"])
def test_whole_numbers_are_refused_by_every_distribution(distribution):
    with pytest.raises(TypeError, match=r"fills floating tensors, got torch\.int32"):
        variance_scaling_(torch.zeros(3, 3, dtype=torch.int32), distribution=distribution)
