"""The lists on the page of an audit of words: words never predicted, same rows, padding, zeros."""

from collections.abc import Mapping, Sequence
from typing import Any

from kexue.report.module_groups import short
from kexue.report.page import (
    Html,
    badge,
    bilingual,
    details,
    join,
    note,
    section,
    table,
    tag,
)

__all__ = ["MOST", "apart_section", "words_section"]

FIRST = 15
"""Rows that are open at once."""
MOST = 200
"""Rows of a table; the rest is in words.csv."""
LONG = 40
"""Characters of a token."""
KINDS = {
    "special": ("special", "特殊符号"),
    "unused": ("unused", "预留"),
    "padding": ("no token", "无对应词"),
    "zero": ("zeros", "全零"),
}
VERDICTS = {
    "never wins": ("never wins", "永不胜出"),
    "tied": ("tied", "并列"),
    "unreachable in the box": ("unreachable in the box", "范围内不可达"),
    "undecided": ("undecided", "未决"),
    "can win": ("can win", "可以胜出"),
}


def words_section(found: Mapping[str, Any]) -> Html:
    """Words that are never predicted, unreachable or undecided, and what the verdict means."""
    counts = found["counts"]
    parts: list[Html] = []
    if not counts["hidden"]:
        said = bilingual(
            "No word with a row of its own is shut out"
            + (", as far as was decided." if counts["undecided"] else "."),
            "没有哪个独占一行的词被挡在外面"
            + ("（就已判定者而言）。" if counts["undecided"] else "。"),
        )
        parts.append(note(tag("p", said)))
    else:
        marked = counts["marked"]
        explained = bilingual(
            "For no features at all is such a word the single most likely one: its row is a mix "
            "of others. No input gives it a larger probability than the bound; the spread, e to "
            "the entropy of the mix, is the number of words that the mix is spread over."
            + (f" {marked:,} are special or unused entries." if marked else ""),
            "无论输入什么特征，这样的词都不会是唯一的最大者：它那一行是别的行的混合。"
            "上界是任何输入能给它的最大概率；“有效词数”是混合权重的熵取指数，即混合大约分摊在多少个词上。"
            + (f"其中 {marked:,} 个是特殊或预留符号。" if marked else ""),
        )
        parts += [tag("p", explained, class_="soft"), *_table(found["hidden"], counts["hidden"])]
    if counts["unreachable"]:
        said = bilingual(
            "These win for some features, but for none in the box. This is a weaker statement: it "
            "depends on the box.",
            "这些词对某些特征可以胜出，但在给定的特征范围内不行。这是较弱的结论，取决于范围怎么取。",
        )
        parts += [
            tag("h3", bilingual("Unreachable in the box", "范围内不可达")),
            tag("p", said, class_="soft"),
            *_table(found["unreachable"], counts["unreachable"]),
        ]
    if counts["undecided"]:
        parts += [
            tag("h3", bilingual("Undecided", "未决")),
            *_table(found["undecided"], counts["undecided"]),
        ]
    strict = bilingual(
        "Strict: a word that can at best tie for the first place counts as never predicted. Exact "
        "ties apart, greedy decoding never gives such a word; sampling and beam search still can.",
        "采用严格意义：最多只能并列第一的词也算预测不到。除非恰好并列，贪心解码绝不会给出这样的词；"
        "随机采样与束搜索仍然可能给出。",
    )
    parts.append(note(tag("p", strict)))
    return section(bilingual("Words", "词"), *parts, id="words")


