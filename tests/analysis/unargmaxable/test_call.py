"""The call: what it accepts, what it refuses, what it reports."""

import importlib.util
import math

import numpy as np
import pytest
import torch

from kexue.analysis.unargmaxable import check_argmaxable

ARTICLE = torch.tensor([[1, 2], [2, 1], [1, 0], [0, 1], [1, 1]])


@pytest.fixture(scope="module")
def layer():
    draw = np.random.default_rng(0)
    return draw.standard_normal((80, 3)), 0.5 * draw.standard_normal(80)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int8]
)
def test_any_number_type_is_taken_as_the_numbers_it_holds(dtype):
    rounded = (4 * torch.randn(40, 3, generator=torch.Generator().manual_seed(0))).to(dtype)
    report = check_argmaxable(rounded, rounded[:, 0].clone())
    expected = check_argmaxable(rounded.double().numpy(), rounded[:, 0].double().numpy())
    assert report.verdict.tolist() == expected.verdict.tolist()
    assert set(report.verdict.tolist()) == {0, 1}


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "u1"])
def test_numpy_arrays_serve_as_well(dtype):
    assert check_argmaxable(ARTICLE.numpy().astype(dtype)).unargmaxable.tolist() == [4]


def test_a_parameter_and_a_view_of_it_serve_and_stay_as_they_are():
    weight = torch.nn.Parameter(ARTICLE.float())
    before = weight.detach().clone()
    assert check_argmaxable(weight).unargmaxable.tolist() == [4]
    assert check_argmaxable(weight.detach().mT.contiguous().mT).unargmaxable.tolist() == [4]
    assert torch.equal(weight, before)


def test_minus_zero_is_zero():
    report = check_argmaxable(torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]]))
    assert report.verdict.tolist() == [0, 0, 1]


def test_the_same_call_gives_the_same_report(layer):
    one, two = (check_argmaxable(*layer) for _ in range(2))
    for name in ("verdict", "margin", "radius", "bound", "spread", "method", "twin"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for k in one.argmaxable.tolist():
        assert torch.equal(one.point(k), two.point(k))


def test_a_verdict_does_not_depend_on_which_classes_are_asked_for(layer):
    whole = check_argmaxable(*layer)
    asked = [7, 3, 50, 3]
    report = check_argmaxable(*layer, asked)
    assert report.index.tolist() == [3, 7, 50]
    assert report.verdict.tolist() == whole.verdict[[3, 7, 50]].tolist()
    assert check_argmaxable(*layer, torch.tensor(asked)).index.tolist() == [3, 7, 50]
    assert check_argmaxable(*layer, []).index.tolist() == []
    with pytest.raises(ValueError, match="class 4 was not asked for"):
        report.words(4)
    with pytest.raises(ValueError, match="class 4 was not asked for"):
        report.point(4)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.zeros(1, 3), ValueError, r"C >= 2 and d >= 1, got \(1, 3\)"),
        (torch.zeros(3), ValueError, r"got \(3,\)"),
        (torch.zeros(3, 0), ValueError, r"got \(3, 0\)"),
        (
            torch.tensor([[0.0, 1.0], [math.nan, 1.0]]),
            ValueError,
            r"weight holds 1 values that are not finite, the first at \[1, 0\]: nan",
        ),
        (torch.tensor([[0.0, math.inf], [1.0, 1.0]]), ValueError, r"first at \[0, 1\]: inf"),
        (torch.zeros(3, 2, dtype=torch.complex64), TypeError, "real numbers, got torch.complex64"),
        (torch.zeros(3, 2, dtype=torch.bool), TypeError, "real numbers, got torch.bool"),
        (np.array([["a", "b"], ["c", "d"]]), TypeError, "weight must be a tensor or array"),
    ],
)
def test_a_weight_that_is_no_layer_is_named(weight, error, message):
    with pytest.raises(error, match=message):
        check_argmaxable(weight)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.zeros(4), r"bias must have shape \(5,\) as weight has 5 rows, got \(4,\)"),
        (torch.tensor([0.0, 0.0, 0.0, -math.inf, 0.0]), r"bias holds 1 .* first at \[3\]: -inf"),
    ],
)
def test_a_bias_that_does_not_fit_is_named(bias, message):
    with pytest.raises(ValueError, match=message):
        check_argmaxable(ARTICLE, bias)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"classes": [1, 5]}, ValueError, r"classes must be in 0 … 4, got 5"),
        ({"classes": [-1]}, ValueError, r"got -1"),
        ({"classes": torch.tensor([0.5])}, TypeError, "whole numbers"),
        ({"classes": torch.tensor([[1]])}, TypeError, "whole numbers"),
        ({"classes": torch.tensor([True])}, TypeError, "whole numbers"),
        ({"method": "gurobi"}, ValueError, "method must be one of auto, probe, .* got 'gurobi'"),
        ({"tol": -1.0}, ValueError, "tol must be a number of at least 0"),
        ({"tol": math.nan}, ValueError, "tol must be a number of at least 0"),
        ({"box": -1.0}, ValueError, "box must be positive, got -1.0"),
        ({"box": math.nan}, ValueError, "box must be positive, got nan"),
        ({"box": (1.0, -1.0)}, ValueError, "lower must be at most upper"),
        ({"box": (math.nan, 1.0)}, ValueError, "lower must be at most upper"),
        (
            {"box": (torch.zeros(3), 1.0)},
            ValueError,
            r"lower must be a number or have shape \(2,\)",
        ),
        ({"box": (0.0, "wide")}, TypeError, "upper must be a number or numbers"),
    ],
)
def test_settings_out_of_range_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        check_argmaxable(ARTICLE, **settings)


