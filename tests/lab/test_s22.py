"""S22 in the lab: shares, the tiny language model, the cells of the plane, honest verdicts."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
import torch

from kexue.lab import s22_certificate as lab
from kexue.lab import s22_language_model as language_model
from kexue.lab.experiment import Verdict
from kexue.lab.s22_certificate import Claims
from kexue.lab.s22_pictures import cells, share_map, winning_cells

ALL = Claims(dimension=True, equal_lengths=True, whatever_width=True, rare=True)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(language_model, "WORDS", 200)
    monkeypatch.setattr(lab, "CLASSES", (20, 40))
    monkeypatch.setattr(lab, "SPREAD_CLASSES", 30)
    monkeypatch.setattr(lab, "LARGE", (400, 12, 0.5))


def area(corners) -> float:
    x, y = np.asarray(corners).T if len(corners) else (np.zeros(0), np.zeros(0))
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def test_gaussian_classes_crowd_the_plane_and_fit_into_many_dimensions():
    assert lab.share(80, 2, None, seed=1) > 75
    assert lab.share(80, 24, None, seed=1) == 0


def test_rows_of_equal_length_hide_no_class_in_any_dimension():
    for width in (2, 4, 16):
        rows = lab.rows_of(100, width, 0.0, seed=2)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(100).double())
        assert lab.share(100, width, 0.0, seed=2) == 0


def test_the_spread_is_that_of_the_logarithm_of_the_length():
    rows = lab.rows_of(4000, 8, 0.3, seed=0)
    assert float(rows.norm(dim=1).log().std()) == pytest.approx(0.3, abs=0.02)


def test_in_a_large_layer_only_the_shortest_rows_are_hidden(monkeypatch):
    monkeypatch.setattr(lab, "LARGE", (4000, 32, 0.3))
    low, others = lab.large(seed=0)
    assert low > 90
    assert others < 10


def test_the_share_of_pairs_is_counted_one_by_one():
    random = np.random.default_rng(0)
    values, hidden = random.integers(0, 9, 60), random.random(60) < 0.4
    pairs = [(a < b) + (a == b) / 2 for a in values[hidden] for b in values[~hidden]]
    assert lab.auc(values, hidden)[0] == pytest.approx(100 * np.mean(pairs))
    assert lab.auc(np.arange(2), np.array([False, False])) == (50.0, np.inf)


def test_the_language_follows_zipf_and_is_the_same_for_the_same_seed():
    text = language_model.language(3, length=40_000)
    assert torch.equal(text, language_model.language(3, length=40_000))
    count = torch.bincount(text, minlength=language_model.WORDS).double()
    assert float(count[:20].sum()) > 5 * float(count[1000:1020].sum())
    # what comes next depends on what came before: better than by chance
    same = (text[1:] == text[:-1]).double().mean()
    assert float(same) > 1.2 * float((count / count.sum()).square().sum())


def test_training_lowers_the_perplexity_and_leaves_the_global_generator_alone(monkeypatch):
    monkeypatch.setattr(language_model, "WORDS", 200)
    before = torch.random.get_rng_state()
    fresh, model = (language_model.trained(0, steps=steps) for steps in (0, 60))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.perplexity(model.weight, model.bias) < 0.8 * fresh.perplexity(
        fresh.weight, fresh.bias
    )
    assert model.weight.shape == (200, 8)
    assert model.features.shape == (9998, 8)
    # sampled words are as likely as the softmax says
    drawn = torch.bincount(model.sampled(0), minlength=200) / 9998
    p = torch.softmax(model.features @ model.weight.mT + model.bias, dim=1).mean(dim=0)
    assert float((drawn - p).abs().max()) < 0.01


def test_the_cells_of_the_square_are_the_argmax_and_fill_it():
    bias = np.array([0.0, 0.0, 0.0, 0.0, 0.5])
    for given, fifth in ((np.zeros(5), 0.0), (bias, 1.0)):
        found = winning_cells(lab.SQUARE, given, 2.0)
        assert sum(map(area, found)) == pytest.approx(16.0)
        assert area(found[4]) == pytest.approx(fifth)
        for k in range(4):
            middle = found[k].mean(axis=0)
            assert int((lab.SQUARE @ middle + given).argmax()) == k


def test_the_pictures_are_well_formed_and_show_every_number():
    shares = np.array([[0.0, 12.5], [99.0, 40.0]])
    labels = {"title": "t", "under": "u", "row_label": "r", "column_label": "c"}
    words = "".join(ET.fromstring(share_map(["a", "b"], ["x", "y"], shares, **labels)).itertext())
    for one in ("12.5", "99.0", "40.0", "a", "y"):
        assert one in words
    picture = cells(lab.SQUARE, [("none", np.zeros(5)), ("some", np.array([0, 0, 0, 0, 0.5]))])
    polygons = [one for one in ET.fromstring(picture).iter() if one.tag == "polygon"]
    assert len(polygons) == 1 + 4 + 5  # the hull, four cells, five cells


def test_each_claim_follows_its_numbers():
    size = np.array([[90.0, 20.0, 0.0], [95.0, 50.0, 0.5]])
    spread = np.array([[0, 0], [40, 0], [50, 1], [60, 2], [70, 4], [80, 8]], dtype=float)
    found = lab.claims(size, spread, (51.0, 1.3))
    assert found == Claims(True, True, False, False)
    assert lab.claims(size, spread, (70.0, 1.3)).rare
    assert not lab.claims(size, spread, (70.0, 30.0)).rare
    assert not lab.claims(size[:, ::-1], spread, (51.0, 1.3)).dimension
    lasting = spread.copy()
    lasting[3:, 1] = lasting[3:, 0]
    assert lab.claims(size, lasting, (51.0, 1.3)).whatever_width
    assert not lab.claims(size, spread + 1, (51.0, 1.3)).equal_lengths


def test_the_verdict_needs_all_claims_to_hold():
    assert lab.verdict(ALL) is Verdict.HOLDS
    for name in ("dimension", "equal_lengths", "whatever_width", "rare"):
        assert lab.verdict(replace(ALL, **{name: False})) is Verdict.PARTLY
    assert lab.verdict(Claims(False, False, True, False)) is Verdict.FAILS


def test_the_experiment_runs_and_names_every_number_twice(small):
    finding = lab.EXPERIMENT.run(seed=0)
    assert set(finding.names_zh) == set(finding.numbers)
    assert finding.numbers["equal lengths, any d"] == "0.0 %"
    assert len(ET.fromstring(f"<div>{finding.figure}</div>").findall("svg")) == 4
    assert finding.verdict in (Verdict.HOLDS, Verdict.PARTLY)
    assert lab.EXPERIMENT.run(seed=0).numbers == finding.numbers
