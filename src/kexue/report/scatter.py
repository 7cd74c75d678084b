"""Points in a square: input position against output position, and the like."""

from collections.abc import Sequence

from kexue.report.drawing import (
    FAINT,
    GRID,
    Label,
    Number,
    colour,
    empty,
    heading,
    label_width,
    rule,
    svg,
    text,
)
from kexue.report.markup import Html, tag

__all__ = ["scatter_chart"]


def scatter_chart(
    points: Sequence[tuple[Number, Number]],
    *,
    title: Label,
    x_label: Label = "",
    y_label: Label = "",
    width: int = 440,
    radius: Number = 1.5,
) -> Html:
    """Points of the unit square, x to the right and y upwards, with a grid of quarters.

    Args:
        points: pairs from 0 to 1; others are left out. A few thousand at most: each is drawn.
        title: what the picture shows.
        x_label: what runs to the right.
        y_label: what runs upwards.
        width: size of the drawing; the height follows.
        radius: of a point.
    """
    inside = [(x, y) for x, y in points if 0 <= x <= 1 and 0 <= y <= 1]
    if not inside:
        return empty(title, width, width)
    left, top = 46.0, 56.0 if label_width(y_label) else 34.0
    side = width - left - 24
    bottom = top + side
    parts = [heading(title, y_label)]
    for quarter in range(5):
        share = quarter / 4
        x, y, name = left + share * side, bottom - share * side, f"{100 * share:.0f} %"
        parts += [rule(left, y, left + side, y, GRID), rule(x, top, x, bottom, GRID)]
        parts += text(name, left - 6, y + 4, anchor="end", size=11)
        parts += text(name, x, bottom + 17, anchor="middle", size=11)
    parts.append(rule(left, bottom, left + side, bottom, FAINT))
    parts += text(x_label, left + side, bottom + 36, anchor="end")
    # one path for all points: a short line with round ends each
    dots = "".join(f"M{left + x * side:.1f} {bottom - y * side:.1f}h0" for x, y in inside)
    shape = {"d": dots, "fill": "none", "stroke": colour(0), "stroke_linecap": "round"}
    parts.append(tag("path", **shape, stroke_width=f"{2 * radius:g}", stroke_opacity="0.55"))
    return svg(title, width, round(bottom + 46), parts)
