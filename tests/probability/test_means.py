"""Power means: their order, their limits, scipy's values, and what they refuse."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kexue.probability.means import MEANS, power_mean, power_of

SCORES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8)
POWERS = (-math.inf, -5.0, -1.0, -1e-9, 0.0, 1e-9, 0.5, 1.0, 3.0, math.inf)


@given(SCORES)
def test_the_mean_does_not_decrease_in_its_power(scores):
    found = [float(power_mean(scores, p)) for p in POWERS]
    for low, high in pairwise(found):
        assert low <= high * (1 + 1e-9)
    assert found[0] == min(scores)
    assert found[-1] == max(scores)


def test_the_means_are_equal_only_when_all_scores_are():
    flat = [float(power_mean([7.3, 7.3, 7.3], p)) for p in MEANS]
    assert flat == pytest.approx([7.3] * 3, rel=1e-14)
    am, gm, hm = (float(power_mean([7.3, 7.3, 7.4], p)) for p in MEANS)
    assert hm < gm < am


@pytest.mark.parametrize("p", [-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
def test_values_are_those_of_scipy(p):
    x = np.random.default_rng(0).uniform(0.1, 100, (5, 9))
    w = np.random.default_rng(1).uniform(0, 1, 9)
    expected = stats.pmean(x, p, axis=1, weights=w)
    np.testing.assert_allclose(power_mean(x, p, w), expected, rtol=1e-13)


@given(SCORES, st.floats(1e-3, 1e3))
def test_every_mean_is_homogeneous(scores, c):
    for p in (-1.0, 0.0, 1.0, 2.5):
        scaled = power_mean(c * np.array(scores), p)
        assert scaled == pytest.approx(c * power_mean(scores, p), rel=1e-10)


def test_many_weights_at_once_are_the_same_as_one_after_the_other():
    random = np.random.default_rng(0)
    x, w = random.uniform(0, 9, (4, 6)), random.integers(0, 3, (10, 6)) + np.eye(10, 6)
    x[2, 3] = 0
    w[:5, 3] = 0
    for p in (-2.0, -1.0, 0.0, 1.0, 3.0, math.inf, -math.inf):
        together = power_mean(x, p, w)
        assert together.shape == (10, 4)
        for b in range(10):
            alone = [float(power_mean(row[w[b] > 0], p, w[b][w[b] > 0])) for row in x]
            np.testing.assert_allclose(together[b], alone, rtol=1e-13)


def test_a_zero_with_a_weight_makes_means_of_power_zero_and_below_zero():
    for p in (0.0, -1.0, -3.0):
        assert power_mean([0.0, 8.0], p) == 0
        assert power_mean([0.0, 8.0], p, [0, 1]) == pytest.approx(8, rel=1e-14)
    assert power_mean([0.0, 8.0], 1) == 4
    assert power_mean([0.0, 0.0], 2) == 0


def test_two_scores_have_the_harmonic_mean_gm_squared_over_am():
    am, gm, hm = (float(power_mean([37.0, 91.5], p)) for p in MEANS)
    assert hm == pytest.approx(gm**2 / am, rel=1e-14)


def test_extreme_scores_neither_overflow_nor_vanish():
    assert power_mean([1e300, 1e300], 3) == pytest.approx(1e300, rel=1e-12)
    assert power_mean([1e-300, 1e-300], -3) == pytest.approx(1e-300, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "p", "weights", "words"),
    [
        ([], 1, None, "at least one score"),
        ([1, math.nan], 1, None, "finite, got nan at index 1"),
        ([[1.0, 2.0], [3.0, -4.0]], 0, None, r"got -4.0 at index \(1, 1\)"),
        ([1, 2], 1, [1], r"shape \(2,\) or \(B, 2\), got \(1,\)"),
        ([1, 2], 1, [0, 0], "not all zero"),
        ([1, 2], 1, [-1, 2], ">= 0"),
        ([1, 2], "median", None, "arithmetic, geometric, harmonic"),
        ([1, 2], math.nan, None, "must be a number"),
    ],
)
def test_what_has_no_mean_is_refused(values, p, weights, words):
    with pytest.raises(ValueError, match=words):
        power_mean(values, p, weights)


def test_the_arithmetic_mean_takes_negative_scores():
    assert power_mean([-1.0, 3.0]) == 1
    assert power_of("geometric") == 0
