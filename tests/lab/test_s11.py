"""S11 in the lab: accuracy before and after."""

from xml.etree import ElementTree

import numpy as np
import pytest

from kexue.lab import Verdict, s11_prior
from kexue.lab.s11_prior import Run, deciles, run, verdict


def test_unsure_predictions_gain_and_trusted_ones_stay():
    found = run(60, 0)
    low = found.low
    assert 0 < low.sum() < len(low)
    assert (found.before[~low] == found.after[~low]).all()
    assert found.after[low].mean() > found.before[low].mean() + 0.05
    assert found.before[~low].mean() > found.before[low].mean()


def test_the_same_seed_gives_the_same_run():
    assert (run(30, 1).unsure == run(30, 1).unsure).all()


def test_the_verdict_follows_the_gains():
    assert verdict({30: [5.0, 4.0], 60: [1.0, 2.0]}) is Verdict.HOLDS
    assert verdict({30: [5.0, 4.0], 60: [9.0, -2.0]}) is Verdict.PARTLY
    assert verdict({30: [-5.0, -4.0], 60: [0.0, 0.0]}) is Verdict.FAILS


def test_tenths_are_ordered_by_uncertainty():
    one = Run(np.arange(20) < 10, np.ones(20, dtype=bool), np.linspace(0, 1, 20))
    assert deciles([one]) == ([100.0] * 5 + [0.0] * 5, [100.0] * 10)
    assert one.gain == pytest.approx(50)


def test_the_experiment_runs_and_draws_two_pictures(monkeypatch):
    monkeypatch.setattr(s11_prior, "SIZES", (30, 60))
    monkeypatch.setattr(s11_prior, "SEEDS", 2)
    finding = s11_prior.EXPERIMENT.run()
    assert finding.verdict is Verdict.HOLDS
    assert finding.figure.count("<svg") == 2
    ElementTree.fromstring(f"<div>{finding.figure}</div>")
    assert set(finding.names_zh) == set(finding.numbers)
