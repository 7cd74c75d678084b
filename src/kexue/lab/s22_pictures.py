"""Pictures for S22: which class wins where in a plane, and a table of shares as shades."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kexue.report.drawing import INK, SOFT, Label, colour, heading, label_width, svg, text
from kexue.report.markup import Html, tag

__all__ = ["cells", "share_map", "winning_cells"]

Array = NDArray[np.float64]
SIDE, GAP, TOP = 236.0, 22.0, 62.0


def winning_cells(rows: Array, bias: Array, reach: float) -> list[Array]:
    """The polygon of each class in the square |z_j| ≤ reach: a square cut by half-planes.

    Example:
        >>> two = winning_cells(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.zeros(2), 1.0)
        >>> sorted(map(tuple, two[0].tolist()))
        [(0.0, -1.0), (0.0, 1.0), (1.0, -1.0), (1.0, 1.0)]
    """
    square = reach * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    found = []
    for k in range(len(rows)):
        corners = square
        for i in range(len(rows)):
            if i != k:
                corners = _cut(corners, rows[k] - rows[i], bias[k] - bias[i])
        found.append(corners)
    return found


def _cut(corners: Array, direction: Array, offset: float) -> Array:
    """The part of a polygon where direction · z + offset ≥ 0."""
    ahead = corners @ direction + offset
    kept: list[Array] = []
    for n in range(len(corners)):
        a, b = ahead[n - 1], ahead[n]
        if (a < 0) != (b < 0):
            kept.append(corners[n - 1] + a / (a - b) * (corners[n] - corners[n - 1]))
        if b >= 0:
            kept.append(corners[n])
    return np.array(kept).reshape(-1, 2)


def cells(rows: Array, biases: Sequence[tuple[Label, Array]], reach: float = 2.0) -> Html:
    """The rows with their hull, then for each bias the plane of features by winning class."""
    names = [f"w{chr(0x2081 + k)}" for k in range(len(rows))]
    parts = [
        heading(
            ("The hidden class and where it comes out", "被藏住的类，和它露头的地方"),
            (
                "left: the rows, with their hull; right: which class wins at which features",
                "左：各类的向量与凸包；右：特征平面上各处由谁获胜",
            ),
        )
    ]
    parts += _rows_panel(rows, names)
    for place, (label, bias) in enumerate(biases, start=1):
        left = 2 + place * (SIDE + GAP)
        parts += text(label, left + SIDE / 2, TOP - 5, anchor="middle", fill=INK)
        for k, corners in enumerate(winning_cells(rows, bias, reach)):
            if _area(corners) < 1e-9:
                continue
            at = _placed(corners, left, reach)
            shape = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
            fill = {"fill": colour(k), "fill_opacity": "0.45", "stroke": INK, "stroke_width": 0.8}
            parts.append(tag("polygon", tag("title", names[k]), points=shape, **fill))
            x, y = at.mean(axis=0)
            parts += text(names[k], x, y + 5, anchor="middle", fill=INK, size=14, weight=600)
    width = round(4 + (len(biases) + 1) * SIDE + len(biases) * GAP)
    title = ("The hidden class in two dimensions", "二维中被藏住的类")
    return svg(title, width, round(TOP + SIDE + 8), parts)


def _rows_panel(rows: Array, names: Sequence[str]) -> list[Html]:
    from scipy.spatial import ConvexHull

    middle = (rows.min(axis=0) + rows.max(axis=0)) / 2
    reach = 0.62 * float((rows.max(axis=0) - rows.min(axis=0)).max())
    at = _placed(rows - middle, 2.0, reach)
    hull = " ".join(f"{x:.1f},{y:.1f}" for x, y in at[ConvexHull(rows).vertices])
    parts = [tag("polygon", points=hull, fill=SOFT, fill_opacity="0.12", stroke=SOFT)]
    parts += text(("the rows w", "各类的向量 w"), 2 + SIDE / 2, TOP - 5, anchor="middle", fill=INK)
    for k, (x, y) in enumerate(at):
        parts.append(tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=6, fill=colour(k)))
        parts += text(names[k], x + 10, y + 5, fill=INK, size=14, weight=600)
    return parts


def _placed(points: Array, left: float, reach: float) -> Array:
    """In the drawing, y upwards."""
    share = (points / reach * np.array([1.0, -1.0]) + 1) / 2
    placed: Array = np.array([left, TOP]) + SIDE * share
    return placed


def _area(corners: Array) -> float:
    x, y = corners.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def share_map(
    rows: Sequence[str],
    columns: Sequence[str],
    shares: Array,
    *,
    title: Label,
    under: Label,
    row_label: Label,
    column_label: Label,
) -> Html:
    """A table of percentages as shades, with the numbers in the cells."""
    across, down, left, top = 62.0, 30.0, 88.0, 52.0
    parts = [heading(title, under)]
    bottom = top + down * len(rows)
    parts += text(row_label, 14, top + (bottom - top) / 2, anchor="middle", turn=-90)
    parts += text(column_label, left + across * len(columns) / 2, bottom + 38, anchor="middle")
    for j, name in enumerate(columns):
        parts += text(name, left + across * (j + 0.5), bottom + 18, anchor="middle")
    for i, name in enumerate(rows):
        y = top + down * i
        parts += text(name, left - 8, y + 19, anchor="end")
        for j in range(len(columns)):
            share, x = float(shares[i, j]), left + across * j
            fill = f"rgba(var(--heat,31,111,139),{0.05 + 0.95 * share / 100:.3f})"
            size = {"width": across - 2, "height": down - 2, "rx": 2}
            parts.append(tag("rect", x=f"{x + 1:.1f}", y=f"{y + 1:.1f}", fill=fill, **size))
            ink = "var(--heat-ink,#fff)" if share > 60 else INK
            words = "0" if share == 0 else f"{share:.1f}"
            parts += text(words, x + across / 2, y + 19, anchor="middle", fill=ink)
    widest = max(left + across * len(columns), label_width(title) * 1.2, label_width(under)) + 8
    return svg(title, round(widest), round(bottom + 48), parts)
