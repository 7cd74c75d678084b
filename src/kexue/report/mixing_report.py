"""The page of a shuffle: input position against output position, and how well records are mixed.

    kexue shuffle IN -o OUT --mixing-report page.html
    kexue shuffle IN --shuffled THEIRS --mixing-report page.html

It is made from a `MixingReport` alone, so it shows our output and anybody's alike.
"""

from collections.abc import Mapping
from pathlib import Path

from kexue.data.files import atomic_write_text
from kexue.data.mixing import Mixing, MixingReport
from kexue.report.page import (
    Html,
    bilingual,
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
from kexue.report.scatter import scatter_chart

__all__ = ["mixing_page", "mixing_sentence", "write_mixing_report"]

KINDS = {
    "uniform": (
        "",
        "No number differs from that of a uniformly random order.",
        "没有一个数值与均匀随机次序有差别。",
    ),
    "stratified": (
        "warn",
        "Stratified: every stretch of the output takes its fixed part of every stretch of the "
        "input, more evenly than chance. Fit for training, not a uniform order.",
        "分层：输出的每一段从输入的每一段取走固定的份额，比随机更均匀。可用于训练，但次序不均匀。",
    ),
    "uneven": (
        "warn",
        "Uneven: stretches of the output differ more, or follow the input more, than chance "
        "would have it.",
        "不均：输出各段之间的差别，或与输入的相关，超出了随机的范围。",
    ),
    "local": (
        "bad",
        "Local: a stretch of the output draws from a part of the input only. Neighbours in the "
        "output come from the same places.",
        "局部：输出的每一段只来自输入的一部分，相邻的记录出自相同的位置。",
    ),
    "unknown": ("warn", "Too few records to judge.", "记录太少，无法判断。"),
}

ABOUT = {"input": ("input", "输入"), "output": ("output", "输出"), "seed": ("seed", "种子")}

NUMBERS = {
    "score": (
        "share of the input that a window draws from",
        "一个窗口取材于输入的份额",
        "0: windows are copied, 1: from everywhere",
        "0：整段照搬；1：来自各处",
    ),
    "variance": (
        "variance of a chunk's counts in windows / hypergeometric",
        "各块在窗口中计数的方差 / 超几何方差",
        "0: stratified, large: windows filled from one chunk",
        "0：分层；很大：窗口被同一块填满",
    ),
    "correlation": (
        "rank correlation of places",
        "位置的秩相关",
        "1: as it was, −1: reversed",
        "1：原样；−1：倒序",
    ),
    "displacement": (
        "mean displacement / uniform",
        "平均位移 / 均匀时的值",
        "0: as it was, 1.5: reversed",
        "0：原样；1.5：倒序",
    ),
    "neighbours": (
        "neighbours that were neighbours",
        "原本相邻、现在仍相邻的比例",
        "1: blocks were moved whole",
        "1：整块搬动",
    ),
}


def write_mixing_report(path: Path, report: MixingReport, about: Mapping[str, object]) -> Path:
    """Write the page.

    Args:
        path: of the HTML file; folders above it are made.
        report: from `measure_mixing`.
        about: inputs, output, seed and the like, as names and plain values.
    """
    atomic_write_text(path, mixing_page(report, about))
    return path


def mixing_sentence(report: MixingReport) -> str:
    """One line for a terminal."""
    mixing = report.mixing
    same = (
        "the same records"
        if report.same
        else f"NOT the same records (about {report.lost:,} lost, {report.added:,} added)"
    )
    if mixing is None:
        return f"no mixing score, fewer than two records occur once; {same}"
    return (
        f"mixing score {mixing.score:.3f}, variance {shown(mixing.variance)}, "
        f"correlation {mixing.correlation:+.3f}: {mixing.kind}; {same}"
    )


def mixing_page(report: MixingReport, about: Mapping[str, object]) -> Html:
    """The whole page."""
    mixing = report.mixing
    level, english, chinese = KINDS[report.kind]
    parts = [
        header(
            bilingual("How well is it mixed?", "混合得怎么样？"),
            eyebrow=bilingual("Mixing report", "混合报告"),
            lead=bilingual(
                f"Records: {report.records:,} before, {report.shuffled_records:,} after.",
                f"打乱前 {report.records:,} 条记录，打乱后 {report.shuffled_records:,} 条。",
            ),
        ),
        *([] if mixing is None else [_headline(mixing)]),
        note(tag("p", bilingual(english, chinese)), kind=level),
        _same(report),
        *([] if mixing is None else [_where(mixing), _numbers(mixing)]),
        section(bilingual("The files", "文件"), facts(_facts(report, about))),
    ]
    return page("kexue shuffle · mixing", join(parts))


def shown(value: float, small: bool = False) -> str:
    """A number with as many digits as matter; `small` ones may need a power of ten.

    Example:
        >>> shown(0.98765), shown(997.4), shown(1e-6), shown(1e-6, small=True)
        ('0.988', '997', '0.000', '1.0e-6')
    """
    if small and 0 < abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"


def _same(report: MixingReport) -> Html:
    if report.same:
        words = bilingual(
            "The output holds exactly the records of the input: number, bytes and sum of hashes "
            "agree.",
            "输出恰好包含输入的全部记录：条数、字节数与哈希之和一致。",
        )
        return note(tag("p", words))
    words = bilingual(
        f"The output does not hold the records of the input: about {report.lost:,} are lost and "
        f"{report.added:,} are in the output only.",
        f"输出与输入的记录不一致：约丢失 {report.lost:,} 条，约有 {report.added:,} 条只在输出中。",
    )
    return note(tag("p", words), kind="bad")


def _headline(mixing: Mixing) -> Html:
    return headline(
        [
            (f"{mixing.score:.3f}", bilingual("mixing score", "混合得分")),
            (shown(mixing.variance), bilingual("variance, uniform 1", "方差，均匀为 1")),
            (f"{mixing.correlation:+.3f}", bilingual("rank correlation", "秩相关")),
        ]
    )


def _where(mixing: Mixing) -> Html:
    picture = scatter_chart(
        mixing.points,
        title=("Place before and after", "打乱前后的位置"),
        x_label=("place in the input", "在输入中的位置"),
        y_label=("place in the output, upwards", "纵轴：在输出中的位置"),
        width=520,
    )
    return section(bilingual("Where records went", "记录去了哪里"), figure(picture))


def _numbers(mixing: Mixing) -> Html:
    rows = []
    for name, (english, chinese, scale, scale_zh) in NUMBERS.items():
        mean, error = mixing.expected[name]
        small = name == "neighbours"
        rows.append(
            [
                bilingual(english, chinese),
                shown(getattr(mixing, name), small),
                f"{shown(mean, small)} ± {shown(error, small)}",
                bilingual(scale, scale_zh),
            ]
        )
    head = [
        bilingual("number", "数值"),
        bilingual("measured", "实测"),
        bilingual("uniform order", "均匀次序"),
        bilingual("scale", "含义"),
    ]
    soft = bilingual(
        f"Measured on {mixing.sampled:,} records: all of {mixing.windows:,} windows of "
        f"{mixing.window:,} records, evenly spread over the output; the input in {mixing.chunks} "
        "chunks. ± is one standard error.",
        f"在 {mixing.sampled:,} 条记录上测得：均匀分布于输出的 {mixing.windows:,} 个窗口，"
        f"每个 {mixing.window:,} 条；输入分为 {mixing.chunks} 块。± 为一个标准误。",
    )
    return section(
        bilingual("Numbers", "数值"),
        tag("p", soft, class_="soft"),
        table(head, rows, align="lrrl", wide=True),
    )


def _facts(report: MixingReport, about: Mapping[str, object]) -> list[tuple[object, object]]:
    counts: list[tuple[object, object]] = [
        (bilingual("bytes", "字节"), f"{report.bytes:,}"),
        (
            bilingual("records left out, as they occur several times", "重复出现而略去的记录"),
            f"{report.repeated:,}",
        ),
    ]
    given = [(bilingual(*ABOUT.get(name, (name, name))), value) for name, value in about.items()]
    return [*given, *counts]
