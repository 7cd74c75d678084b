"""Small pictures as inline SVG: lines, bars and a heat map, without a plotting library.

    figure(line_chart([Series("dev", [1, 2, 3], [40, 55, 61])], title="accuracy"), "per epoch")

A picture takes its colours from the page's style sheet and its words in one language or in both:
a `Label` is a text, or a pair (English, Chinese). Points that are not finite are left out; a
picture without any point says so.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kexue.report.drawing import (
    FAINT,
    GRID,
    INK,
    SOFT,
    Label,
    Number,
    box,
    colour,
    empty,
    heading,
    label_width,
    legend,
    rule,
    svg,
    text,
    text_width,
    tick_names,
    ticks,
)
from kexue.report.heat_map import heat_map
from kexue.report.markup import Html, tag

__all__ = ["Bar", "Label", "Series", "bar_chart", "heat_map", "line_chart"]

MOST_POINTS = 300
"""A line with more points than this is drawn through the means of equal groups."""


@dataclass(frozen=True)
class Series:
    """One line: a name for the legend and its points; `dots` marks every point."""

    name: Label
    x: Sequence[Number]
    y: Sequence[Number]
    dots: bool = False

    def points(self) -> list[tuple[float, float]]:
        """The finite points, at most `MOST_POINTS` of them."""
        pairs = zip(self.x, self.y, strict=True)
        points = [(float(x), float(y)) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
        size = math.ceil(len(points) / MOST_POINTS)
        if size <= 1:
            return points
        groups = [points[start : start + size] for start in range(0, len(points), size)]
        return [(_mean(x for x, _ in group), _mean(y for _, y in group)) for group in groups]


@dataclass(frozen=True)
class Bar:
    """One bar: its value, where chance would be, and the range over repetitions."""

    name: Label
    value: Number
    chance: Number | None = None
    low: Number | None = None
    high: Number | None = None


def line_chart(
    series: Sequence[Series],
    *,
    title: Label,
    x_label: Label = "",
    y_label: Label = "",
    reference: tuple[Label, Number] | None = None,
    start: Number | None = None,
    width: int = 520,
    height: int = 300,
) -> Html:
    """Lines over common axes.

    Args:
        series: the lines; a line of one point is drawn as a dot.
        title: what the picture shows; also its name for screen readers.
        x_label: what runs to the right, with its unit.
        y_label: what runs upwards, with its unit.
        reference: a dashed level with its name, such as chance.
        start: where the axis to the right begins at the latest; at the first point when None.
        width: size of the drawing; it scales with the page.
        height: size of the drawing.
    """
    lines = [(one, one.points()) for one in series]
    everything = [point for _, points in lines for point in points]
    if not everything:
        return empty(title, width, height)
    if reference is not None and not math.isfinite(reference[1]):
        reference = None
    levels = [y for _, y in everything] + ([float(reference[1])] if reference else [])
    begin = [] if start is None else [float(start)]
    x_ticks, y_ticks = ticks([x for x, _ in everything] + begin), ticks(levels)
    x_names, y_names = tick_names(x_ticks), tick_names(y_ticks)
    left = 14 + max(text_width(name) for name in y_names)
    parts, top = [heading(title, y_label)], 40.0 if not label_width(y_label) else 56.0
    if len(series) > 1 or reference is not None:
        names = [(one.name, colour(index), "") for index, one in enumerate(series)]
        names += [(reference[0], SOFT, "5 4")] if reference else []
        samples, taken = legend(names, top + 4, width)
        parts, top = parts + samples, top + taken
    right, bottom = width - 14, height - 44

    def across(x: Number) -> float:
        return left + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (right - left)

    def up(y: Number) -> float:
        return bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top)

    for tick, name in zip(y_ticks, y_names, strict=True):
        parts.append(rule(left, up(tick), right, up(tick), GRID))
        parts += text(name, left - 8, up(tick) + 4, anchor="end")
    for tick, name in zip(x_ticks, x_names, strict=True):
        parts += text(name, across(tick), bottom + 18, anchor="middle")
    parts += text(x_label, right, bottom + 36, anchor="end")
    parts.append(rule(left, bottom, right, bottom, FAINT))
    if reference is not None:
        level = up(reference[1])
        parts.append(rule(left, level, right, level, SOFT, dash="5 4"))
    for index, (one, points) in enumerate(lines):
        placed = [(across(x), up(y)) for x, y in points]
        if len(placed) > 1:
            corners = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
            shape = {"d": f"M{corners}", "fill": "none", "stroke": colour(index)}
            parts.append(tag("path", **shape, stroke_width=2, stroke_linejoin="round"))
        if one.dots or len(placed) == 1:
            parts += [
                tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3.2, fill=colour(index))
                for x, y in placed
            ]
    return svg(title, width, height, parts)


def bar_chart(
    bars: Sequence[Bar],
    *,
    title: Label,
    unit: Label = "",
    top: Number | None = None,
    chance_name: Label = ("chance", "瞎猜水平"),
    digits: int = 1,
    width: int = 520,
) -> Html:
    """One bar per row with its value at the end and a mark where chance would be.

    Args:
        bars: the rows, from above; a bar whose value is not finite is an empty row.
        title: what the picture shows.
        unit: what the values are, under the title.
        top: the value at the right end; the largest one when None.
        chance_name: what the marks stand for.
        digits: decimals of the values.
        width: size of the drawing; its height follows from the number of bars.
    """
    finite = [bar for bar in bars if math.isfinite(bar.value)]
    if not finite:
        return empty(title, width, 160)
    parts, first, step = [heading(title, unit)], 58 if label_width(unit) else 36, 30
    if any(bar.chance is not None for bar in bars):
        parts += legend([(chance_name, INK, "|")], first + 4, width)[0]
        first += 24
    height = first + step * len(bars)
    ends = [max(bar.value, bar.chance or 0, bar.high or 0) for bar in finite]
    end = top if top is not None else max(ends) or 1.0
    left = 14 + max(label_width(bar.name) for bar in bars)
    right = width - 16 - max(text_width(f"{bar.value:.{digits}f}") for bar in finite)

    def across(value: Number) -> float:
        return left + min(max(value / end, 0.0), 1.0) * (right - left)

    for index, bar in enumerate(bars):
        y = first + step * index
        parts += text(bar.name, left - 10, y + 14, anchor="end", fill=INK)
        parts.append(box(left, y, right - left, 20, GRID))
        if not math.isfinite(bar.value):
            parts += text("—", left + 8, y + 14)
            continue
        parts.append(box(left, y, across(bar.value) - left, 20, colour(0)))
        past = across(bar.value)
        if bar.low is not None and bar.high is not None and bar.high > bar.low:
            low, past = across(bar.low), across(bar.high)
            parts.append(rule(low, y + 10, past, y + 10, INK, 1.5))
            parts += [rule(x, y + 6, x, y + 14, INK, 1.5) for x in (low, past)]
        if bar.chance is not None and math.isfinite(bar.chance):
            x = across(bar.chance)
            parts.append(rule(x, y - 3, x, y + 23, INK, 2))
        value = f"{bar.value:.{digits}f}"
        parts += text(value, width - 4, y + 14.5, anchor="end", fill=INK)
    return svg(title, width, height, parts)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