def _table(rows: Sequence[Mapping[str, Any]], count: int) -> list[Html]:
    """The first few rows, the others on a click."""
    head = [
        bilingual("token", "词"),
        bilingual("index", "编号"),
        bilingual("p at most", "概率上界"),
        bilingual("spread", "有效词数"),
        bilingual("nearest in the mix", "混合中权重最大的词"),
        bilingual("by", "判定"),
        "ms",
    ]
    cells = [
        [
            _token(row)
            + (Html(" ") + badge(bilingual(*KINDS[row["kind"]])) if row["kind"] else ""),
            row["index"],
            short(row["bound"]) if row["verdict"] != "undecided" else "—",
            short(row["spread"]) if row["spread"] else "—",
            join(
                (
                    _token(one, LONG // 2) + tag("small", f" {one['weight']:.2f}")
                    for one in row["nearest"]
                ),
                Html(" · "),
            ),
            row["method"] or "—",
            short(1000 * row["seconds"]),
        ]
        for row in rows[:MOST]
    ]
    sides = "lrrrllr"
    parts = [table(head, cells[:FIRST], align=sides, wide=True)]
    if len(cells) > FIRST:
        whole = table(head, cells[FIRST:], align=sides, wide=True)
        more = len(cells) - FIRST
        parts.append(details(bilingual(f"{more:,} more", f"其余 {more:,} 个"), whole))
    if count > len(cells):
        said = bilingual(
            f"{len(cells):,} of {count:,} are listed; --out words.csv writes all.",
            f"共 {count:,} 个，此处列出 {len(cells):,} 个；用 --out words.csv 可写出全部。",
        )
        parts.append(tag("p", said, class_="soft"))
    return parts


def _token(one: Mapping[str, Any], most: int = LONG) -> Html:
    """A token by itself, whatever its direction; its number where it has no name."""
    if one["token"] is None:
        return tag("code", f"#{one['index']}")
    text = str(one["token"])
    cut = text if len(text) <= most else f"{text[: most - 1]}…"
    return tag("code", tag("bdi", cut), title=text[:500] if cut != text else None)


def apart_section(found: Mapping[str, Any]) -> Html:
    """Same rows, rows without a token, rows of zeros; empty where there are none."""
    counts, parts = found["counts"], []
    if counts["tied"]:
        rows = []
        for tie in found["ties"][:MOST]:
            words = tie["words"]
            names = [_token(one) + Html(f" <small>{one['index']}</small>") for one in words[:12]]
            more = [f"… {len(words) - 12:,}"] if len(words) > 12 else []
            wins = next((one for one in words if one["index"] == tie["wins"]), None)
            rows.append([join([*names, *more], Html(" = ")), "—" if wins is None else _token(wins)])
        said = bilingual(
            "Words with the same row: at most the one with the largest bias is ever predicted.",
            "行完全相同的词：最多只有偏置最大的那个会被预测到。",
        )
        parts += [
            tag("h3", bilingual("Same row", "同一行")),
            tag("p", said, class_="soft"),
            table([bilingual("words", "词"), bilingual("can win", "可胜出")], rows, wide=True),
        ]
        if len(found["ties"]) > MOST:
            parts.append(tag("p", bilingual(f"{MOST} groups are shown.", f"此处列出 {MOST} 组。")))
    if counts["padding"]:
        runs = [f"{a}" if a == b else f"{a}–{b}" for a, b in found["padding"][:MOST]]
        above = bilingual(
            "They lie above the tokenizer's vocabulary and never win: ",
            "它们超出分词器的词表，永远不会胜出：",
        )
        rest = " …" if len(found["padding"]) > MOST else ""
        parts.append(tag("h3", bilingual("Rows without a token", "没有对应词的行")))
        parts.append(tag("p", above, ", ".join(runs), rest))
    if counts["empty"]:
        zeros = [
            _token(one) + " " + badge(bilingual(*VERDICTS[one["verdict"]]))
            for one in found["empty"][:MOST]
        ]
        rest = " …" if len(found["empty"]) > MOST else ""
        parts.append(tag("h3", bilingual("Rows of zeros", "全零的行")))
        parts.append(tag("p", join(zeros, Html(" · ")), rest))
    if not parts:
        return Html()
    return section(bilingual("Ties and padding", "并列与填充"), *parts, id="apart")
