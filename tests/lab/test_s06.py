"""S06 in the lab: what a stack leaves of the input and of the gradient."""

import xml.etree.ElementTree as ET

import pytest
import torch

from kexue.lab import Verdict
from kexue.lab import s06_identity_path as lab
from kexue.lab import s06_warmup as warmup
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
    assert verdict_of(half, [(0.5, 0.001)] * 3) is Verdict.FAILS
    assert verdict_of([(0.45, 0.5)] * 3, [(0.02, 0.01)] * 3) is Verdict.FAILS
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


# --- warm-up


def verdict_of_runs(**ends):
    """Of the loss at the end by setting, the same for both seeds."""
    settings = dict(zip(("half_warm", "half", "usual_warm", "usual"), warmup.RUNS, strict=True))
    return warmup.judge({settings[name]: [[end] * 20] * 2 for name, end in ends.items()})


def test_the_verdict_about_warmup_follows_the_losses():
    learnt, not_learnt = 2.3, 2.5  # 2.43 is half of the way
    ends = {"half_warm": learnt, "half": learnt, "usual_warm": learnt, "usual": not_learnt}
    assert verdict_of_runs(**ends) is Verdict.HOLDS
    assert verdict_of_runs(**ends | {"usual": float("nan")}) is Verdict.HOLDS
    assert verdict_of_runs(**ends | {"usual_warm": not_learnt}) is Verdict.PARTLY
    assert verdict_of_runs(**ends | {"usual": learnt}) is Verdict.FAILS
    assert verdict_of_runs(**ends | {"half": not_learnt}) is Verdict.FAILS
    assert verdict_of_runs(**ends | {"half_warm": float("nan")}) is Verdict.FAILS


def test_every_text_stays_in_its_topic_and_hides_a_word():
    shown, words, hidden = warmup.texts(torch.Generator().manual_seed(0))
    topics = words // warmup.WORDS_PER_TOPIC
    assert (topics == topics[:, :1]).all()
    assert hidden.any(dim=1).all()
    assert (shown[hidden] == warmup.WORDS).all()
    assert torch.equal(shown[~hidden], words[~hidden])


def test_a_shallow_stack_learns_the_topics(monkeypatch):
    monkeypatch.setattr(warmup, "BLOCKS", 2)
    losses = warmup.train((warmup.HALF, 0), seed=0, steps=120)
    assert losses[0] > 0.9 * warmup.CHANCE
    assert sum(losses[-10:]) / 10 < 2.2
    assert losses[:3] == warmup.train((warmup.HALF, 0), seed=0, steps=3)


def test_the_finding_about_warmup_is_whole(monkeypatch):
    monkeypatch.setattr(warmup, "BLOCKS", 1)
    monkeypatch.setattr(warmup, "train", lambda setting, seed: [3.4, 2.0 + setting[0] + seed])
    found = warmup.EXPERIMENT.run()
    assert set(found.names_zh) == set(found.numbers)
    (svg,) = ET.fromstring(f"<div>{found.figure}</div>")
    assert sum(one.tag == "path" for one in svg.iter()) == 4
