"""S20 in the lab: update size against depth, training of deep stacks, random chains."""

import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch.nn import functional as F

from kexue.analysis.residual_weight import amplification
from kexue.analysis.update_size import depth_sweep
from kexue.lab import Verdict, s20_chain, s20_depth, s20_training
from kexue.lab.s20_depth import ADAM, DEPTHS, ISOMETRY, ONE, PLAIN, RELU, SGD, TANH


def pictures(figure):
    return ElementTree.fromstring(f"<div>{figure}</div>").findall("svg")


@pytest.fixture(scope="module")
def small():
    """Families of width 32, data and a loss."""
    generator = torch.Generator().manual_seed(0)
    W = s20_depth.drawn(32, 64, generator, torch.float64)
    x = torch.randn(16, 32, generator=generator, dtype=torch.float64)
    x = x / x.square().mean(dim=1, keepdim=True).sqrt()
    head = torch.randn(32, 5, generator=generator, dtype=torch.float64) / math.sqrt(32)
    return s20_depth.stacks(W), x, lambda out: F.cross_entropy(out @ head, torch.arange(16) % 5)


def test_the_isometric_stack_keeps_every_length_both_ways(small):
    families, x, loss_fn = small
    net = families[ISOMETRY](64)
    torch.testing.assert_close(net(x).norm(dim=1), x.norm(dim=1), rtol=1e-12, atol=0)
    forwards, backwards = s20_depth.signals(net, x, loss_fn)
    assert forwards == pytest.approx(1, rel=1e-12)
    assert backwards == pytest.approx(1, rel=1e-12)


def test_a_shallow_stack_is_the_beginning_of_a_deep_one(small):
    families, x, _ = small
    for name in PLAIN:
        torch.testing.assert_close(families[name](3)(x), families[name](64)[:3](x))


def test_the_order_of_the_families_is_that_of_the_theory(small):
    families, x, loss_fn = small
    rows = {name: depth_sweep(families[name], (4, 64), loss_fn, x) for name in families}
    sizes = {name: [row.squared_gradient for row in found] for name, found in rows.items()}
    assert sizes[ONE][1] > 1e12 * sizes[ONE][0]
    assert sizes[ISOMETRY][1] > 4 * sizes[ISOMETRY][0]
    assert 1 / 3 < sizes[SGD][1] / sizes[SGD][0] < 3
    assert sizes[ADAM][1] < sizes[ADAM][0] / 10
    for name in (SGD, ADAM):
        assert rows[name][1].actual == pytest.approx(rows[name][1].first_order, rel=0.1)


def law(plain=1.0, sgd=0.0, adam=-1.0, factor=2.0):
    def power(p):
        return [N**p for N in DEPTHS]

    sizes = {name: power(plain) for name in PLAIN} | {SGD: power(sgd), ADAM: power(adam)}
    return sizes | {ONE: [factor**N for N in DEPTHS]}


def test_the_exponent_is_that_of_a_power():
    assert s20_depth.exponent([3 * N**0.7 for N in DEPTHS]) == pytest.approx(0.7, rel=1e-12)


def test_the_depth_verdict_follows_the_numbers():
    signal = {ISOMETRY: (1.0, 1.0), RELU: (0.1, 1.0), TANH: (1.0, 0.1)}
    judge = s20_depth.judge
    assert judge(law(), signal) is Verdict.HOLDS
    assert judge(law() | {TANH: [1.0] * len(DEPTHS)}, signal) is Verdict.HOLDS  # not stable
    assert judge(law() | {ISOMETRY: [2.0] * len(DEPTHS)}, signal) is Verdict.PARTLY
    assert judge(law(sgd=0.4), signal) is Verdict.PARTLY
    assert judge(law(adam=-0.5), signal) is Verdict.PARTLY
    assert judge(law(factor=1.2), signal) is Verdict.PARTLY
    assert judge(law(), signal | {ISOMETRY: (3.0, 1.0)}) is Verdict.PARTLY
    assert judge(law(sgd=1.5), signal) is Verdict.FAILS


def test_the_same_seed_gives_the_same_sweep(monkeypatch):
    monkeypatch.setattr(s20_depth, "DEPTHS", (2, 4))
    monkeypatch.setattr(s20_depth, "WIDTH", 8)
    first, again, other = (s20_depth.sweep(seed) for seed in (0, 0, 1))
    assert first == again != other


