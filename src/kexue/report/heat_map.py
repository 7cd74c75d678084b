"""A confusion matrix as inline SVG: rows shaded by their own share, counts in the cells."""

import math
from collections.abc import Sequence

from kexue.report.drawing import (
    INK,
    Label,
    Number,
    empty,
    heading,
    label_width,
    number,
    svg,
    text,
    text_width,
)
from kexue.report.markup import Html, tag

__all__ = ["heat_map"]

MOST_NUMBERS = 16
"""With more classes than this the cells are too small for their counts."""


def heat_map(
    labels: Sequence[str],
    counts: Sequence[Sequence[Number]],
    *,
    title: Label,
    row_label: Label = ("gold", "标准答案"),
    column_label: Label = ("predicted", "预测"),
    width: int = 520,
) -> Html:
    """A confusion matrix: rows are shaded by their own share, cells hold the counts.

    Args:
        labels: names of the classes, in the order of rows and columns.
        counts: a square of counts, `counts[gold][predicted]`.
        title: what the picture shows.
        row_label: what the rows are.
        column_label: what the columns are.
        width: the drawing is at most so wide; its height follows.
    """
    n = len(labels)
    if n == 0:
        return empty(title, width, 160)
    if len(counts) != n or any(len(row) != n for row in counts):
        rows = [len(row) for row in counts]
        raise ValueError(f"{n} labels need {n} rows of {n} counts, got rows of {rows}")
    longest = max(text_width(label) for label in labels)
    slant = n > 5 or longest > 60
    left, top = longest + 38, 42.0
    cell = min((width - left - 4) / n, 64.0)
    width = max(math.ceil(left + cell * n) + 4, math.ceil(label_width(title) * 1.2) + 8)
    side, size = cell * n, max(6.0, min(12.0, cell * 0.42))
    below = longest * 0.71 * size / 12 + 22 if slant else 26.0
    parts = [heading(title, "")]
    parts += text(row_label, 12, top + side / 2, anchor="middle", turn=-90)
    parts += text(column_label, left + side / 2, top + side + below + 14, anchor="middle")
    for i, (label, row) in enumerate(zip(labels, counts, strict=True)):
        x, y = left + cell * (i + 0.5), top + cell * (i + 0.5)
        parts += text(label, left - 8, y + size * 0.35, anchor="end", size=size)
        if slant:
            parts += text(label, x + 4, top + side + 11, anchor="end", turn=-45, size=size)
        else:
            parts += text(label, x, top + side + 18, anchor="middle", size=size)
        total = sum(row)
        for j, count in enumerate(row):
            share, x = count / total if total else 0.0, left + cell * (j + 0.5)
            name = f"{label} → {labels[j]}: {number(count)}"
            parts.append(_cell(x, y, cell, share, name))
            if count and n <= MOST_NUMBERS:
                ink = "var(--heat-ink,#fff)" if share > 0.5 else INK
                words = number(count)
                parts += text(words, x, y + size * 0.36, anchor="middle", fill=ink, size=size)
    return svg(title, width, math.ceil(top + side + below + 22), parts)


def _cell(x: float, y: float, side: float, share: float, name: str) -> Html:
    place = {"x": f"{x - side / 2 + 0.75:.1f}", "y": f"{y - side / 2 + 0.75:.1f}"}
    size = {"width": f"{side - 1.5:.1f}", "height": f"{side - 1.5:.1f}"}
    fill = f"rgba(var(--heat,31,111,139),{0.05 + 0.95 * share:.3f})"
    return tag("rect", tag("title", name), **place, **size, rx=2, fill=fill)
