"""A picture with logarithmic axes for curves against depth."""

import math
from collections.abc import Sequence

from kexue.report.charts import Series
from kexue.report.drawing import (
    FAINT,
    GRID,
    Label,
    colour,
    heading,
    legend,
    number,
    rule,
    svg,
    text,
)
from kexue.report.markup import Html, tag

__all__ = ["log_log_chart"]


def log_log_chart(
    series: Sequence[Series],
    *,
    title: Label,
    x_label: Label,
    y_label: Label,
    width: int = 520,
    height: int = 330,
) -> Html:
    """Lines with dots; ticks at every x that occurs and at powers of ten upwards.

    Args:
        series: the lines; points that are not positive are left out.
        title: what the picture shows.
        x_label: what runs to the right.
        y_label: what runs upwards.
        width: size of the drawing.
        height: size of the drawing.

    Raises:
        ValueError: no point is positive.
    """
    lines = [[(x, y) for x, y in one.points() if x > 0 and y > 0] for one in series]
    xs = sorted({x for line in lines for x, _ in line})
    ys = [y for line in lines for _, y in line]
    if not ys:
        raise ValueError("log_log_chart has no positive point to draw")
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    high += low == high
    names, taken = legend([(one.name, colour(k), "") for k, one in enumerate(series)], 60, width)
    left, right, top, bottom = 58, width - 14, 56 + taken, height - 44
    span = math.log(xs[-1] / xs[0]) or 1.0

    def across(x: float) -> float:
        return left + 8 + math.log(x / xs[0]) / span * (right - left - 16)

    def up(y: float) -> float:
        return bottom - (math.log10(y) - low) / (high - low) * (bottom - top)

    parts = [heading(title, y_label), *names]
    for power in range(low, high + 1):
        parts.append(rule(left, up(10.0**power), right, up(10.0**power), GRID))
        parts += text(f"{10.0**power:g}", left - 8, up(10.0**power) + 4, anchor="end")
    for x in xs:
        parts += text(number(x), across(x), bottom + 18, anchor="middle")
    parts += text(x_label, right, bottom + 36, anchor="end")
    parts.append(rule(left, bottom, right, bottom, FAINT))
    for index, line in enumerate(lines):
        placed = [(across(x), up(y)) for x, y in line]
        corners = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        if len(placed) > 1:
            parts.append(
                tag("path", d=f"M{corners}", fill="none", stroke=colour(index), stroke_width=2)
            )
        parts += [
            tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3.2, fill=colour(index))
            for x, y in placed
        ]
    return svg(title, width, height, parts)
