"""S30 in the lab: random features, codes and soft codes against exact attention."""

import re
from xml.etree import ElementTree

import pytest
import torch

from kexue.lab import Verdict, s30_soft_vq
from kexue.lab.s30_soft_vq import SIZES, sample, verdict, wins

FAVOR, GOOD = ([[x, x + 0.1, x - 0.1] for _ in SIZES] for x in (1.0, 0.4))


def test_the_verdict_follows_the_numbers():
    better, equal = {"FAVOR+": FAVOR, "VQ": GOOD}, {"FAVOR+": FAVOR, "VQ": FAVOR}
    assert verdict(better, equal, 1e-9) is Verdict.HOLDS
    assert verdict(better, better, 1e-9) is Verdict.PARTLY
    assert verdict(better, equal, 1e-3) is Verdict.PARTLY
    assert verdict(equal, equal, 1e-9) is Verdict.FAILS
    assert verdict({"FAVOR+": GOOD, "VQ": FAVOR}, equal, 1e-9) is Verdict.FAILS


def test_to_win_takes_every_size_and_more_than_noise():
    assert wins(GOOD, FAVOR)
    assert not wins(FAVOR, GOOD)
    assert not wins([*GOOD[:-1], FAVOR[0]], FAVOR)
    noisy = [[0.0, 1.5, 0.2] for _ in SIZES]
    assert not wins(noisy, FAVOR)


def test_ignoring_the_queries_has_error_one_and_exact_attention_none():
    one = sample(True, torch.Generator().manual_seed(0))
    assert one.error(one.v.mean(0).expand_as(one.exact)) == pytest.approx(1)
    assert one.error(one.exact) == 0
    every_key = one.k[None]
    assert s30_soft_vq.vq_error(one, every_key) < 1e-12
    assert s30_soft_vq.soft_error(one, every_key, 1e-6) < 1e-9


def test_more_features_and_more_codes_have_less_error():
    g = torch.Generator().manual_seed(0)
    one = sample(False, g)
    few, many = (
        sum(s30_soft_vq.favor_error(one, size, g) for _ in range(5)) for size in (16, 1024)
    )
    assert many < few
    coarse, fine = (
        s30_soft_vq.vq_error(one, s30_soft_vq.codebook(one, size, g)) for size in (4, 512)
    )
    assert fine < coarse


def test_the_experiment_runs_and_repeats_itself(monkeypatch):
    monkeypatch.setattr(s30_soft_vq, "REPEATS", 2)
    first, second = (s30_soft_vq.EXPERIMENT.run(seed=1) for _ in range(2))
    assert first.numbers == second.numbers
    assert set(first.names_zh) == set(first.numbers)
    pictures = re.findall(r"<svg.*?</svg>", first.figure, re.S)
    assert len(pictures) == 3
    for picture in pictures:
        ElementTree.fromstring(picture)
