"""Which classes of a softmax layer can win: the properties of the question, and worked numbers."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.spatial import ConvexHull

from kexue.analysis.unargmaxable import check_argmaxable, probability_bound
from naive.unargmaxable import naive_mix, naive_radius, wins_exactly

ARTICLE = np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def random_head(seed, classes=40, width=3, bias=1.0, spread=0.3):
    """Gaussian rows of log-normal length."""
    draw = np.random.default_rng(seed)
    weight = draw.standard_normal((classes, width))
    weight *= np.exp(spread * draw.standard_normal((classes, 1)))
    return weight, bias * draw.standard_normal(classes)


def verdicts(*layer, **settings):
    return check_argmaxable(*layer, **settings).verdict.tolist()


# worked numbers


def test_the_article_has_one_class_that_never_wins_and_four_that_do():
    report = check_argmaxable(ARTICLE)
    assert report.verdict.tolist() == [1, 1, 1, 1, 0]
    mix = report.mix(4)
    assert sorted(mix.index.tolist()) == [0, 1, 2, 3]
    assert mix.weights == pytest.approx([0.25] * 4, abs=1e-10)
    assert mix.entropy == pytest.approx(1.3862943611198906, abs=1e-10)
    assert report.bound[4] == pytest.approx(0.2, abs=1e-10)
    assert report.spread[4] == pytest.approx(4, abs=1e-9)
    at_origin = torch.softmax(torch.zeros(5, dtype=torch.float64), 0)[4].item()
    assert at_origin == pytest.approx(report.bound[4], abs=1e-10)


def test_its_other_classes_win_in_a_ball_of_radius_70_in_the_box_of_the_paper():
    report = check_argmaxable(ARTICLE, method="lp", box=100.0)
    assert report.radius[:4] == pytest.approx([70.71067811865474] * 4, abs=1e-10)
    assert report.verdict.tolist() == [1, 1, 1, 1, 0]
    assert report.words(4) == "unreachable in the box"


@pytest.mark.parametrize("box", [None, 100.0])
def test_a_bias_of_one_half_revives_the_class_inside_the_hull(box):
    report = check_argmaxable(ARTICLE, np.array([0, 0, 0, 0, 0.5]), method="lp", box=box)
    assert report.verdict[4] == 1
    assert report.radius[4] == pytest.approx(0.5, abs=1e-10)
    assert report.point(4).tolist() == pytest.approx([0, 0], abs=1e-10)


@pytest.mark.parametrize("box", [None, 100.0])
def test_a_bias_of_minus_one_half_leaves_it_short_by_as_much(box):
    report = check_argmaxable(ARTICLE, np.array([0, 0, 0, 0, -0.5]), method="lp", box=box)
    assert report.verdict[4] == 0
    assert report.radius[4] == pytest.approx(-0.5, abs=1e-10)
    assert report.margin[4] == pytest.approx(-0.5, abs=1e-10)


def test_bound_of_a_mix_of_four():
    alpha = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    entropy = torch.special.entr(alpha).sum()
    assert entropy.item() == pytest.approx(1.2798542258336676, abs=1e-10)
    gaps = torch.tensor([0.0, 0.08], dtype=torch.float64)
    bounds = probability_bound(gaps, entropy.expand(2)).tolist()
    assert bounds == pytest.approx([0.21757503858676192, 0.204263995427047], abs=1e-10)


def test_programs_confirm_the_count_of_a_gaussian_layer():
    weight = np.random.default_rng(1).standard_normal((300, 8))
    report = check_argmaxable(weight)
    assert (len(report.argmaxable), len(report.unargmaxable), len(report.undecided)) == (211, 89, 0)
    some = range(0, 300, 12)
    assert report.verdict[::12].tolist() == verdicts(weight, None, some, method="lp")


# properties


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [1, 2, 3])
def test_every_verdict_carries_a_proof_that_holds_in_fractions(seed, width):
    weight, bias = random_head(seed, classes=11, width=width)
    report = check_argmaxable(weight, bias)
    assert len(report.undecided) == 0
    for k in report.argmaxable.tolist():
        assert wins_exactly(weight, bias, k, report.point(k).numpy())
        assert naive_mix(weight, bias, k) is None
    for k in report.unargmaxable.tolist():
        mix = report.mix(k)
        assert k not in mix.index
        assert mix.weights.min() > 0
        assert mix.weights.sum() == pytest.approx(1, abs=1e-12)
        assert mix.weights @ weight[mix.index] == pytest.approx(weight[k], abs=1e-9)
        assert mix.weights @ bias[mix.index] >= bias[k] - 1e-9
        assert report.margin[report.place[k]] <= 0
        assert naive_mix(weight, bias, k) is not None


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("width", [2, 3])
def test_without_bias_the_winners_are_the_vertices_of_the_hull(seed, width):
    weight, _ = random_head(seed, classes=25, width=width)
    assert check_argmaxable(weight).argmaxable.tolist() == sorted(ConvexHull(weight).vertices)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("method", ["auto", "lp"])
def test_affine_maps_bias_shifts_and_scales_change_no_verdict(seed, method):
    weight, bias = random_head(seed, classes=30, width=3)
    draw = np.random.default_rng(seed)
    expected = verdicts(weight, bias)
    assert 0 in expected
    skew = draw.standard_normal((3, 3)) @ np.diag([1.0, 1e3, 1e-3])
    moved = 1e3 * draw.standard_normal(3)
    for changed in (
        (weight @ skew.T, bias),
        (weight + moved, bias),
        (weight, bias + 1e4),
        (weight @ skew.T + moved, bias - 7),
        (weight * 1e20, bias * 1e20),
        (weight * 1e-20, bias * 1e-20),
        (weight, bias * 1e6),  # as z = s z' shows
        (weight, bias * 1e-6),
        (weight + 1e6, bias + 1e6),
    ):
        assert verdicts(*changed, method=method) == expected


@pytest.mark.parametrize("seed", range(5))
def test_taking_a_loser_away_changes_nobody_else(seed):
    weight, bias = random_head(seed, classes=30, width=3)
    report = check_argmaxable(weight, bias)
    for k in report.unargmaxable[:4]:
        rest = np.delete(np.arange(30), k)
        assert verdicts(weight[rest], bias[rest]) == report.verdict[rest].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_new_class_can_only_turn_others_off(seed):
    weight, bias = random_head(seed, classes=30, width=3)
    weight[-3:] *= 3
    before = np.array(verdicts(weight[:-3], bias[:-3]))
    after = np.array(verdicts(weight, bias))[:-3]
    assert (after <= before).all()
    assert (after < before).any()


def test_taking_one_of_two_equal_classes_away_revives_the_other():
    weight = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [1.0, 0.0]])
    report = check_argmaxable(weight)
    assert report.verdict.tolist() == [0, 1, 1, 0]
    assert report.words(0) == report.words(3) == "tied"
    assert report.twin.tolist() == [3, -1, -1, 0]
    assert report.radius[[0, 3]].tolist() == [0, 0]
    assert report.bound[[0, 3]].tolist() == [0.5, 0.5]
    assert verdicts(weight[:3]) == [1, 1, 1]


def test_of_two_equal_rows_the_one_with_the_larger_bias_keeps_its_ball():
    weight = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [1.0, 0.0]])
    bias = np.array([0.0, 0.0, 0.0, 0.25])
    report = check_argmaxable(weight, bias, method="lp", box=10.0)
    assert report.verdict.tolist() == [0, 1, 1, 1]
    assert report.words(0) == "never wins"
    assert (report.twin[0], report.radius[0], report.margin[0]) == (3, 0.0, -0.25)
    alone = check_argmaxable(weight[1:], bias[1:], method="lp", box=10.0)
    assert report.radius[3] == pytest.approx(alone.radius[2], abs=1e-10)
    assert report.margin[3] == pytest.approx(0.25, abs=1e-12)  # its twin is never further behind
    assert report.bound[0] == pytest.approx(1 / (1 + math.exp(0.25)), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_one_length_and_voronoi_biases_have_no_losers(seed):
    weight, _ = random_head(seed, classes=100, width=3)
    assert 0 in verdicts(weight)
    sphere = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    assert set(verdicts(sphere)) == {1}
    assert set(verdicts(weight, -np.square(weight).sum(1) / 2 + 3)) == {1}


@pytest.mark.parametrize("seed", range(3))
def test_up_to_one_class_more_than_features_all_win(seed):
    weight, bias = random_head(seed, classes=7, width=6)
    assert verdicts(weight, bias) == [1] * 7


def test_in_one_dimension_without_bias_only_the_two_ends_win():
    assert verdicts(np.array([[2.0], [-1.0], [0.5], [3.0]])) == [0, 1, 0, 1]


@pytest.mark.parametrize("seed", range(3))
def test_bias_decides_inside_the_hull_and_not_at_its_corners(seed):
    weight, _ = random_head(seed, classes=20, width=2)
    corners = set(ConvexHull(weight).vertices.tolist())
    for k in range(20):
        for level, expected in ((1e3, 1), (-1e3, int(k in corners))):
            bias = np.zeros(20)
            bias[k] = level
            assert verdicts(weight, bias, [k]) == [expected]


@pytest.mark.parametrize(("seed", "bias"), [(0, 0.0), (1, 0.3), (2, 1.0)])
def test_no_softmax_ever_exceeds_the_bound(seed, bias):
    weight, bias = random_head(seed, classes=40, width=3, bias=bias)
    report = check_argmaxable(weight, bias)
    draw = np.random.default_rng(seed)
    sizes = np.array([0.01, 0.1, 1.0, 10.0, 100.0])
    points = (draw.standard_normal((4000, 3)) * sizes[:, None, None]).reshape(-1, 3)
    chances = torch.softmax(torch.as_tensor(points @ weight.T + bias), dim=1).amax(dim=0).numpy()
    lost = report.unargmaxable
    assert len(lost) > 10
    assert (chances[lost] <= report.bound[lost] * (1 + 1e-9)).all()
    assert (report.bound[lost] <= 0.5).all()


@pytest.mark.parametrize("seed", range(3))
def test_without_bias_the_bound_is_the_supremum(seed):
    weight, _ = random_head(seed, classes=60, width=3)
    report = check_argmaxable(weight)
    for k in report.unargmaxable[:15].tolist():
        away = np.delete(weight - weight[k], k, axis=0)

        def loss(z, away=away):
            logits = away @ z
            top = logits.max()
            parts = np.exp(logits - top)
            return top + np.log(parts.sum()), parts @ away / parts.sum()

        found = minimize(loss, np.zeros(3), jac=True, method="BFGS", options={"gtol": 1e-9})
        assert report.bound[k] == pytest.approx(1 / (1 + math.exp(found.fun)), rel=1e-7)


@pytest.mark.parametrize("method", ["probe", "climb", "newton", "reflect", "min_norm"])
def test_what_a_cheap_method_proves_the_program_confirms(method):
    for seed in range(2):
        weight, bias = random_head(seed, classes=20, width=3)
        cheap, exact = (
            check_argmaxable(weight, bias, method=method),
            verdicts(weight, bias, method="lp"),
        )
        known = cheap.verdict >= 0
        assert known.sum() > 5
        assert (cheap.verdict[known] == np.array(exact)[known]).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_larger_box_has_a_larger_ball(seed):
    weight, bias = random_head(seed, classes=15, width=3)
    reports = [check_argmaxable(weight, bias, method="lp", box=r) for r in (1.0, 2.0, 9.0)]
    radii = np.array([report.radius for report in reports])
    assert (np.diff(radii, axis=0) >= -1e-9).all()
    assert (np.diff(radii, axis=0) > 0.1).any()
    for k in range(15):
        if radii[1, k] > 0:
            assert radii[1, k] == pytest.approx(naive_radius(weight, bias, k, -2, 2), abs=1e-9)
