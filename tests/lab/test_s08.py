"""S08 in the lab: rounds until the entropy is there."""

from xml.etree import ElementTree

import pytest
import torch

from kexue.lab import Verdict, s08_solver
from kexue.lab.s08_solver import arrived, article_arrived, bigram, draw, trace, verdict


def test_on_flat_rows_the_articles_rounds_arrive_soon_and_on_peaked_ones_some_never_do():
    flat, peaked = draw(1000, 1.0, 0, rows=100), draw(10, 0.1, 0, rows=200)
    assert article_arrived(*flat)[-1] > 95
    assert article_arrived(*peaked)[-1] < 85
    assert arrived(*flat)[-1] == arrived(*peaked)[-1] == 100


def test_turned_rows_do_not_count_as_arrived():
    p = torch.tensor([[0.999, 0.0005, 0.0005]], dtype=torch.float64)
    assert article_arrived(p, torch.tensor([0.693147180559], dtype=torch.float64)) == [0.0] * 12


def test_the_verdict_follows_the_shares():
    soon, late = [50.0, 90.0, 98.0, 99.5, 100.0], [10.0, 20.0, 30.0, 60.0, 70.0]
    assert verdict({"a": soon, "b": soon}, {"a": soon}) is Verdict.HOLDS
    assert verdict({"a": soon, "b": late}, {"a": late}) is Verdict.PARTLY
    assert verdict({"a": late}, {"a": soon}) is Verdict.PARTLY
    assert verdict({"a": late}, {"a": late}) is Verdict.FAILS


def test_the_traces_are_constant_or_not():
    table = bigram(0)
    assert table.sum(1).sub(1).abs().max() < 1e-12
    constant = trace(table, 20, 0, constant=True)
    assert constant == pytest.approx([4.0] * 20, abs=1e-4)
    nucleus = trace(table, 60, 0, constant=False)
    assert max(nucleus) > 2 * min(nucleus)


def test_the_experiment_runs_and_draws_two_pictures(monkeypatch):
    monkeypatch.setattr(s08_solver, "ROWS", 60)
    monkeypatch.setattr(s08_solver, "DRAWS", {"n = 10": (10, 0.1), "n = 100": (100, 1.0)})
    monkeypatch.setattr(s08_solver, "draw", lambda n, a, seed: draw(n, a, seed, rows=60))
    finding = s08_solver.EXPERIMENT.run()
    assert finding.verdict is Verdict.PARTLY
    assert finding.figure.count("<svg") == 2
    ElementTree.fromstring(f"<div>{finding.figure}</div>")
    assert set(finding.names_zh) == set(finding.numbers)
    assert float(finding.numbers["largest difference to t-SNE's affinities"]) < 1e-5
