"""The page of a CLUE run: what was trained, how well, how it went, and where it is wrong.

    kexue clue train all --data mini --model tiny --out runs/demo   →   runs/demo/report.html

The page is made from the files of the run folder alone (`config.json environment.json results.json
<task>/metrics.jsonl`). What a run does not have, or what cannot be read, is said on the page.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kexue.report.charts import Bar, bar_chart
from kexue.report.clue_table import Means, Row, Spread, clue_means, clue_table
from kexue.report.clue_task import task_section
from kexue.report.page import (
    Html,
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
from kexue.report.run_folder import RunFolder, atomic_write_text

__all__ = ["write_clue_report"]

DEV_SIZES = {
    "iflytek": 2599,
    "tnews": 10000,
    "afqmc": 4316,
    "cmnli": 12426,
    "ocnli": 3000,
    "wsc": 304,
    "csl": 3000,
    "cmrc2018": 3219,
    "c3": 3816,
    "chid": 3218,
    "cluener": 1343,
}
"""Size of CLUE's own dev sets; a run on clearly fewer examples is named a slice."""


def write_clue_report(run: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Args:
        run: the folder of `kexue clue train`; any of its files may be missing.
    """
    folder, troubles = RunFolder(run), list[str]()
    config = _read(folder, "config.json", dict, troubles)
    environment = _read(folder, "environment.json", dict, troubles)
    results = [
        result
        for result in _read(folder, "results.json", list, troubles)
        if isinstance(result, Mapping)
    ]
    rows, means = clue_table(results), clue_means(results)
    parts = [
        _header(run, config, rows, means, results),
        _cautions(config, rows, troubles),
        contents(
            [("scores", bilingual("Scores", "成绩"))]
            + [(row.task, row.task) for row in rows]
            + [("run", bilingual("The run", "运行信息"))]
        ),
        _scores(rows, means),
    ]
    for row in rows:
        group = [result for result in results if str(result.get("task", "?")) == row.task]
        parts.append(task_section(folder, row, group))
    parts.append(_run(config, environment))
    path = Path(run) / "report.html"
    atomic_write_text(path, page(f"CLUE · {Path(run).resolve().name}", join(parts)))
    return path


def _read(folder: RunFolder, name: str, kind: type, troubles: list[str]) -> Any:
    """A file of the run, or an empty value and a line that says what was wrong."""
    try:
        value = folder.read_json(name)
        if isinstance(value, kind):
            return value
        troubles.append(f"{name} holds a {type(value).__name__}, a {kind.__name__} was expected")
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        troubles.append(f"{name} is missing" if missing else str(error))
    return kind()


def _header(
    run: Path,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    means: Means | None,
    results: Sequence[Mapping[str, Any]],
) -> Html:
    model, data = config.get("model", "—"), config.get("data", "—")
    lead = bilingual(f"Model {model}, data {data}.", f"模型 {model}，数据 {data}。")
    seconds = sum(
        row.seconds * (row.score.count if row.score else 1) for row in rows if row.seconds
    )
    seeds = {str(result.get("seed")) for result in results}
    numbers: list[tuple[object, object]] = []
    if means is not None:
        numbers += [
            (f"{means.arithmetic.mean:.2f}", bilingual("mean dev score", "验证集平均分")),
        ]
    numbers += [
        (
            len(rows),
            bilingual("tasks", "个任务") if len(rows) != 1 else bilingual("task", "个任务"),
        ),
        (len(seeds), bilingual("seeds" if len(seeds) != 1 else "seed", "个随机种子")),
        (duration(seconds), bilingual("training and scoring", "训练与评测用时")),
    ]
    return header(
        Path(run).resolve().name, eyebrow=bilingual("CLUE run", "CLUE 实验"), lead=lead
    ) + headline(numbers)


def duration(seconds: float) -> str:
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


def _cautions(config: Mapping[str, Any], rows: Sequence[Row], troubles: Sequence[str]) -> Html:
    parts = Html()
    small = [
        row.task
        for row in rows
        if row.dev_examples is not None and row.dev_examples < 0.9 * DEV_SIZES.get(row.task, 0)
    ]
    if config.get("data") == "mini":
        en = (
            "These scores are not CLUE results. The mini data are small look-alikes made by the "
            "program: they show that everything runs and learns, nothing more."
        )
        zh = (
            "这些分数不是 CLUE 成绩。mini 数据是程序生成的小型仿真数据，"
            "只用来验证流程能跑通、模型能学习。"
        )
        parts += note(tag("p", bilingual(en, zh)), kind="warn")
    elif small:
        names = ", ".join(small)
        of, about = (f" of {names}", f"{names} 的") if len(small) < len(rows) else ("", "这些")
        en = f"The scores{of} are not CLUE results: the dev sets are slices of CLUE's own."
        zh = f"{about}分数不是 CLUE 成绩：所用的验证集只是 CLUE 官方验证集的切片。"
        parts += note(tag("p", bilingual(en, zh)), kind="warn")
    else:
        en = "Scores are on the dev sets; CLUE ranks by test sets whose answers are secret."
        zh = "分数来自验证集；CLUE 榜单使用答案不公开的测试集。"
        parts += note(tag("p", bilingual(en, zh)))
    if troubles:
        lines = tag("ul", *(tag("li", trouble) for trouble in troubles))
        words = bilingual("Some files of the run could not be used.", "部分运行文件无法使用。")
        parts += note(tag("p", words), lines, kind="bad")
    return parts


def _scores(rows: Sequence[Row], means: Means | None) -> Html:
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
        bilingual("chance", "随机"),
        bilingual("epoch", "最佳轮次"),
        bilingual("train / dev", "训练 / 验证样本"),
        bilingual("time", "用时"),
        bilingual("tokens/s", "词元/秒"),
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
    return section(
        title,
        table(head, cells, align=align, wide=True),
        tag("div", figure(chart), tag("div", _means(means, several)), class_="pair"),
        id="scores",
    )


def _score_cells(row: Row, several: bool) -> list[object]:
    score = row.score
    cells: list[object] = [tag("a", row.task, href=f"#{row.task}"), row.metric]
    cells.append(tag("b", f"{score.mean:.2f}") if score else "—")
    if several and score:
        cells += [f"{score.deviation:.2f}", f"{score.low:.1f}–{score.high:.1f}"]
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
        names = ", ".join(means.zero)
        en = f"Geometric and harmonic mean are shown as 0: a score of {names} is 0."
        words = bilingual(en, f"几何平均与调和平均显示为 0：{names} 有得分为 0。")
        zero = tag("p", tag("small", words))
    return table(head, rows, align="lrr"[: len(head)]) + zero


def _run(config: Mapping[str, Any], environment: Mapping[str, Any]) -> Html:
    nothing = tag("p", bilingual("not recorded", "没有记录"), class_="soft")
    command = config.get("command")
    rest = {name: value for name, value in config.items() if name not in ("command", "settings")}
    settings = config.get("settings")
    if isinstance(settings, Mapping):
        rest |= settings
    return section(
        bilingual("The run", "运行信息"),
        tag("h3", bilingual("Command", "命令")),
        tag("pre", tag("code", command)) if command else nothing,
        tag("h3", bilingual("Settings", "设置")),
        facts([(name, _value(value)) for name, value in rest.items()]) if rest else nothing,
        tag("h3", bilingual("Environment", "环境")),
        details(
            bilingual("versions and machine", "版本与机器"),
            facts([(name, _value(value)) for name, value in environment.items()]),
            open=True,
        )
        if environment
        else nothing,
        id="run",
    )


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) or "—"
    if isinstance(value, list | tuple):
        return ", ".join(_value(one) for one in value) or "—"
    return "—" if value is None else str(value)