def test_the_depth_experiment_runs_and_draws(monkeypatch):
    monkeypatch.setattr(s20_depth, "SEEDS", 1)
    monkeypatch.setattr(s20_depth, "WIDTH", 32)
    monkeypatch.setattr(s20_depth, "BATCH", 16)
    finding = s20_depth.EXPERIMENT.run()
    assert len(pictures(finding.figure)) == 2
    assert set(finding.names_zh) == set(finding.numbers)
    assert "(explodes)" in finding.numbers[f"{ONE}: first-order / actual at N = 4, 16, 64, 256"]
    assert finding.verdict in (Verdict.HOLDS, Verdict.PARTLY)


def test_the_small_weight_trains_and_weight_one_overflows():
    generator = torch.Generator().manual_seed(0)
    W = s20_depth.drawn(s20_training.WIDTH, 100, generator, torch.float32)
    nets = s20_training.families(W)
    good = s20_training.train(nets[SGD](), 0.1, seed=0, steps=30)
    assert s20_training.end(good) < s20_training.GUESSING / 2
    bad = s20_training.train(nets[ONE](), 0.1, seed=0, steps=30)
    assert len(bad) < 30
    assert s20_training.end(bad) == math.inf


def test_the_stacks_with_norms_are_those_of_the_formulas():
    generator = torch.Generator().manual_seed(0)
    W = s20_depth.drawn(8, 2, generator, torch.float64)
    x = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    post = pre = x
    for one in math.sqrt(2) * W:
        post = F.layer_norm(post + F.relu(post) @ one, (8,))
        pre = pre + F.relu(F.layer_norm(pre, (8,))) @ one
    nets = s20_training.families(W)
    torch.testing.assert_close(nets[s20_training.POST]()(x), post)
    torch.testing.assert_close(nets[s20_training.PRE]()(x), F.layer_norm(pre, (8,)))


def test_the_training_verdict_follows_the_numbers():
    ends = dict.fromkeys(s20_training.WITHOUT_NORM, 2.3) | {SGD: 0.1, ADAM: 0.2}
    assert s20_training.judge(ends) is Verdict.HOLDS
    assert s20_training.judge(ends | {ONE: math.inf}) is Verdict.HOLDS
    assert s20_training.judge(ends | {TANH: 0.5}) is Verdict.PARTLY
    assert s20_training.judge(ends | {ADAM: 1.5}) is Verdict.FAILS


def test_the_training_experiment_runs_and_draws(monkeypatch):
    monkeypatch.setattr(s20_training, "STEPS", 10)
    monkeypatch.setattr(s20_training, "DEPTH", 20)
    finding = s20_training.EXPERIMENT.run()
    assert len(pictures(finding.figure)) == 1
    assert set(finding.names_zh) == set(finding.numbers)
    assert len(finding.numbers) == 8


def test_the_exact_deviation_is_that_of_many_draws():
    found = s20_chain.factors(0, draws=400, width=16, depths=(4,))
    for rule in s20_chain.RULES:
        eps = s20_chain.weight(rule, 4)
        draws = torch.tensor(found[rule, 4])
        sd = s20_chain.deviation(eps, 4, width=16)
        exact = amplification(eps, 4, "random")
        assert abs(float(draws.mean()) - exact) < 4 * sd / math.sqrt(400)
        assert float(draws.std()) == pytest.approx(sd, rel=0.2)


def test_the_chain_verdict_follows_the_numbers():
    cases = [(rule, N) for rule in s20_chain.RULES for N in s20_chain.DEPTHS]

    def off(errors):
        return {
            (rule, N): amplification(s20_chain.weight(rule, N), N, "random")
            + errors * s20_chain.deviation(s20_chain.weight(rule, N), N) / math.sqrt(8)
            for rule, N in cases
        }

    assert s20_chain.judge(off(2.9), 8) is Verdict.HOLDS
    assert s20_chain.judge(off(-4.0), 8) is Verdict.PARTLY
    assert s20_chain.judge(off(6.0), 8) is Verdict.FAILS
    assert s20_chain.judge(off(0.0) | {(s20_chain.RULES[2], 16): 0.0}, 8) is Verdict.HOLDS


def test_the_chain_experiment_runs_and_draws(monkeypatch):
    monkeypatch.setattr(s20_chain, "DRAWS", 2)
    finding = s20_chain.EXPERIMENT.run()
    assert finding.verdict is Verdict.HOLDS
    assert len(pictures(finding.figure)) == 1
    assert len(finding.numbers) == 9
