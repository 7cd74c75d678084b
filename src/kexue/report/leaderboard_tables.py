"""The tables of numbers on the page of a leaderboard."""

from collections.abc import Mapping, Sequence
from typing import Any

from kexue.report.page import Html, bilingual, section, table, tag
from kexue.report.rank_flow import MOST_MODELS

__all__ = [
    "WAYS",
    "agreement_table",
    "digits_of",
    "every",
    "means_table",
    "pairwise_table",
    "scores_table",
]

TIE = 1e-9
"""Scores no further apart are equal."""
WAYS: Mapping[str, tuple[str, str]] = {
    "arithmetic": ("arithmetic", "算术平均"),
    "geometric": ("geometric", "几何平均"),
    "harmonic": ("harmonic", "调和平均"),
    "borda": ("Borda", "Borda 计分"),
    "wins": ("pairwise wins", "两两对决"),
}


def means_table(found: Mapping[str, Any]) -> Html:
    """Every mean and rank of every model, and the average as published."""
    ways = list(found["values"])
    head = [bilingual("model", "模型")]
    for way in ways:
        head += [bilingual(*WAYS.get(way, (way, way))), bilingual("rank", "名次")]
    published = found["published"]
    if published:
        head.append(bilingual("as published", "公布值"))
    order = sorted(every(found), key=lambda m: found["ranks"][ways[0]][m])
    rows = []
    for m in order:
        row: list[object] = [found["models"][m]]
        for way in ways:
            digits = 1 if way in ("borda", "wins") else digits_of(found)
            row += [f"{found['values'][way][m]:.{digits}f}", tag("b", found["ranks"][way][m])]
        if published:
            value = published.get(found["models"][m])
            row.append("—" if value is None else f"{value:g}")
        rows.append(row)
    soft = bilingual(
        "Ties share the smallest rank. Borda: models beaten plus half of the ties, over all tasks. "
        "Pairwise wins: models beaten on more tasks than lost.",
        "并列取最小名次。Borda：各任务上胜过的模型数加一半的平局，求和。两两对决：多数任务上胜过的模型数。",
    )
    return section(
        bilingual("Means and ranks", "平均与名次"),
        table(head, rows, align="l" + "r" * (len(head) - 1), wide=True),
        tag("p", soft, class_="soft"),
    )


def agreement_table(found: Mapping[str, Any]) -> Html:
    """Kendall's tau between all ways of ranking."""
    ways = list(found["values"])
    head: list[object] = ["Kendall τ", *(bilingual(*WAYS.get(way, (way, way))) for way in ways)]
    rows = []
    for a in ways:
        cells = ["—" if a == b else _tau(found["kendall"][a][b]) for b in ways]
        rows.append([bilingual(*WAYS.get(a, (a, a))), *cells])
    soft = bilingual(
        "1: the same order, −1: reversed, —: all tie.", "1：次序相同；−1：相反；—：全部并列。"
    )
    return section(
        bilingual("Agreement of the orders", "次序的一致程度"),
        table(head, rows, align="l" + "r" * len(ways)),
        tag("p", soft, class_="soft"),
    )


def pairwise_table(found: Mapping[str, Any]) -> Html:
    """On how many tasks the row's model beats the column's; nothing for very many models."""
    if len(found["models"]) > MOST_MODELS:
        return Html()
    order = sorted(every(found), key=lambda m: found["ranks"][found["means"][0]][m])
    head: list[object] = [bilingual("wins of the row", "行对列的胜场")]
    head.extend(str(k + 1) for k in range(len(order)))
    rows = [
        [f"{k + 1} {found['models'][m]}"]
        + ["" if m == n else f"{found['pairwise'][m][n]:g}" for n in order]
        for k, m in enumerate(order)
    ]
    return section(
        bilingual("Pairwise wins", "两两对决"),
        table(head, rows, align="l" + "r" * len(order), wide=True),
    )


def scores_table(found: Mapping[str, Any]) -> Html:
    """The scores themselves, the best of every task in bold."""
    order = sorted(every(found), key=lambda m: found["ranks"][found["means"][0]][m])
    head = [bilingual("model", "模型"), *found["tasks"]]
    best = [max(column) for column in zip(*found["scores"], strict=True)]
    digits = digits_of(found) - 1
    rows = []
    for m in order:
        cells = [
            tag("b", f"{v:.{digits}f}") if top - v <= TIE else f"{v:.{digits}f}"
            for v, top in zip(found["scores"][m], best, strict=True)
        ]
        rows.append([found["models"][m], *cells])
    return section(
        bilingual("Scores", "成绩"),
        table(head, rows, align="l" + "r" * len(found["tasks"]), wide=True),
    )


def every(found: Mapping[str, Any]) -> Sequence[int]:
    """The places of all models."""
    return range(len(found["models"]))


def digits_of(found: Mapping[str, Any]) -> int:
    """Decimals of the means: percentages need fewer than fractions."""
    largest = max(abs(v) for row in found["scores"] for v in row)
    return 3 if largest > 1.5 else 5


def _tau(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"
