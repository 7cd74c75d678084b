"""Many points as shaded cells, with a few of them as dots on top."""

import math
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
    legend,
    rule,
    svg,
    text,
    text_width,
    tick_names,
    ticks,
)
from kexue.report.markup import Html, tag

__all__ = ["cloud_chart"]


def cloud_chart(
    cells: Sequence[Sequence[int]],
    dots: Sequence[Sequence[Number]],
    *,
    x: Sequence[Number],
    y: Sequence[Number],
    grid: Sequence[int],
    title: Label,
    names: tuple[Label, Label],
    x_label: Label = "",
    y_label: Label = "",
    width: int = 560,
    height: int = 380,
) -> Html:
    """Counts on a grid, darker where there are more, and dots.

    Args:
        cells: (column, row, count) of every cell that holds points, counted from below left.
        dots: points of their own.
        x, y: where the grid begins and ends.
        grid: columns and rows.
        title: what the picture shows.
        names: of what the cells hold, and of the dots.
        x_label: what runs to the right.
        y_label: what runs upwards.
        width: size of the drawing.
        height: size of the drawing.
    """
    if not cells:
        return empty(title, width, height)
    x_ticks = [t for t in ticks(x) if x[0] <= t <= x[1]]
    y_ticks = [t for t in ticks(y) if y[0] <= t <= y[1]]
    x_names = tick_names(x_ticks) if len(x_ticks) > 1 else [f"{t:g}" for t in x_ticks]
    y_names = tick_names(y_ticks) if len(y_ticks) > 1 else [f"{t:g}" for t in y_ticks]
    left = 14 + max((text_width(name) for name in y_names), default=0.0)
    right, bottom = width - 14.0, height - 44.0
    parts, top = [heading(title, y_label)], 56.0 if label_width(y_label) else 40.0
    samples, taken = legend(
        [(name, colour(index), "") for index, name in enumerate(names[: 2 if dots else 1])],
        top + 4,
        width,
    )
    parts, top = parts + samples, top + taken
    step = ((right - left) / grid[0], (bottom - top) / grid[1])

    def across(value: Number) -> float:
        return left + (value - x[0]) / (x[1] - x[0]) * (right - left)

    def up(value: Number) -> float:
        return bottom - (value - y[0]) / (y[1] - y[0]) * (bottom - top)

    for tick, name in zip(y_ticks, y_names, strict=True):
        parts.append(rule(left, up(tick), right, up(tick), GRID))
        parts += text(name, left - 8, up(tick) + 4, anchor="end")
    for tick, name in zip(x_ticks, x_names, strict=True):
        parts += text(name, across(tick), bottom + 18, anchor="middle")
    parts += text(x_label, right, bottom + 36, anchor="end")
    parts.append(rule(left, bottom, right, bottom, FAINT))
    most = math.log1p(max(count for _, _, count in cells))
    shades: dict[int, list[str]] = {}
    for column, row, count in cells:
        shade = math.ceil(6 * math.log1p(count) / most)
        corner = f"M{left + column * step[0]:.1f} {bottom - (row + 1) * step[1]:.1f}"
        shades.setdefault(shade, []).append(f"{corner}h{step[0]:.1f}v{step[1]:.1f}h-{step[0]:.1f}z")
    for shade, paths in sorted(shades.items()):
        opacity = f"{0.1 + 0.13 * shade:.2f}"
        parts.append(tag("path", d="".join(paths), fill=colour(0), fill_opacity=opacity))
    if dots:
        path = "".join(f"M{across(a):.1f} {up(b):.1f}h0" for a, b in dots)
        parts.append(
            tag(
                "path",
                d=path,
                fill="none",
                stroke=colour(1),
                stroke_width=5,
                stroke_linecap="round",
            )
        )
    return svg(title, width, height, parts)
