"""The page of a leaderboard: what to distrust, every mean's order, how far it hangs on tasks.

    kexue leaderboard scores.csv --out page.html

It is made from the plain values of `kexue.analysis.leaderboard.summary` alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kexue.data.files import atomic_write_text
from kexue.report.drawing import Label
from kexue.report.leaderboard_tables import (
    WAYS,
    agreement_table,
    digits_of,
    every,
    means_table,
    pairwise_table,
    scores_table,
)
from kexue.report.page import (
    Html,
    badge,
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
from kexue.report.rank_flow import MOST_MODELS, rank_flow, rank_spread

__all__ = ["leaderboard_page", "write_leaderboard_report"]

LEVELS = {
    "bad": ("wrong comparison", "比较有误", "bad"),
    "warn": ("beware", "注意", "warn"),
    "note": ("to know", "提示", ""),
}
PLACES = {
    "published averages": "公布的平均分",
    "missing scores": "缺分",
    "means": "各种平均",
    "seeds": "种子",
}
"""Places of findings that are no row and no column."""
ABOUT = {
    "source": ("source", "来源"),
    "command": ("command", "命令"),
    "missing": ("missing scores", "缺失的分数"),
}
MOST_TASKS = 12
"""With more tasks the picture without each of them shows those that move most."""


def write_leaderboard_report(
    path: Path, found: Mapping[str, Any], about: Mapping[str, object]
) -> Path:
    """Write the page.

    Args:
        path: of the HTML file; folders above it are made.
        found: from `summary`.
        about: source, command and the like, as names and plain values.
    """
    atomic_write_text(path, leaderboard_page(found, about))
    return path


def leaderboard_page(found: Mapping[str, Any], about: Mapping[str, object]) -> Html:
    """The whole page."""
    models, tasks = found["models"], found["tasks"]
    lead = bilingual(
        f"{len(models)} models on {len(tasks)} tasks, the same tasks for every row.",
        f"{len(models)} 个模型，{len(tasks)} 个任务，各行使用同样的任务。",
    )
    title = bilingual("What does the average say?", "平均分说明了什么？")
    parts = [
        header(title, eyebrow=bilingual("Leaderboard", "榜单"), lead=lead),
        headline(_headline(found)),
        _findings(found),
        section(bilingual("Order under every mean", "各种平均下的次序"), _flow(found)),
        means_table(found),
        _without_tasks(found),
        _stability(found),
        agreement_table(found),
        pairwise_table(found),
        scores_table(found),
        section(bilingual("About", "说明"), facts(_facts(found, about))),
    ]
    return page("kexue leaderboard", join(parts))


def _headline(found: Mapping[str, Any]) -> list[tuple[object, object]]:
    first = found["means"][0]
    moved = sum(len({found["ranks"][w][m] for w in found["means"]}) > 1 for m in every(found))
    of = found["bootstrap"]["of"][first]
    leader = found["ranks"][first].index(1)
    what = bilingual("first place", "第一名")
    changes = bilingual("models whose rank depends on the mean", "个模型的名次取决于用哪种平均")
    chance = bilingual(
        "chance that it stays first, resampled " + found["bootstrap"]["over"],
        "重抽" + ("任务" if found["bootstrap"]["over"] == "tasks" else "种子") + "后仍居第一的概率",
    )
    return [
        (", ".join(found["best"]), what),
        (moved, changes),
        (_share(of["first"][leader]), chance),
    ]


def _findings(found: Mapping[str, Any]) -> Html:
    rows = []
    for one in found["findings"]:
        en, zh, kind = LEVELS[one["level"]]
        place = bilingual(one["where"], PLACES.get(one["where"], one["where"]))
        rows.append([badge(bilingual(en, zh), kind), place, bilingual(one["en"], one["zh"])])
    remarks = [note(tag("p", bilingual(f"{en}.", f"{zh}。"))) for en, zh in found["notes"]]
    title = bilingual("What to distrust", "哪里要小心")
    if not rows:
        return section(title, *remarks, tag("p", bilingual("Nothing was found.", "没有发现问题。")))
    head = [bilingual("how bad", "程度"), bilingual("where", "位置"), bilingual("what", "内容")]
    return section(title, *remarks, table(head, rows, align="lll", wide=True, named=False))


def _flow(found: Mapping[str, Any]) -> Html:
    ways = list(found["values"])
    picture = rank_flow(
        [WAYS.get(way, (way, way)) for way in ways],
        found["models"],
        [found["ranks"][way] for way in ways],
        title=("Rank under every way of averaging", "各种平均方式下的名次"),
        under=("coloured: whose rank changes most", "着色：名次变动最大的模型"),
        width=900,
    )
    return figure(picture, _cut(found))


def _without_tasks(found: Mapping[str, Any]) -> Html:
    mean = found["means"][0]
    without, full = found["leave_one_out"][mean], found["ranks"][mean]
    if not without:
        return Html()

    def moved(task: str) -> int:
        return sum(abs(a - b) for a, b in zip(without[task], full, strict=True))

    most = sorted(without, key=moved, reverse=True)[:MOST_TASKS]
    chosen = [task for task in without if task in most]
    stages: list[Label] = [("all", "全部"), *((f"−{task}", f"−{task}") for task in chosen)]
    picture = rank_flow(
        stages,
        found["models"],
        [full, *(without[task] for task in chosen)],
        title=("Rank without each of the tasks", "逐一去掉每个任务后的名次"),
        under=(f"{WAYS.get(mean, (mean,))[0]} mean", WAYS.get(mean, (mean, mean))[1]),
        width=1000,
    )
    return section(bilingual("One task less", "少一个任务"), figure(picture, _cut(found)))


def _stability(found: Mapping[str, Any]) -> Html:
    boot, means = found["bootstrap"], found["means"]
    order = sorted(every(found), key=lambda m: found["ranks"][means[0]][m])
    tasks = boot["over"] == "tasks"
    picture = rank_spread(
        [found["models"][m] for m in order],
        [
            (WAYS.get(mean, (mean, mean)), [boot["of"][mean]["rank"][m] for m in order])
            for mean in means
        ],
        title=("Likely ranks", "可能的名次"),
        under=(
            f"95 % of the resampled {boot['over']}; dot: median",
            f"重抽{'任务' if tasks else '种子'}的 95% 区间；圆点：中位数",
        ),
        width=900,
    )
    how = bilingual(
        "all resamples, with their probabilities" if boot["exact"] else f"{boot['draws']:,} draws",
        "全部重抽结果及其概率" if boot["exact"] else f"{boot['draws']:,} 次重抽",
    )
    caution = bilingual(
        "How sensitive the order is to the choice of tasks. It is no test of significance: tasks "
        "are few and not drawn at random.",
        "这反映次序对任务选择的敏感度，不是显著性检验：任务很少，也不是随机抽取的。",
    )
    head = [bilingual("model", "模型")]
    for mean in means:
        head += [
            bilingual(*WAYS.get(mean, (mean, mean))),
            Html("95 %"),
            bilingual("first", "居首概率"),
        ]
    rows = []
    for m in order:
        row: list[object] = [found["models"][m]]
        for mean in means:
            low, _, high = boot["of"][mean]["value"][m]
            digits = digits_of(found) - 1
            value = f"{found['values'][mean][m]:.{digits}f}"
            row += [value, f"{low:.{digits}f}–{high:.{digits}f}"]
            row.append(_share(boot["of"][mean]["first"][m]))
        rows.append(row)
    return section(
        bilingual("Stability", "稳定性"),
        tag("p", how, class_="soft"),
        figure(picture, caution if tasks else None),
        table(head, rows, align="l" + "r" * (len(head) - 1), wide=True),
    )


def _facts(found: Mapping[str, Any], about: Mapping[str, object]) -> list[tuple[object, object]]:
    rows: list[tuple[object, object]] = [
        (bilingual(*ABOUT.get(name, (name, name))), value) for name, value in about.items()
    ]
    for key, words in (
        ("tasks_left_out", ("tasks left out", "不计的任务")),
        ("models_left_out", ("rows left out", "不计的行")),
    ):
        if found[key]:
            rows.append((bilingual(*words), ", ".join(found[key])))
    if len({round(one, 9) for one in found["weights"]}) > 1:
        pairs = zip(found["tasks"], found["weights"], strict=True)
        listed = ", ".join(f"{task} {weight:.3g}" for task, weight in pairs)
        rows.append((bilingual("weights", "权重"), listed))
    return rows


def _cut(found: Mapping[str, Any]) -> Html | None:
    if len(found["models"]) <= MOST_MODELS:
        return None
    return bilingual(f"The first {MOST_MODELS} models.", f"前 {MOST_MODELS} 个模型。")


def _share(value: float) -> str:
    return f"{100 * value:.0f} %" if value == 0 or value >= 0.005 else "< 1 %"
