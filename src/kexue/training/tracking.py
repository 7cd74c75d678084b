"""What is seen of a training run while it goes on: metrics.jsonl, trackers, and a progress line."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kexue.data.files import append_line, atomic_write_text

__all__ = ["Log", "Meter", "MetricsFile", "Progress", "log_of", "progress"]


class MetricsFile:
    """One JSON object a line; after a resume the lines beyond the resumed step are cut off.

    Args:
        path: the file; its folder must exist.
        keep_until: last step whose lines stay (resume); None starts a new file.
    """

    def __init__(self, path: Path, keep_until: int | None = None) -> None:
        self.path = path
        kept = ""
        if keep_until is not None and path.exists():
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
            kept = "".join(f"{n}\n" for n in lines if json.loads(n)["step"] <= keep_until)
        atomic_write_text(path, kept)

    def log(self, **values: Any) -> None:
        """Appends one line."""
        append_line(self.path, json.dumps(values, ensure_ascii=False))


class Progress:
    """Loss, speed and time left: a bar on a terminal, a plain line every few seconds elsewhere.

    Args:
        label: what is being trained.
        total: optimizer steps in all.
        done: steps already behind (resume).
        bar: a `rich.progress.Progress` to draw in; None prints lines.
        every: seconds between plain lines; infinity: silent.
    """

    def __init__(
        self, label: str, total: int, done: int = 0, bar: Any = None, every: float = 10.0
    ) -> None:
        self.label, self.total, self.first, self.done = label, total, done, done
        self.bar, self.every = bar, every
        self.began = self.printed = time.perf_counter()
        self.row = bar.add_task(label, total=total, completed=done, info="") if bar else None

    def step(self, loss: float | None, speed: float) -> None:
        """One optimizer step is done; `loss` is None where it was not read from the device."""
        self.done += 1
        now = time.perf_counter()
        text = "" if loss is None else f"loss {loss:.3f}"
        if self.bar is not None:
            info = {"info": f"{text}  {speed:,.0f} tokens/s"} if loss is not None else {}
            self.bar.update(self.row, advance=1, **info)
        elif loss is not None and now - self.printed >= self.every:
            self.printed = now
            left = (now - self.began) / (self.done - self.first) * (self.total - self.done)
            print(
                f"{self.label}  step {self.done}/{self.total}  {text}  "
                f"{speed:,.0f} tokens/s  {clock(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False)
        elif self.every < float("inf"):
            print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: int, done: int = 0, shown: bool = True) -> Iterator[Progress]:
    """A `Progress` for the length of a block: silent, bar or lines, as the terminal allows."""
    if not shown:
        yield Progress(label, total, done, every=float("inf"))
    elif not sys.stderr.isatty():
        yield Progress(label, total, done)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[info]}"),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            yield Progress(label, total, done, bar)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Meter:
    """Time spent in training steps, and what was seen in it; evaluation and saving not counted.

    Args:
        seconds, samples, tokens: so far, when a run is resumed.
    """

    def __init__(self, seconds: float = 0.0, samples: float = 0.0, tokens: float = 0.0) -> None:
        self.seconds, self.samples, self.tokens = seconds, samples, tokens
        self.start()

    def start(self) -> None:
        """The clock runs from here."""
        self.began = time.perf_counter()

    def lap(self, samples: float, tokens: float) -> None:
        """A step is done; waiting for its batch is part of it."""
        now = time.perf_counter()
        self.seconds, self.began = self.seconds + now - self.began, now
        self.samples, self.tokens = self.samples + samples, self.tokens + tokens

    def totals(self) -> dict[str, float]:
        """What a resumed run starts with."""
        return {"seconds": self.seconds, "samples": self.samples, "tokens": self.tokens}

    @property
    def samples_per_second(self) -> float:
        """Over all steps."""
        return self.samples / max(self.seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        """Over all steps, padding not counted."""
        return self.tokens / max(self.seconds, 1e-9)


class Log:
    """All that is told of a run: metrics.jsonl, the tracker, the progress line.

    Args:
        bar: the progress.
        metrics: None in all processes but the main one.
        accelerator: passes values on to the trackers.
        tracked: whether there are any.
    """

    def __init__(
        self, bar: Progress, metrics: MetricsFile | None, accelerator: Any, tracked: bool
    ) -> None:
        self.bar, self.metrics, self.accelerator, self.tracked = bar, metrics, accelerator, tracked

    def step(
        self, step: int, epoch: float, losses: dict[str, float] | None, rate: float, meter: Meter
    ) -> None:
        """A step is done; `losses` is None where they were not read from the device."""
        self.bar.step(losses["loss"] if losses else None, meter.tokens_per_second)
        if losses is None:
            return
        if self.metrics is not None:
            self.metrics.log(
                step=step,
                epoch=round(epoch, 4),
                **losses,
                learning_rate=rate,
                tokens_per_second=round(meter.tokens_per_second, 1),
                samples_per_second=round(meter.samples_per_second, 1),
            )
        if self.tracked:
            self.accelerator.log({**losses, "learning_rate": rate}, step)

    def scores(
        self, step: int, epoch: int, scores: dict[str, float], metric: str, better: bool
    ) -> None:
        """An epoch was scored."""
        if self.metrics is not None:
            self.metrics.log(step=step, epoch=epoch, dev=scores)
        if self.tracked:
            self.accelerator.log({f"dev/{name}": value for name, value in scores.items()}, step)
        star = " *" if better else ""
        self.bar.say(f"{self.bar.label}  epoch {epoch}  {metric} {scores[metric]:.2f}{star}")


@contextmanager
def log_of(
    path: Path,
    label: str,
    total: int,
    accelerator: Any,
    *,
    done: int | None,
    tracked: bool,
    quiet: bool,
) -> Iterator[Log]:
    """A `Log` for the length of a block.

    Args:
        path: metrics.jsonl.
        label: what is being trained.
        total: optimizer steps in all.
        accelerator: says which process this is.
        done: steps behind a resumed run; None: a new one.
        tracked: whether Accelerate has trackers.
        quiet: no progress.
    """
    main = accelerator.is_main_process
    metrics = MetricsFile(path, done) if main else None
    with progress(label, total, done or 0, shown=main and not quiet) as bar:
        yield Log(bar, metrics, accelerator, tracked)
