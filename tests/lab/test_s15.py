"""S15 in the lab: both sides of the inequality, and both penalties in training."""

import xml.etree.ElementTree as ET

import pytest
import torch

from kexue.lab import Verdict, s15_inequality, s15_training
from kexue.lab.s15_training import Result


def assert_pictures(figure, count):
    tree = ET.fromstring(f"<div>{figure}</div>")
    assert len(tree.findall("svg")) == count


@pytest.mark.parametrize("depth", [1, 3])
def test_every_draw_obeys_the_inequality_and_the_order_of_the_forms(depth):
    for seed in range(3):
        found = s15_inequality.draw(depth, seed, width=16)
        (fro, right), (spectral, _), (tight, same) = found.values()
        assert 0 < fro < spectral <= tight * (1 + 1e-9) <= right * (1 + 1e-6)
        assert right == same
    assert found == s15_inequality.draw(depth, 2, width=16)


def test_the_verdict_on_the_inequality_follows_the_ratios():
    def means(spectral):
        return {(2, "spectral"): spectral, (2, "fro"): 1e-4, (2, "tight"): 0.3}

    assert s15_inequality.verdict(means(0.2), 0.5) is Verdict.HOLDS
    assert s15_inequality.verdict(means(0.05), 0.5) is Verdict.PARTLY
    assert s15_inequality.verdict(means(0.2), 1.1) is Verdict.FAILS


def test_the_finding_on_the_inequality_is_whole(monkeypatch):
    monkeypatch.setattr(s15_inequality, "DRAWS", 3)
    monkeypatch.setattr(s15_inequality, "DEPTHS", (1, 2))
    finding = s15_inequality.EXPERIMENT.run()
    assert len(finding.numbers) == 7
    assert set(finding.numbers) == set(finding.names_zh)
    assert float(finding.numbers["largest ratio"]) <= 1
    assert finding.figure.count("<circle") == 18
    assert_pictures(finding.figure, 1)


def test_a_broken_inequality_would_be_said():
    sides = {(2, norm): (torch.tensor([2.0]), torch.tensor([1.0])) for norm in s15_inequality.NORMS}
    finding = s15_inequality._finding(sides)
    assert finding.verdict is Verdict.FAILS
    assert "is broken" in finding.comment_en


@pytest.mark.parametrize("batch", [1, 16, 1000])
def test_training_reaches_its_levels_and_repeats_itself(batch):
    rate = {1: 0.02, 16: 0.3, 1000: 0.5}[batch]
    first, again = (s15_training.train(batch, rate, 0, levels=(1.8, 1.4)) for _ in range(2))
    assert first == again
    assert len(first) == 2
    assert all(one.by_parameters > one.by_input > 0 for one in first)
    assert first[1].accuracy > 40


def runs(ratio=20.0, inputs=0.4):
    return [[Result(inputs, inputs * ratio, 95.0)] * 3] * 2


def test_the_verdict_on_training_follows_drift_and_rates():
    def found(ratio, slow, fast):
        return {(16, 0.1): runs(20.0, slow), (16, 0.3): runs(ratio, fast)}

    assert s15_training.verdict(found(30.0, 0.5, 0.4)) == (Verdict.HOLDS, 1.5, 1)
    assert s15_training.verdict(found(30.0, 0.4, 0.5))[0] is Verdict.PARTLY
    assert s15_training.verdict(found(60.0, 0.5, 0.4))[0] is Verdict.PARTLY
    assert s15_training.verdict(found(60.0, 0.4, 0.5))[0] is Verdict.FAILS


def test_the_finding_on_training_is_whole(monkeypatch):
    monkeypatch.setattr(s15_training, "train", lambda batch, rate, seed: runs(20.0 + seed)[0])
    finding = s15_training.EXPERIMENT.run()
    assert set(finding.numbers) == set(finding.names_zh)
    assert finding.numbers["batch sizes where the larger rate is smoother"] == "0 / 3"
    assert finding.verdict is Verdict.PARTLY
    assert_pictures(finding.figure, 1)
