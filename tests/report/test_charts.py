"""Charts: pictures for every input, with all words and no NaN."""

import math
from xml.etree import ElementTree

import pytest

from kexue.report.charts import Bar, Series, bar_chart, heat_map, line_chart
from kexue.report.drawing import tick_names, ticks


def drawn(picture):
    """The picture as XML, checked to be free of numbers that are none."""
    assert "nan" not in picture.lower().replace("finance", "")
    assert "inf" not in picture.lower()
    return ElementTree.fromstring(picture)


def words(picture):
    return [element.text for element in drawn(picture).iter("text")]


def test_a_line_runs_through_its_points_from_left_to_right():
    picture = line_chart([Series("dev", [0, 1, 2], [10, 20, 30])], title="score")
    path = drawn(picture).find("path").get("d")
    points = [tuple(map(float, point.split())) for point in path[1:].split("L")]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert x0 < x1
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y1  # SVG counts downwards


def test_several_lines_and_a_reference_are_named_in_a_legend():
    lines = [Series(f"seed {k}", [0, 1], [k, k + 1]) for k in range(9)]
    texts = words(line_chart(lines, title="loss", reference=(("chance", "随机"), 3)))
    assert {f"seed {k}" for k in range(9)} | {"chance", "随机", "loss"} <= set(texts)


def test_one_point_is_a_dot():
    picture = drawn(line_chart([Series("dev", [1], [50])], title="score"))
    assert picture.find("circle") is not None
    assert picture.find("path") is None


def test_an_axis_that_starts_at_zero_ends_at_the_only_epoch():
    picture = line_chart([Series("dev", [1], [50])], title="score", start=0)
    assert "1.0" in words(picture)
    assert not {"0.90", "1.10", "1.2"} & set(words(picture))


@pytest.mark.parametrize("level", [0.0, 5.0, -3.0, 1e-12, 1e12])
def test_a_constant_line_is_drawn(level):
    picture = line_chart([Series("x", [1, 2, 3], [level] * 3)], title="constant")
    assert drawn(picture).find("path") is not None


@pytest.mark.parametrize("points", [([], []), ([1], [math.nan]), ([math.inf], [2])])
def test_a_picture_without_points_says_so(points):
    assert "no data" in words(line_chart([Series("x", *points)], title="empty"))


def test_points_that_are_not_finite_are_left_out():
    series = Series("x", [1, 2, 3], [1.0, math.nan, 3.0])
    assert series.points() == [(1, 1), (3, 3)]
    drawn(line_chart([series], title="gap", reference=("chance", math.nan)))


def test_a_long_line_is_thinned_to_group_means():
    points = Series("x", list(range(3000)), [7.0] * 3000).points()
    assert len(points) == 300
    assert points[0] == (4.5, 7.0)


@pytest.mark.parametrize(
    "values", [[0, 1], [3.2, 3.3], [-5, 17], [0.00012, 0.00098], [1e6, 3e6], [99.9, 100]]
)
def test_ticks_are_few_round_and_enclose_the_values(values):
    marks = ticks(values)
    assert marks[0] <= min(values) + 1e-12
    assert marks[-1] >= max(values) - 1e-12
    assert 3 <= len(marks) <= 8
    assert len(set(tick_names(marks))) == len(marks)


def test_bars_are_as_long_as_their_values_and_show_them():
    picture = bar_chart([Bar("a", 25, 10), Bar("b", 50)], title="t", top=100)
    boxes = [float(box.get("width")) for box in drawn(picture).iter("rect")]
    whole, a, _, b = boxes
    assert a / whole == pytest.approx(0.25, abs=0.001)
    assert b / whole == pytest.approx(0.5, abs=0.001)
    assert {"25.0", "50.0", "a", "b", "chance", "瞎猜水平"} <= set(words(picture))


@pytest.mark.parametrize(
    "bars", [[], [Bar("a", math.nan)], [Bar("a", 0.0), Bar("b", math.nan)], [Bar("a", 3, 4, 2, 5)]]
)
def test_bars_are_drawn_for_zero_missing_and_spread_values(bars):
    drawn(bar_chart(bars, title="t"))


def test_a_heat_map_names_every_cell():
    picture = drawn(heat_map(["真", "假"], [[3, 1], [0, 0]], title="confusions"))
    cells = [cell.find("title").text for cell in picture.iter("rect")]
    assert cells == ["真 → 真: 3", "真 → 假: 1", "假 → 真: 0", "假 → 假: 0"]


@pytest.mark.parametrize("n", [0, 1, 5, 15, 24])
def test_heat_maps_of_any_size_are_drawn(n):
    labels = [f"label {k}" for k in range(n)]
    drawn(heat_map(labels, [[i + j for j in range(n)] for i in range(n)], title="t"))


def test_a_matrix_that_does_not_fit_its_labels_is_refused():
    with pytest.raises(ValueError, match="2 labels need 2 rows of 2 counts"):
        heat_map(["a", "b"], [[1, 2]], title="t")


def test_words_are_escaped_and_titles_readable_for_screen_readers():
    picture = line_chart([Series("<b>", [0, 1], [0, 1])], title=("a & b", "甲"), y_label="<i>")
    root = drawn(picture)
    assert root.find("title").text == root.get("aria-label") == "a & b · 甲"
    assert "<b>" not in picture
