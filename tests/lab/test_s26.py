"""S26 in the lab: a metric minimised by sampling, and the density in many dimensions."""

import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from kexue.lab import Verdict, s26_density, s26_metric
from kexue.optim.guided_search.candidates import Candidate, Neighbourhood
from kexue.optim.guided_search.sampling_view import effective_sample_size, mgs_weights


def well_formed(svg):
    return ElementTree.fromstring(str(svg)).tag


def test_a_missed_case_costs_five_and_a_false_alarm_one():
    scores, malignant = torch.tensor([1.0, -1, 1, -1]), torch.tensor([1.0, 1, 0, 0])
    assert s26_metric.cost(scores, malignant).item() == (5 + 1) / 4


def test_the_splits_share_no_case_and_are_standardised_on_the_training_part():
    x, y, test_x, test_y = s26_metric.split(1)
    assert (len(x), len(test_x)) == (380, 189)
    assert y.sum() + test_y.sum() == 212  # malignant cases in all
    torch.testing.assert_close(x.mean(0), torch.zeros(30).double(), rtol=0, atol=1e-10)
    assert not (x[:, None, :] == test_x[None]).all(2).any()


def test_sampling_lowers_the_cost_and_all_methods_start_alike():
    found = s26_metric.curves(0, steps=150)
    starts = {curve[0] for curve, _ in found.values()}
    assert len(starts) == 1
    assert found["mgs"][0][-1] < starts.pop()
    assert found["mgs"][0][-1] < found["likelihood"][0][-1]
    assert all(len(curve) == 151 and 0 <= test <= 5 for curve, test in found.values())
    assert s26_metric.curves(0, steps=3) == s26_metric.curves(0, steps=3)


def test_the_metric_verdict_follows_the_numbers():
    start, likelihood = [0.08, 0.07, 0.09], [0.07, 0.06, 0.08]
    clear, unclear, worse = [0.05, 0.045, 0.06], [0.03, 0.07, 0.08], [0.075, 0.06, 0.08]
    assert s26_metric.judge(start, likelihood, clear) is Verdict.HOLDS
    assert s26_metric.judge(start, likelihood, unclear) is Verdict.PARTLY
    assert s26_metric.judge(start, likelihood, worse) is Verdict.FAILS
    assert s26_metric.judge([0.01] * 3, likelihood, clear) is Verdict.FAILS
    assert s26_metric.gain([3.0, 1.0], [1.0, 1.0]) == (1.0, pytest.approx(1.0))


def test_the_metric_experiment_says_what_it_measured(monkeypatch):
    monkeypatch.setattr(s26_metric, "STEPS", 20)
    monkeypatch.setattr(s26_metric, "SEEDS", 2)
    short = s26_metric.curves
    monkeypatch.setattr(s26_metric, "curves", lambda seed: short(seed, steps=20))
    finding = s26_metric.EXPERIMENT.run(seed=1)
    assert well_formed(finding.figure) == "svg"
    assert finding.figure.count("<path") == 3
    assert "2 splits" in finding.comment_en
    assert set(finding.names_zh) == set(finding.numbers)


@pytest.mark.parametrize("higher", [True, False])
def test_the_remark_on_over_fitting_follows_the_test_cost(higher):
    tests = {"likelihood": 0.08, "zero": 0.1, "mgs": 0.1 if higher else 0.06}
    english, chinese = s26_metric._comment(tests)
    assert ("is over-fitted" in english) == higher
    assert ("过拟合了" in chinese) == higher


@pytest.mark.parametrize("d", [2, 10, 100])
def test_two_numbers_stand_for_all_coordinates(d):
    """The same effective sample sizes from full vectors, through the code of the method."""
    step, rounds = torch.zeros(d, dtype=torch.float64), 150
    step[0] = 1.0
    around = Neighbourhood([torch.zeros_like(step)], [step], [s26_density.SIGMA])
    expected = s26_density.effective(d)
    for density in s26_density.DENSITIES:
        sizes = []
        for r in range(rounds):
            drawn = [Candidate(1000 * d + 16 * r + k, 1.0, k % 2 == 1) for k in range(16)]
            log_q = around.log_density(density, drawn, 0.5)
            weights = mgs_weights(torch.zeros(16).double(), log_q)
            sizes.append(effective_sample_size(weights))
        sizes = torch.stack(sizes)
        error = sizes.std().item() / math.sqrt(rounds)
        assert sizes.mean().item() == pytest.approx(expected[density], abs=5 * error + 0.01)


def test_the_effective_sizes_are_the_expected_ones():
    for index, d in enumerate(s26_density.DIMENSIONS):
        found = s26_density.effective(d, seed=3)
        for name, row in s26_density.EXPECTED.items():
            assert found[name] == pytest.approx(row[index], abs=0.1)


def test_the_density_verdict_follows_the_numbers():
    falls, stays = [6.0, 3.0, 1.2], [16.0, 16.0, 11.0]
    judge = s26_density.judge
    assert judge({"exact": falls, "unit": stays, "mixture": stays}) is Verdict.HOLDS
    assert judge({"exact": falls, "unit": falls, "mixture": stays}) is Verdict.PARTLY
    assert judge({"exact": stays, "unit": stays, "mixture": stays}) is Verdict.FAILS


def test_the_density_experiment_says_what_it_measured():
    finding = s26_density.EXPERIMENT.run()
    assert finding.verdict is Verdict.HOLDS
    assert well_formed(finding.figure) == "svg"
    assert float(finding.numbers["largest difference to the expected"]) < 0.1
    assert finding.numbers == s26_density.EXPERIMENT.run().numbers
