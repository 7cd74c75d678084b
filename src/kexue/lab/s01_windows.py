"""How many windows a question needs, and what a wide stride loses (S01, CMRC 2018).

A context longer than a window of W = max_length − question − 3 characters is read in windows that
start at 0, stride, 2·stride, … until one reaches its end. An answer is found only if some window
holds it whole, which is certain for answers of at most W − stride + 1 characters.
"""

import json
import math
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kexue.data.mini import write_mini
from kexue.lab.experiment import Experiment, Finding, Number, Verdict
from kexue.report.charts import Bar, Series, bar_chart, line_chart
from kexue.tasks.clue.cmrc2018 import windows

__all__ = ["EXPERIMENT", "Question", "lost", "mean_and_error", "questions", "verdict"]

QUESTIONS = 3219
MEAN, ONE, MOST = 1.90, 56.0, 5
"""Counted on all of CLUE's dev questions at 512 and stride 128: mean, percent with one, largest."""
STRIDES = (64, 128, 192, 224, 256, 320, 384, 448, 480)
NAMES_ZH = {
    "questions": "问题数",
    "windows per question": "每个问题的窗口数",
    "need one": "只需一个窗口",
    "most": "最多",
    "answers lost at stride 128": "步长 128 时丢失的答案",
}


@dataclass(frozen=True)
class Question:
    """The lengths that decide about windows; `answers` are (start, length) in the context."""

    passage: str
    context: int
    question: int
    answers: tuple[tuple[int, int], ...]

    def windows(self, max_length: int = 512, stride: int = 128) -> list[tuple[int, int]]:
        """The windows of the context, as (start, end); a stride wider than W would leave gaps."""
        width = max_length - self.question - 3
        return windows(self.context, self.question, max_length, min(stride, width))


def questions(path: Path) -> list[Question]:
    """The questions of a CMRC 2018 file, with the references that stand where they say."""
    found = []
    for document in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in document["paragraphs"]:
            context = paragraph["context"]
            for one in paragraph["qas"]:
                spans = {(a["answer_start"], a["text"]) for a in one["answers"]}
                answers = sorted(
                    (start, len(text))
                    for start, text in spans
                    if start >= 0 and context.startswith(text, start)
                )
                passage, asked = str(paragraph["id"]), len(one["question"])
                found.append(Question(passage, len(context), asked, tuple(answers)))
    return found


def lost(asked: Sequence[Question], stride: int, max_length: int = 512) -> float:
    """Percent of references that no window holds whole."""
    missing = total = 0
    for one in asked:
        cut = one.windows(max_length, stride)
        for start, length in one.answers:
            total += 1
            missing += not any(a <= start and start + length <= b for a, b in cut)
    return 100 * missing / total if total else 0.0


def mean_and_error(values: Sequence[float], groups: Sequence[str]) -> tuple[float, float]:
    """Mean and its standard error where the values of a group (a passage) move together."""
    mean = sum(values) / len(values)
    sums: dict[str, float] = defaultdict(float)
    for value, group in zip(values, groups, strict=True):
        sums[group] += value - mean
    k = len(sums)
    if k < 2:
        return mean, math.inf
    return mean, math.sqrt(k / (k - 1) * sum(total**2 for total in sums.values())) / len(values)


def verdict(counts: Sequence[int], groups: Sequence[str]) -> tuple[Verdict, list[bool]]:
    """Which of the three counts agree: to the printed digit on the whole set, else within 2 errors.

    The error of a part of the set shrinks with the share of the set that it covers.
    """
    rest = math.sqrt(max(0.0, 1 - len(counts) / QUESTIONS))
    agree = [max(counts) <= MOST]
    one = [100.0 * (count == 1) for count in counts]
    for values, published, digit in (([float(c) for c in counts], MEAN, 0.005), (one, ONE, 0.5)):
        mean, error = mean_and_error(values, groups)
        agree.append(abs(mean - published) <= max(digit, 2 * rest * error))
    if all(agree):
        return Verdict.HOLDS, agree
    return (Verdict.PARTLY if sum(agree) >= 2 else Verdict.FAILS), agree


