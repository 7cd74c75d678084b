"""After a repair every class wins somewhere; a gentle one leaves everything else as it was."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from kexue.analysis.unargmaxable import check_argmaxable
from kexue.analysis.unargmaxable.certificates import check_points
from kexue.analysis.unargmaxable.head import output_layer
from kexue.analysis.unargmaxable.raising import raised
from kexue.analysis.unargmaxable.repair import HOW, make_all_argmaxable
from kexue.analysis.unargmaxable.roof import distance_to_roof
from kexue.analysis.unargmaxable.whitening import whiten

SQUARE = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def gaussian(classes: int, width: int, seed: int, bias: float = 0.0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    return rows, bias * torch.randn(classes, generator=generator, dtype=torch.float64)


def lacks_by_the_whole_program(rows, bias, k: int) -> float:
    """δ = max Σ α b − b_k over all mixes of the others, all of them at once: the dual, naively."""
    others = [i for i in range(len(rows)) if i != k]
    sums = np.vstack([rows[others].numpy().T, np.ones(len(others))])
    found = linprog(
        -bias[others].numpy(), A_eq=sums, b_eq=np.r_[rows[k].numpy(), 1.0], method="highs"
    )
    assert found.status == 0
    return -found.fun - float(bias[k])


SIZES = [(60, 2), (90, 3), (150, 6), (40, 20)]
ON_A_LINE = [("raise", 30, 1), ("voronoi", 30, 1)]  # there are but two directions to normalise to


@pytest.mark.parametrize("bias", [0.0, 0.3, 3.0])
@pytest.mark.parametrize(
    ("how", "classes", "width"), [*ON_A_LINE, *((how, *size) for how in HOW for size in SIZES)]
)
def test_after_a_repair_no_class_is_unargmaxable(how, bias, classes, width):
    rows, offsets = gaussian(classes, width, seed=classes + width, bias=bias)
    fixed = make_all_argmaxable(rows, offsets, how)
    assert fixed.left.size == 0
    found = check_argmaxable(fixed.weight, fixed.bias)
    assert found.argmaxable.tolist() == list(range(classes))


@pytest.mark.parametrize("bias", [0.0, 0.3, 3.0])
def test_raising_touches_the_bias_of_the_unargmaxable_classes_alone(bias):
    rows, offsets = gaussian(120, 4, seed=3, bias=bias)
    before = check_argmaxable(rows, offsets)
    assert before.unargmaxable.size > 30
    fixed = make_all_argmaxable(rows, offsets)
    assert fixed.changed.tolist() == before.unargmaxable.tolist()
    assert torch.equal(fixed.weight, rows)
    change = (fixed.bias - offsets).numpy()
    assert (change[before.unargmaxable] > 0).all()
    assert (change[before.argmaxable] == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_distance_to_the_roof_is_that_of_the_whole_program(seed):
    rows, offsets = gaussian(80, 3, seed=seed, bias=1.0)
    report = check_argmaxable(rows, offsets)
    for k in report.unargmaxable[:12].tolist():
        mix = torch.as_tensor(report.mix(k).index.copy())
        lacks, point = distance_to_roof(rows, offsets, k, mix)
        assert lacks == pytest.approx(lacks_by_the_whole_program(rows, offsets, k), abs=1e-9)
        logits = rows @ point + offsets
        others = torch.cat((logits[:k], logits[k + 1 :]))
        assert float(others.max() - logits[k]) == pytest.approx(lacks, abs=1e-9)


def test_the_distance_to_the_roof_needs_no_hint_and_is_at_least_that_of_any_mix():
    rows, offsets = gaussian(120, 4, seed=8, bias=1.0)
    report = check_argmaxable(rows, offsets)
    for k in report.unargmaxable[:15].tolist():
        mix = torch.as_tensor(report.mix(k).index.copy())
        lacks, _ = distance_to_roof(rows, offsets, k, mix)
        blind, _ = distance_to_roof(rows, offsets, k, mix[:0])
        assert blind == pytest.approx(lacks, abs=1e-9)
        assert lacks >= -report.margin[k] - 1e-9


def test_more_than_the_distance_to_the_roof_makes_a_class_win_and_less_does_not():
    rows, offsets = gaussian(80, 3, seed=5, bias=1.0)
    for k in check_argmaxable(rows, offsets).unargmaxable[:10].tolist():
        lacks, _ = distance_to_roof(rows, offsets, k, torch.arange(0))
        for extra, wins in ((-1e-3, False), (1e-3, True)):
            bias = offsets.clone()
            bias[k] += lacks + extra
            assert (k in check_argmaxable(rows, bias, [k]).argmaxable) == wins


def test_the_articles_hidden_class_lacks_what_its_bias_is_below_zero():
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, -0.5])
    for given, lacks in ((None, 0.0), (bias, 0.5)):
        fixed = make_all_argmaxable(SQUARE.double(), given, lift=0.125)
        assert fixed.changed.tolist() == [4]
        raised_by = float(fixed.bias[4]) - (0.0 if given is None else -0.5)
        assert raised_by == pytest.approx(lacks + 0.125, abs=1e-12)
    assert make_all_argmaxable(SQUARE, torch.tensor([0.0, 0, 0, 0, 0.5])).changed.size == 0


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_a_raised_class_leads_by_half_epsilon_times_the_squared_distance(bias):
    rows, offsets = gaussian(100, 3, seed=11, bias=bias)
    layer = output_layer(rows, offsets)
    report = check_argmaxable(rows, offsets)
    done = raised(report, (torch.float64, torch.float64), 0.01)
    white = whiten(layer)
    low = torch.as_tensor(report.unargmaxable)
    square = white.rows.square().sum(dim=1)
    curve = 2 * done.lift / float(square.max() - square[low].min())
    for k in low.tolist():
        touch = torch.zeros(3, dtype=torch.float64)
        if bias:
            touch = distance_to_roof(white.rows, white.offsets, k, torch.arange(0))[1]
        point = white.features((touch + curve * white.rows[k])[None])
        nearest = (white.rows - white.rows[k]).square().sum(dim=1)
        nearest[k] = torch.inf
        margin = check_points(done.layer, torch.tensor([k]), point).margin
        assert float(margin) >= curve * float(nearest.min()) / 2 - 1e-9


def test_the_lift_is_halved_until_no_other_class_loses_its_place():
    rows = torch.tensor([[-1.0], [0.0], [1.0], [0.5]], dtype=torch.float64)
    bias = torch.tensor([0.0, 1e-3, 0.0, -1.0], dtype=torch.float64)
    assert check_argmaxable(rows, bias).unargmaxable.tolist() == [3]
    whole = bias + torch.tensor([0.0, 0.0, 0.0, 1.0 + 0.0005 + 1.0])
    assert check_argmaxable(rows, whole).unargmaxable.tolist() == [1]
    fixed = make_all_argmaxable(rows, bias, lift=1.0)
    assert 1e-5 < fixed.lift < 2e-3
    assert np.log2(fixed.lift) == int(np.log2(fixed.lift))
    assert check_argmaxable(fixed.weight, fixed.bias).unargmaxable.size == 0
    assert fixed.changed.tolist() == [3]


@pytest.mark.parametrize("how", ["raise", "voronoi"])
def test_no_probability_changes_by_more_than_is_promised(how):
    rows, offsets = gaussian(100, 3, seed=2, bias=0.5)
    fixed = make_all_argmaxable(rows, offsets, how)
    points = 5 * torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).double()
    before = torch.log_softmax(points @ rows.mT + offsets, dim=1)
    change = torch.log_softmax(points @ fixed.weight.mT + fixed.bias, dim=1) - before
    low, high = fixed.log_change
    assert float(change.min()) >= low - 1e-9
    assert float(change.max()) <= high + 1e-9
    if how == "raise":
        untouched = torch.ones(100).bool().index_fill(0, torch.as_tensor(fixed.changed), False)
        assert float(change[:, untouched].max()) <= 1e-12
        assert high == pytest.approx(float((fixed.bias - offsets).max()), abs=1e-12)


def test_with_the_voronoi_bias_the_nearest_row_wins():
    rows, offsets = gaussian(60, 3, seed=1, bias=1.0)
    fixed = make_all_argmaxable(rows, offsets, "voronoi")
    points = 2 * torch.randn(500, 3, generator=torch.Generator().manual_seed(1)).double()
    wins = (points @ fixed.weight.mT + fixed.bias).argmax(dim=1)
    assert torch.equal(wins, torch.cdist(points, rows).argmin(dim=1))
    assert float(fixed.bias.mean()) == pytest.approx(float(offsets.mean()), abs=1e-12)


def test_moving_all_rows_moves_no_raised_bias():
    rows, offsets = gaussian(80, 3, seed=6, bias=0.5)
    near, far = (make_all_argmaxable(rows + move, offsets).bias for move in (0.0, 1e3))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e3, 1e8])
def test_the_scale_of_rows_and_of_biases_does_not_matter(scale):
    rows, offsets = gaussian(80, 3, seed=6, bias=1.0)
    for layer in ((scale * rows, offsets), (rows, scale * offsets)):
        fixed = make_all_argmaxable(*layer)
        assert fixed.left.size == 0
        assert check_argmaxable(fixed.weight, fixed.bias).argmaxable.size == 80


@pytest.mark.parametrize("how", ["raise", "voronoi"])
@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_the_points_of_a_lattice_all_win_though_most_lie_on_a_flat_roof(how, slope):
    side = torch.arange(6, dtype=torch.float64)
    rows = torch.cartesian_prod(side, side)
    offsets = rows @ torch.tensor([slope, -slope], dtype=torch.float64)
    assert check_argmaxable(rows, offsets).argmaxable.tolist() == [0, 5, 30, 35]
    fixed = make_all_argmaxable(rows, offsets, how)
    assert check_argmaxable(fixed.weight, fixed.bias).argmaxable.size == 36


def test_rows_of_lower_rank_than_the_features_are_repaired():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(60, 2, generator=generator).double()
    rows = flat @ torch.randn(2, 5, generator=generator).double()
    offsets = torch.randn(60, generator=generator).double()
    fixed = make_all_argmaxable(rows, offsets)
    assert check_argmaxable(fixed.weight, fixed.bias).argmaxable.size == 60


def test_a_class_too_near_to_another_for_its_type_is_left_and_named():
    rows, offsets = (part.float() for part in gaussian(80, 3, seed=6, bias=1.0))
    near = torch.cat((rows, rows[:5] * (1 + 1e-6))), torch.cat((offsets, offsets[:5]))
    fixed = make_all_argmaxable(*near)
    found = check_argmaxable(fixed.weight, fixed.bias)
    assert fixed.left.tolist() == np.setdiff1d(np.arange(85), found.argmaxable).tolist()
    assert set(fixed.left.tolist()) <= {*range(5), *range(80, 85)}


def test_normalised_rows_keep_direction_and_mean_length_and_lose_the_bias():
    rows, offsets = gaussian(60, 3, seed=1, bias=1.0)
    fixed = make_all_argmaxable(rows, offsets, "normalise")
    lengths = fixed.weight.norm(dim=1)
    torch.testing.assert_close(lengths, rows.norm(dim=1).mean().expand(60), rtol=1e-12, atol=0)
    cosine = (fixed.weight * rows).sum(dim=1) / lengths / rows.norm(dim=1)
    torch.testing.assert_close(cosine, torch.ones(60).double(), rtol=1e-12, atol=0)
    assert not fixed.bias.any()
    assert fixed.log_change == (-np.inf, np.inf)


@pytest.mark.parametrize("how", HOW)
def test_twins_are_refused_or_left_and_named(how):
    rows, offsets = gaussian(40, 2, seed=4)
    rows[7] = rows[30]
    with pytest.raises(ValueError, match=r"2 classes have the same .*: class 7, 30; take all but"):
        make_all_argmaxable(rows, offsets, how)
    fixed = make_all_argmaxable(rows, offsets, how, twins="leave")
    assert fixed.left.tolist() == [7, 30]
    found = check_argmaxable(fixed.weight, fixed.bias)
    assert found.unargmaxable.tolist() == [7, 30]


def test_of_twins_the_one_with_the_larger_bias_can_win():
    rows, offsets = gaussian(40, 2, seed=4)
    rows[7], offsets[30] = rows[30], 50.0
    fixed = make_all_argmaxable(rows, offsets, twins="leave")
    assert fixed.left.tolist() == [7]
    assert check_argmaxable(fixed.weight, fixed.bias).unargmaxable.tolist() == [7]


def test_a_class_among_twins_only_is_raised_too():
    rows = torch.tensor([[-1.0], [-1.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
    fixed = make_all_argmaxable(rows, twins="leave")
    assert fixed.changed.tolist() == [4]
    assert fixed.left.tolist() == [0, 1, 2, 3]
    assert check_argmaxable(fixed.weight, fixed.bias).argmaxable.tolist() == [4]


def test_rows_of_one_direction_and_rows_of_zeros_cannot_be_normalised():
    rows = torch.tensor([[1.0, 2.0], [2.0, 4.0], [-1.0, 0.0], [0.0, -1.0]])
    with pytest.raises(ValueError, match=r"same direction as another .* class 0, 1; take"):
        make_all_argmaxable(rows, how="normalise")
    rows[3] = 0
    with pytest.raises(ValueError, match="rows of zeros have no direction to keep: class 3; take"):
        make_all_argmaxable(rows, how="normalise")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_layer_comes_back_in_its_type_and_wins_are_checked_in_that_type(how, dtype):
    rows, offsets = (part.to(dtype) for part in gaussian(90, 4, seed=9, bias=0.5))
    fixed = make_all_argmaxable(rows, offsets, how, twins="leave")
    assert fixed.weight.dtype == fixed.bias.dtype == dtype
    found = check_argmaxable(fixed.weight, fixed.bias)
    lost = np.setdiff1d(np.arange(90), found.argmaxable)
    assert fixed.left.tolist() == lost.tolist()
    assert lost.size <= (0 if dtype == torch.float32 else 3)


def test_a_bias_of_finer_type_than_the_rows_keeps_it():
    rows, offsets = gaussian(90, 4, seed=9, bias=0.5)
    fixed = make_all_argmaxable(rows.bfloat16(), offsets.float())
    assert (fixed.weight.dtype, fixed.bias.dtype) == (torch.bfloat16, torch.float32)
    assert check_argmaxable(fixed.weight, fixed.bias).unargmaxable.size == 0


def test_arrays_and_whole_numbers_are_taken_and_become_tensors():
    fixed = make_all_argmaxable(SQUARE.numpy().astype(np.int64))
    assert fixed.weight.dtype == fixed.bias.dtype == torch.float64
    assert fixed.changed.tolist() == [4]


def test_a_layer_without_fault_and_a_repaired_one_stay_as_they_are():
    rows, offsets = gaussian(80, 3, seed=6, bias=0.5)
    fixed = make_all_argmaxable(rows, offsets)
    again = make_all_argmaxable(fixed.weight, fixed.bias)
    assert again.changed.size == 0
    assert again.lift == 0
    assert again.log_change == (0.0, 0.0)
    assert torch.equal(again.bias, fixed.bias)


def test_a_report_saves_the_search_and_must_fit():
    rows, offsets = gaussian(80, 3, seed=6, bias=0.5)
    report = check_argmaxable(rows, offsets)
    stages: list[str] = []

    def told(stage: str, done: int, total: int) -> None:
        assert 0 < done <= total
        stages.append(stage)

    fixed = make_all_argmaxable(rows, offsets, report=report, progress=told)
    assert torch.equal(fixed.bias, make_all_argmaxable(rows, offsets).bias)
    assert stages.count("roof") == report.unargmaxable.size
    with pytest.raises(ValueError, match="report is of another layer"):
        make_all_argmaxable(rows, offsets + 1, report=report)
    for partial in (check_argmaxable(rows, offsets, [1]), check_argmaxable(rows, offsets, box=9.0)):
        with pytest.raises(ValueError, match="of all classes and without a box"):
            make_all_argmaxable(rows, offsets, report=partial)


def test_undecided_classes_are_raised_too():
    rows, offsets = gaussian(80, 3, seed=6, bias=0.5)
    probed = check_argmaxable(rows, offsets, method="probe")
    assert probed.undecided.size > 0
    assert probed.unargmaxable.size == 0
    fixed = make_all_argmaxable(rows, offsets, report=probed)
    assert fixed.left.size == 0
    assert check_argmaxable(fixed.weight, fixed.bias).unargmaxable.size == 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"how": "bias"}, "how must be one of raise, voronoi, normalise, got 'bias'"),
        ({"twins": "drop"}, "twins must be 'refuse' or 'leave', got 'drop'"),
        ({"lift": 0.0}, "lift must be positive, in logits, got 0.0"),
        ({"lift": float("nan")}, "lift must be positive"),
    ],
)
def test_what_is_out_of_range_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        make_all_argmaxable(SQUARE, **wrong)
