"""The part of a CLUE page about one task: curves, scores by kind, confusions, errors, warnings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kexue.report.charts import Bar, Series, bar_chart, heat_map, line_chart
from kexue.report.clue_table import Row, finite
from kexue.report.page import (
    Html,
    bilingual,
    details,
    facts,
    figure,
    note,
    section,
    table,
    tag,
)
from kexue.report.run_folder import RunFolder

__all__ = ["task_section"]

LARGEST_MAP = 24
"""More classes than this are shown as a list of the most frequent confusions."""
PER_TYPE = "f1/"
GOLD, PREDICTED = bilingual("gold", "标准答案"), bilingual("predicted", "预测")

Result = Mapping[str, Any]


def task_section(folder: RunFolder, row: Row, results: Sequence[Result]) -> Html:
    """Everything about one task of a run.

    Args:
        folder: the run, for the learning curves.
        row: the task's line of the table.
        results: its results, one per seed.
    """
    score = row.score
    words = Html("—") if score is None else tag("b", f"{score.mean:.2f}")
    chance = (
        ""
        if row.chance is None
        else bilingual(f", chance {row.chance:.1f}", f"，瞎猜水平 {row.chance:.1f}")
    )
    return section(
        row.task,
        tag("p", f"{row.metric} ", words, chance, class_="soft"),
        _notes(results),
        tag("div", _curves(folder, row, results), class_="figures"),
        _other_scores(row),
        _confusion(results),
        _types(row),
        _errors(results),
        _submission(results),
        id=row.task,
    )


def _notes(results: Sequence[Result]) -> Html:
    lines = dict.fromkeys(str(one) for result in results for one in _list(result, "notes"))
    if not lines:
        return Html()
    return note(tag("ul", *(tag("li", line) for line in lines)), kind="warn")


def _list(result: Result, key: str) -> list[Any]:
    value = result.get(key)
    return list(value) if isinstance(value, list | tuple) else []


def _curves(folder: RunFolder, row: Row, results: Sequence[Result]) -> Html:
    losses, scores, trouble = list[Series](), list[Series](), list[str]()
    for result in results:
        name = f"{result.get('folder') or row.task}/metrics.jsonl"
        try:
            lines = [line for line in folder.read_jsonl(name) if isinstance(line, Mapping)]
        except FileNotFoundError:
            trouble.append(f"{name} is missing")
            continue
        except (OSError, ValueError) as error:
            trouble.append(str(error))
            continue
        seed = f"seed {result.get('seed', '—')}"
        if sum("loss" in line and finite(line["loss"]) is None for line in lines):
            trouble.append(f"{name}: the loss was not finite at some steps")
        losses.append(_series(seed, ((line, line.get("loss")) for line in lines)))
        if any("raw_loss" in line for line in lines):  # tricks changed what was minimised
            raw = ((line, line.get("raw_loss")) for line in lines)
            losses.append(_series((f"{seed}, raw", f"{seed}，原损失"), raw))
        scores.append(_series(seed, ((line, _dev(line, row.metric)) for line in lines), dots=True))
    parts = Html()
    if losses:
        parts += figure(
            line_chart(
                losses, title=("Training loss", "训练损失"), x_label=("epoch", "轮次"), start=0
            )
        )
        chance = None if row.chance is None else (("chance", "瞎猜水平"), row.chance)
        parts += figure(
            line_chart(
                scores,
                title=("Dev score", "验证集分数"),
                x_label=("epoch", "轮次"),
                y_label=(f"{row.metric}, percent", f"{row.metric}，百分比"),
                reference=chance,
                start=0,
            )
        )
    if trouble:
        parts += tag("p", tag("small", "; ".join(trouble)))
    return parts


def _dev(line: Mapping[str, Any], metric: str) -> object:
    dev = line.get("dev")
    return dev.get(metric) if isinstance(dev, Mapping) else None


def _series(
    name: str | tuple[str, str],
    points: Iterable[tuple[Mapping[str, Any], object]],
    *,
    dots: bool = False,
) -> Series:
    """The points by epoch; where a resumed run wrote a step again, the later line counts."""
    known: dict[float, tuple[float, float]] = {}
    for line, value in points:
        x, y = finite(line.get("epoch", line.get("step"))), finite(value)
        if x is not None and y is not None:
            known[finite(line.get("step")) or x] = (x, y)
    ordered = [known[step] for step in sorted(known)]
    return Series(name, [x for x, _ in ordered], [y for _, y in ordered], dots=dots)


def _other_scores(row: Row) -> Html:
    plain = {name: value for name, value in row.others.items() if not name.startswith(PER_TYPE)}
    return facts([(name, f"{value:.2f}") for name, value in plain.items()]) if plain else Html()


def _types(row: Row) -> Html:
    types = {
        name.removeprefix(PER_TYPE): value
        for name, value in row.others.items()
        if name.startswith(PER_TYPE)
    }
    if not types:
        return Html()
    ordered = sorted(types.items(), key=lambda pair: -pair[1])
    bars = [Bar(name, value) for name, value in ordered]
    title = ("F1 per type", "各类型 F1")
    picture = figure(bar_chart(bars, title=title, unit=("percent", "百分比"), top=100.0))
    return tag("div", picture, class_="figures")


def _confusion(results: Sequence[Result]) -> Html:
    """The matrices of all seeds, added up."""
    labels: list[str] = []
    total: list[list[float]] = []
    for result in results:
        one = result.get("confusion")
        if not isinstance(one, Mapping):
            continue
        names = [str(label) for label in _list(one, "labels")]
        rows = [row for row in _list(one, "counts") if isinstance(row, list)]
        counts = [[finite(count) or 0.0 for count in row] for row in rows]
        square = len(counts) == len(names) and all(len(row) == len(names) for row in counts)
        if not square or (labels and names != labels):
            words = bilingual("The confusion matrix cannot be read.", "混淆矩阵无法读取。")
            return tag("p", tag("small", words))
        labels = names
        total = [_add(x, y) for x, y in zip(total, counts, strict=True)] if total else counts
    if not labels:
        return Html()
    if len(labels) > LARGEST_MAP:
        return _confused_pairs(labels, total)
    small = len(labels) <= LARGEST_MAP // 3
    title = ("Confusions", "混淆矩阵")
    picture = figure(heat_map(labels, total, title=title, width=460 if small else 680))
    return tag("div", picture, class_="figures" if small else "wide")


def _add(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _confused_pairs(labels: Sequence[str], counts: Sequence[Sequence[float]]) -> Html:
    pairs = [
        (counts[i][j], gold, predicted)
        for i, gold in enumerate(labels)
        for j, predicted in enumerate(labels)
        if i != j and counts[i][j] > 0
    ]
    if not pairs:
        return note(bilingual("No confusions: every answer is right.", "没有混淆，全部答对。"))
    pairs.sort(key=lambda pair: -pair[0])
    n = len(labels)
    words = bilingual(f"Most frequent confusions of {n} classes", f"{n} 个类别中最常见的混淆")
    rows = [(gold, predicted, f"{count:,.0f}") for count, gold, predicted in pairs[:12]]
    head = [GOLD, PREDICTED, bilingual("count", "次数")]
    return tag("div", tag("h3", words), table(head, rows, align="llr", named=False))


def _errors(results: Sequence[Result]) -> Html:
    samples = [one for result in results for one in _list(result, "errors")]
    errors = [one for one in samples if isinstance(one, Mapping)]
    if not errors:
        return Html()
    head = [bilingual("text", "文本"), GOLD, PREDICTED]
    rows = [[_cell(one.get(key)) for key in ("text", "gold", "predicted")] for one in errors]
    n = len(errors)
    counts = [finite(result.get("wrong")) for result in results]
    total = sum(int(count) for count in counts if count is not None)
    if None not in counts and total > n:  # of all seeds
        words = bilingual(f"{n} of {total:,} wrong answers", f"{total:,} 个错误中的 {n} 个")
    else:
        words = bilingual(f"{n} wrong answers" if n > 1 else "a wrong answer", f"{n} 个错误样例")
    return details(words, table(head, rows, wide=True, named=False), open=n <= 6)


def _cell(value: object) -> str:
    text = "—" if value is None else str(value)
    return text if len(text) <= 400 else text[:400] + "…"


def _submission(results: Sequence[Result]) -> Html:
    files = [str(result["submission"]) for result in results if result.get("submission")]
    if not files:
        return Html()
    words = bilingual("Submission: ", "提交文件：")
    return tag("p", tag("small", words, tag("code", ", ".join(dict.fromkeys(files)))))
