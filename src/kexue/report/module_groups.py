"""Modules of equal blocks as one line each, for the tables of an audit of scales.

    model.layers.0.mlp, …, model.layers.11.mlp   →   model.layers.*.mlp, × 12, first → last

It works on plain values (`ScaleAudit.as_json()["rows"]`), in which numbers that were not finite are
text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Group", "grouped", "short"]


@dataclass(frozen=True)
class Group:
    """Modules that differ in the number of their block alone: cells ready to show."""

    name: str
    count: int
    std: str
    ratio: str
    input: str
    output: str
    gradient: str
    gain: str

    @property
    def cells(self) -> list[str]:
        """In the order of the columns."""
        values = [self.std, self.ratio, self.gain, self.input, self.output, self.gradient]
        return [self.name, str(self.count), *values]


def grouped(rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    """One line per role in a block, in the model's order; a range from the first to the last."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", f".{row['name']}")[1:], []).append(row)

    def span(group: list[Mapping[str, Any]], key: str, spread: bool = False) -> str:
        values = [row[key] for row in group if row.get(key) is not None]
        numbers = [value for value in values if not isinstance(value, str)]
        if spread and len(numbers) == len(values):
            values = sorted(numbers)
        if len(numbers) == len(values) > 1 and max(numbers) <= 1.05 * min(numbers):
            values = [sum(numbers) / len(numbers)]
        ends = [short(value, 3 if len(values) < 2 else 2) for value in (values[:1] + values[-1:])]
        return (" – " if spread else " → ").join(dict.fromkeys(ends)) or "—"

    return [
        Group(
            name=name,
            count=len(group),
            std=span(group, "std", spread=True),
            ratio=span(group, "ratio", spread=True),
            input=span(group, "input"),
            output=span(group, "output"),
            gradient=span(group, "gradient"),
            gain=span(group, "gain", spread=True),
        )
        for name, group in groups.items()
    ]


def short(value: float | int | str | None, digits: int = 3) -> str:
    """A few significant digits; a dash for what is missing, text as it is.

    Example:
        >>> short(0.123456), short(4.2e-5), short(12345.0), short(None), short("nan")
        ('0.123', '4.2e-5', '1.2e4', '—', 'nan')
    """
    if value is None:
        return "—"
    if isinstance(value, str):
        return value
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
