"""S05 in the lab: chains under three means, and a classifier that does not care."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch

from kexue.lab import Verdict, s05_means
from kexue.lab.s05_means import MEANS, chain, errors, finding, largest_gap, train, verdict
from kexue.nn.fan_average import chain_report


@pytest.mark.parametrize("kind", MEANS)
def test_a_chain_follows_its_gains_in_both_directions(kind):
    forwards, backwards = chain(kind, 0, pairs=3, draws=24, widths=(128, 512))
    assert forwards.shape == backwards.shape == (24, 7)
    assert (forwards[:, 0] == 1).all()
    widths = [128, 512] * 3 + [128]
    report = chain_report(widths, kind)
    assert forwards[:, -1].mean().item() == pytest.approx(report.forward, rel=0.12)
    assert backwards[:, -1].mean().item() == pytest.approx(report.backward, rel=0.12)
    first = chain_report(widths[:2], kind)
    assert forwards[:, 1].mean().item() == pytest.approx(first.forward, rel=0.05)


def test_the_same_seed_gives_the_same_chain():
    one, two, other = (chain("geometric", seed, pairs=1, draws=2)[0] for seed in (4, 4, 5))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_misses_are_counted_in_standard_errors():
    ends = torch.ones(4, 2, dtype=torch.float64)
    ends[:, 1] += torch.tensor([0.2, -0.2, 0.1, -0.1])
    error = ends[:, 1].std().item() / 2
    both = errors({"geometric": (ends, ends + 3 * error)}, [4, 4])["geometric"]
    assert both == pytest.approx((0, 3), abs=1e-9)


def test_the_largest_difference_is_taken_seed_by_seed():
    accuracies = {
        "a": torch.tensor([90.0, 92.0]),
        "b": torch.tensor([91.0, 93.5]),
        "c": torch.tensor([90.5, 92.5]),
    }
    gap, error = largest_gap(accuracies)
    assert gap == pytest.approx(1.25)
    assert error == pytest.approx(0.25)


def test_the_verdict_follows_the_numbers():
    good, bad = {"a": (0.5, 2.9)}, {"a": (0.5, 3.1)}
    assert verdict(good, 0.1, 0.1)[0] is Verdict.HOLDS
    assert verdict(good, 1.0, 0.1)[0] is Verdict.PARTLY
    assert verdict(bad, 0.1, 0.1)[0] is Verdict.FAILS


def test_classifiers_side_by_side_learn_and_are_reproducible():
    found = train(("geometric", "arithmetic"), range(2), epochs=2)
    again = train(("arithmetic",), range(2), epochs=2)
    assert set(found) == {"geometric", "arithmetic"}
    assert all(accuracy.min() > 70 for accuracy in found.values())
    torch.testing.assert_close(found["arithmetic"], again["arithmetic"], rtol=0, atol=0.7)


def test_the_finding_says_what_was_measured():
    found = {kind: chain(kind, i, pairs=2, draws=12) for i, kind in enumerate(MEANS)}
    same = {kind: torch.tensor([97.0, 97.5, 98.0 + 0.01 * i]) for i, kind in enumerate(MEANS)}
    said = finding(found, same)
    assert said.verdict is Verdict.HOLDS
    assert said.numbers["geometric: test accuracy"].startswith("97.50 ± 0.29")
    assert "4 linear matrices" in said.comment_en
    assert set(said.names_zh) == set(said.numbers)
    figure = ElementTree.fromstring(f"<div>{said.figure}</div>")
    assert len(figure) == 4
    apart = same | {"geometric": same["geometric"] - torch.tensor([2.0, 2.1, 1.9])}
    assert finding(found, apart).verdict is Verdict.PARTLY


def test_the_experiment_belongs_to_its_system():
    assert (s05_means.EXPERIMENT.id, s05_means.EXPERIMENT.system) == ("S05-means", "S05")
