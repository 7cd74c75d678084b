"""Moments and gains of activations (S04): table, SELU, kinks, errors."""

import math

import pytest
import torch
from scipy.special import erfc
from torch import nn
from torch.nn import functional as F

from kexue.nn.moments import UnitMoment, activation_moments, gain

TABLE = {
    "relu": (torch.relu, 0.3989422804014327, 0.5, 1.414213562373095),
    "relu squared": (lambda x: torch.relu(x) ** 2, 0.5, 1.5, 0.8164965809277261),
    "sigmoid": (torch.sigmoid, 0.5, 0.293379035858093, 1.846228545338605),
    "tanh": (torch.tanh, 0.0, 0.394294490397841, 1.592537419722831),
    "silu": (F.silu, 0.206620964141907, 0.355775519817352, 1.676532470331091),
    "gelu": (F.gelu, 0.282094791773878, 0.425221482570299, 1.533530441195536),
    "gelu tanh": (nn.GELU("tanh"), 0.282038588078789, 0.425193711033099, 1.533580521666147),
    "elu": (F.elu, 0.160520572266556, 0.644945417492924, 1.245198300700707),
    "softplus": (F.softplus, 0.806059183347440, 0.921245908859301, 1.041866835535302),
}


@pytest.mark.parametrize("name", TABLE)
def test_moments_and_gains_have_the_digits_of_the_table(name):
    fn, mean, second, factor = TABLE[name]
    # F.softplus turns into the identity above 20, and the table has 15 digits
    assert activation_moments(fn) == pytest.approx((mean, second), rel=1e-12, abs=1e-14)
    assert gain(fn) == pytest.approx(factor, rel=1e-12)


def test_selu_has_mean_zero_and_second_moment_one():
    mean, second = activation_moments(F.selu)
    assert mean == pytest.approx(0, abs=1e-10)
    assert second == pytest.approx(1, abs=1e-10)


