"""Means of fan-in and fan-out (S05): identities, worked numbers, random matrices."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue.nn.fan_average import FAN_KINDS, chain_report, fan_average, gains, singular_range
from kexue.nn.init import variance_scaling_

AVERAGED = ("harmonic", "geometric", "arithmetic", "contraharmonic")
width = st.integers(1, 100_000)


def exact(value):
    return pytest.approx(value, rel=1e-13)


@settings(max_examples=300, deadline=None)
@given(m=width, n=width)
def test_the_means_are_ordered_and_equal_only_for_square_matrices(m, n):
    means = [fan_average(m, n, kind) for kind in AVERAGED]
    if m == n:
        assert means == [m] * 4
    else:
        assert min(m, n) < means[0] < means[1] < means[2] < means[3] < max(m, n)


@settings(max_examples=200, deadline=None)
@given(m=width, n=width, kind=st.sampled_from(AVERAGED), factor=st.floats(0.01, 100))
def test_every_mean_is_symmetric_and_homogeneous_of_degree_one(m, n, kind, factor):
    mean = fan_average(m, n, kind)
    assert fan_average(n, m, kind) == exact(mean)
    assert fan_average(factor * m, factor * n, kind) == exact(factor * mean)


@settings(max_examples=200, deadline=None)
@given(m=width, n=width)
def test_the_gains_multiply_to_one_for_geometric_and_add_to_two_for_arithmetic(m, n):
    f, g = gains(m, n, "geometric")
    assert f * g == exact(1.0)
    f, g = gains(m, n, "arithmetic")
    assert f + g == exact(2.0)
    for kind in FAN_KINDS:
        assert (gains(m, n, kind) == (1.0, 1.0)) == (m == n)


@settings(max_examples=200, deadline=None)
@given(m=width, n=width)
def test_both_gains_together_never_exceed_one_for_the_two_means_above_geometric(m, n):
    for kind in ("arithmetic", "contraharmonic"):
        f, g = gains(m, n, kind)
        assert f * g <= 1 + 1e-13
    f, g = gains(m, n, "harmonic")
    assert f * g >= 1 - 1e-13


@pytest.mark.parametrize(("m", "n"), [(768, 3072), (512, 64), (1, 50_000), (7, 7)])
def test_contraharmonic_has_the_least_absolute_error_of_one_step(m, n):
    def error(t):
        return (m * t - 1) ** 2 + (n * t - 1) ** 2

    best = 1 / fan_average(m, n, "contraharmonic")
    assert error(best) == pytest.approx((m - n) ** 2 / (m * m + n * n), rel=1e-12, abs=1e-30)
    assert m * (m * best - 1) + n * (n * best - 1) == pytest.approx(0, abs=1e-9)  # derivative / 2
    assert all(error(best) <= error(best * x) + 1e-15 for x in np.geomspace(1e-3, 1e3, 4001))


@pytest.mark.parametrize(("m", "n"), [(768, 3072), (512, 64), (1, 50_000)])
def test_geometric_has_the_least_relative_error_of_one_step(m, n):
    def error(t):
        return math.log(m * t) ** 2 + math.log(n * t) ** 2

    best = 1 / fan_average(m, n, "geometric")
    assert math.log(m * best) + math.log(n * best) == pytest.approx(0, abs=1e-12)
    assert all(error(best) <= error(best * x) + 1e-12 for x in np.geomspace(1e-3, 1e3, 4001))


@pytest.mark.parametrize(("m", "n"), [(768, 3072), (512, 64)])
def test_harmonic_averages_the_two_wanted_variances_and_not_the_deviations(m, n):
    assert 1 / fan_average(m, n, "harmonic") == exact((1 / m + 1 / n) / 2)
    of_deviations = ((m**-0.5 + n**-0.5) / 2) ** 2
    assert all(abs(1 / fan_average(m, n, kind) / of_deviations - 1) > 0.01 for kind in FAN_KINDS)


@settings(max_examples=100, deadline=None)
@given(inner=st.lists(st.integers(1, 5000), max_size=12), end=st.integers(1, 5000))
def test_a_chain_with_equal_ends_is_kept_by_geometric_and_shrunk_by_the_means_above(inner, end):
    widths = [end, *inner, end]
    for kind in FAN_KINDS:
        report = chain_report(widths, kind)
        means = [fan_average(m, n, kind) for m, n in pairwise(widths)]
        ratios = [d / mean for d, mean in zip(widths[:-1], means, strict=True)]
        assert report.forward == pytest.approx(math.prod(ratios), rel=1e-12)
    assert chain_report(widths, "geometric").forward == pytest.approx(1, rel=1e-12)
    for kind in ("arithmetic", "contraharmonic"):
        assert chain_report(widths, kind).forward <= 1 + 1e-12
        assert chain_report(widths, kind).backward <= 1 + 1e-12


@settings(max_examples=100, deadline=None)
@given(widths=st.lists(st.integers(1, 5000), min_size=2, max_size=12))
def test_over_any_chain_the_geometric_product_telescopes(widths):
    report = chain_report(widths, "geometric")
    assert report.forward == pytest.approx(math.sqrt(widths[0] / widths[-1]), rel=1e-12)
    assert report.backward == pytest.approx(math.sqrt(widths[-1] / widths[0]), rel=1e-12)


def test_on_the_scalar_head_geometric_makes_large_logits_and_arithmetic_does_not():
    assert gains(768, 1, "geometric")[0] == exact(math.sqrt(768))
    assert gains(768, 1, "arithmetic")[0] == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(
    ("m", "n", "kind", "mean", "deviation", "pair"),
    [
        (768, 3072, "arithmetic", 1920, 0.02282177322938192, 0.64),
        (768, 3072, "geometric", 1536, 0.02551551815399144, 1),
        (768, 3072, "quadratic", 2611.2, 0.01956950909641092, 0.34602076124567477),
        (512, 64, "arithmetic", 288, 0.05892556509887896, 0.3950617283950617),
        (512, 64, "geometric", 181.01933598375618, 0.07432544468767006, 1),
        (512, 64, "contraharmonic", 462.22222222222223, 0.04651302547095317, 0.15337278106508875),
    ],
)
def test_worked_numbers(m, n, kind, mean, deviation, pair):
    assert fan_average(m, n, kind) == exact(mean)
    assert fan_average(m, n, kind) ** -0.5 == exact(deviation)
    assert chain_report([m, n, m], kind).forward == exact(pair)
    assert chain_report([m, n, m], kind).backward == exact(pair)


def test_twelve_feed_forward_blocks_without_residuals_shrink_under_xavier():
    report = chain_report([768, 3072] * 12 + [768], "arithmetic")
    assert len(report.steps) == 24
    assert report.forward == exact(0.004722366482869645)


@pytest.mark.parametrize("kind", list(FAN_KINDS))
@pytest.mark.parametrize(("m", "n"), [(512, 2048), (2048, 512)])
def test_random_matrices_have_the_gains(kind, m, n):
    random = torch.Generator().manual_seed(0)
    weight = variance_scaling_(torch.empty(n, m), 1.0, kind, "normal", generator=random)
    f, g = gains(m, n, kind)
    x, slope = torch.randn(64, m, generator=random), torch.randn(64, n, generator=random)
    assert (x @ weight.T).square().mean().item() == pytest.approx(f, rel=0.05)
    assert (slope @ weight).square().mean().item() == pytest.approx(g, rel=0.05)


@pytest.mark.parametrize("kind", list(FAN_KINDS))
@pytest.mark.parametrize(("m", "n"), [(256, 1024), (1024, 256)])
def test_singular_values_fill_the_range(kind, m, n):
    random = torch.Generator().manual_seed(1)
    weight = variance_scaling_(torch.empty(n, m), 1.0, kind, "normal", generator=random)
    values = torch.linalg.svdvals(weight)
    low, high = singular_range(m, n, kind)
    assert values.min().item() == pytest.approx(low, rel=0.05)
    assert values.max().item() == pytest.approx(high, rel=0.05)


@pytest.mark.parametrize("r", [1, 4, 16])
def test_the_geometric_range_is_the_same_both_ways_and_centred_on_the_fourth_root(r):
    both = [singular_range(64, 64 * r, "geometric"), singular_range(64 * r, 64, "geometric")]
    low, high = both[0]
    assert both[1] == exact(both[0])
    assert low == pytest.approx(r**0.25 - r**-0.25, abs=1e-12)
    assert high == exact(r**0.25 + r**-0.25)


@pytest.mark.parametrize(("m", "n"), [(64, 256), (256, 64), (64, 64)])
def test_a_semi_orthogonal_matrix_has_all_its_singular_values_at_the_centre(m, n):
    weight = torch.empty(n, m, dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    variance_scaling_(weight, 1.0, "geometric", "orthogonal", generator=random)
    centre = torch.full((64,), (max(m, n) / min(m, n)) ** 0.25, dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.svdvals(weight), centre, rtol=1e-12, atol=0)
    assert weight.square().mean().item() == exact(1 / math.sqrt(m * n))


@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, -1), (3, 0.0), (float("nan"), 3), (math.inf, 3)])
def test_a_width_that_is_not_positive_is_refused_by_name(m, n):
    with pytest.raises(ValueError, match=r"^[mn] must be a positive number"):
        fan_average(m, n)


def test_an_unknown_mean_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"one of fan_in, .*contraharmonic, quadratic.*'rms'"):
        gains(3, 4, "rms")


def test_a_chain_of_one_width_is_refused():
    with pytest.raises(ValueError, match="two widths at least, got \\[5\\]"):
        chain_report([5])


@pytest.mark.parametrize(
    ("alias", "kind"),
    [
        ("quadratic", "contraharmonic"),
        ("fan_quad", "contraharmonic"),
        ("fan_avg", "arithmetic"),
        ("fan_geo", "geometric"),
    ],
)
def test_aliases_name_the_same_mean(alias, kind):
    assert fan_average(3, 5, alias) == fan_average(3, 5, kind)
    assert chain_report([3, 5], alias) == chain_report([3, 5], kind)
