"""S36 in the lab: the shift, and WEISSI against L2 on wrong labels."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch.nn import functional as F

from kexue.lab import Verdict, s36_digits, s36_invariance
from kexue.lab.s36_digits import Run
from kexue.losses.weissi import weissi_penalty


def well_formed(svg):
    return ElementTree.fromstring(str(svg)).tag


def test_a_good_quarter_of_the_training_labels_is_wrong_and_no_test_label():
    x, y, test_x, test_y = s36_digits.load(0)
    assert (len(x), len(test_x)) == (1000, 797)
    from sklearn.datasets import load_digits

    _, digits = load_digits(return_X_y=True)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    right = torch.tensor(digits)[order]
    assert torch.equal(right[1000:], test_y)
    assert (right[:1000] != y).double().mean().item() == pytest.approx(0.27, abs=0.04)


def test_networks_side_by_side_have_the_penalty_of_one_alone(monkeypatch):
    """One step of 1,000 rows of plain SGD, done by hand."""
    monkeypatch.setattr(s36_digits, "BATCH", 1000)
    (found,) = s36_digits.train({"WEISSI 0.1": ("WEISSI", 0.1)}, [3], epochs=1)["WEISSI 0.1"]
    x, y, *_ = s36_digits.load(3)
    net = s36_digits.network(3)
    (F.cross_entropy(net(x), y) + weissi_penalty(net, 0.1)).backward()
    torch.optim.SGD(net.parameters(), lr=s36_digits.RATE).step()
    norms = [net[i].weight.norm().item() for i in (0, 2, 4)]
    assert found.norms == pytest.approx(norms, rel=1e-5)


def test_penalties_make_the_network_smaller():
    ways = {"none": ("none", 0.0), "L2": ("L2", 5e-3), "WEISSI": ("WEISSI", 0.1)}
    found = {way: runs[0] for way, runs in s36_digits.train(ways, [0], epochs=8).items()}
    assert found["L2"].product < found["none"].product
    assert found["WEISSI"].product < found["none"].product
    assert all(run.accuracy > 60 for run in found.values())


def runs(accuracy, product=100.0):
    return [Run(accuracy + shift, 2.0, product, (5.0, 4.0, 5.0)) for shift in (-0.1, 0.0, 0.1)]


@pytest.mark.parametrize(
    ("none", "l2", "weissi", "verdict"),
    [
        (88, 90, 92, Verdict.HOLDS),
        (88, 92, 90, Verdict.PARTLY),
        (91, 92, 90, Verdict.FAILS),
    ],
)
def test_the_digits_verdict_follows_the_numbers(none, l2, weissi, verdict):
    found = {
        "none": runs(none, 1000.0),
        "L2 0.001": runs(l2 - 1, 500.0),
        "L2 0.005": runs(l2),
        "WEISSI 0.1": runs(weissi),
        "WEISSI 0.2": runs(weissi - 1, 50.0),
    }
    assert s36_digits.best(found, "L2") == "L2 0.005"
    assert s36_digits.best(found, "WEISSI") == "WEISSI 0.1"
    finding = s36_digits.finding(found)
    assert finding.verdict is verdict
    assert well_formed(finding.figure) == "svg"
    assert finding.figure.count("<circle") == 5
    assert finding.numbers["norms, best L2"] == "5.0, 4.0, 5.0"
    assert set(finding.names_zh) <= set(finding.numbers)


def test_the_invariance_verdict_follows_the_numbers():
    judge = s36_invariance.judge
    assert judge(1e-14, 0.0, 7.7, [1.0, 1.001, 0.5]) is Verdict.HOLDS
    assert judge(1e-14, 0.0, 7.7, [1.0, 0.9, 0.5]) is Verdict.PARTLY
    assert judge(1e-14, 0.0, 7.7, [1.0, 1.0, 0.99]) is Verdict.PARTLY
    assert judge(0.1, 0.0, 7.7, [1.0, 1.0, 0.5]) is Verdict.FAILS
    assert judge(1e-14, 0.5, 7.7, [1.0, 1.0, 0.5]) is Verdict.FAILS


def test_the_invariance_experiment_says_what_it_measured(monkeypatch):
    monkeypatch.setattr(s36_invariance, "STEPS", 100)
    short = s36_invariance.gaps
    monkeypatch.setattr(s36_invariance, "gaps", lambda *a: short(*a, steps=100))
    finding = s36_invariance.EXPERIMENT.run()
    assert float(finding.numbers["largest change of the outputs"]) < 1e-12
    before, after = finding.numbers["sum of log norms"].split(" → ")
    assert before == after
    assert well_formed(finding.figure) == "svg"
    assert finding.figure.count("<path") == 3
    assert set(finding.names_zh) == set(finding.numbers)
