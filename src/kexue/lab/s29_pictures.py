"""A picture that only S29 needs: bars whose parts add up."""

from collections.abc import Sequence

from kexue.report.drawing import (
    GRID,
    INK,
    Label,
    box,
    colour,
    heading,
    label_width,
    legend,
    svg,
    text,
)
from kexue.report.markup import Html

__all__ = ["stacked_bars"]


def stacked_bars(
    bars: Sequence[tuple[Label, Sequence[float]]],
    parts: Sequence[Label],
    *,
    title: Label,
    unit: Label,
    width: int = 520,
) -> Html:
    """One bar per row, its parts side by side, their sum at the end.

    Args:
        bars: name and the values of its parts, not negative.
        parts: names of the parts for the legend.
        title: what the picture shows.
        unit: what the values are, under the title.
        width: size of the drawing.
    """
    names = [(name, colour(i), "") for i, name in enumerate(parts)]
    samples, taken = legend(names, 60, width)
    top, step = 56 + taken, 30
    left = 14 + max(label_width(name) for name, _ in bars)
    right = width - 52
    end = max(sum(values) for _, values in bars) or 1.0
    drawn = [heading(title, unit), *samples]
    for row, (name, values) in enumerate(bars):
        y, x = top + step * row, left
        drawn += text(name, left - 10, y + 14, anchor="end", fill=INK)
        drawn.append(box(left, y, right - left, 20, GRID))
        for i, value in enumerate(values):
            across = value / end * (right - left)
            drawn.append(box(x, y, across, 20, colour(i)))
            x += across
        drawn += text(f"{sum(values):.1f}", width - 4, y + 14.5, anchor="end", fill=INK)
    return svg(title, width, round(top + step * len(bars)), drawn)
