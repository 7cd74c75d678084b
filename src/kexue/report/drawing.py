"""What the charts are drawn with: SVG texts, rules, boxes, ticks and colours.

Words come in one language or two: a `Label` is a text, or a pair (English, Chinese), drawn as two
text elements of which the page shows one. Colours are the style sheet's, with the light ones as a
fallback outside a page.
"""

import math
from collections.abc import Iterable, Sequence

from kexue.report.markup import Html, join, tag

__all__ = [
    "FAINT",
    "GRID",
    "INK",
    "SOFT",
    "Label",
    "Number",
    "box",
    "colour",
    "empty",
    "heading",
    "label_width",
    "legend",
    "number",
    "rule",
    "svg",
    "text",
    "text_width",
    "tick_names",
    "ticks",
]

Label = str | tuple[str, str]
Number = int | float
INK, SOFT = "var(--ink,#22262b)", "var(--soft,#666d75)"
FAINT, GRID = "var(--faint,#9aa1a9)", "var(--grid,#eceae5)"
SERIES = ("#1f6f8b", "#cf6f2e", "#4d8a57", "#8b5c9e", "#b8474f", "#6f7680")


def number(value: Number, digits: int = 4) -> str:
    """A short number: at most `digits` significant digits, whole numbers in full.

    Example:
        >>> number(0.30000000000000004), number(12000.0), number(3.14159)
        ('0.3', '12,000', '3.142')
    """
    if abs(value) >= 10**digits or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def ticks(values: Sequence[Number], about: int = 5) -> list[float]:
    """Round numbers that enclose all values: steps of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        room = abs(low) * 0.1 or 1.0
        low, high = (low - room if low else 0.0), high + room
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(start, end + 1)]


def tick_names(levels: Sequence[Number]) -> list[str]:
    """The ticks as text, all with the decimals that their step needs."""
    step = levels[1] - levels[0]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals > 5:
        return [f"{level:.3g}" for level in levels]
    return [f"{0.0 if abs(level) < step / 2 else level:,.{decimals}f}" for level in levels]


def colour(index: int) -> str:
    """The colour of the line with this number; they repeat after six."""
    return f"var(--series-{index % len(SERIES) + 1},{SERIES[index % len(SERIES)]})"


def text_width(text: str, size: Number = 12) -> float:
    """About how wide a text is: a Chinese character is as wide as high, a Latin one half."""
    return float(size) * sum((1.0 if ord(letter) > 0x2E7F else 0.58) for letter in text)


def label_width(label: Label) -> float:
    """The width of the longer language."""
    return max(text_width(text) for text in ((label,) if isinstance(label, str) else label))


def text(
    label: Label,
    x: Number,
    y: Number,
    *,
    anchor: str = "start",
    fill: str = SOFT,
    size: Number = 12,
    weight: int | None = None,
    turn: int | None = None,
) -> list[Html]:
    """The text element, or one element per language."""
    languages: list[tuple[str | None, str]] = [(None, label)] if isinstance(label, str) else []
    if not isinstance(label, str):
        languages = [("en", label[0]), ("zh", label[1])]
    return [
        tag(
            "text",
            words,
            lang=language,
            x=f"{x:.1f}",
            y=f"{y:.1f}",
            text_anchor=None if anchor == "start" else anchor,
            fill=fill,
            font_size=f"{size:g}",
            font_weight=weight,
            transform=None if turn is None else f"rotate({turn} {x:.1f} {y:.1f})",
        )
        for language, words in languages
        if words
    ]


def heading(title: Label, under: Label) -> Html:
    """The title of a picture and a smaller line below it."""
    return join([*text(title, 2, 17, fill=INK, size=14, weight=600), *text(under, 2, 37)])


def legend(
    names: Sequence[tuple[Label, str, str]], y: Number, width: Number
) -> tuple[list[Html], float]:
    """Names behind a short sample of their line, and the height they take.

    Args:
        names: (name, colour, dash); the dash `|` is a mark that stands upright.
        y: the first line of text.
        width: where a new line of names starts.
    """
    parts: list[Html] = []
    x, first = 2.0, y
    for name, stroke, dash in names:
        gap = 14 if dash == "|" else 25
        if x > 2 and x + gap + label_width(name) > width:
            x, y = 2.0, y + 20
        if dash == "|":
            parts.append(rule(x + 4, y - 10, x + 4, y + 2, stroke, 2))
        else:
            parts.append(rule(x, y - 4, x + 18, y - 4, stroke, 2.5, dash=dash or None))
        parts += text(name, x + gap, y)
        x += gap + label_width(name) + 18
    return parts, y - first + 22.0


def rule(
    x1: Number,
    y1: Number,
    x2: Number,
    y2: Number,
    stroke: str,
    width: Number = 1,
    *,
    dash: str | None = None,
) -> Html:
    """A straight line."""
    return tag(
        "line",
        x1=f"{x1:.1f}",
        y1=f"{y1:.1f}",
        x2=f"{x2:.1f}",
        y2=f"{y2:.1f}",
        stroke=stroke,
        stroke_width=width,
        stroke_dasharray=dash,
    )


def box(x: Number, y: Number, width: Number, height: Number, fill: str) -> Html:
    """A filled box with soft corners."""
    size = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": height}
    return tag("rect", **size, rx=3, fill=fill)


def empty(title: Label, width: int, height: int) -> Html:
    """A picture without data that says so."""
    words = text(("no data", "没有数据"), width / 2, height / 2 + 8, anchor="middle")
    return svg(title, width, height, [heading(title, ""), *words])


def svg(title: Label, width: int, height: int, parts: Iterable[Html]) -> Html:
    """The whole picture; the title is its name for screen readers."""
    name = title if isinstance(title, str) else " · ".join(title)
    return tag(
        "svg",
        tag("title", name),
        *parts,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=name,
        style=f"max-width:{width}px",
    )
