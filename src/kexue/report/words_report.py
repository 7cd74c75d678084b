"""The page of an audit of words: which can never be predicted, how that was proven, and a picture.

    kexue audit MODEL --what words --out words.html

It is made from plain values (`kexue.analysis.unargmaxable.words_summary.summary` and a few words
about the run), so that it knows no model. Long lists are cut, and the page says so.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from kexue.data.files import atomic_write_text
from kexue.report.charts import Bar, bar_chart
from kexue.report.cloud import cloud_chart
from kexue.report.module_groups import short
from kexue.report.page import (
    Html,
    bilingual,
    contents,
    facts,
    figure,
    header,
    headline,
    join,
    page,
    section,
    table,
    tag,
)
from kexue.report.words_tables import MOST, apart_section, words_section

__all__ = ["MOST", "words_page", "write_words_report"]

STAGES = {
    "twins": ("same row twice", "重复的行"),
    "probe": ("whitened probe", "白化探针"),
    "climb": ("gradient steps", "梯度步"),
    "newton": ("Newton's method", "牛顿法"),
    "lp": ("linear program", "线性规划"),
    "reflect": ("reflections", "镜像反射"),
    "min_norm": ("Frank–Wolfe", "Frank–Wolfe"),
}
ABOUT = {
    "model": ("model", "模型"),
    "method": ("method", "方法"),
    "box": ("box", "特征范围"),
    "seconds": ("seconds", "耗时（秒）"),
    "command": ("command", "命令"),
}


def write_words_report(path: Path, found: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Write the page.

    Args:
        path: of the HTML file; folders above it are made.
        found: plain values of `words_summary.summary`.
        about: model, method, box, seconds, command.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, words_page(found, about))
    return path


def words_page(found: Mapping[str, Any], about: Mapping[str, Any]) -> Html:
    """The whole page."""
    title = Path(str(about.get("model", "model"))).name
    apart = apart_section(found)
    links = [
        ("words", bilingual("Words", "词")),
        ("picture", bilingual("Picture", "图")),
        ("proof", bilingual("Proofs", "证明")),
        *([("apart", bilingual("Ties and padding", "并列与填充"))] if apart else []),
        ("run", bilingual("The run", "运行信息")),
    ]
    parts = [
        header(
            title,
            eyebrow=bilingual("Words that are never predicted", "永远预测不到的词"),
            lead=_lead(found),
        ),
        headline(_numbers(found)),
        contents(links),
        words_section(found),
        _pictures(found),
        _proof(found),
        apart,
        _run(found, about),
    ]
    return page(f"kexue audit · {title}", join(parts))


def _lead(found: Mapping[str, Any]) -> Html:
    layer, norm = found["layer"], found["norm"]
    biased = bool(layer["bias"])
    return bilingual(
        f"{layer['classes']:,} words over {layer['width']:,} features, "
        f"{'with' if biased else 'without'} a bias"
        + (f", after a {norm['name']}." if norm else "."),
        f"{layer['classes']:,} 个词，{layer['width']:,} 维特征，{'有' if biased else '无'}偏置"
        + (f"，前接 {norm['name']}。" if norm else "。"),
    )


def _numbers(found: Mapping[str, Any]) -> list[tuple[object, object]]:
    counts = found["counts"]
    numbers: list[tuple[object, object]] = [
        (f"{counts['hidden']:,}", bilingual("words never predicted", "个词永远预测不到")),
        (f"{counts['can']:,}", bilingual("can be predicted", "个词可以预测")),
    ]
    if found["box"]:
        words = bilingual("unreachable in the box", "个词在范围内不可达")
        numbers.append((f"{counts['unreachable']:,}", words))
    for name, en, zh in (
        ("tied", "share their row", "个词与别的词同行"),
        ("padding", "rows without a token", "行没有对应的词"),
        ("undecided", "undecided", "个词未决"),
    ):
        if counts[name]:
            numbers.append((f"{counts[name]:,}", bilingual(en, zh)))
    return numbers


def _pictures(found: Mapping[str, Any]) -> Html:
    cloud = found["cloud"]
    first = cloud_chart(
        cloud["cells"],
        cloud["dots"],
        x=cloud["x"],
        y=cloud["y"],
        grid=cloud["grid"],
        title=("Rows of the output layer", "输出层的各行"),
        names=(("all words", "所有词"), ("never predicted", "永远预测不到")),
        x_label=("length of the row", "行的长度"),
        y_label=("length after whitening, 1 = mean square", "白化后的长度，1 为均方"),
    )
    caption = bilingual(
        "Whitening makes the cloud of rows round. What lies deep inside it is a mix of what lies "
        "around it and can never be predicted; what stands out can, unless its bias forbids it.",
        "白化把所有行构成的点云变圆。深处其中的行是周围各行的混合，永远预测不到；"
        "突出在外的可以预测到，除非偏置过低。",
    )
    pictures = [figure(first, caption)]
    if len(found["bounds"]) > 1:
        pictures.append(
            figure(
                _bounds(found["bounds"]),
                bilingual(
                    "The largest probability that any input can give to such a word.",
                    "任何输入能给这样的词的最大概率。",
                ),
            )
        )
    return section(
        bilingual("Picture", "图"), tag("div", *pictures, class_="figures"), id="picture"
    )


def _bounds(bounds: Sequence[float]) -> Html:
    """How many words have which bound: steps of 1, 2 and 5, or powers of ten if those are many."""
    tiny = max(min(bounds), 1e-300)
    low, high = math.floor(math.log10(tiny)), math.ceil(math.log10(max(max(bounds), tiny)))
    factors = (1, 2, 5) if high - low <= 3 else (1,)
    step = max(1, math.ceil((high - low) / 10)) if factors == (1,) else 1
    edges = [f * 10.0**power for power in range(low, high + step, step) for f in factors]
    rows = [
        (edge, end, sum(edge <= max(bound, tiny) < end for bound in bounds))
        for edge, end in pairwise(edges)
        if end > tiny
    ]
    while rows and rows[-1][2] == 0:
        rows.pop()
    bars = [Bar(f"{_short_power(a)} – {_short_power(b)}", count) for a, b, count in rows[::-1]]
    return bar_chart(
        bars, title=("Bound on the probability", "概率上界"), unit=("words", "词数"), digits=0
    )


def _short_power(value: float) -> str:
    return f"{value:g}" if value >= 1e-4 else f"{value:.0e}".replace("e-0", "e-")


def _proof(found: Mapping[str, Any]) -> Html:
    rows = []
    for stage in found["stages"]:
        if not stage["can"] and not stage["cannot"]:
            continue
        name = STAGES.get(stage["name"], (stage["name"], stage["name"]))
        where = (" in the box", "（范围内）") if stage["where"] else ("", "")
        words = bilingual(name[0] + where[0], name[1] + where[1])
        numbers = (f"{stage['can']:,}", f"{stage['cannot']:,}", f"{stage['seconds']:.2f}")
        rows.append([words, *numbers])
    head = [
        bilingual("stage", "阶段"),
        bilingual("can win", "可胜出"),
        bilingual("cannot", "不可胜出"),
        bilingual("seconds", "秒"),
    ]
    said = bilingual(
        "Each verdict carries a proof that was checked in float64: features at which the word "
        "wins, or a mix of other words that is never less likely.",
        "每个结论都附有经 float64 核对的证明：要么是使该词胜出的特征，"
        "要么是其他词的一个混合，其可能性从不低于它。",
    )
    return section(
        bilingual("Proofs", "证明"),
        tag("p", said, class_="soft"),
        table(head, rows, align="lrrr"),
        _size(found),
        id="proof",
    )


def _size(found: Mapping[str, Any]) -> Html:
    size, norm = found["size"], found["norm"]
    if size["median"] is None:
        return Html()
    median, largest = short(size["median"]), short(size["largest"])
    en = f"The features that prove a win have |z| = {median} (median), {largest} at most"
    zh = f"证明胜出的特征长度 |z| 的中位数为 {median}，最大 {largest}"
    if norm:
        typical = short(norm["typical"])
        en += f"; a typical feature of this model has {typical}"
        zh += f"；该模型特征的典型长度为 {typical}"
    if not found["layer"]["bias"]:
        en += ". Without a bias any length does as well"
        zh += "。没有偏置时，任意长度都同样成立"
    return tag("p", bilingual(en + ".", zh + "。"))


def _run(found: Mapping[str, Any], about: Mapping[str, Any]) -> Html:
    layer = found["layer"]
    pairs: list[tuple[object, object]] = [
        (bilingual(*ABOUT[name]), about[name]) for name in ABOUT if about.get(name) is not None
    ]
    pairs.append((bilingual("matrix", "矩阵"), f"{layer['weight']} ({layer['dtype']})"))
    if layer["bias"]:
        pairs.append((bilingual("bias", "偏置"), layer["bias"]))
    if found["note"]:
        pairs.append((bilingual("tokens", "词名"), found["note"]))
    return section(bilingual("The run", "运行信息"), facts(pairs), id="run")
