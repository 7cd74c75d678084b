"""S07 in the lab: entropy and the weight of a planted key against the number of keys."""

import math
from xml.etree import ElementTree

import pytest

from kexue.lab import Verdict
from kexue.lab.s07_entropy import EXPERIMENT, drift, planted, sphere, verdict


def test_the_planted_key_has_the_expected_weights_and_entropies():
    expected = {
        "plain": ([0.27, 1.79, 6.04], [0.97, 0.78, 0.31]),
        "log n": ([1.66, 1.79, 1.88], [0.73, 0.78, 0.81]),
    }
    for scale, (entropies, weights) in expected.items():
        found = planted([64, 512, 4096], scale, draws=64, seed=1)
        assert found[0] == pytest.approx(entropies, abs=0.12)
        assert found[1] == pytest.approx(weights, abs=0.03)


def test_on_the_sphere_the_usual_scale_stays_a_constant_below_log_n():
    counts = [64, 1024, 4096]
    gaps = [h - math.log(n) for h, n in zip(sphere(counts, "plain", draws=12), counts, strict=True)]
    assert gaps == pytest.approx([-0.49] * 3, abs=0.05)


def test_the_scale_that_the_derivation_asks_for_is_steady_on_the_sphere_and_log_512_is_not():
    counts = [64, 1024, 8192]
    steady = sphere(counts, "sphere", draws=24)
    assert all(2.3 < entropy < 3.4 for entropy in steady)
    assert drift(sphere(counts, "log n", draws=6)) > 3


def test_the_same_seed_gives_the_same_numbers():
    found = [sphere([64], "log n", draws=4, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_the_verdict_follows_the_numbers():
    entropies = {"planted": [1.7, 1.8, 2.0], "sphere": [3.9, 6.0, 8.5]}
    weights = {"plain": [0.97, 0.3, 0.05], "log n": [0.73, 0.78, 0.82]}
    assert verdict(entropies, weights) is Verdict.PARTLY
    assert verdict(entropies | {"sphere": [2.6, 2.8, 2.9]}, weights) is Verdict.HOLDS
    assert verdict(entropies, weights | {"log n": [0.9, 0.5, 0.2]}) is Verdict.FAILS
    assert verdict(entropies | {"planted": [1.0, 2.0, 3.0]}, weights) is Verdict.FAILS
    assert verdict(entropies, weights | {"plain": [0.9, 0.9, 0.9]}) is Verdict.FAILS


def test_the_experiment_runs_and_draws_three_pictures():
    finding = EXPERIMENT.run()
    assert finding.verdict is Verdict.PARTLY
    assert finding.figure.count("<svg") == 3
    ElementTree.fromstring(f"<div>{finding.figure}</div>")
    assert set(finding.names_zh) == set(finding.numbers)
    assert "nan" not in finding.figure
