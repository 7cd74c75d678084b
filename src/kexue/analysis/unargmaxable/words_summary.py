"""An audit of words as plain values: for JSON, for the page, and as a table of all words in CSV."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from kexue.analysis.unargmaxable.report import ArgmaxReport
from kexue.analysis.unargmaxable.words import WordsAudit
from kexue.data.files import atomic_writer

__all__ = ["summary", "write_words"]

GRID = (56, 36)
"""Cells of the picture, across and up."""
DOTS = 400
COLUMNS = (
    "index",
    "token",
    "kind",
    "verdict",
    "margin",
    "radius",
    "bound",
    "spread",
    "size",
    "method",
    "ms",
    "twin",
    "nearest",
)


def summary(audit: WordsAudit, most: int | None = None) -> dict[str, Any]:
    """Plain values.

    Args:
        audit: the audit.
        most: rows of each list at most; None: all. Counts are of all.
    """
    head, report = audit.head, audit.report
    hidden, away, ties = audit.hidden.tolist(), audit.unreachable.tolist(), audit.ties
    unsure, padding, empty = audit.undecided.tolist(), audit.padding, audit.empty
    sizes = audit.sizes[~np.isnan(audit.sizes)]
    kinds = [audit.kind(k) for k in hidden]
    width = head.weight.shape[1]
    return {
        "source": head.source,
        "layer": {
            "classes": len(head.weight),
            "width": width,
            "weight": head.weight_name,
            "bias": head.bias_name,
            "dtype": str(head.weight.dtype).removeprefix("torch."),
        },
        "norm": None
        if head.norm is None
        else {"name": head.norm.name, "typical": head.norm.typical},
        "box": audit.boxed is not None,
        "note": audit.note,
        "counts": {
            "classes": len(report.index),
            "can": len(report.argmaxable) - len(away),
            "hidden": len(hidden),
            "marked": sum(kind != "" for kind in kinds),
            "unreachable": len(away),
            "undecided": len(unsure),
            "tied": sum(map(len, ties)),
            "padding": len(padding),
            "empty": len(empty),
        },
        "stages": _stages(report, "")
        + ([] if audit.boxed is None else _stages(audit.boxed, "box")),
        "size": {
            "median": float(np.median(sizes)) if len(sizes) else None,
            "largest": float(sizes.max()) if len(sizes) else None,
        },
        "hidden": _plain(audit.rows(hidden[:most])),
        "unreachable": _plain(audit.rows(away[:most])),
        "undecided": _plain(audit.rows(unsure[:most])),
        "ties": [_tie(audit, group) for group in ties[:most]],
        "padding": ranges(padding.tolist())[:most],
        "empty": [
            {"index": k, "token": audit.token(k), "verdict": audit.verdict(k)}
            for k in empty[:most].tolist()
        ],
        "bounds": _bounds(audit),
        "cloud": _cloud(audit),
    }


def write_words(path: Path, audit: WordsAudit) -> None:
    """All words that were decided, one line each, by index.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_writer(path) as file:
        sheet = csv.writer(file)
        sheet.writerow(COLUMNS)
        for row in audit.rows(audit.report.index.tolist()):
            nearest = "; ".join(
                f"{one['token'] if one['token'] is not None else one['index']} {one['weight']:.4g}"
                for one in row["nearest"]
            )
            values = row | {"ms": 1000 * row["seconds"], "nearest": nearest}
            sheet.writerow([_cell(values[name]) for name in COLUMNS])


def ranges(numbers: list[int]) -> list[list[int]]:
    """Runs of numbers in order, as first and last.

    Example:
        >>> ranges([3, 4, 5, 9])
        [[3, 5], [9, 9]]
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs


def _stages(report: ArgmaxReport, where: str) -> list[dict[str, Any]]:
    return [
        {
            "name": stage.name,
            "where": where,
            "can": stage.can,
            "cannot": stage.cannot,
            "seconds": stage.seconds,
        }
        for stage in report.stages
    ]


def _tie(audit: WordsAudit, group: list[int]) -> dict[str, Any]:
    """Words with the same row, and the one of them that can win, if any."""
    can = set(audit.report.argmaxable.tolist())
    wins = next((k for k in group if k in can), None)
    return {
        "words": [{"index": k, "token": audit.token(k)} for k in group],
        "wins": wins,
    }


def _bounds(audit: WordsAudit) -> list[float]:
    """Of the words that never win: the most that each can be given, most likely first."""
    places = [audit.report.place[int(k)] for k in audit.hidden]
    return sorted((float(f"{p:.4g}") for p in audit.report.bound[places]), reverse=True)


def _cloud(audit: WordsAudit) -> dict[str, Any]:
    """Rows by length (across) and by length in whitened coordinates (up; 1 is the mean square)."""
    report = audit.report
    rank = max(1, report.white.rows.shape[1])
    length = report.layer.weight.norm(dim=1).cpu().numpy()[report.kept]
    spread = report.white.rows.norm(dim=1).cpu().numpy() / math.sqrt(rank)
    ends = [_ends(length), _ends(spread)]
    counts, _, _ = np.histogram2d(length, spread, bins=GRID, range=ends)
    chosen = [report.number[int(k)] for k in audit.hidden[:DOTS]]
    return {
        "x": ends[0],
        "y": ends[1],
        "grid": list(GRID),
        "cells": [[int(i), int(j), int(counts[i, j])] for i, j in np.argwhere(counts)],
        "dots": [[float(length[k]), float(spread[k])] for k in chosen],
    }


def _ends(values: Float[np.ndarray, " n"]) -> list[float]:
    low, high = float(values.min()), float(values.max())
    room = max(0.02 * (high - low), 0.05 * high) or 0.5  # rounding alone is no spread
    return [max(0.0, low - room), high + room]


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers that are not finite as None, which JSON has no word for."""
    return [{name: _finite(value) for name, value in row.items()} for row in rows]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.8g}" if math.isfinite(value) else ""
    return "" if value is None else value
