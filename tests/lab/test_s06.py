"""S06 in the lab: what a stack leaves of the input and of the gradient."""

import xml.etree.ElementTree as ET

import pytest

from kexue.lab import Verdict
from kexue.lab import s06_identity_path as lab
from kexue.lab.s06_identity_path import Draw


def verdict_of(half, usual):
    """Of pairs (gradient ratio, input left) in post-norm, the same at both depths."""
    draws = {}
    for layers in (12, 24):
        for size, pairs in ((lab.HALF, half), (1.0, usual)):
            draws[("post", size), layers] = [Draw((ratio, 1.0), left) for ratio, left in pairs]
    return lab.judge(draws)


def test_the_verdict_follows_the_numbers():
    half = [(0.9, 0.5), (0.8, 0.4), (0.9, 0.5)]
    assert verdict_of(half, [(0.02, 0.01)] * 3) is Verdict.HOLDS
    assert verdict_of(half, [(0.3, 0.001)] * 3) is Verdict.PARTLY
    assert verdict_of(half, [(0.95, 0.001)] * 3) is Verdict.FAILS
    assert verdict_of(half, [(0.3, 0.6)] * 3) is Verdict.FAILS


def test_a_single_draw_cannot_turn_the_verdict():
    half = [(0.9, 0.5), (0.2, 0.5), (0.9, 0.5)]
    assert verdict_of(half, [(0.02, 0.01), (0.99, 0.01), (0.02, 0.01)]) is Verdict.HOLDS


def test_a_draw_depends_on_its_seed_alone():
    first, again, other = (lab.draw("post", 1.0, 2, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first.stream) == 3


def test_half_the_size_keeps_more_of_the_input_in_every_draw():
    for seed in range(2):
        half, usual = (lab.draw("post", size, 6, seed) for size in (lab.HALF, 1.0))
        assert half.share > 5 * usual.share


def test_pre_norm_gradients_grow_towards_the_input():
    assert lab.draw("pre", 1.0, 6, 0).ratio > 1.5


@pytest.fixture(scope="module")
def finding():
    depths, draws = lab.DEPTHS, lab.DRAWS
    lab.DEPTHS, lab.DRAWS = (2, 6), 1
    try:
        return lab.EXPERIMENT.run()
    finally:
        lab.DEPTHS, lab.DRAWS = depths, draws


def test_the_finding_names_every_stack_in_both_languages(finding):
    assert len(finding.numbers) == 16
    assert set(finding.names_zh) == set(finding.numbers)
    assert "post-norm blocks leave" in finding.comment_en


def test_the_picture_is_well_formed_with_a_line_per_stack(finding):
    (svg,) = ET.fromstring(f"<div>{finding.figure}</div>")
    paths = [one for one in svg.iter() if one.tag == "path"]
    assert len(paths) == len(lab.STACKS)
