"""The searches: sound in low precision, at any condition number, and bounded in time and memory."""

import math
import resource

import numpy as np
import pytest
import torch

from kexue.analysis.unargmaxable import check_argmaxable
from kexue.analysis.unargmaxable.certificates import check_mixes, check_points
from kexue.analysis.unargmaxable.head import output_layer
from kexue.analysis.unargmaxable.likelihood import climb, newton
from kexue.analysis.unargmaxable.linear_program import largest_ball
from kexue.analysis.unargmaxable.min_norm import shortest_mix
from kexue.analysis.unargmaxable.probes import full_float32, reflected, same_rows, whitened_probe
from kexue.analysis.unargmaxable.whitening import whiten
from naive.unargmaxable import naive_mix

ARTICLE = torch.tensor([[1, 2], [2, 1], [1, 0], [0, 1], [1, 1]])


def near_ties(seed, noise, bias, skew=0.0):
    """Pairs of rows that differ by next to nothing, and biases much larger than that."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((150, 6)) * np.exp(skew * draw.standard_normal(6))
    weight = np.vstack([centres, centres * (1 + noise * draw.standard_normal((150, 6)))])
    level = bias * draw.standard_normal(150)
    return weight, np.append(level, level + bias * noise * draw.standard_normal(150))


def wins(weight, bias, k, point):
    """In 64 bits of mantissa."""
    exact = [np.asarray(x, dtype=np.longdouble) for x in (weight, bias, point)]
    ahead = (exact[0][k] - exact[0]) @ exact[2] + exact[1][k] - exact[1]
    return np.delete(ahead, k).min() > 0


@pytest.mark.parametrize("noise", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("bias", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("skew", [0.0, 4.0])
def test_a_probe_in_single_precision_never_mistakes_a_tie_for_a_win(noise, bias, skew):
    weight, level = near_ties(0, noise, bias, skew)
    report = check_argmaxable(weight, level, method="probe")
    for k in report.argmaxable.tolist():
        assert wins(weight, level, k, report.point(k).numpy())
        assert report.margin[k] > 0


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_neither_autocast_nor_low_precision_products_reach_the_probe(precision):
    weight, level = near_ties(1, 1e-4, 1.0)
    expected = check_argmaxable(weight, level, method="probe")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            report = check_argmaxable(weight, level, method="probe")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(report.verdict, expected.verdict)
    np.testing.assert_array_equal(report.margin, expected.margin)


def test_products_of_the_probe_are_in_float32_proper():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_float32("cpu"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_probe_goes_as_far_out_as_a_bias_demands():
    square = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    report = check_argmaxable(square, torch.tensor([-1e3, 0.0, 0.0, 0.0]), method="probe")
    assert report.verdict.tolist() == [1, 1, 1, 1]
    assert report.point(0).norm() > 500


def test_the_probe_leaves_to_the_full_check_only_what_is_close():
    layer = output_layer(torch.randn(500, 8, generator=torch.Generator().manual_seed(0)))
    (block,) = whitened_probe(whiten(layer.centred()), torch.arange(500))
    assert block.wins.sum() > 100
    assert not (block.wins & block.close).any()
    assert block.close.sum() < 20


@pytest.mark.parametrize("narrow", [1.0, 1e-4, 1e-8, 1e-10])
def test_whitened_rows_have_covariance_one_however_narrow_a_direction_is(narrow):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 4, dtype=torch.float64, generator=draw)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=draw)).Q
    layer = output_layer(weight @ torch.diag(torch.tensor([1, 1, 1, narrow])).double() @ turn)
    white = whiten(layer.centred())
    assert white.rows.shape == (200, 4)
    spread = white.rows.mT @ white.rows / 200
    torch.testing.assert_close(spread, torch.eye(4).double(), rtol=0, atol=1e-12 / narrow * 10)


def test_whitened_logits_are_the_logits_up_to_a_constant():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 5, dtype=torch.float64, generator=draw)
    weight[:, 4] = weight[:, 3]
    layer = output_layer(weight + 3, torch.randn(30, dtype=torch.float64, generator=draw)).centred()
    white = whiten(layer)
    assert white.rows.shape == (30, 4)
    points = torch.randn(7, 4, dtype=torch.float64, generator=draw)
    apart = layer.logits(white.features(points)) - white.logits(points)
    torch.testing.assert_close(apart, apart[:, :1].expand_as(apart), rtol=0, atol=1e-12)


def test_a_bias_that_the_rows_explain_is_no_bias():
    weight = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bias = weight @ torch.tensor([1e3, -2.0, 5.0], dtype=torch.float64) + 4
    assert (
        check_argmaxable(weight, bias).verdict.tolist() == check_argmaxable(weight).verdict.tolist()
    )


def test_same_rows_are_found_wherever_they_are():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randint(0, 2, (40, 4), generator=draw)
    bias = torch.randint(0, 3, (40,), generator=draw)
    best = same_rows(output_layer(weight, bias)).tolist()
    for k in range(40):
        group = [i for i in range(40) if torch.equal(weight[i], weight[k])]
        assert best[k] == max(group, key=lambda i: (int(bias[i]), -i))


def test_distances_are_never_too_small():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 6, dtype=torch.float64, generator=draw)
    weight = torch.cat((weight, weight * (1 + 1e-9)))
    layer = output_layer(weight)
    exact = (weight[:, None] - weight).norm(dim=2)
    found = layer.distances(torch.arange(100))
    others = ~torch.eye(100, dtype=torch.bool)
    assert (found[others] >= exact[others] * (1 - 1e-12)).all()
    far = exact > 1e-3
    torch.testing.assert_close(found[far], exact[far], rtol=1e-9, atol=0)


def test_a_point_counts_only_by_more_than_rounding():
    layer = output_layer(torch.tensor([[1.0, 0.0], [1.0, 1e-17], [0.0, 1.0]], dtype=torch.float64))
    points = torch.tensor([[1.0, 1.0], [5.0, -1e3], [1.0, -1e30]], dtype=torch.float64)
    found = check_points(layer, torch.tensor([0, 0, 0]), points)
    assert found.proven.tolist() == [False, False, False]
    far = check_points(layer, torch.tensor([2]), torch.tensor([[0.0, 1.0]]).double())
    assert far.proven.tolist() == [True]
    assert far.margin.item() == pytest.approx(1)
    assert far.radius.item() == pytest.approx(1 / math.sqrt(2))


def test_points_that_are_no_numbers_prove_nothing():
    layer = output_layer(ARTICLE)
    points = torch.tensor([[math.nan, 0.0], [math.inf, 0.0], [1e308, 1e308]]).double()
    assert not check_points(layer, torch.tensor([0, 1, 4]), points).proven.any()


@pytest.mark.parametrize(
    "mix",
    [
        [0.25, 0.25, 0.25, 0.25 + 1e-7, 0.0],  # not of sum one
        [0.2, 0.2, 0.2, 0.2, 0.2],  # of the class itself, too
        [0.5, 0.5, 0.0, 0.0, 0.0],  # another place
        [0.25 + 1e-7, 0.25, 0.25, 0.25 - 1e-7, 0.0],  # nearly
        [0.75, -0.25, 0.75, -0.25, 0.0],  # negative weights
        [math.nan, 0.25, 0.25, 0.25, 0.0],
    ],
)
def test_a_mix_that_is_none_proves_nothing(mix):
    layer, last = output_layer(ARTICLE), torch.tensor([4])
    assert not check_mixes(layer, last, torch.tensor([mix], dtype=torch.float64), 1e-9).proven.any()
    right = torch.tensor([[0.25, 0.25, 0.25, 0.25, 0.0]]).double()
    assert check_mixes(layer, last, right, 1e-9).proven.all()


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_a_mix_may_fall_short_by_a_billionth_of_the_biases_and_no_more(size):
    mix, last = torch.tensor([[0.25, 0.25, 0.25, 0.25, 0.0]]).double(), torch.tensor([4])
    for short, proven in ((0.5e-9, True), (2e-9, False)):
        bias = size * torch.tensor([1, -1, 1, -1, short], dtype=torch.float64)
        found = check_mixes(output_layer(ARTICLE, bias), last, mix, 1e-9)
        assert found.proven.item() is proven


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1.0, 1e3, 1e15])
def test_cooling_ends_and_decides_at_every_size_of_the_biases(scale):
    draw = np.random.default_rng(2)
    weight, bias = draw.standard_normal((60, 4)), scale * draw.standard_normal(60)
    layer = output_layer(weight, bias).centred()
    white = whiten(layer)
    exact = check_argmaxable(weight, bias, method="lp").verdict
    by_newton = [newton(white, k) for k in range(60)]
    assert sum(found is None for found in by_newton) <= 3
    for found in [*filter(None, by_newton), *climb(white, torch.arange(60))]:
        assert found.wins == bool(exact[found.index])


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_searches_end_where_numbers_have_run_out(strange):
    white = whiten(output_layer(ARTICLE))
    white.offsets[2] = strange
    for k in range(5):
        newton(white, k)
        shortest_mix(white, k, steps=50)
    list(climb(white, torch.arange(5)))
    list(whitened_probe(white, torch.arange(5)))


def test_cutting_planes_find_what_the_whole_program_finds():
    draw = np.random.default_rng(0)
    weight, bias = draw.standard_normal((700, 4)), draw.standard_normal(700)
    layer = output_layer(weight, bias)
    exact, rounds = check_argmaxable(weight, bias).verdict, 0
    for k in range(15):
        ball = largest_ball(layer.weight, layer.bias, k)
        assert (ball.radius > 0) == (exact[k] == 1)
        rounds = max(rounds, ball.rounds)
        if ball.radius <= 0:
            assert ball.weights @ layer.weight[ball.index] == pytest.approx(weight[k], abs=1e-8)
    assert rounds > 1


def test_mirror_images_find_the_classes_of_the_article():
    points = reflected(output_layer(ARTICLE), torch.arange(5), patience=10)
    proven = check_points(output_layer(ARTICLE), torch.arange(5), points).proven
    assert proven.tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("rank", [1, 2])
def test_a_layer_without_full_rank_is_decided_as_its_coordinates_are(rank):
    draw = np.random.default_rng(0)
    rows, bias = draw.integers(-9, 10, (16, rank)).astype(float), draw.integers(-3, 4, 16)
    wide = rows @ draw.integers(-3, 4, (rank, 12))
    report = check_argmaxable(wide, bias)
    assert report.white.rows.shape[1] == rank
    for k in range(16):
        assert report.verdict[k] == int(naive_mix(rows, bias, k) is None)


def test_memory_stays_in_blocks():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(6000, 24, dtype=torch.float64, generator=draw)
    weight *= torch.exp(0.3 * torch.randn(6000, 1, dtype=torch.float64, generator=draw))
    check_argmaxable(weight[:100])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = check_argmaxable(weight, torch.zeros(6000), range(0, 6000, 300))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert len(report.undecided) == 0
    assert grown < 400 * 1024  # kB; 20 × 6000 × 24 numbers would be little, 6000² are 288 MB