def test_selu_is_elu_with_the_alpha_that_centres_it_rescaled():
    alpha = -math.sqrt(2 / math.pi) / (erfc(1 / math.sqrt(2)) * math.exp(0.5) - 1)
    assert alpha == pytest.approx(1.6732632423543772, rel=1e-14)
    assert activation_moments(lambda x: F.elu(x, alpha))[0] == pytest.approx(0, abs=1e-14)
    scaled = UnitMoment(nn.ELU(alpha))
    assert scaled.scale == pytest.approx(1.0507009873554805, rel=1e-13)
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    torch.testing.assert_close(scaled(x), F.selu(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("c", [-3.0, 0.01, 100.0])
@pytest.mark.parametrize("phi", [torch.tanh, F.gelu, torch.relu])
def test_a_factor_scales_the_mean_and_squares_on_the_second_moment(c, phi):
    mean, second = activation_moments(phi)
    scaled = activation_moments(lambda x: c * phi(x))
    assert scaled == pytest.approx((c * mean, c**2 * second), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize(
    ("phi", "mean", "second"),
    [
        (lambda x: x, 0, 1),
        (lambda x: x**4, 3, 105),
        (torch.exp, math.exp(0.5), math.exp(2)),
        (torch.cos, math.exp(-0.5), (1 + math.exp(-2)) / 2),
        (lambda x: (x > 0).double(), 0.5, 0.5),
        (lambda x: (x > math.pi / 10).double(), *(2 * [erfc(math.pi / 10 / math.sqrt(2)) / 2])),
        (torch.sign, 0, 1),
        (lambda x: (x - 0.3).abs(), None, 1.09),
    ],
)
def test_closed_forms_with_kinks_and_jumps_anywhere(phi, mean, second):
    found = activation_moments(phi)
    if mean is not None:
        assert found[0] == pytest.approx(mean, rel=1e-13, abs=1e-14)
    assert found[1] == pytest.approx(second, rel=1e-13)


@pytest.mark.parametrize("phi", [nn.Hardswish(), nn.ReLU6(), nn.Hardtanh(-0.7, 1.3), nn.Mish()])
def test_many_samples_agree(phi):
    y = phi(torch.randn(2_000_000, generator=torch.Generator().manual_seed(0)))
    mean, second = activation_moments(phi)
    assert y.mean().item() == pytest.approx(mean, abs=0.003)
    assert y.square().mean().item() == pytest.approx(second, rel=0.005)


def test_a_module_is_evaluated_in_float64_and_stays_as_it_is():
    phi = nn.PReLU()
    mean, second = activation_moments(phi)
    assert phi.weight.dtype == torch.float32
    assert second == pytest.approx((1 + 0.25**2) / 2, rel=1e-12)
    assert mean == pytest.approx(0.75 * TABLE["relu"][1], rel=1e-12)
    assert activation_moments(nn.ReLU(inplace=True)) == activation_moments(nn.ReLU())


@pytest.mark.parametrize("phi", [torch.sigmoid, F.gelu, nn.Tanh(), F.softplus])
@pytest.mark.parametrize("centred", [False, True])
def test_a_rescaled_activation_has_second_moment_one_and_mean_zero_if_centred(phi, centred):
    mean, second = activation_moments(UnitMoment(phi, centred))
    assert second == pytest.approx(1, rel=1e-12)
    if centred:
        assert mean == pytest.approx(0, abs=1e-12)


def test_bounded_activations_cannot_reach_second_moment_one_by_weights_alone():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(64, 512, generator=random)
    for std in (0.1, 1.0, 100.0):
        weight = torch.randn(512, 512, generator=random) * std
        assert torch.tanh(x @ weight).square().mean() < 1
    weight = torch.randn(512, 512, generator=random) / math.sqrt(512)
    assert UnitMoment(torch.tanh)(x @ weight).square().mean().item() == pytest.approx(1, rel=0.05)


def test_the_rescaled_activation_keeps_dtype_and_shows_its_constants():
    phi = UnitMoment(nn.Sigmoid(), centred=True)
    assert phi(torch.zeros(3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert "shift=0.5, scale=" in repr(phi)


@pytest.mark.parametrize(
    "phi",
    [
        *(nn.Softmax(-1), nn.Dropout(0.5), nn.RReLU(), nn.GLU(), nn.PReLU(4)),
        *(lambda x: x.sum(), lambda x: x[..., :1], lambda x: x.float().relu()),
    ],
)
def test_what_is_not_elementwise_in_float64_is_refused(phi):
    with pytest.raises(ValueError, match="element by element"):
        activation_moments(phi)


def test_what_is_not_finite_or_too_rough_or_zero_is_refused():
    with pytest.raises(ValueError, match="must be finite, but is not at"):
        activation_moments(lambda x: 1 / (x - x))
    with pytest.raises(ValueError, match="must be finite"):
        activation_moments(lambda x: torch.exp(x**2))
    with pytest.raises(ValueError, match="too rough"):
        activation_moments(lambda x: torch.sin(1e9 * x).sign())
    with pytest.raises(ValueError, match="zero for every input"):
        gain(lambda x: 0 * x)
    with pytest.raises(ValueError, match="constant"):
        UnitMoment(lambda x: 0 * x + 0.3, centred=True)


@pytest.mark.parametrize("std", [1e-3, 0.3, 2.0, 20.0])
def test_the_moments_are_those_of_an_input_of_any_deviation(std):
    mean, second = activation_moments(torch.relu, std)
    assert mean == pytest.approx(std / math.sqrt(2 * math.pi), rel=1e-13)
    assert second == pytest.approx(std**2 / 2, rel=1e-13)
    mean, second = activation_moments(torch.exp, min(std, 2.0))
    assert mean == pytest.approx(math.exp(min(std, 2.0) ** 2 / 2), rel=1e-13)


def test_a_narrow_peak_is_found_between_the_first_nodes():
    width, place = 1e-3, 0.3
    mean, _ = activation_moments(lambda x: torch.exp(-0.5 * ((x - place) / width) ** 2))
    spread = 1 + width**2
    exact = width / math.sqrt(spread) * math.exp(-(place**2) / (2 * spread))
    assert mean == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_a_deviation_that_makes_no_sense_is_refused(std):
    with pytest.raises(ValueError, match="std must be a number of at least 0"):
        activation_moments(torch.relu, std)


def test_an_activation_that_overflows_has_no_gain():
    with pytest.raises(ValueError, match="or overflows: a second moment of inf has no gain"):
        gain(lambda x: 1e200 * x)
