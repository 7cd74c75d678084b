"""The scores of a CLUE page: a line per task, the means over tasks, a bar beside chance."""

from collections.abc import Sequence

from kexue.report.charts import Bar, bar_chart
from kexue.report.clue_table import Means, Row, Spread, zero_words
from kexue.report.page import Html, bilingual, figure, section, table, tag

__all__ = ["duration", "scores_section"]


def duration(seconds: int | float) -> str:
    """Seconds as a person says them.

    Example:
        >>> duration(41.26), duration(312), duration(7512)
        ('41.3 s', '5 min 12 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"


def scores_section(rows: Sequence[Row], means: Means | None) -> Html:
    """The table of all tasks, their means and a chart."""
    title = bilingual("Scores", "成绩")
    if not rows:
        nothing = bilingual("The run has no results yet.", "还没有任何结果。")
        return section(title, tag("p", nothing, class_="soft"), id="scores")
    several = any(row.score and row.score.count > 1 for row in rows)
    head = [
        bilingual("task", "任务"),
        bilingual("metric", "指标"),
        bilingual("dev score", "验证集"),
    ]
    align = "llr"
    if several:
        head += [bilingual("± sd", "± 标准差"), bilingual("min–max", "最低–最高")]
        align += "rr"
    head += [
        bilingual("chance", "瞎猜水平"),
        bilingual("epoch", "最佳轮次"),
        bilingual("train / dev", "训练 / 验证样本"),
        bilingual("time", "用时"),
        bilingual("tokens/s", "token/秒"),
        bilingual("samples/s", "样本/秒"),
    ]
    align += "rrrrrr"
    cells = [_score_cells(row, several) for row in rows]
    bars = [
        Bar(
            row.task,
            row.score.mean if row.score else float("nan"),
            row.chance,
            row.score.low if row.score else None,
            row.score.high if row.score else None,
        )
        for row in rows
    ]
    chart = bar_chart(
        bars,
        title=("Main score per task", "各任务主要指标"),
        unit=("percent, dev set", "百分比，验证集"),
        top=100.0,
    )
    parts = [figure(chart)]
    if means is None or means.tasks > 1:
        parts.append(tag("div", _means(means, several)))
    return section(
        title,
        table(head, cells, align=align, wide=True),
        tag("div", *parts, class_="pair"),
        id="scores",
    )


def _score_cells(row: Row, several: bool) -> list[object]:
    score = row.score
    cells: list[object] = [tag("a", row.task, href=f"#{row.task}"), row.metric]
    cells.append(tag("b", f"{score.mean:.2f}") if score else "—")
    if several and score:
        cells += [f"{score.deviation:.2f}", score.range]
    elif several:
        cells += ["—", "—"]
    sizes = [
        "—" if size is None else f"{size:,}" for size in (row.train_examples, row.dev_examples)
    ]
    return [
        *cells,
        "—" if row.chance is None else f"{row.chance:.1f}",
        row.best_epoch or "—",
        " / ".join(sizes),
        "—" if row.seconds is None else duration(row.seconds),
        "—" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        "—" if row.samples_per_second is None else f"{row.samples_per_second:,.0f}",
    ]


def _means(means: Means | None, several: bool) -> Html:
    if means is None:
        return tag("p", bilingual("No task has a score.", "没有任务得到分数。"), class_="soft")

    def cells(name: Html, mean: Spread) -> list[object]:
        row: list[object] = [name, tag("b", f"{mean.mean:.2f}")]
        return row + ([f"{mean.deviation:.2f}"] if several else [])

    over = bilingual(f"mean over {means.tasks} tasks", f"{means.tasks} 个任务的平均")
    head = [over, bilingual("score", "分数")] + ([bilingual("± sd", "± 标准差")] if several else [])
    rows = [
        cells(bilingual("arithmetic", "算术平均"), means.arithmetic),
        cells(bilingual("geometric", "几何平均"), means.geometric),
        cells(bilingual("harmonic", "调和平均"), means.harmonic),
    ]
    zero = Html()
    if means.zero:
        en, zh = zero_words(means.zero)
        zero = tag("p", tag("small", bilingual(f"{en[0].upper()}{en[1:]}.", f"{zh}。")))
    return table(head, rows, align="lrr"[: len(head)]) + zero
