"""S18 in the lab: attention maps at other lengths, and time against length."""

from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from kexue.lab import Verdict, s18_length_transfer, s18_linear_time
from kexue.lab.s18_length_transfer import COUNTED, FROZEN, GAP, HIDDEN, LENGTHS, MAPS, REMEDIES
from kexue.lab.s18_linear_time import BLOCK, FLASH, GAU_RELU2, GAU_SOFTMAX


def pictures(finding):
    """The inline pictures, parsed."""
    return list(ElementTree.fromstring(f"<div>{finding.figure}</div>").iter("svg"))


def flat(level=1.0):
    return [level] * len(LENGTHS)


def test_every_word_is_written_four_times():
    for row in s18_length_transfer.texts(20, 100, np.random.default_rng(0)).tolist():
        words = "".join("|" if x == GAP else chr(97 + x) for x in row).strip("|").split("|")
        whole = [word for word in words if len(word) == 5]
        for start in range(0, len(whole) - 3, 4):
            assert len(set(whole[start : start + 4])) == 1


def test_only_letters_are_hidden_and_about_15_percent_of_them():
    random = np.random.default_rng(0)
    text = s18_length_transfer.texts(50, 200, random)
    shown, hidden = s18_length_transfer.hide(text, random)
    assert (shown[hidden] == HIDDEN).all()
    assert torch.equal(shown[~hidden], text[~hidden])
    assert not (hidden & (text == GAP)).any()
    assert hidden.sum().item() / (text != GAP).sum().item() == pytest.approx(0.15, abs=0.01)


def test_a_reader_learns_at_its_length_and_repeats_itself():
    readers = [s18_length_transfer.train("softmax_plus", 30, seed) for seed in (0, 0, 1)]
    rows = [s18_length_transfer.losses(reader, 0, letters=2048) for reader in readers]
    assert rows[0] == rows[1] != rows[2]
    fresh = s18_length_transfer.losses(s18_length_transfer.Reader("softmax_plus"), 0, letters=2048)
    assert rows[0][2] < fresh[2]


def test_freezing_n_changes_every_length_but_the_trained_one():
    reader = s18_length_transfer.train(COUNTED, 5, 0)
    counted = s18_length_transfer.losses(reader, 0, letters=2048)
    reader.freeze(128)
    frozen = s18_length_transfer.losses(reader, 0, letters=2048)
    assert [a == b for a, b in zip(counted, frozen, strict=True)] == [
        False,
        False,
        True,
        False,
        False,
    ]


def test_the_transfer_verdict_follows_the_losses():
    measured = {name: flat() for name in (*MAPS, FROZEN)}
    judge = s18_length_transfer.verdict
    assert judge(measured) is Verdict.FAILS
    assert judge(measured | {COUNTED: [2.0, 1.5, 1.0, 1.5, 2.0]}) is Verdict.HOLDS
    assert judge(measured | {COUNTED: [2.0, 1.5, 1.0, 1.0, 1.0]}) is Verdict.PARTLY
    everyone = {name: [2.0, 1.5, 1.0, 1.5, 2.0] for name in (*MAPS, FROZEN)}
    assert judge(everyone) is Verdict.FAILS
    better = everyone | {name: [1.1, 1.0, 1.0, 1.5, 2.0] for name in REMEDIES}
    assert judge(better) is Verdict.PARTLY


def test_the_transfer_finding_draws_all_maps():
    measured = {name: flat(1.0 + n) for n, name in enumerate((*MAPS, FROZEN))}
    finding = s18_length_transfer.finding(measured)
    assert len(pictures(finding)) == 2
    assert all(name in finding.figure for name in (*MAPS, FROZEN))
    assert set(finding.numbers) == set(measured)
    short = s18_length_transfer.measure(0, None, steps=1)
    assert set(short.numbers) == set(measured)


def times(flash, gau, block):
    """Seconds from the time at the longest length and the slope of each."""

    def row(last, slope):
        lengths = s18_linear_time.LENGTHS
        return [last * (n / lengths[-1]) ** slope for n in lengths]

    return {BLOCK: row(*block), GAU_SOFTMAX: row(*gau), GAU_RELU2: row(*gau), FLASH: row(*flash)}


def test_the_time_verdict_follows_slopes_and_ratios():
    measured = times((1.0, 1.0), (1.5, 2.0), (2.0, 2.0))
    assert s18_linear_time.slope(measured[FLASH]) == pytest.approx(1.0)
    assert s18_linear_time.slope(measured[BLOCK]) == pytest.approx(2.0)
    judge = s18_linear_time.verdict
    assert judge(measured) is Verdict.HOLDS
    assert judge(times((1.0, 1.0), (2.5, 2.0), (2.0, 2.0))) is Verdict.PARTLY
    assert judge(times((1.0, 1.5), (1.5, 2.0), (2.0, 2.0))) is Verdict.FAILS
    assert judge(times((100.0, 1.0), (1.5, 2.0), (2.0, 2.0))) is Verdict.FAILS


def test_what_is_timed_has_about_the_same_parameters():
    counts = {
        name: sum(p.numel() for p in layer.parameters())
        for name, layer in s18_linear_time.layers().items()
    }
    assert max(counts.values()) / min(counts.values()) < 1.15


def test_the_timing_runs_and_draws_one_picture(monkeypatch):
    monkeypatch.setattr(s18_linear_time, "LENGTHS", (32, 64, 128))
    finding = s18_linear_time.EXPERIMENT.measure(0, None, runs=1)
    assert len(pictures(finding)) == 1
    assert set(finding.numbers) == {BLOCK, GAU_SOFTMAX, GAU_RELU2, FLASH}