def measure(seed: int, data: Path | None) -> Finding:
    """Count on a CLUE folder: `data`, else the variable KEXUE_CLUE, else the built-in mini data."""
    folder = data or (Path(os.environ["KEXUE_CLUE"]) if os.environ.get("KEXUE_CLUE") else None)
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            write_mini(Path(made), ["cmrc2018"], seed=seed)
            return _finding(questions(Path(made) / "cmrc2018" / "dev.json"), mini=True)
    file = folder / "cmrc2018" / "dev.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; --data needs a folder of CLUE, unzipped")
    return _finding(questions(file), mini=False)


def _finding(asked: Sequence[Question], *, mini: bool) -> Finding:
    if not asked:
        raise ValueError("the dev file holds no question")
    counts, groups = [len(one.windows()) for one in asked], [one.passage for one in asked]
    mean, error = mean_and_error([float(count) for count in counts], groups)
    single, single_error = mean_and_error([100.0 * (count == 1) for count in counts], groups)
    numbers: dict[str, Number] = {
        "questions": f"{len(asked):,} / {QUESTIONS:,}" if not mini else f"{len(asked)} (mini)",
        "windows per question": f"{mean:.2f} ± {error:.2f}",
        "need one": f"{single:.1f} ± {single_error:.1f} %",
        "most": max(counts),
        "answers lost at stride 128": f"{lost(asked, 128):.2f} %",
    }
    judged, _ = (Verdict.OPEN, []) if mini else verdict(counts, groups)
    return Finding(numbers, _picture(asked, counts), judged, *_comment(len(asked), mini), NAMES_ZH)


def _picture(asked: Sequence[Question], counts: Sequence[int]) -> str:
    tally = Counter(counts)
    bars = [
        Bar((f"{n} window" + "s" * (n > 1), f"{n} 个窗口"), 100 * tally[n] / len(counts))
        for n in range(1, max(counts) + 1)
    ]
    lines = [
        Series(
            (f"length {length}", f"长度 {length}"),
            [float(stride) for stride in STRIDES if stride < length],
            [lost(asked, stride, length) for stride in STRIDES if stride < length],
            dots=True,
        )
        for length in (512, 256)
    ]
    share = ("percent of questions, length 512, stride 128", "占问题的百分比，长度 512，步长 128")
    return bar_chart(
        bars, title=("Windows per question", "每个问题的窗口数"), unit=share
    ) + line_chart(
        lines,
        title=("Answers that no window holds whole", "没有任何窗口完整包含的答案"),
        x_label=("stride, characters", "步长（字符）"),
        y_label=("percent of references", "占参考答案的百分比"),
    )


def _comment(size: int, mini: bool) -> tuple[str, str]:
    if mini:
        return (
            "Counted on the built-in mini data, whose contexts are short; the published counts are "
            "about CLUE's dev set and cannot be compared here. Give --data or set KEXUE_CLUE.",
            "在内置的 mini 数据上统计，其段落很短；文中数字针对 CLUE 验证集，无法在此比较。"
            "请用 --data 或环境变量 KEXUE_CLUE 指定 CLUE 数据。",
        )
    if size >= QUESTIONS:
        return "Counted on the whole dev set.", "在完整验证集上统计。"
    return (
        f"A part of the dev set: {size:,} of {QUESTIONS:,} questions. Mean and share count as "
        "equal within two standard errors; questions of one passage move together, so the error "
        "is taken over passages and shrunk by the share of the set that was seen.",
        f"只用到验证集的一部分：{QUESTIONS:,} 个问题中的 {size:,} 个。均值与占比在两个标准误之内"
        "视为一致；同一段落的问题相互关联，因此标准误按段落计算，并按已覆盖的比例缩小。",
    )


EXPERIMENT = Experiment(
    id="S01-windows",
    system="S01",
    title_en="Reading long passages through windows",
    title_zh="用滑动窗口阅读长段落",
    claim_en=(
        "At 512 characters and stride 128, a CMRC 2018 dev question needs 1.90 windows on average; "
        "56 % need only one and none more than five."
    ),
    claim_zh=(
        "长度 512、步长 128 时，CMRC 2018 验证集的问题平均需要 1.90 个窗口，"
        "56% 只需一个，最多五个。"
    ),
    published=f"{MEAN:.2f} windows per question, {ONE:.0f} % need one, at most {MOST}",
    published_zh=f"每个问题 {MEAN:.2f} 个窗口，{ONE:.0f}% 只需一个，最多 {MOST} 个",
    measure=measure,
)
