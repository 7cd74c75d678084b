"""S25 in the lab: one pattern against the key size, and copying by pointer."""

import xml.etree.ElementTree as ET

import pytest
import torch

from kexue.lab import Verdict, s25_bottleneck, s25_permutation
from kexue.nn.head_rank import low_rank_attention, required_key_size


def is_well_formed(figure, pictures):
    root = ET.fromstring(f"<div>{figure}</div>")
    return len([one for one in root.iter() if one.tag.endswith("svg")]) == pictures


def test_random_attention_is_stochastic_and_follows_the_seed():
    P = s25_bottleneck.random_attention(16, seed=1)
    torch.testing.assert_close(P.sum(-1), torch.ones(16, dtype=P.dtype), rtol=0, atol=1e-14)
    assert torch.equal(P, s25_bottleneck.random_attention(16, seed=1))
    assert not torch.equal(P, s25_bottleneck.random_attention(16, seed=2))
    assert required_key_size(P) == 15


def test_divergence_by_hand():
    P = torch.tensor([[0.5, 0.5], [1.0, 0.25]], dtype=torch.float64)
    Q = torch.tensor([[0.25, 0.75], [1.0, 0.25]], dtype=torch.float64)
    wanted = (0.5 * torch.tensor([2.0, 2 / 3], dtype=torch.float64).log()).sum() / 2
    assert s25_bottleneck.divergence(P, Q) == pytest.approx(float(wanted))


def test_a_fit_beats_the_truncation_and_finds_a_pattern_of_its_size():
    P = s25_bottleneck.random_attention(12)
    for size in (2, 5, 9):
        bound = s25_bottleneck.divergence(P, low_rank_attention(P, size))
        assert 0 < s25_bottleneck.fitted(P, size, 100) < bound
    easy = low_rank_attention(P, 3)
    assert s25_bottleneck.fitted(easy, 3) < 1e-9


def test_the_verdict_on_the_bottleneck_follows_the_numbers():
    bounds = {2: 0.5, 4: 0.3, 7: 0.0, 8: 0.0}
    fits = {2: 0.4, 4: 0.1, 7: 1e-9, 8: 1e-9}
    judge = s25_bottleneck.judge
    assert judge(fits, bounds, 7)[0] is Verdict.HOLDS
    assert judge(fits | {4: 0.35}, bounds, 7)[0] is Verdict.PARTLY  # above the truncation
    assert judge(fits | {4: 0.0}, bounds, 7)[0] is Verdict.PARTLY  # zero before its time
    rising = judge({2: 0.1, 4: 0.4, 7: 0.2, 8: 0.2}, {2: 0.1, 4: 0.4, 7: 0.2, 8: 0.2}, 7)
    assert rising[0] is Verdict.FAILS


def test_the_bottleneck_experiment_runs(monkeypatch):
    monkeypatch.setattr(s25_bottleneck, "ROWS", 10)
    monkeypatch.setattr(s25_bottleneck, "SIZES", (2, 4, 9, 10))
    monkeypatch.setattr(s25_bottleneck, "random_attention", lambda seed: RANDOM(10, seed=seed))
    finding = s25_bottleneck.EXPERIMENT.run()
    assert finding.verdict is Verdict.HOLDS
    assert finding.numbers["required key size"] == 9
    assert set(finding.names_zh) == set(finding.numbers)
    assert is_well_formed(finding.figure, 2)


RANDOM = s25_bottleneck.random_attention


def test_pointers_are_permutations_and_answers_lie_where_they_point():
    symbols, pointers = s25_permutation._draw(5, torch.Generator().manual_seed(0))
    assert symbols.shape == pointers.shape == (5, 32)
    assert torch.equal(pointers.sort(1).values, torch.arange(32).expand(5, -1))
    assert not torch.equal(pointers[0], pointers[1])


def test_untrained_networks_guess_and_runs_repeat():
    runs = [s25_permutation.accuracy("talking", 4, steps=2, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0] < 20


@pytest.mark.parametrize("design", s25_permutation.DESIGNS)
def test_designs_have_the_sizes_they_say(design):
    layer = s25_permutation.DESIGNS[design](16)
    assert layer.key_size == (32 if design == "wide" else 4)
    assert layer.value_size == 4


def test_the_verdict_on_pointers_follows_the_numbers():
    good = {1: 99.0, 32: 98.0}
    table = {"plain": {1: 99.0, 32: 50.0}, "wide": good, "talking": good}
    judge = s25_permutation.judge
    assert judge(table) == (Verdict.HOLDS, [True, True, True])
    assert judge(table | {"talking": {1: 99.0, 32: 90.0}})[0] is Verdict.PARTLY
    assert judge(table | {"plain": good})[0] is Verdict.FAILS


def test_the_pointer_experiment_runs(monkeypatch):
    monkeypatch.setattr(s25_permutation, "HEADS", (1, 32))
    monkeypatch.setattr(s25_permutation, "accuracy", lambda design, heads, seed: 50.0 + heads)
    finding = s25_permutation.EXPERIMENT.run()
    assert finding.verdict is Verdict.FAILS
    assert set(finding.names_zh) == set(finding.numbers)
    assert is_well_formed(finding.figure, 1)
