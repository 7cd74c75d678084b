"""How small residual branches must be (S20): the claims, one test each."""

import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kexue.analysis.residual_weight import amplification, residual_scale
from kexue.nn.residual import ScaledResidual

D = 256
DEPTHS = (16, 64, 256)
PRINTED = {
    "N^-1/2": (2.6379, 2.6973, 2.7130),
    "1/N": (1.0644, 1.0157, 1.0039),
    "1": (6.55e4, 1.84e19, 1.16e77),
}


def eps_of(rule, N):
    return {"N^-1/2": N**-0.5, "1/N": 1 / N, "1": 1.0}[rule]


def deviation(eps, N, d=D):
    """The standard deviation of |v Π(I + ε W)|² / |v|² for Gaussian W, exact.

    With u = v/|v|, the factor of a layer is 1 + 2ε u·uW + ε²|uW|², of mean 1 + ε² and variance
    (4ε² + 2ε⁴)/d whatever u is, so the factors of the layers are independent.
    """
    square = (1 + eps**2) ** 2 + (4 * eps**2 + 2 * eps**4) / d
    return math.sqrt(square**N - (1 + eps**2) ** (2 * N))


def chains(eps, N, d, draws, seed=0):
    """|v Π(I + ε W_l)|² / |v|² for independent draws of all the matrices."""
    generator = torch.Generator().manual_seed(seed)
    start = v = torch.randn(draws, 1, d, generator=generator, dtype=torch.float64)
    for _ in range(N):
        W = torch.randn(draws, d, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
        v = v + eps * v @ W
    return (v.square().sum((1, 2)) / start.square().sum((1, 2))).flatten()


def test_worked_numbers():
    assert amplification(0.1, 100) == pytest.approx(13780.61233982238, rel=1e-12)
    assert amplification(0.01, 100) == pytest.approx(2.7048138294215285, rel=1e-12)
    for rule, row in PRINTED.items():
        for N, printed in zip(DEPTHS, row, strict=True):
            digits = 5e-5 if printed < 10 else 5e-3 * 10 ** math.floor(math.log10(printed))
            assert abs(amplification(eps_of(rule, N), N, "random") - printed) <= digits


def test_one_plus_one_over_n_to_the_n_rises_from_two_to_e():
    factors = [amplification(1 / N, N) for N in (1, 2, 3, 10, 100, 10**4, 10**6)]
    assert factors[0] == pytest.approx(2, rel=1e-14)
    assert factors == sorted(set(factors))
    assert factors[-1] < math.e
    assert math.e - factors[-1] == pytest.approx(math.e / 2e6, rel=1e-4)


def test_in_one_dimension_the_square_root_rule_blows_up():
    for N in (100, 10_000):
        assert amplification(N**-0.5, N) > math.exp(math.sqrt(N) - 0.5)
    assert amplification(10_000**-0.5, 10_000, "random") < math.e


def test_the_random_model_is_an_exact_expectation():
    """All 2^8 pairs of 2 × 2 matrices of signs, entries of variance 1/d."""
    eps, v = 0.7, torch.tensor([0.3, -1.1], dtype=torch.float64)
    total = 0.0
    for signs in product((-1.0, 1.0), repeat=8):
        W = torch.tensor(signs, dtype=torch.float64).view(2, 2, 2) / math.sqrt(2)
        first = v + eps * v @ W[0]
        total += (first + eps * first @ W[1]).square().sum()
    expected = amplification(eps, 2, "random")
    assert float(total / 2**8 / v.square().sum()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rule", PRINTED)
def test_the_mean_over_draws_is_the_expectation_within_its_error(rule):
    N, d, draws = 16, 32, 1500
    factors = chains(eps_of(rule, N), N, d, draws)
    sd = deviation(eps_of(rule, N), N, d)
    expected = amplification(eps_of(rule, N), N, "random")
    assert abs(float(factors.mean()) - expected) < 4 * sd / math.sqrt(draws)
    if rule != "1":  # 2^16 has too heavy a tail for its second moment to be seen
        assert float(factors.std()) == pytest.approx(sd, rel=0.15)


@pytest.mark.parametrize("N", DEPTHS)
@pytest.mark.parametrize("rule", ["N^-1/2", "1/N"])
def test_one_draw_of_width_256_lies_within_four_deviations(rule, N):
    eps = eps_of(rule, N)
    factor = float(chains(eps, N, D, 1))
    assert abs(factor - amplification(eps, N, "random")) < 4 * deviation(eps, N)
    if rule == "N^-1/2":
        assert 0.2 < deviation(eps, N) < 0.4


@pytest.mark.parametrize("N", DEPTHS)
def test_one_draw_with_weight_one_lies_near_two_to_the_n(N):
    """The logarithm is a sum of N terms; its variance is at most N · 6/(4d) to first order."""
    factor = float(chains(1.0, N, D, 1))
    variance = N * math.log(1 + 6 / (4 * D))
    mean = N * math.log(2) - variance / 2
    assert abs(math.log(factor) - mean) < 4 * math.sqrt(variance)


def test_the_three_rules():
    assert residual_scale(400) == residual_scale(400, "sgd") == pytest.approx(0.05, rel=1e-15)
    assert residual_scale(400, "adam") == residual_scale(400, "lamb") == 0.0025
    assert residual_scale(1) == residual_scale(1, "adam") == 1


def test_weight_zero_is_the_identity_without_gradients():
    net = nn.Sequential(*(ScaledResidual(nn.Linear(4, 4), 0.0) for _ in range(3)))
    x = torch.randn(5, 4)
    out = net(x)
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in net.parameters())
    assert amplification(0.0, 50) == amplification(0.0, 50, "random") == 1


def test_weight_one_doubles_every_layer_and_overflow_is_infinite():
    for N in (1, 10, 256, 1000):
        assert amplification(1.0, N, "random") == pytest.approx(2.0**N, rel=1e-12)
    assert amplification(1.0, 1025, "random") == amplification(10.0, 10_000) == math.inf


def gradients(eps):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()).double() for _ in range(4)]
    net = nn.Sequential(*(ScaledResidual(layer, eps) for layer in layers))
    net(torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6)).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def test_parameter_gradients_are_linear_in_a_small_weight():
    errors = []
    for eps in (1e-2, 1e-3, 1e-4):
        full, half = gradients(eps), gradients(eps / 2)
        errors.append(float((full - 2 * half).norm() / full.norm()))
    assert errors[0] < 0.1
    assert errors[1] / errors[0] == pytest.approx(0.1, rel=0.1)
    assert errors[2] / errors[1] == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_before_a_norm_a_multiplied_stream_is_a_divided_branch(alpha):
    torch.manual_seed(0)
    branch, x = nn.Linear(8, 8).double(), torch.randn(3, 8, dtype=torch.float64)
    stream = F.layer_norm(alpha * x + branch(x), (8,), eps=0.0)
    scaled = F.layer_norm(ScaledResidual(branch, 1 / alpha)(x), (8,), eps=0.0)
    torch.testing.assert_close(stream, scaled, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: residual_scale(0), "num_layers must be at least 1, got 0"),
        (lambda: amplification(-0.1, 3), r"eps must be finite and eps, N at least 0, got eps=-0.1"),
        (lambda: amplification(math.nan, 3), "eps must be finite"),
        (lambda: amplification(0.1, -1), "got eps=0.1, N=-1"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
