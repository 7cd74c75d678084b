"""S29 in the lab: accumulation, memory and loss scale; the token that is seen no more."""

import re
from xml.etree import ElementTree

import pytest
import torch

from kexue.lab import Verdict, s29_accumulation, s29_rare_tokens
from kexue.lab.s29_pictures import stacked_bars


def drawings(figure):
    """Each picture, parsed."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", figure, re.S)]


def test_micro_steps_end_where_large_batches_end():
    assert 0 < s29_accumulation.largest_deviation(3, k=3, updates=4) < 1e-14


def test_bytes_are_counted_from_the_tensors():
    make = s29_accumulation
    adamw, tiger = make.bytes_per_weight(make.adamw, k=2), make.bytes_per_weight(make.tiger())
    assert adamw == pytest.approx({"weights": 4, "gradients": 4, "moments": 8}, abs=0.02)
    assert tiger == pytest.approx({"weights": 4, "gradients": 4, "moments": 4}, abs=0.02)
    used = make.bytes_per_weight(make.tiger(accum_steps=2), in_backward=True, k=2)
    assert used["gradients"] == pytest.approx(4 / make.DEPTH, rel=0.05)  # one layer's at a time


def test_a_power_of_two_before_the_loss_leaves_tigers_accuracy_alone():
    plain, scaled = (
        s29_accumulation.accuracy(s29_accumulation.tiger(), 0, scale, epochs=2)
        for scale in (1.0, 2.0**-23)
    )
    assert plain == scaled > 50


def test_the_accumulation_verdict_follows_the_numbers():
    said = s29_accumulation.verdict
    good = {"AdamW": [96.0, 96.0, 42.0], "Tiger": [96.0, 96.0, 96.0]}
    assert said(1e-16, 16.0, 8.2, good) is Verdict.HOLDS
    assert said(1e-3, 16.0, 8.2, good) is Verdict.PARTLY
    assert said(1e-16, 16.0, 8.2, good | {"Tiger": [96.0, 96.0, 95.9]}) is Verdict.PARTLY
    assert said(1e-16, 16.0, 12.0, good | {"AdamW": [96.0, 96.0, 95.0]}) is Verdict.PARTLY
    assert said(1e-3, 16.0, 12.0, good | {"AdamW": [96.0, 96.0, 95.0]}) is Verdict.FAILS


def test_the_accumulation_experiment_runs(monkeypatch):
    monkeypatch.setattr(s29_accumulation, "EPOCHS", 1)
    monkeypatch.setattr(s29_accumulation, "SEEDS", 1)
    monkeypatch.setattr(
        s29_accumulation, "accuracy", lambda make, seed, scale=1.0: 96.0 if scale > 1e-6 else 40.0
    )
    before = torch.get_rng_state()
    finding = s29_accumulation.EXPERIMENT.run()
    assert torch.equal(torch.get_rng_state(), before)
    assert finding.verdict is Verdict.PARTLY  # this Tiger falls as well
    assert finding.numbers["bytes per weight, AdamW"] == 16.0
    assert len(drawings(finding.figure)) == 2
    assert set(finding.names_zh) == set(finding.numbers)


def test_stacked_bars_add_up():
    svg = stacked_bars([("a", [1.0, 2.0]), ("b", [4.0, 0.0])], ["x", "y"], title="t", unit="u")
    texts = [element.text for element in drawings(svg)[0].iter() if element.tag.endswith("text")]
    assert {"3.0", "4.0", "x", "y"} <= set(texts)


@pytest.mark.parametrize(("name", "drifts"), [("Tiger, as published", True), ("AdamW", False)])
def test_a_row_drifts_only_under_the_sign(name, drifts):
    path, _ = s29_rare_tokens.largest_entries(s29_rare_tokens.MAKERS[name], 1, steps=400)
    assert (path[-1] > 2 * path[1]) == drifts


def test_a_lazy_row_does_not_move_in_a_single_bit():
    path, _ = s29_rare_tokens.largest_entries(
        s29_rare_tokens.MAKERS["Tiger, lazy rows"], 1, steps=200
    )
    assert path[0] != path[1] == path[2] == path[-1]


def test_the_rare_token_verdict_follows_the_paths():
    good = {"Tiger, as published": [0.02, 0.03, 99.5], "Tiger, lazy rows": [0.02, 0.03, 0.03]}
    good |= {"AdamW": [0.02, 0.05, 0.06]}
    assert s29_rare_tokens.verdict(good) is Verdict.HOLDS
    assert s29_rare_tokens.verdict(good | {"AdamW": [0.0, 0.0, 9.0]}) is Verdict.PARTLY
    bad = {name: [0.0, 1.0, 50.0] for name in good}
    assert s29_rare_tokens.verdict(bad) is Verdict.FAILS


def test_the_rare_token_experiment_runs(monkeypatch):
    short = s29_rare_tokens.largest_entries
    monkeypatch.setattr(
        s29_rare_tokens, "largest_entries", lambda make, seed: short(make, seed, steps=150)
    )
    finding = s29_rare_tokens.EXPERIMENT.run()
    assert finding.verdict is Verdict.PARTLY  # 150 steps are too few to reach 1/λ
    assert len(drawings(finding.figure)) == 1
    assert set(finding.names_zh) == set(finding.numbers)
