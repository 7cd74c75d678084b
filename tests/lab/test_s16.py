"""S16 in the lab: the plane and the noisy labels."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from kexue.lab import Verdict, s16_noisy_labels, s16_plane
from kexue.lab.s16_noisy_labels import ARTICLE, METHODS, REVERSE, Result


def assert_pictures(figure, count):
    tree = ET.fromstring(f"<div>{figure}</div>")
    assert len(tree.findall("svg")) == count


def test_the_iteration_stalls_where_the_article_does_not_expect_it():
    for n, low, high in ((2, 6, 14), (3, 15, 30), (5, 38, 60)):
        found = s16_plane.errors(n, 200, seed=1)
        assert low <= found["wrong"] <= high
        assert found["ours wrong"] == 0


def test_with_one_auxiliary_the_iteration_is_exact():
    assert s16_plane.errors(1, 100)["wrong"] == 0


def test_the_iteration_in_a_stack_is_the_iteration_alone():
    G = np.random.default_rng(0).standard_normal((4, 3, 5))
    K = G @ G.transpose(0, 2, 1)
    alone = np.stack([s16_plane.published_iteration(one) for one in K])
    np.testing.assert_allclose(s16_plane.published_iteration(K), alone, atol=1e-9)


def test_the_directions_of_the_picture_keep_their_promises():
    steps, (g0, g1) = s16_plane.directions(s16_plane.PLANE), s16_plane.PLANE
    assert steps["sum"] @ g1 < 0  # the sum raises the auxiliary
    assert steps["veto"] @ g1 == pytest.approx(0)
    assert steps["protect"] @ g0 == pytest.approx(g0 @ g0)
    assert steps["min-norm"] @ g0 == pytest.approx(steps["min-norm"] @ g1)
    assert_pictures(s16_plane.picture(s16_plane.PLANE), 1)


def test_the_verdict_on_the_iteration_follows_the_shares():
    def share(wrong, primary=0.0, auxiliary=0.0, ours=0.0):
        names = ("wrong", "primary rises", "auxiliary rises", "ours wrong")
        return {2: dict(zip(names, (wrong, primary, auxiliary, ours), strict=True))}

    assert s16_plane.verdict(share(0.5)) is Verdict.HOLDS
    assert s16_plane.verdict(share(10.0)) is Verdict.PARTLY
    assert s16_plane.verdict(share(10.0, primary=0.1)) is Verdict.FAILS
    assert s16_plane.verdict(share(0.0, ours=1.0)) is Verdict.OPEN


def test_the_finding_of_the_plane_has_its_worked_example(monkeypatch):
    monkeypatch.setattr(s16_plane, "DRAWS", 50)
    finding = s16_plane.EXPERIMENT.run()
    assert finding.numbers["example, iteration: u"] == "(0, 0.5)"
    assert finding.numbers["example, iteration: ⟨u, g₀⟩"] == -0.5
    assert finding.numbers["example, exact: ‖u‖"] == 0
    assert_pictures(finding.figure, 2)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_repeats_itself(method):
    first, again = (s16_noisy_labels.train(method, 0, steps=40) for _ in range(2))
    assert first == again
    assert first.accuracy > 20
    assert 0 <= first.conflicts <= 100


def results(**accuracy):
    names = {"article": ARTICLE, "reverse": REVERSE, "noisy": "noisy only", "sum": "sum"}
    found = {m: [Result(80.0 + k, 1.0, 10.0) for k in range(3)] for m in METHODS}
    for key, values in accuracy.items():
        found[names[key]] = [Result(float(value), 1.0, 10.0) for value in values]
    return found


def test_the_verdict_on_noisy_labels_follows_the_accuracies():
    judge = s16_noisy_labels.verdict
    assert judge(results(article=[85, 86, 87])) is Verdict.HOLDS
    assert judge(results(article=[85, 86, 87], reverse=[90, 90, 90])) is Verdict.PARTLY
    assert judge(results(article=[80, 81, 82])) is Verdict.FAILS
    assert judge(results(article=[85, 86, 87]), results()) is Verdict.PARTLY
    assert judge(results(article=[70, 71, 72])) is Verdict.FAILS


def test_the_gain_is_paired_over_the_seeds():
    found = results(article=[81, 83, 85])
    mean, error = s16_noisy_labels.gain(found, ARTICLE, "noisy only")
    assert mean == pytest.approx(2)
    assert error == pytest.approx(1 / 3**0.5)


def test_the_finding_on_noisy_labels_is_whole(monkeypatch):
    monkeypatch.setattr(s16_noisy_labels, "SEEDS", 2)
    monkeypatch.setattr(
        s16_noisy_labels, "train", lambda m, s, wrong=0.6: Result(80.0 + s, 0.5, 20.0)
    )
    finding = s16_noisy_labels.EXPERIMENT.run()
    assert finding.verdict is Verdict.FAILS
    assert finding.numbers["steps with a veto"] == "20 %"
    assert_pictures(finding.figure, 2)
