"""The page of a pre-training run: layers side by side under one budget.

    kexue pretrain --layer all --out runs/lm   →   runs/lm/report.html

Made from the files of the run folder alone (`config.json environment.json results.json
<layer>/metrics.jsonl`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kexue.data.files import atomic_write_text
from kexue.report.charts import Series, line_chart
from kexue.report.page import (
    Html,
    bilingual,
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
from kexue.report.run_folder import RunFolder

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["pretrain_table", "print_pretrain_table", "write_pretrain_report"]

Result = Mapping[str, Any]

COLUMNS: tuple[tuple[str, str], ...] = (
    ("layer", "层"),
    ("weights", "参数量"),
    ("loss", "损失"),
    ("ppl", "困惑度"),
    ("acc %", "准确率 %"),
    ("tokens/s", "词元/秒"),
    ("time", "训练用时"),
    ("ms/token", "毫秒/词元"),
)


def pretrain_table(results: Sequence[Result]) -> list[list[str]]:
    """The cells of the table, best loss first; columns as in `COLUMNS`."""
    return [
        [
            str(result["layer"]),
            f"{result['parameters']:,}",
            f"{result['scores']['loss']:.4f}",
            f"{result['scores']['perplexity']:.2f}",
            f"{result['scores']['accuracy']:.2f}",
            f"{result['tokens_per_second']:,.0f}",
            f"{result['seconds']:.0f} s",
            f"{result['milliseconds_per_token']:.2f}",
        ]
        for result in sorted(results, key=lambda one: float(one["scores"]["loss"]))
    ]


def print_pretrain_table(results: Sequence[Result], console: "Console") -> None:
    """Print the table on a rich console."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, (name, _) in enumerate(COLUMNS):
        shown.add_column(name, justify="right" if number else "left", overflow="fold")
    for cells in pretrain_table(results):
        shown.add_row(*cells)
    console.print(shown)


def write_pretrain_report(run: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Args:
        run: the folder of `kexue pretrain`, with at least one finished layer.
    """
    folder = RunFolder(run)
    config, results = folder.read_json("config.json"), folder.read_json("results.json")
    settings = config["settings"]
    lead = bilingual(
        f"Data {config['data']}. Every layer got the same texts, order, rate and number of steps.",
        f"数据 {config['data']}。各种层用同样的文本、顺序、学习率和步数。",
    )
    first = results[0]
    numbers = [
        (len(results), bilingual("layers", "种层")),
        (f"{first['train_tokens'] * first['epochs']:,}", bilingual("training tokens", "训练词元")),
        (f"{first['dev_tokens']:,}", bilingual("dev tokens", "验证词元")),
        (settings["length"], bilingual("tokens a row", "每行词元")),
    ]
    parts = [
        header(Path(run).resolve().name, eyebrow=bilingual("Pre-training", "预训练"), lead=lead),
        headline(numbers),
        _caution(config["data"]),
        section(
            bilingual("Layers", "各层对比"),
            table([bilingual(*one) for one in COLUMNS], pretrain_table(results), align="lrrrrrrr"),
            tag(
                "p",
                bilingual(
                    "Loss in nats per token on the dev texts, lower is better, and the perplexity "
                    "and accuracy that go with it; training speed and time; milliseconds to draw "
                    "one token behind another with the cache.",
                    "损失为验证文本上每词元的纳特数，越低越好；困惑度与准确率同此；训练速度与用时；"
                    "最后一列是带缓存逐个生成时每个词元的毫秒数。",
                ),
                class_="soft",
            ),
            _curves(folder, results),
        ),
        section(bilingual("What they write", "它们写的"), *(_sample(one) for one in results)),
        _run(config, folder.read_json("environment.json")),
    ]
    path = Path(run) / "report.html"
    atomic_write_text(path, page(f"pretrain · {Path(run).resolve().name}", join(parts)))
    return path


def _caution(data: str) -> Html:
    if data != "mini":
        return Html()
    words = bilingual(
        "The mini texts come from a small grammar made for trying things out: a low loss on them "
        "says nothing about real text.",
        "mini 文本由一个小文法生成，供试用；在它上面损失低，不说明真实文本上如何。",
    )
    return note(tag("p", words), kind="warn")


def _curves(folder: RunFolder, results: Sequence[Result]) -> Html:
    by_step, by_time = list[Series](), list[Series]()
    for result in results:
        name = f"{result['folder']}/metrics.jsonl"
        if not folder.exists(name):
            continue
        lines = [line for line in folder.read_jsonl(name) if line.get("loss") is not None]
        lines = [line for line in lines if "tokens_per_second" in line]
        steps = [line["step"] for line in lines]
        losses = [line["loss"] for line in lines]
        last = steps[-1] if steps else 1
        seconds = [float(result["seconds"]) * step / last for step in steps]
        by_step.append(Series(result["layer"], steps, losses))
        by_time.append(Series(result["layer"], seconds, losses))
    loss = ("training loss, nats per token", "训练损失，纳特/词元")
    pictures = (
        line_chart(by_step, title=("Same steps", "同样步数"), x_label=("step", "步"), y_label=loss),
        line_chart(
            by_time, title=("Same time", "同样时间"), x_label=("seconds", "秒"), y_label=loss
        ),
    )
    return tag("div", *(figure(picture) for picture in pictures), class_="figures")


def _sample(result: Result) -> Html:
    wrapped = tag("pre", str(result["sample"]), style="white-space: pre-wrap")
    return details(str(result["layer"]), wrapped, open=True)


def _run(config: Result, environment: Result) -> Html:
    def words(value: object) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name} = {words(one)}" for name, one in value.items()) or "—"
        if isinstance(value, list):
            return ", ".join(map(words, value)) or "—"
        return "—" if value is None or value == "" else str(value)

    return section(
        bilingual("The run", "运行信息"),
        tag("pre", tag("code", config["command"] or "—")),
        facts([(name, words(value)) for name, value in config["settings"].items()]),
        details(
            bilingual("versions and machine", "版本与机器"),
            facts([(name, words(value)) for name, value in environment.items()]),
        ),
        id="run",
    )
