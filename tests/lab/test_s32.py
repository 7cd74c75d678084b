"""S32 in the lab: the scale of the loss, the state per weight, and what factors miss."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch

from kexue.lab import Verdict, s32_loss_scale, s32_rank_one
from kexue.lab.s32_loss_scale import ADAMW, EXPONENTS, FACE, OURS, TORCH
from kexue.optim.adafactor import AdaFactor


def pictures(figure):
    return ElementTree.fromstring(f"<div>{figure}</div>").findall("svg")


@pytest.mark.parametrize("exponent", [3, 7])
def test_our_accuracy_ignores_the_scale_of_the_loss(exponent):
    build = s32_loss_scale.builds()[OURS]
    plain, scaled = (
        s32_loss_scale.accuracies(build, e, seeds=[0], epochs=3) for e in (0, exponent)
    )
    assert plain == pytest.approx(scaled, abs=0.3)
    assert plain[0] > 70


def test_torchs_does_not():
    build = s32_loss_scale.builds()[TORCH]
    plain, scaled = (s32_loss_scale.accuracies(build, e, seeds=[0], epochs=3) for e in (0, 7))
    assert scaled[0] < plain[0] - 40


def test_the_bytes_are_those_of_the_state():
    builds = s32_loss_scale.builds()
    assert s32_loss_scale.bytes_per_weight(builds[ADAMW], [(64, 64)]) == pytest.approx(8, abs=0.01)
    plain = s32_loss_scale.bytes_per_weight(builds[OURS], [(256, 128)])
    assert plain == (4 * (256 + 128) + 8) / (256 * 128)
    heavy = s32_loss_scale.bytes_per_weight(lambda p: AdaFactor(p, beta1=0.9), [(256, 128)])
    assert heavy == plain + 4
    face = s32_loss_scale.bytes_per_weight(builds[FACE], [(512, 512, 3, 3)])
    assert face == pytest.approx(2.667, abs=1e-3)


def test_the_scale_verdict_follows_the_numbers():
    def means(ours, torchs):
        return {OURS: dict.fromkeys(EXPONENTS, 93.0) | ours, TORCH: {max(EXPONENTS): torchs}}

    assert s32_loss_scale.verdict(means({}, 10.0)) is Verdict.HOLDS
    assert s32_loss_scale.verdict(means({}, 90.0)) is Verdict.PARTLY
    assert s32_loss_scale.verdict(means({7: 92.0}, 10.0)) is Verdict.FAILS


def test_the_scale_experiment_tells_all_four_and_draws_two_pictures(monkeypatch):
    monkeypatch.setattr(s32_loss_scale, "SEEDS", 1)
    monkeypatch.setattr(s32_loss_scale, "accuracies", lambda build, e, seeds: [90.0 - e])
    monkeypatch.setattr(s32_loss_scale, "TRANSFORMER", ((256, 128),))
    monkeypatch.setattr(s32_loss_scale, "CONVOLUTION", ((130, 129, 3, 3),))
    finding = s32_loss_scale.EXPERIMENT.run()
    assert finding.verdict is Verdict.FAILS  # this accuracy falls
    assert len(pictures(finding.figure)) == 2
    assert set(finding.numbers) <= set(finding.names_zh)
    assert finding.numbers["AdaFactor: loss × 1, 1e-3, 1e-5, 1e-7"] == "90.0 · 87.0 · 85.0 · 83.0"


def test_rank_one_is_exact_and_noise_that_stays_is_lost():
    exact, weak, strong = (
        s32_rank_one.deviation(s32_rank_one.drawn(s, same=True), 5) for s in (0.0, 0.2, 0.6)
    )
    assert exact < 1e-3
    assert 1 < weak < strong
    fresh = s32_rank_one.deviation(s32_rank_one.drawn(0.6, same=False), 100)
    assert fresh < strong / 2


def test_the_same_seed_gives_the_same_gradients():
    first, second, other = (s32_rank_one.drawn(0.5, same=False, seed=s)(3) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_rank_verdict_follows_the_numbers():
    fixed, fresh = {0.0: 0.0, 0.5: 30.0, 1.0: 60.0}, {0.0: 0.0, 0.5: 3.0, 1.0: 12.0}
    assert s32_rank_one.verdict(fixed, fresh) is Verdict.HOLDS
    assert s32_rank_one.verdict(fixed, fresh | {1.0: 40.0}) is Verdict.PARTLY
    assert s32_rank_one.verdict(fixed | {1.0: 20.0}, fresh) is Verdict.PARTLY
    assert s32_rank_one.verdict(fixed | {0.0: 1.0}, fresh) is Verdict.FAILS


def test_the_rank_experiment_runs_and_draws(monkeypatch):
    monkeypatch.setattr(s32_rank_one, "SIGMAS", (0.0, 0.5))
    monkeypatch.setattr(s32_rank_one, "STEPS", 40)
    finding = s32_rank_one.EXPERIMENT.run()
    assert finding.verdict is Verdict.HOLDS
    assert len(pictures(finding.figure)) == 1
    assert set(finding.names_zh) < set(finding.numbers)
