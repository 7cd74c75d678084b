"""The page of an audit of scales: what is suspicious, three pictures, and every module.

    kexue audit MODEL --what scales --out report.html

It is made from plain values (`ScaleAudit.as_json()` and a few words about the run), so that it
knows no model. Numbers that were not finite arrive as text and are shown as such.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kexue.data.files import atomic_write_text
from kexue.report.charts import Series, line_chart
from kexue.report.module_groups import grouped, short
from kexue.report.page import (
    Html,
    badge,
    bilingual,
    contents,
    details,
    facts,
    figure,
    header,
    headline,
    join,
    note,
    page,
    section,
    table,
    tag,
)

__all__ = ["scales_page", "write_scales_report"]

LEVELS = {
    "bad": ("bad", "broken", "有错"),
    "warn": ("warn", "suspicious", "可疑"),
    "note": ("", "to know", "提示"),
}


LOSSES = {
    "masked-token cross-entropy": "掩码预测的交叉熵",
    "next-token cross-entropy": "预测下一个词的交叉熵",
    "the mean of the output under random signs": "输出按随机正负号取的平均",
}


def write_scales_report(path: Path, audit: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Write the page.

    Args:
        path: of the HTML file; folders above it are made.
        audit: `ScaleAudit.as_json()`.
        about: model, loss, text, command and the like, as names and plain values.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, scales_page(audit, about))
    return path


def scales_page(audit: Mapping[str, Any], about: Mapping[str, Any]) -> Html:
    """The whole page."""
    title = Path(str(about.get("model", "model"))).name
    parts = [
        header(
            title,
            eyebrow=bilingual("Audit of scales", "尺度体检"),
            lead=bilingual(*_lead(audit, about)),
        ),
        headline(_numbers(audit)),
        contents(
            [
                ("findings", bilingual("Findings", "发现")),
                ("depth", bilingual("Against depth", "随深度的变化")),
                ("modules", bilingual("Modules", "各模块")),
                ("run", bilingual("The run", "运行信息")),
            ]
        ),
        _findings(audit),
        _pictures(audit),
        _modules(audit),
        section(bilingual("The run", "运行信息"), facts(about.items()), id="run"),
    ]
    return page(f"kexue audit · {title}", join(parts))


def _lead(audit: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[str, str]:
    norm = str(audit["path"]["norm"])
    kinds = {
        "post": "后置归一化",
        "pre": "前置归一化",
        "other": "其他归一化",
        "mixed": "混合归一化",
    }
    fresh = audit["fresh"]
    blocks = len(audit["gradients"]["blocks"])
    loss = str(about.get("loss", "a loss"))
    return (
        f"{'Fresh' if fresh else 'Trained'} weights, {norm}-norm, {blocks} blocks; gradients of "
        f"{loss}.",
        f"{'刚初始化' if fresh else '训练过'}的权重，{kinds.get(norm, norm)}，{blocks} 个块；"
        f"梯度来自：{LOSSES.get(loss, loss)}。",
    )


def _numbers(audit: Mapping[str, Any]) -> list[tuple[object, object]]:
    serious = [one for one in audit["findings"] if one["level"] != "note"]
    numbers: list[tuple[object, object]] = [
        (len(serious), bilingual("suspicious", "处可疑")),
        (
            short(audit["path"]["share"]),
            bilingual("of the input left at the end", "输入在末端的占比"),
        ),
        (
            short(audit["gradients"]["ratio"]),
            bilingual("gradient, input / output", "梯度，输入端 / 输出端"),
        ),
        (short(audit["largest"]), bilingual("largest |activation|", "激活绝对值最大")),
    ]
    if audit["suggested"] is not None:
        words = bilingual("initializer_range that fits", "适合的 initializer_range")
        numbers.append((f"{audit['suggested']:.4f}", words))
    return numbers


def _findings(audit: Mapping[str, Any]) -> Html:
    rows = [
        [
            badge(bilingual(*LEVELS[one["level"]][1:]), LEVELS[one["level"]][0]),
            tag("code", one["where"]),
            bilingual(one["en"], one["zh"]),
        ]
        for one in audit["findings"]
    ]
    head = ["", bilingual("where", "位置"), bilingual("why", "原因")]
    clean = note(tag("p", bilingual("Nothing suspicious was found.", "没有发现可疑之处。")))
    body = table(head, rows, named=False, wide=True) if rows else clean
    return section(bilingual("Findings", "发现"), body, id="findings")


def _pictures(audit: Mapping[str, Any]) -> Html:
    path, gradients = audit["path"], audit["gradients"]
    stream = [round(_log(value), 2) for value in path["stream"]]  # a normalised stream is flat
    places = [index / _per_block(audit) for index in range(len(stream))]
    slope = [_log(value) for value in gradients["stream"]]
    blocks = [float(index) for index in range(1, len(slope))]
    layers = [_log(value) for value in gradients["parameters"]]
    x_label = ("block", "块")
    first = line_chart(
        [Series(("stream", "主干"), places, stream, dots=len(stream) < 40)],
        title=("Second moment of the stream", "主干的二阶矩"),
        x_label=x_label,
        y_label=("power of ten of E[x²]", "E[x²] 的常用对数"),
        start=0,
    )
    second = line_chart(
        [
            Series(
                ("at the stream", "对主干"), [float(i) for i in range(len(slope))], slope, dots=True
            ),
            Series(("of a block's weights", "对块内权重"), blocks, layers, dots=True),
        ],
        title=("Gradient norm", "梯度范数"),
        x_label=x_label,
        y_label=("power of ten of the norm", "范数的常用对数"),
        start=0,
    )
    return section(
        bilingual("Against depth", "随深度的变化"),
        tag("div", *map(figure, [first, second, *_paths(audit)]), class_="figures"),
        id="depth",
    )


def _paths(audit: Mapping[str, Any]) -> list[Html]:
    """The weight of each sub-layer's input, and what has become of x_0 by then."""
    path, formula = audit["path"], audit["formula"]
    count = len(path["per_sublayer"])
    numbers = [float(index) for index in range(1, count + 1)]
    lines = [Series(("measured", "实测"), numbers, _finite(path["per_sublayer"]), dots=True)]
    if audit["fresh"] and formula is not None and len(formula["per_sublayer"]) == count:
        lines.append(Series(("by formula", "公式"), numbers, _finite(formula["per_sublayer"])))
    each = line_chart(
        lines,
        title=("Identity path, weight per sub-layer", "恒等路径：每个子层的权重"),
        x_label=("sub-layer", "子层"),
        y_label=("weight of the input in the output", "输入在输出中的权重"),
    )
    kept, left = 1.0, []
    stream = _finite(path["stream"])
    for weight, now in zip(_finite(path["per_sublayer"]), stream[1:], strict=True):
        kept *= weight
        left.append(kept * math.sqrt(stream[0] / now) if now > 0 else math.nan)
    whole = line_chart(
        [Series(("x_0", "x_0"), numbers, left, dots=True)],
        title=("What is left of the input", "输入还剩多少"),
        x_label=("sub-layer", "子层"),
        y_label=("share of x_0 in the stream", "x_0 在主干中的占比"),
    )
    return [each, whole]


