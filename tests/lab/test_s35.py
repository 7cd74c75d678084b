"""S35 in the lab: levels on noisy labels, and what a step down and a step up amount to."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch

from kexue.lab import Verdict, s35_gradient_norm, s35_levels
from kexue.lab.s35_levels import Run


def well_formed(svg):
    return ElementTree.fromstring(f"<p>{svg}</p>")[0].tag


def test_a_tenth_of_the_labels_is_flipped_and_the_classes_are_a_unit_apart():
    x, y, true = s35_levels.draw(20_000, torch.Generator().manual_seed(0))
    assert (y != true).double().mean().item() == pytest.approx(0.1, abs=0.01)
    gap = x[true == 1].mean(0) - x[true == 0].mean(0)
    torch.testing.assert_close(gap, torch.ones(10), rtol=0, atol=0.06)


def test_networks_trained_side_by_side_are_those_trained_alone():
    ways = {"none": ("batch", 0.0), "iFlood": ("sample", 0.4), "b": ("batch", 0.5)}
    together = s35_levels.train(ways, [0, 1], epochs=5)
    for way, setting in ways.items():
        alone = s35_levels.train({way: setting}, [1], epochs=5)[way][0]
        assert together[way][1].test == pytest.approx(alone.test, abs=1e-4)
        assert together[way][1].train == pytest.approx(alone.train, abs=1e-4)


def test_the_training_loss_stays_at_its_level():
    runs = s35_levels.train({"b = 0.3": ("batch", 0.3), "none": ("batch", 0.0)}, [0], epochs=40)
    assert runs["b = 0.3"][0].train == pytest.approx(0.3, abs=0.05)
    assert runs["none"][0].train < 0.1


def runs(loss, accuracy):
    return [Run([0.4, loss + shift], 0.1, accuracy + shift) for shift in (-0.01, 0.0, 0.01)]


def test_the_levels_verdict_follows_the_numbers():
    none, good, worse = runs(0.8, 84), runs(0.4, 85), runs(0.9, 84)
    judge = s35_levels.judge
    assert (
        judge({"none": none, "b = 0.05": good, "b = 0.1": good, "b = 0.2": good}) is Verdict.HOLDS
    )
    assert judge({"none": none, "b = 0.05": worse, "b = 0.1": good, "b = 0.2": good}) is (
        Verdict.PARTLY
    )
    costly = runs(0.4, 80)
    assert judge({"none": none, "b = 0.05": good, "b = 0.1": costly, "b = 0.2": good}) is (
        Verdict.PARTLY
    )
    assert judge({"none": none, "b = 0.05": worse, "b = 0.1": none, "b = 0.2": worse}) is (
        Verdict.FAILS
    )


@pytest.mark.parametrize(("flooded", "words"), [(0.5, "repairs training"), (0.3, "ends lower")])
def test_the_levels_experiment_says_what_it_measured(flooded, words):
    found = {way: runs(0.8 if way == "none" else flooded, 84) for way in s35_levels.WAYS}
    finding = s35_levels.finding(found)
    assert well_formed(finding.figure) == "svg"
    assert finding.figure.count("<path") == 5
    assert words in finding.comment_en
    assert finding.numbers["none"] == "0.100 → 0.800 ± 0.006; 84.0 ± 0.0 %"
    assert finding.numbers["best epoch of none"] == "0.400 (epoch 5)"
    assert set(finding.names_zh) <= set(finding.numbers)


def test_the_gradient_norm_verdict_follows_the_numbers():
    judge = s35_gradient_norm.judge
    assert judge(3.02, 0.95) is Verdict.HOLDS
    assert judge(3.02, 0.5) is Verdict.PARTLY
    assert judge(2.0, 1.0) is Verdict.FAILS


def test_the_order_is_the_exponent():
    assert s35_gradient_norm.order([0.1, 0.2, 0.4], [0.01, 0.04, 0.16]) == pytest.approx(2)


def test_the_gradient_norm_experiment_measures_the_same_again():
    finding = s35_gradient_norm.EXPERIMENT.run(seed=1)
    assert finding.verdict is Verdict.HOLDS
    assert well_formed(finding.figure) == "svg"
    assert set(finding.names_zh) == set(finding.numbers)
    assert finding.numbers == s35_gradient_norm.EXPERIMENT.run(seed=1).numbers
