"""S37 in the lab: losses on a long tail, and how hard they pull."""

from xml.etree import ElementTree

import pytest
import torch

from kexue.lab import Verdict, s37_gradients, s37_long_tail
from kexue.lab.s37_long_tail import COUNTS, LOSSES


def test_classes_shrink_from_100_to_3_and_test_images_are_others():
    x, y, x_test, y_test = s37_long_tail.long_tail(0)
    assert y.bincount().tolist() == COUNTS
    assert (COUNTS[0], COUNTS[-1]) == (100, 3)
    assert y_test.bincount().tolist() == [60] * 10
    train = {tuple(row) for row in x.tolist()}
    assert not any(tuple(row) in train for row in x_test.tolist())


def test_networks_side_by_side_are_trained_as_if_alone():
    loss = LOSSES["adjusted, τ = 1"]
    together = s37_long_tail.recalls(loss, [0, 1], steps=10)["as trained"]
    alone = s37_long_tail.recalls(loss, [1], steps=10)["as trained"]
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=2.0)  # one image of 60 is 1.7
    assert not torch.equal(together[0], together[1])


def test_training_learns_and_the_prior_afterwards_helps_the_rare_classes():
    found = s37_long_tail.recalls(LOSSES["cross-entropy"], [0, 1], steps=100)
    assert found["as trained"][:, :3].mean() > 90
    assert found["after"][:, -3:].mean() > found["as trained"][:, -3:].mean()


def test_a_clear_difference_is_twice_its_standard_error_over_the_same_seeds():
    other = torch.tensor([80.0, 90.0, 70.0, 85.0])
    assert s37_long_tail.clearly_above(other + torch.tensor([1.0, 1.2, 0.8, 1.0]), other)
    assert not s37_long_tail.clearly_above(other + torch.tensor([1.0, -3.0, 3.0, 0.0]), other)
    assert not s37_long_tail.clearly_above(other - 1, other)


def balanced(adjusted, accuracy):
    noise = torch.tensor([0.0, 0.1, -0.1, 0.05])
    means = {
        "cross-entropy": 85.0,
        "weights 1/n": 88.0,
        "class-balanced 0.99": 88.0,
        "adjusted, τ = 1": adjusted,
        "accuracy, −p": accuracy,
    }
    return {name: mean + noise.roll(k) for k, (name, mean) in enumerate(means.items())}


def test_the_long_tail_verdict_follows_the_numbers():
    verdict = s37_long_tail.verdict
    assert verdict(balanced(90.0, 50.0)) is Verdict.HOLDS
    assert verdict(balanced(88.0, 50.0)) is Verdict.PARTLY
    assert verdict(balanced(90.0, 85.0)) is Verdict.PARTLY
    assert verdict(balanced(87.0, 86.0)) is Verdict.FAILS


def test_the_long_tail_experiment_runs_and_draws_well_formed_pictures(monkeypatch):
    monkeypatch.setattr(s37_long_tail, "SEEDS", 2)
    monkeypatch.setattr(s37_long_tail, "STEPS", 5)
    finding = s37_long_tail.EXPERIMENT.run()
    assert len(finding.numbers) == len(LOSSES) + 1
    assert finding.figure.count("<svg") == 2
    ElementTree.fromstring(f"<page>{finding.figure}</page>")
    assert s37_long_tail.EXPERIMENT.run().numbers == finding.numbers


@pytest.mark.parametrize("m", [-5.0, -1.0, 0.5, 3.0])
def test_the_pull_of_accuracy_is_that_of_cross_entropy_times_p(m):
    at = torch.tensor([m], dtype=torch.float64)
    plain, accuracy = (s37_gradients.pull(name, at) for name in ("cross-entropy", "accuracy, −p"))
    torch.testing.assert_close(plain, 1 - at.sigmoid(), rtol=1e-12, atol=0)
    torch.testing.assert_close(accuracy, at.sigmoid() * plain, rtol=1e-12, atol=0)


def test_the_gradients_verdict_follows_the_pulls():
    names = list(s37_gradients.LOSSES)
    pulls = [(0.005, 0.1), (0.99, 0.12), (1.0, 0.01), (1.0, 0.01), (1.0, 0.0)]
    good = dict(zip(names, pulls, strict=True))
    verdict = s37_gradients.verdict
    assert verdict(good) is Verdict.HOLDS
    assert verdict(good | {"accuracy, −p": (0.5, 0.1)}) is Verdict.PARTLY
    assert verdict(good | {"focal, γ = 2": (1.0, 0.1)}) is Verdict.PARTLY
    weak = {"accuracy, −p": (0.5, 0.1), "focal, γ = 2": (1.0, 0.1)}
    assert verdict(good | weak) is Verdict.FAILS


def test_the_gradients_experiment_holds_and_draws_well_formed_pictures():
    finding = s37_gradients.EXPERIMENT.run()
    assert finding.verdict is Verdict.HOLDS
    assert finding.figure.count("<svg") == 2
    ElementTree.fromstring(f"<page>{finding.figure}</page>")
    assert s37_gradients.share_of_positives("cross-entropy") == pytest.approx(13.4, abs=0.05)