def _modules(audit: Mapping[str, Any]) -> Html:
    head = [
        bilingual("module", "模块"),
        "×",
        bilingual("weight std", "权重标准差"),
        bilingual("std / LeCun", "标准差 / LeCun"),
        bilingual("gain", "增益"),
        bilingual("E[input²]", "E[输入²]"),
        bilingual("E[output²]", "E[输出²]"),
        bilingual("gradient", "梯度"),
    ]
    keys = ("std", "ratio", "gain", "input", "output", "gradient")
    whole = [
        [tag("code", row["name"]), "×".join(map(str, row["shape"])), *(short(row[k]) for k in keys)]
        for row in audit["rows"]
    ]
    groups = [[tag("code", one.name), *one.cells[1:]] for one in grouped(audit["rows"])]
    shapes = [head[0], bilingual("shape", "形状"), *head[2:]]
    sides = "l" + "r" * 7
    return section(
        bilingual("Modules", "各模块"),
        tag(
            "p",
            bilingual(
                "One line per role; → runs from the first block to the last. std / LeCun is √p: "
                "1 keeps the second moment of the input.",
                "每种角色一行；→ 表示从第一个块到最后一个块。标准差 / LeCun 即 √p，"
                "等于 1 时保持输入的二阶矩。",
            ),
            class_="soft",
        ),
        table(head, groups, align=sides, wide=True),
        details(
            bilingual(f"all {len(whole)} modules", f"全部 {len(whole)} 个模块"),
            table(shapes, whole, align=sides, wide=True),
        ),
        id="modules",
    )


def _per_block(audit: Mapping[str, Any]) -> float:
    """Sub-layers per block."""
    return len(audit["path"]["per_sublayer"]) / max(len(audit["gradients"]["blocks"]), 1) or 1.0


def _finite(values: Sequence[Any]) -> list[float]:
    return [math.nan if isinstance(value, str) else float(value) for value in values]


def _log(value: float | str) -> float:
    return math.log10(value) if not isinstance(value, str) and value > 0 else math.nan
