"""The page of a CLUE run: what was trained, how well, how it went, and where it is wrong.

    kexue clue train all --data mini --model tiny --out runs/demo   →   runs/demo/report.html

The page is made from the files of the run folder alone (`config.json environment.json results.json
<task>/metrics.jsonl`). What a run does not have, or what cannot be read, is said on the page.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kexue.data.files import atomic_write_text
from kexue.report.clue_scores import duration, scores_section
from kexue.report.clue_table import Means, Row, clue_means, clue_table
from kexue.report.clue_task import task_section
from kexue.report.page import (
    Html,
    bilingual,
    contents,
    details,
    facts,
    header,
    headline,
    join,
    note,
    page,
    section,
    table,
    tag,
)
from kexue.report.run_folder import RunFolder

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
"""Size of CLUE's own dev sets; a run on clearly fewer examples is not comparable."""


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
        scores_section(rows, means),
    ]
    for row in rows:
        group = [result for result in results if str(result.get("task", "?")) == row.task]
        parts.append(task_section(folder, row, group))
    parts.append(_run(config, environment, results))
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
            (
                f"{means.arithmetic.mean:.2f}",
                bilingual("mean dev score", "验证集平均分")
                if means.tasks > 1
                else bilingual("dev score", "验证集分数"),
            ),
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
            "分数只说明一切跑得通、学得会，别无他意。"
        )
        parts += note(tag("p", bilingual(en, zh)), kind="warn")
    elif small:
        names = ", ".join(small)
        of, about = (f" of {names}", f"{names} 的") if len(small) < len(rows) else ("", "这些")
        en = (
            f"The scores{of} are not CLUE results: fewer dev examples than CLUE has; not "
            "comparable with published scores."
        )
        zh = f"{about}分数不是 CLUE 成绩：验证样本比 CLUE 的少，不能与公开成绩比较。"
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


def _run(
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
) -> Html:
    nothing = tag("p", bilingual("not recorded", "没有记录"), class_="soft")
    command = config.get("command")
    rest = {name: value for name, value in config.items() if name not in ("command", "settings")}
    shared, differing = _used(results)
    settings = config.get("settings")
    if isinstance(settings, Mapping):
        known = {*shared, *(name for used in differing.values() for name in used)}
        if known:  # what was used, instead of what was asked for
            known.add("fit")
        rest |= {name: value for name, value in settings.items() if name not in known}
    rest |= shared
    return section(
        bilingual("The run", "运行信息"),
        tag("h3", bilingual("Command", "命令")),
        tag("pre", tag("code", command)) if command else nothing,
        tag("h3", bilingual("Settings", "设置")),
        facts([(name, _value(value)) for name, value in rest.items()]) if rest else nothing,
        _per_task(differing),
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


def _used(
    results: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings that all tasks were trained with, and per task those that differ."""
    tasks: dict[str, dict[str, Any]] = {}
    for result in results:
        settings = result.get("settings")
        if isinstance(settings, Mapping) and settings:
            used = {str(name): value for name, value in settings.items() if name != "seed"}
            tasks.setdefault(str(result.get("task", "?")), used)
    names = list(dict.fromkeys(name for used in tasks.values() for name in used))
    differing = [
        name for name in names if len({_value(used.get(name)) for used in tasks.values()}) > 1
    ]
    first = next(iter(tasks.values()), {})
    shared = {name: first.get(name) for name in names if name not in differing}
    if not differing:
        return shared, {}
    return shared, {
        task: {name: used.get(name) for name in differing} for task, used in tasks.items()
    }


def _per_task(differing: Mapping[str, Mapping[str, Any]]) -> Html:
    """A table of the settings in which the tasks differ."""
    if not differing:
        return Html()
    names = list(next(iter(differing.values())))
    head = [bilingual("task", "任务"), *names]
    rows = [[task, *(_value(used[name]) for name in names)] for task, used in differing.items()]
    return table(head, rows, align="l" + "r" * len(names))


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) or "—"
    if isinstance(value, list | tuple):
        return ", ".join(_value(one) for one in value) or "—"
    return "—" if value is None else str(value)
