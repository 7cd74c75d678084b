"""S07 in the lab: entropy and the weight of a planted key against the number of keys."""

import math
from xml.etree import ElementTree

import pytest
import torch

from kexue.lab import Verdict
from kexue.lab import s07_lookup as lookup
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


# --- looking up a key


def test_the_verdict_about_looking_up_follows_the_curves():
    plain, better = [99.0, 99.0, 98.0, 95.0, 90.0, 80.0], [99.0, 99.0, 98.5, 96.0, 93.0, 85.0]
    worse_once = [*better[:2], 97.0, *better[3:]]
    assert lookup.verdict([plain] * 2, [better] * 2) is Verdict.HOLDS
    assert lookup.verdict([plain] * 2, [worse_once] * 2) is Verdict.PARTLY
    assert lookup.verdict([plain] * 3, [better, better, plain]) is Verdict.PARTLY
    assert lookup.verdict([plain] * 2, [plain] * 2) is Verdict.FAILS
    unlearnt = [50.0] * 6
    assert lookup.verdict([plain, unlearnt], [better, better]) is Verdict.FAILS


def test_every_query_is_the_noisy_direction_of_one_pair():
    tokens, values = lookup.draw(3, 32, torch.Generator().manual_seed(0))
    queries, pairs = tokens[:, :16], tokens[:, 16:]
    assert (queries[..., -1] == 1).all()
    assert (pairs[..., -1] == 0).all()
    assert queries[..., lookup.DIRECTION : -1].abs().max() == 0
    distances = torch.cdist(queries[..., : lookup.DIRECTION], pairs[..., : lookup.DIRECTION])
    found = pairs[..., lookup.DIRECTION : -1].argmax(-1).gather(1, distances.argmin(-1))
    assert (found == values).double().mean() > 0.97
    assert lookup.nearest(64, seed=0) > 97


def test_at_the_trained_length_both_scales_are_the_same():
    model = lookup.train(seed=0, steps=2)
    first = lookup.accuracy(model, lookup.TRAINED, seed=0)
    model.scale_by(None)
    assert first == lookup.accuracy(model, lookup.TRAINED, seed=0)
    again = lookup.train(seed=0, steps=2)
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_finding_about_looking_up_is_whole(monkeypatch):
    monkeypatch.setattr(lookup, "train", lambda seed: lookup.Lookup().eval())
    monkeypatch.setattr(lookup, "TESTED", (16, 64, 128))
    found = lookup.EXPERIMENT.run()
    assert found.verdict is Verdict.FAILS  # nothing was learnt
    assert set(found.names_zh) == set(found.numbers)
    (svg,) = ElementTree.fromstring(f"<div>{found.figure}</div>")
    assert sum(one.tag == "path" for one in svg.iter()) == 3
