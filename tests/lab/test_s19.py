"""S19 in the lab: the size of an update against depth, and a hundred layers."""

import math
from xml.etree import ElementTree

import pytest

from kexue.lab import Verdict, s19_hundred_layers, s19_update_size
from kexue.lab.deep_encoder import Encoder
from kexue.lab.log_log import log_log_chart
from kexue.lab.s19_hundred_layers import CHANCE, Run
from kexue.report.charts import Series

ENDS = (6, 96)
PLAIN, DEEP = s19_hundred_layers.PLAIN, s19_hundred_layers.DEEP


def updates(name, depths=ENDS):
    return s19_update_size.curve(name, depths, seed=0, seeds=1)


@pytest.mark.parametrize("name", ["DeepNorm, SGD", "DeepNorm for Adam, sign"])
def test_with_the_constants_for_its_optimizer_one_step_moves_the_output_alike_at_any_depth(name):
    assert s19_update_size.spread(updates(name)) < 1.5


def test_without_them_it_moves_by_more_the_deeper_the_stack():
    assert s19_update_size.growth(updates("Post-LN, sign")) > 3
    shallow, deep = updates("DeepNorm, sign")  # the constants for SGD: as sqrt(N)
    assert deep / shallow == pytest.approx(4, rel=0.2)


def test_norms_and_biases_bring_the_growth_back_unless_their_rate_falls_with_depth():
    depths = (6, 24)
    everything = updates("DeepNorm, SGD, norms and biases too", depths)
    slower = updates("… at 1/2N of the rate", depths)
    assert s19_update_size.growth(everything) > 2
    assert s19_update_size.spread(slower) < 1.5


def test_the_update_verdict_follows_the_curves():
    flat, grows = [1.0, 1.1, 0.9], [0.1, 0.2, 0.19]
    names = "DeepNorm, SGD", "DeepNorm for Adam, sign", "Post-LN, SGD", "Post-LN, sign"
    judge = lambda *curves: s19_update_size.verdict(dict(zip(names, curves, strict=True)))  # noqa: E731
    assert judge(flat, flat, grows, grows) is Verdict.HOLDS
    assert judge(flat, grows, grows, grows) is Verdict.PARTLY
    assert judge(flat, flat, grows, flat) is Verdict.PARTLY
    assert judge(grows, grows, grows, grows) is Verdict.FAILS
    assert judge(flat, flat, flat, flat) is Verdict.FAILS


def test_the_update_experiment_reports_every_curve_and_draws_both_steps(monkeypatch):
    monkeypatch.setattr(s19_update_size, "DEPTHS", (2, 3))
    monkeypatch.setattr(s19_update_size, "SEEDS", 1)
    finding = s19_update_size.EXPERIMENT.run()
    assert list(finding.numbers) == list(s19_update_size.CURVES) == list(finding.names_zh)
    root = ElementTree.fromstring(f"<div>{finding.figure}</div>")
    assert [len(svg.findall("circle")) for svg in root] == [10, 8]


def test_the_hundred_layers_verdict_follows_the_runs():
    learnt, stuck = Run([0.5], 80.0), Run([CHANCE], 10.0)
    slow, broken = Run([1.8], 40.0), Run([math.nan], 10.0)
    judge = s19_hundred_layers.verdict
    assert judge([stuck, broken], [learnt, learnt]) is Verdict.HOLDS
    assert judge([slow, stuck], [learnt, learnt]) is Verdict.PARTLY
    assert judge([learnt, stuck], [Run([0.9], 70.0), learnt]) is Verdict.FAILS
    assert judge([stuck, stuck], [learnt, stuck]) is Verdict.FAILS


def test_a_shallow_stack_learns_the_digits_and_the_same_seed_gives_the_same_run():
    first, second = (s19_hundred_layers.train("deepnorm", 2, steps=60, seed=1) for _ in range(2))
    assert first == second
    assert first.last < 0.8 * CHANCE
    assert first.accuracy > 30


def test_the_hundred_layers_experiment_on_small_settings(monkeypatch):
    monkeypatch.setattr(s19_hundred_layers, "STEPS", 2)
    original = s19_hundred_layers.train

    def small(design, depth=100, *, rate=1e-3, seed=0):
        return original(design, min(depth, 3), rate=rate, steps=2, seed=seed)

    monkeypatch.setattr(s19_hundred_layers, "train", small)
    finding = s19_hundred_layers.EXPERIMENT.run()
    assert finding.verdict is Verdict.FAILS  # two steps teach nothing
    assert set(finding.numbers) == set(s19_hundred_layers.NAMES_ZH)
    ElementTree.fromstring(finding.figure)


def test_curves_are_smoothed_over_the_steps_before():
    assert s19_hundred_layers.smoothed([1.0, 3.0, 5.0], width=2) == [1, 2, 4]


@pytest.mark.parametrize("design", ["post", "pre", "deepnorm", "deepnorm-adam"])
def test_an_encoder_has_two_wrappers_per_block(design):
    assert len(Encoder(5, design, dim=8, heads=2).wrappers) == 10


def test_a_log_log_chart_leaves_out_what_has_no_logarithm():
    chart = log_log_chart(
        [Series("a", [1, 10, 100], [0.0, 1.0, 10.0]), Series("b", [10], [0.5])],
        title="t",
        x_label="x",
        y_label="y",
    )
    root = ElementTree.fromstring(chart)
    assert len(root.findall("circle")) == 3
    shown = {one.text for one in root.findall("text")}
    assert {"0.1", "1", "10", "100"} <= shown
    with pytest.raises(ValueError, match="no positive point"):
        log_log_chart([Series("a", [1], [0.0])], title="t", x_label="x", y_label="y")
