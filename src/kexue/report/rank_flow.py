"""Ranks as pictures: how an order flows from one way of ranking to the next, how far it spreads.

    rank_flow(["AM", "HM"], ["a", "b"], [[1, 2], [2, 1]], title="order")
    rank_spread(["a", "b"], [("AM", [(1, 1, 2), (1, 2, 2)])], title="resampled")

A model that changes its place has a colour; the others stay grey. Models that tie stand one below
the other and carry the same number.
"""

from collections.abc import Sequence
from itertools import pairwise

from kexue.report.drawing import (
    FAINT,
    GRID,
    INK,
    SOFT,
    Label,
    colour,
    empty,
    heading,
    label_width,
    legend,
    rule,
    svg,
    text,
    text_width,
)
from kexue.report.markup import Html, tag

__all__ = ["MOST_MODELS", "rank_flow", "rank_spread"]

MOST_MODELS = 30
"""A picture shows the first so many."""
COLOURS = 5
STEP = 26
Ranks = Sequence[int]


def rank_flow(
    stages: Sequence[Label],
    models: Sequence[str],
    ranks: Sequence[Ranks],
    *,
    title: Label,
    under: Label = "",
    width: int = 760,
) -> Html:
    """A line per model through its ranks.

    Args:
        stages: the ways of ranking, from left to right.
        models: names.
        ranks: of every stage, the rank of every model; 1 is on top.
        title: what the picture shows.
        under: a smaller line below it.
        width: of the drawing; its height follows from the number of models.
    """
    if not stages or not models:
        return empty(title, width, 160)
    shown = sorted(range(len(models)), key=lambda m: ranks[0][m])[:MOST_MODELS]
    places = _places(ranks, shown)
    side = [text_width(_short(models[m])) for m in shown]
    left, right = 16 + max(side), width - 16 - max(side)
    top = (58.0 if label_width(under) else 38.0) + 34.0
    height = int(top) + STEP * len(shown) - 4
    gap = (right - left) / max(1, len(stages) - 1)

    def x(stage: int) -> float:
        return left + 16 + stage * (gap - 32 / max(1, len(stages) - 1))

    def y(place: int) -> float:
        return top + STEP * place

    movers = sorted(
        (m for m in shown if len({stage[m] for stage in ranks}) > 1),
        key=lambda m: min(stage[m] for stage in ranks) - max(stage[m] for stage in ranks),
    )[:COLOURS]
    parts = [heading(title, under)]
    for s, stage in enumerate(stages):
        crowded = any(label_width(one) > gap - 8 for one in stages)
        level = top - 21 - (14 if crowded and s % 2 else 0)
        words, size = (_fitted(stage, 2 * gap - 20), 11) if crowded else (stage, 12)
        parts += text(words, x(s), level, anchor="middle", size=size)
        parts.append(rule(x(s), y(0) - 10, x(s), y(len(shown) - 1) + 10, GRID))
    for m in sorted(shown, key=lambda m: m in movers):
        stroke = colour(movers.index(m)) if m in movers else FAINT
        points = [(x(s), y(place[m])) for s, place in enumerate(places)]
        curve = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
        for (x1, y1), (x2, y2) in pairwise(points):
            half = (x1 + x2) / 2
            curve += f"C{half:.1f} {y1:.1f} {half:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
        thick = 2.6 if m in movers else 1.4
        parts.append(tag("path", d=curve, fill="none", stroke=stroke, stroke_width=thick))
    for m in shown:
        fill = colour(movers.index(m)) if m in movers else FAINT
        for s, place in enumerate(places):
            parts.append(tag("circle", cx=f"{x(s):.1f}", cy=f"{y(place[m]):.1f}", r=9, fill=fill))
            parts += text(
                str(ranks[s][m]), x(s), y(place[m]) + 4, anchor="middle", fill="#ffffff", size=11
            )
        name, ink = _short(models[m]), INK if m in movers else SOFT
        parts += text(name, x(0) - 16, y(places[0][m]) + 4, anchor="end", fill=ink)
        if len(stages) > 1:
            parts += text(name, x(len(stages) - 1) + 16, y(places[-1][m]) + 4, fill=ink)
    return svg(title, width, height, parts)


def rank_spread(
    models: Sequence[str],
    series: Sequence[tuple[Label, Sequence[Sequence[int]]]],
    *,
    title: Label,
    under: Label = "",
    width: int = 760,
) -> Html:
    """Per model a line from the lowest to the highest likely rank, with a dot at the median.

    Args:
        models: names, in the order of the rows.
        series: (name, (low, median, high) of every model), one line each.
        title: what the picture shows.
        under: a smaller line below it.
        width: of the drawing.
    """
    if not models or not series:
        return empty(title, width, 160)
    models = [_short(one) for one in models[:MOST_MODELS]]
    parts = [heading(title, under)]
    top = 58.0 if label_width(under) else 38.0
    names = [(name, colour(index), "") for index, (name, _) in enumerate(series)]
    samples, taken = legend(names, top + 4, width)
    parts += samples
    top += taken + 22
    left, right = 20 + max(text_width(one) for one in models), width - 20
    last = max(high for _, rows in series for _, _, high in rows[: len(models)])
    row = max(22, 7 * len(series) + 8)
    bottom = top + row * len(models)

    def x(rank: int) -> float:
        return left + (rank - 1) / max(1, last - 1) * (right - left)

    for rank in range(1, last + 1, max(1, last // 20)):
        parts.append(rule(x(rank), top - 6, x(rank), bottom - 6, GRID))
        parts += text(str(rank), x(rank), top - 11, anchor="middle")
    for m, model in enumerate(models):
        middle = top + row * m + row / 2 - 6
        parts += text(model, left - 14, middle + 4, anchor="end", fill=INK)
        for index, (_, rows) in enumerate(series):
            low, median, high = rows[m]
            level = middle + 7 * (index - (len(series) - 1) / 2)
            parts.append(rule(x(low), level, x(high), level, colour(index), 2))
            dot = {"cx": f"{x(median):.1f}", "cy": f"{level:.1f}"}
            parts.append(tag("circle", **dot, r=3.4, fill=colour(index)))
    return svg(title, width, int(bottom) + 4, parts)


def _places(ranks: Sequence[Ranks], shown: Sequence[int]) -> list[dict[int, int]]:
    """One place per model and stage; models that tie keep the order they came in."""
    found: list[dict[int, int]] = []
    before = {m: place for place, m in enumerate(shown)}
    for stage in ranks:
        order = sorted(shown, key=lambda m: (stage[m], before[m]))
        before = {m: place for place, m in enumerate(order)}
        found.append(before)
    return found


def _short(name: str, most: int = 24) -> str:
    """The name with its middle left out if it is long: names often differ at their ends."""
    end = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - end]}…{name[-end:]}"


def _fitted(label: Label, width: float) -> Label:
    """The label, shortened to about this width at size 11."""
    most = max(5, int(width / text_width("x", 11)))
    if isinstance(label, str):
        return _short(label, most)
    return _short(label[0], most), _short(label[1], most)
