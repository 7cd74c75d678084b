"""S31 in the lab: sorting with gold and with one's own prefixes."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch

from kexue.lab import Verdict, s31_sorting


def test_the_pairs_are_sorted_and_shifted():
    source, inputs, labels = s31_sorting.pairs(50, torch.Generator().manual_seed(0))
    assert torch.equal(source[:, 1:].sort(1).values, labels[:, :-1])
    assert torch.equal(inputs[:, 1:], labels[:, :-1])
    assert (source[:, 0] == s31_sorting.CLS).all()
    assert (inputs[:, 0] == s31_sorting.SEP).all()
    assert (labels[:, -1] == s31_sorting.SEP).all()


def test_no_output_sees_its_own_or_later_targets_and_all_see_the_source():
    torch.manual_seed(0)
    model = s31_sorting.Sorter()
    source, inputs, _ = s31_sorting.pairs(4, torch.Generator().manual_seed(0))
    plain = model(source, inputs)
    for t in range(1, 9):
        changed = inputs.clone()
        changed[:, t:] = (changed[:, t:] + 1) % 20
        outputs = model(source, changed)
        torch.testing.assert_close(outputs[:, :t], plain[:, :t], rtol=0, atol=1e-6)
        assert (outputs[:, t] - plain[:, t]).abs().max() > 1e-3
    other = source.clone()
    other[:, -1] = (other[:, -1] + 1) % 20
    assert ((model(other, inputs) - plain).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("method", s31_sorting.METHODS)
def test_every_method_learns_and_repeats_itself(method):
    gap = s31_sorting.train(method, 0, steps=100)
    assert gap.count.tolist() == [500] * 9
    assert gap.teacher_forced > 0.25  # chance: 0.05 for a symbol
    again = s31_sorting.train(method, 0, steps=3)
    assert torch.equal(again.forced, s31_sorting.train(method, 0, steps=3).forced)


def test_the_verdict_follows_the_gaps():
    base = [0.010, 0.011, 0.012]

    def verdict(replacement, fgm):
        return s31_sorting.judge({"baseline": base, "replacement": replacement, "fgm": fgm})

    half, less, more = [0.004, 0.005, 0.006], [0.008, 0.009, 0.010], [0.012, 0.013, 0.014]
    assert verdict(half, less) is Verdict.HOLDS
    assert verdict(half, more) is Verdict.PARTLY
    assert verdict(less, less) is Verdict.PARTLY  # narrower, but not by half
    assert verdict(less, more) is Verdict.FAILS
    assert verdict([-0.02, 0.012, 0.010], more) is Verdict.FAILS  # halved by one seed only
    zero = [0.0, 0.0, 0.0]
    nothing = {"baseline": zero, "replacement": zero, "fgm": zero}
    assert s31_sorting.judge(nothing) is Verdict.FAILS
    assert s31_sorting.gain([1.0, 2.0], [2.0, 2.0]) == (0.5, pytest.approx(0.5))


def test_the_experiment_says_what_it_measured(monkeypatch):
    monkeypatch.setattr(s31_sorting, "STEPS", 10)
    monkeypatch.setattr(s31_sorting, "SEEDS", 2)
    finding = s31_sorting.EXPERIMENT.run(seed=1)
    assert ElementTree.fromstring(str(finding.figure)).tag == "svg"
    assert str(finding.figure).count("<path") == 3
    assert "2 seeds" in finding.comment_en
    assert set(finding.names_zh) == set(finding.numbers)
    assert "10 steps" in finding.comment_en
    assert len(finding.numbers) == 14
