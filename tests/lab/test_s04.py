"""S04 in the lab: residual designs 64 deep."""

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import torch

from kexue.lab import Verdict, s04_scales
from kexue.lab.s04_scales import DESIGNS, Run, Stack, run, verdict


def made(loss, moments=None, identity=1.0, depth=64):
    moments = moments or (0.9,) * (depth + 1)
    return Run(moments, (2.0,) * depth + (1.0,), identity, (3.0, *[loss] * 11), 90.0)


def as_claimed():
    runs = {name: made(0.2) for name in DESIGNS}
    runs["post-norm"] = made(2.3, (0.9, *[1.0] * 64), 2.0**-64)
    runs["pre-norm"] = made(0.2, tuple(1.0 + i for i in range(65)))
    runs["alpha ramp"] = made(0.1)
    return runs


def test_the_verdict_follows_the_numbers():
    runs = as_claimed()
    assert verdict(runs) == (Verdict.HOLDS, True, True, True)
    slow = runs | {"alpha ramp": made(0.3)}
    assert verdict(slow) == (Verdict.PARTLY, True, True, False)
    easy = runs | {"post-norm": replace(runs["post-norm"], losses=(0.3,) * 12)}
    assert verdict(easy) == (Verdict.PARTLY, True, False, True)
    stuck = runs | {"ReZero": made(2.3)}
    assert verdict(stuck) == (Verdict.PARTLY, True, False, True)


@pytest.mark.parametrize(
    ("design", "change"),
    [
        ("post-norm", {"moments": (0.9, *[1.1] * 64)}),
        ("post-norm", {"identity": 2.0**-50}),
        ("pre-norm", {"moments": tuple(1.0 + i * i for i in range(65))}),
        ("ReZero", {"moments": (0.9,) * 64 + (0.91,)}),
    ],
)
def test_a_start_that_is_not_as_claimed_fails(design, change):
    runs = as_claimed()
    runs[design] = replace(runs[design], **change)
    judged, start, *_ = verdict(runs)
    assert (judged, start) == (Verdict.FAILS, False)


def test_the_designs_start_as_their_formulas_say():
    found = {name: run(name, seed=3, steps=1, depth=16) for name in DESIGNS}
    assert len(found["pre-norm"].moments) == 17
    assert found["post-norm"].moments[-1] == pytest.approx(1, abs=0.01)
    assert -math.log2(found["post-norm"].identity) == pytest.approx(16, rel=0.15)
    growth = found["pre-norm"].moments[-1] - found["pre-norm"].moments[0]
    assert growth == pytest.approx(16, rel=0.3)
    for name in ("ReZero", "alpha ramp"):
        assert len(set(found[name].moments)) == 1
        assert found[name].gradients[0] == pytest.approx(1, abs=1e-6)
    assert found["LayerScale"].moments[-1] == pytest.approx(
        found["LayerScale"].moments[0], rel=1e-2
    )


def test_the_weight_of_x0_is_what_differentiation_says():
    """With branches cut out of the graph, d x_L / d x_0 of post-norm is the identity path."""
    torch.manual_seed(0)
    x, y = s04_scales._digits()
    model = Stack("post-norm", 0, depth=4)
    _, _, identity = s04_scales.at_the_start(model, x[:32], y[:32])
    start = model.front(x[:32]).detach().requires_grad_()
    state = start
    for wrapper, branch in zip(model.wrappers, model.branches, strict=True):
        state = wrapper(state, branch(state.detach()).detach())
    probe = torch.randn_like(state)
    (back,) = torch.autograd.grad(state, start, probe)
    assert back.square().mean().item() == pytest.approx(identity, rel=0.05)


def test_the_ramp_rises_by_one_step_per_step(monkeypatch):
    seen = []
    plain = s04_scales.AlphaRamp.step
    monkeypatch.setattr(s04_scales.AlphaRamp, "step", lambda s: (seen.append(1), plain(s))[1])
    one = run("alpha ramp", steps=3, depth=2)
    assert len(seen) == 6
    assert len(one.losses) == 3


def test_the_same_seed_gives_the_same_run():
    assert run("ReZero", seed=1, steps=3, depth=3) == run("ReZero", seed=1, steps=3, depth=3)


def test_the_finding_says_what_was_measured(monkeypatch):
    monkeypatch.setattr(s04_scales, "run", lambda name, seed: as_claimed()[name])
    finding = s04_scales.EXPERIMENT.run()
    assert finding.verdict is Verdict.HOLDS
    assert finding.numbers["post-norm: log2 of the squared weight of x_0"] == -64.0
    assert set(finding.names_zh) == set(finding.numbers)
    figure = ElementTree.fromstring(f"<div>{finding.figure}</div>")
    assert len(figure) == 3
    assert str(finding.figure).count("<path") == 15