def test_a_box_may_be_open_to_one_side_or_a_single_point():
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5])
    for method in ("auto", "lp"):
        half = check_argmaxable(ARTICLE, method=method, box=(0.0, math.inf))
        assert half.verdict.tolist() == [1, 1, 0, 0, 0]
        here = check_argmaxable(ARTICLE, bias, method=method, box=(0.1, 0.1))
        assert here.verdict.tolist() == [0, 0, 0, 0, 1]
        assert here.point(4).tolist() == [0.1, 0.1]


def test_equal_rows_win_by_their_bias_also_in_a_box():
    report = check_argmaxable(torch.ones(3, 2), torch.tensor([0.0, 2.0, 1.0]), box=(1.0, 2.0))
    assert report.verdict.tolist() == [0, 1, 0]
    assert report.margin.tolist() == [-2.0, 1.0, -1.0]
    assert report.radius[1] == math.inf
    assert report.point(1).min() >= 1
    assert check_argmaxable(torch.ones(3, 2)).verdict.tolist() == [0, 0, 0]


def test_progress_ends_at_the_number_of_classes_of_every_stage(layer):
    told = []
    check_argmaxable(*layer, progress=lambda *news: told.append(news))
    stages = dict.fromkeys(name for name, _, _ in told)
    assert next(iter(stages)) == "probe"
    for name in stages:
        done = [(done, whole) for stage, done, whole in told if stage == name]
        assert done[-1][0] == done[-1][1]
        assert [d for d, _ in done] == sorted(d for d, _ in done)


def test_stages_add_up_to_the_classes(layer):
    weight, bias = layer
    report = check_argmaxable(np.vstack([weight, weight[:2]]), np.append(bias, [9.0, bias[1]]))
    assert report.stages[0].name == "twins"
    assert (report.stages[0].can, report.stages[0].cannot) == (0, 3)
    assert sum(stage.can for stage in report.stages) == len(report.argmaxable)
    assert sum(stage.cannot for stage in report.stages) == len(report.unargmaxable)


def test_rows_name_the_classes_that_outweigh_a_loser():
    report = check_argmaxable(ARTICLE)
    (row,) = report.rows(tokens=["a", "b", "c", "d", "e"], nearest=2)
    assert (row["token"], row["index"], row["verdict"]) == ("e", 4, "never wins")
    assert row["bound"] == pytest.approx(0.2, abs=1e-12)
    assert [near["weight"] for near in row["nearest"]] == pytest.approx([0.25, 0.25], abs=1e-9)
    assert {near["token"] for near in row["nearest"]} < set("abcd")
    (winner,) = report.rows(classes=[0])
    assert (winner["token"], winner["verdict"], winner["nearest"]) == (None, "can win", [])
    assert winner["margin"] > 0


def test_empty_rows_are_listed_apart():
    report = check_argmaxable(torch.tensor([[0, 0], [1, 0], [0, 1], [-1, -1], [0, 0]]))
    assert report.empty.tolist() == [0, 4]
    assert report.unargmaxable.tolist() == [0, 4]
    assert check_argmaxable(ARTICLE).empty.tolist() == []


def test_proofs_of_the_other_kind_do_not_exist():
    report = check_argmaxable(ARTICLE)
    with pytest.raises(ValueError, match="class 4 was not shown to win; its verdict: never wins"):
        report.point(4)
    with pytest.raises(ValueError, match=r"class 0 was not shown never to win.*: can win"):
        report.mix(0)
    probed = check_argmaxable(ARTICLE, method="probe")
    assert probed.undecided.tolist() == [4]
    assert probed.words(4) == "undecided"
    assert math.isnan(probed.margin[4])
    assert probed.bound[4] == 1


def test_a_data_frame_holds_all_classes():
    report = check_argmaxable(ARTICLE)
    if importlib.util.find_spec("pandas") is None:
        with pytest.raises(ImportError, match="pip install pandas"):
            report.to_dataframe()
        return
    table = report.to_dataframe(tokens=list("abcde"))
    assert table["token"].tolist() == list("abcde")
    assert table["verdict"].tolist() == ["can win"] * 4 + ["never wins"]
    assert table["bound"].tolist() == pytest.approx([1, 1, 1, 1, 0.2])
