"""One page for all experiments: claim, published number, ours, picture, verdict.

runs/lab/*.json   →   runs/lab/index.html
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kexue.data.files import atomic_write_text
from kexue.lab.experiment import Verdict
from kexue.report.page import (
    Html,
    badge,
    bilingual,
    contents,
    facts,
    figure,
    header,
    headline,
    join,
    note,
    page,
    safe,
    tag,
)
from kexue.report.run_folder import RunFolder

__all__ = ["write_gallery"]

KINDS = {
    Verdict.HOLDS: "good",
    Verdict.PARTLY: "warn",
    Verdict.FAILS: "bad",
    Verdict.OPEN: "",
}


def write_gallery(folder: Path) -> Path:
    """Write `index.html` from the result files of a folder and return its path."""
    run, results, troubles = RunFolder(folder), list[Mapping[str, Any]](), list[str]()
    for file in sorted(Path(folder).glob("*.json")):
        try:
            result = run.read_json(file.name)
        except (OSError, ValueError) as error:
            troubles.append(str(error))
            continue
        if isinstance(result, Mapping) and {"id", "title_en", "claim_en"} <= result.keys():
            results.append(result)
    title = bilingual("The lab", "实验室")
    lead = bilingual(
        "What the articles claim, measured again on this machine.",
        "文章中的结论，在这台机器上重新测量。",
    )
    parts = [header(title, eyebrow="kexue 科学", lead=lead), _counts(results)]
    if troubles:
        words = bilingual("Some results cannot be read.", "部分结果无法读取。")
        parts.append(
            note(tag("p", words), tag("ul", *(tag("li", t) for t in troubles)), kind="bad")
        )
    parts.append(contents((str(one["id"]), str(one["id"])) for one in results))
    parts += [_card(one) for one in results]
    path = Path(folder) / "index.html"
    atomic_write_text(path, page("kexue lab · 科学实验室", join(parts)))
    return path


def _verdict(result: Mapping[str, Any]) -> Verdict | None:
    known = {verdict.value: verdict for verdict in Verdict}
    return known.get(str(result.get("verdict")))


def _counts(results: list[Mapping[str, Any]]) -> Html:
    numbers: list[tuple[object, object]] = [
        (len(results), bilingual("experiments" if len(results) != 1 else "experiment", "个实验"))
    ]
    for verdict in Verdict:
        count = sum(_verdict(result) is verdict for result in results)
        if count:
            numbers.append((count, bilingual(verdict.value, verdict.zh)))
    failed = sum(_verdict(result) is None for result in results)
    if failed:
        numbers.append((failed, bilingual("failed", "运行失败")))
    return headline(numbers)


def _card(result: Mapping[str, Any]) -> Html:
    verdict, seconds = _verdict(result), result.get("seconds")
    if verdict is None:
        label = badge(bilingual("failed", "运行失败"), "bad")
    else:
        label = badge(bilingual(verdict.value, verdict.zh), KINDS[verdict])
    numbers = result.get("numbers")
    chinese = result.get("names_zh")
    chinese = chinese if isinstance(chinese, Mapping) else {}
    ours = [
        (bilingual(name, chinese[name]) if name in chinese else safe(name), _number(value))
        for name, value in (numbers.items() if isinstance(numbers, Mapping) else ())
    ]
    took = f"{seconds:.1f} s" if isinstance(seconds, int | float) else "—"
    failed = result.get("failed")
    picture = result.get("figure")
    return tag(
        "article",
        tag("p", result["id"], class_="eyebrow"),
        tag("h2", bilingual(result["title_en"], result.get("title_zh"))),
        tag("p", label),
        tag("p", bilingual(result["claim_en"], result.get("claim_zh"))),
        _published(result),
        note(tag("p", failed), kind="bad") if failed else "",
        _comment(result),
        tag(
            "div",
            figure(Html(picture)) if picture else "",
            _numbers(ours, took),
            class_="pair",
        ),
        id=result["id"],
    )


def _published(result: Mapping[str, Any]) -> Html:
    en = result.get("published")
    words = bilingual(f"Published: {en}", f"文中数字：{result.get('published_zh') or en}")
    return tag("p", words, class_="soft")


def _comment(result: Mapping[str, Any]) -> Html:
    if not result.get("comment_en"):
        return Html()
    return tag("p", bilingual(result["comment_en"], result.get("comment_zh")))


def _numbers(ours: list[tuple[Html, str]], took: str) -> Html:
    return facts([*ours, (bilingual("time", "用时"), took)])


def _number(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
