"""S03 in the lab: where the pull on the positive is lost, and small batches on digits."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from kexue.lab import Verdict, s03_digits, s03_precision
from kexue.lab.s03_precision import TABLE
from naive.flat_nce import exact_gradient, naive_cross_entropy_gradient


def test_the_form_as_written_is_the_naive_one_and_the_truth_is_exact():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        found = s03_precision.errors(dtype, 8, 6.0, seed=3)
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(7, generator=generator, dtype=torch.float64)
        row = torch.cat((torch.tensor([20.0]), 14 + 0.5 * noise)).to(dtype)
        exact = exact_gradient(row, 0)
        assert found["log_xi"] == pytest.approx(math.log(-exact / (1 + exact)))
        naive = naive_cross_entropy_gradient(row, 0, dtype)[1][0].item()
        assert found["as written"] == pytest.approx(abs(naive / exact - 1))


def test_hard_anchors_lose_little_and_easy_ones_everything():
    hard, easy = (s03_precision.median_errors("fp32", 8, gap, draws=9) for gap in (1.0, 20.0))
    assert hard["as written"] < 1e-5
    assert easy["as written"] == easy["fused"] == 1
    assert easy["softplus"] < 1e-5
    assert hard["flat"] == easy["flat"] == 0


def test_the_precision_verdict_follows_the_numbers():
    published = {row: {"as written": row.published, "flat": 0.0} for row in TABLE}
    verdict = s03_precision.verdict
    assert verdict(published) is Verdict.HOLDS
    milder = published | {TABLE[2]: {"as written": 0.99, "flat": 0.0}}
    assert verdict(milder) is Verdict.PARTLY
    exact = published | {TABLE[0]: {"as written": 1e-7, "flat": 0.0}}
    assert verdict(exact) is Verdict.PARTLY
    lossy = published | {TABLE[0]: {"as written": 2.3e-3, "flat": 1e-7}}
    assert verdict(lossy) is Verdict.FAILS


def test_the_precision_experiment_draws_a_well_formed_picture(monkeypatch):
    monkeypatch.setattr(s03_precision, "SMOOTH", 1)
    finding = s03_precision.EXPERIMENT.run()
    ElementTree.fromstring(f"<page>{finding.figure}</page>")
    assert finding.verdict is s03_precision.verdict(
        {row: s03_precision.median_errors(*row[:3]) for row in TABLE}
    )
    assert set(finding.names_zh) == set(finding.numbers)


def test_seeds_side_by_side_are_reproducible_and_learn():
    trained = [s03_digits.scores_of("FlatNCE", 4, seeds=2, steps=120) for _ in range(2)]
    untrained = s03_digits.scores_of("FlatNCE", 4, seeds=2, steps=0)
    assert (trained[0] == trained[1]).all()
    assert trained[0].shape == (2, 2)
    assert trained[0].mean() > untrained.mean()


def test_a_view_is_near_its_image_and_two_views_differ():
    images = torch.zeros(3, 8, 8)
    images[:, 2:6, 2:6] = 1
    generator = torch.Generator().manual_seed(0)
    one, two = (s03_digits.views(images.flatten(1), generator) for _ in range(2))
    assert one.shape == (3, 64)
    assert not one.equal(two)
    similar = torch.nn.functional.cosine_similarity(one, images.flatten(1))
    assert (similar > 0.6).all()


def test_the_difference_is_that_of_pairs():
    flat, info = np.array([3.0, 5.0, 8.0]), np.array([2.0, 4.0, 5.0])
    mean, error = s03_digits.difference(flat, info)
    assert mean == pytest.approx(5 / 3)
    assert error == pytest.approx(np.std([1, 1, 3], ddof=1) / math.sqrt(3))


def test_the_digits_verdict_follows_the_numbers():
    verdict = s03_digits.verdict
    assert verdict((2.0, 0.5), (0.1, 0.3)) is Verdict.HOLDS
    assert verdict((2.0, 0.5), (0.9, 0.1)) is Verdict.HOLDS
    assert verdict((2.0, 0.5), (2.0, 0.5)) is Verdict.PARTLY
    assert verdict((0.9, 0.5), (0.1, 0.3)) is Verdict.FAILS
    assert verdict((-2.0, 0.5), (0.1, 0.3)) is Verdict.FAILS


def test_the_digits_experiment_runs_and_draws_a_well_formed_picture(monkeypatch):
    monkeypatch.setattr(s03_digits, "SEEDS", 2)
    monkeypatch.setattr(s03_digits, "STEPS", {4: 3, 32: 2})
    finding = s03_digits.EXPERIMENT.run()
    ElementTree.fromstring(f"<page>{finding.figure}</page>")
    gains = [
        s03_digits.difference(*(s03_digits.scores_of(n, b, seeds=2)[:, 0] for n in names))
        for b, names in ((4, ("FlatNCE", "InfoNCE")), (32, ("FlatNCE", "InfoNCE")))
    ]
    assert finding.verdict is s03_digits.verdict(*gains)
    assert set(finding.names_zh) == set(finding.numbers)
