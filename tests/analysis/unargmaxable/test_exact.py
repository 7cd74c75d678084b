"""No wrong verdict on small heads with every kind of coincidence, against fractions."""

import numpy as np
import pytest

from kexue.analysis.unargmaxable import check_argmaxable
from naive.unargmaxable import naive_mix, naive_radius, naive_verdicts, wins_exactly


def small_heads(seed, count):
    """Small integers: ties, collinear points, points on faces, equal rows, zero rows, no rank."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        width = int(draw.integers(1, 5))
        classes = int(draw.integers(2, (10, 11, 10, 9)[width - 1]))
        size = int(draw.integers(1, 5))
        weight = draw.integers(-size, size + 1, (classes, width)).astype(float)
        bias = draw.integers(-3, 4, classes) * float(draw.random() > 0.4)
        kind = int(draw.integers(0, 8))
        if kind == 1:
            weight[:, -1] = weight[:, 0]
        elif kind == 2:
            weight[draw.integers(classes)] = 0
        elif kind == 3:
            weight[1:3] = weight[0]
        elif kind == 4:
            weight[:] = weight[0]
        elif kind == 5:
            weight = np.outer(weight[:, 0], draw.integers(-2, 3, width)).astype(float)
        elif kind == 6 and classes > 3:
            weight[2], bias[2] = (weight[0] + weight[1]) / 2, (bias[0] + bias[1]) / 2
        yield weight, bias


HEADS = [(weight, bias, naive_verdicts(weight, bias)) for weight, bias in small_heads(0, 120)]
METHODS = ("auto", "lp", "newton", "climb", "probe", "reflect", "min_norm")


@pytest.mark.parametrize("method", METHODS)
def test_no_method_is_ever_wrong(method):
    decided = classes = 0
    for weight, bias, expected in HEADS[:: {"auto": 1, "lp": 3, "reflect": 12}.get(method, 6)]:
        report = check_argmaxable(weight, bias, method=method)
        known = report.verdict >= 0
        assert (report.verdict[known] == expected[known]).all(), (weight.tolist(), bias.tolist())
        for k in report.argmaxable.tolist():
            assert wins_exactly(weight, bias, k, report.point(k).numpy())
        for k in report.unargmaxable.tolist():
            mix = report.mix(k)
            assert mix.weights @ weight[mix.index] == pytest.approx(weight[k], abs=1e-7)
            assert mix.weights @ bias[mix.index] >= bias[k] - 1e-9
        decided, classes = decided + known.sum(), classes + len(known)
    assert decided == classes or method not in ("auto", "lp")
    assert decided > 0.7 * classes


@pytest.mark.parametrize(
    ("scale", "moved", "raised"),
    [
        (2.0**-66, 0, 0),
        (2.0**66, 0, 0),
        (2.0**-490, 0, 0),
        (2.0**490, 0, 0),
        (1, 2.0**20, 2.0**20),
        (1, 0, 2.0**30),
    ],
)
@pytest.mark.parametrize("method", ["auto", "lp"])
def test_neither_scale_nor_offset_changes_a_verdict(method, scale, moved, raised):
    for weight, bias, expected in HEADS[:25]:
        report = check_argmaxable(weight * scale + moved, bias * scale + raised, method=method)
        assert report.verdict.tolist() == expected.astype(int).tolist()


def test_a_box_allows_what_the_whole_program_allows_there():
    compared = 0
    for weight, bias, _ in HEADS[:25]:
        for method in ("auto", "lp"):
            report = check_argmaxable(weight, bias, method=method, box=(-0.75, 2.0))
            for k in range(len(weight)):
                others = np.delete(np.arange(len(weight)), k)
                if (weight[others] == weight[k]).all(axis=1).any():
                    continue  # the program misses ties
                radius = naive_radius(weight, bias, k, -0.75, 2.0)
                if abs(radius) > 1e-9:
                    assert report.verdict[k] == int(radius > 0)
                    compared += 1
                    if method == "lp":
                        assert report.radius[k] == pytest.approx(radius, abs=1e-9)
                else:
                    assert report.verdict[k] <= 0
                if report.verdict[k] == 1:
                    point = report.point(k).numpy()
                    assert wins_exactly(weight, bias, k, point)
                    assert point.min() >= -0.75
                    assert point.max() <= 2.0
    assert compared > 120


@pytest.mark.parametrize("outside", [1e-3, 1e-5, 1e-6, 1e-7, 1e-8])
@pytest.mark.parametrize("method", ["auto", "lp", "newton", "min_norm"])
def test_a_class_barely_outside_the_hull_is_never_called_a_loser(method, outside):
    weight = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0.37, 1 + outside]])
    for head in (weight, weight + 1e5, weight * 1e-12):
        assert naive_mix(head, np.zeros(5), 4) is None
        report = check_argmaxable(head, method=method)
        assert report.verdict[4] == 1 or (report.verdict[4] == -1 and method in METHODS[2:])


@pytest.mark.parametrize("above", [1e-3, 1e-6, 1e-8])
def test_a_bias_barely_above_the_others_is_never_called_too_low(above):
    weight = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0.37, 0.4]])
    bias = np.array([0.3, -0.2, 0.1, 0.5, 0.0])
    bias[4] = -1
    while naive_mix(weight, bias, 4) is not None:
        bias[4] += 0.01
    low, high = bias[4] - 0.01, bias[4]
    for _ in range(60):  # the height of the hull above w_k, by halving
        bias[4] = (low + high) / 2
        low, high = (low, bias[4]) if naive_mix(weight, bias, 4) is None else (bias[4], high)
    for sign in (1, -1):
        bias[4] = high + sign * above
        for scale in (1.0, 2.0**-66, 2.0**66):
            assert check_argmaxable(weight, bias * scale).verdict[4] == (sign + 1) // 2


def test_a_row_that_dwarfs_the_others_hides_no_winner():
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5], [1e9, 3e8]])
    expected = naive_verdicts(square, np.zeros(6)).astype(int)
    for method in ("auto", "lp", "newton"):
        found = check_argmaxable(square, method=method).verdict
        assert (found[found >= 0] == expected[found >= 0]).all()
    assert check_argmaxable(square).verdict.tolist() == expected.tolist()


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_a_masked_class_spoils_nothing(size):
    draw = np.random.default_rng(0)
    weight, bias = draw.standard_normal((60, 3)), size * draw.standard_normal(60)
    expected = check_argmaxable(weight[:-1], bias[:-1])
    bias[-1] = -1e9
    report = check_argmaxable(weight, bias)
    assert report.verdict[:-1].tolist() == expected.verdict.tolist()
    counts = [[stage.can for stage in one.stages] for one in (report, expected)]
    assert counts[0] == pytest.approx(counts[1], abs=2)
    if not size:
        lost = expected.unargmaxable
        assert report.bound[lost] == pytest.approx(expected.bound[lost], rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", ["auto", "lp", "newton"])
def test_features_of_very_different_sizes_hide_no_winner(seed, method):
    draw = np.random.default_rng(seed)
    weight = draw.standard_normal((10, 3)) * np.array([1e-6, 1.0, 1e6])
    bias = 1e4 * draw.standard_normal(10)
    expected = naive_verdicts(weight, bias).astype(int)
    found = check_argmaxable(weight, bias, method=method).verdict
    assert (found[found >= 0] == expected[found >= 0]).all()
    assert (found >= 0).all() or method == "newton"
