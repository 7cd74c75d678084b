"""S12 in the lab: Adam's law under masks, and sixty samples."""

import math
import xml.etree.ElementTree as ET

import pytest
import torch

from kexue.lab import Verdict, s12_adam_law, s12_small_data


def exact(variance_of):
    """Moments that follow (1) exactly, with the given variance."""
    return {p: (s12_adam_law.drift(p), 1e-5, variance_of(p)) for p in s12_adam_law.SHARES}


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_drift_and_variance_of_adam_follow_the_formulas(p):
    drift, error, variance = s12_adam_law.steps_of_adam(p, 1, coordinates=1000, steps=1000)
    assert abs(drift - s12_adam_law.drift(p)) < 4 * error + 0.02 * s12_adam_law.drift(p)
    assert variance == pytest.approx(s12_adam_law.variance(p), rel=0.04)


def test_the_formulas_are_those_of_the_plain_optimizer_at_p_one():
    assert s12_adam_law.drift(1.0) == pytest.approx(0.1 / math.sqrt(1.01))
    assert s12_adam_law.variance(1.0) == pytest.approx(0.1 / 1.9 * (1 - 0.01 / 1.01))


def test_the_law_s_verdict_follows_the_numbers():
    falling = exact(lambda p: p * s12_adam_law.variance(1.0))
    assert s12_adam_law.verdict(falling) is Verdict.HOLDS
    assert s12_adam_law.verdict(exact(s12_adam_law.variance)) is Verdict.PARTLY
    linear = falling | {0.1: (0.1 * s12_adam_law.drift(1.0), 1e-5, 0.0)}
    assert s12_adam_law.verdict(linear) is Verdict.FAILS


@pytest.mark.parametrize("variance_of", [s12_adam_law.variance, lambda p: p])
def test_the_law_s_picture_is_well_formed(variance_of):
    finding = s12_adam_law.finding(exact(variance_of))
    assert ET.fromstring(finding.figure).tag.endswith("svg")
    assert finding.figure.count("<path") == 4
    assert set(finding.names_zh) <= set(finding.numbers)


@pytest.fixture(scope="module")
def digits():
    return s12_small_data.load()


@pytest.fixture(scope="module")
def model(digits):
    return s12_small_data.pretrained(digits, 0, samples=2000, epochs=2)


def test_pretraining_learns_the_first_five_digits(model, digits):
    known = digits.digits < 5
    with torch.no_grad():
        right = model(digits.pictures[known]).argmax(-1) == digits.digits[known]
    assert right.double().mean() > 0.9


def test_every_way_learns_and_the_same_seed_gives_the_same_numbers(model, digits):
    runs = [s12_small_data.accuracies(model, digits, seed, steps=60) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert set(runs[0]) == set(s12_small_data.WAYS)
    assert min(runs[0].values()) > 50  # five classes
    assert len(set(runs[0].values())) > 3  # the ways differ


def results(**gains):
    """Twenty runs whose ways differ from plain fine-tuning by the given points."""
    base = [90 + 0.1 * k for k in range(20)]
    noise = [0.1 * (-1) ** k for k in range(20)]
    return {
        way: [
            b + gains.get(way, 0) + n * (way != "vanilla") for b, n in zip(base, noise, strict=True)
        ]
        for way in s12_small_data.WAYS
    }


def test_the_verdict_on_small_data_follows_the_numbers():
    judge = s12_small_data.verdict
    assert judge(results(random=1, fixed=1)) is Verdict.HOLDS
    assert judge(results(random=1, fixed=1, rate=1)) is Verdict.PARTLY  # the rate alone does it
    assert judge(results(update=1)) is Verdict.PARTLY
    assert judge(results()) is Verdict.FAILS
    assert judge(results(random=-1, fixed=-2)) is Verdict.FAILS


def test_a_difference_is_taken_seed_by_seed():
    mean, error = s12_small_data.difference([1.0, 2.0, 4.0], [0.0, 2.0, 2.0])
    assert mean == pytest.approx(1.0)
    assert error == pytest.approx(1 / math.sqrt(3))


@pytest.mark.parametrize("gains", [{"random": 1, "fixed": 1}, {"fixed": -2}])
def test_the_picture_on_small_data_is_well_formed_and_the_comment_says_the_verdict(gains):
    finding = s12_small_data.finding(results(**gains))
    assert ET.fromstring(finding.figure).tag.endswith("svg")
    assert finding.figure.count("<circle") == 5
    beaten = finding.verdict is Verdict.HOLDS
    assert finding.comment_en.startswith("Both forms" if beaten else "No mask beats")
    assert ("cannot be told apart" in finding.comment_en) == ("random" not in gains)
    assert set(finding.names_zh) <= set(finding.numbers) | {"vanilla"}


def test_fixed_masks_leave_most_of_the_body_where_it_was(model, digits):
    rows = (digits.digits >= 5).nonzero()[:60, 0]
    child = s12_small_data.Network()
    child.layer.load_state_dict(model.layer.state_dict())
    batches = [torch.arange(16), torch.arange(16, 32)]
    x, y = digits.pictures[rows], digits.digits[rows] - 5
    s12_small_data.fine_tune(child, x, y, batches, "fixed", 0)
    body = zip(child.layer.parameters(), model.layer.parameters(), strict=True)
    moved = torch.cat([(a != b).flatten() for a, b in body])
    assert 0.1 < moved.double().mean() <= 0.2
