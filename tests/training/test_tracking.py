"""What is seen of a run: metrics.jsonl, plain lines, trackers."""

import json
import re
import sys

import pytest

from kexue.training.processes import make_accelerator
from kexue.training.settings import FitSettings
from kexue.training.tracking import MetricsFile, Progress, clock, progress


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


def written(path, *numbers):
    metrics = MetricsFile(path)
    for number in numbers:
        metrics.log(step=number, loss=1 / number, text="损失")


def test_metrics_are_one_json_object_a_line_in_utf8(tmp_path):
    written(tmp_path / "metrics.jsonl", 1, 2)
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert "损失" in text
    assert [json.loads(line)["loss"] for line in text.splitlines()] == [1.0, 0.5]


def test_a_resumed_log_is_cut_after_the_resumed_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written(path, 1, 10, 20, 20, 30)
    MetricsFile(path, keep_until=20).log(step=21)
    assert steps(path) == [1, 10, 20, 20, 21]


def test_a_new_log_starts_empty(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written(path, 1, 2)
    MetricsFile(path)
    assert path.read_text() == ""


def test_a_line_torn_by_a_kill_is_dropped_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written(path, 1, 2)
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    MetricsFile(path, keep_until=3).log(step=3)
    assert steps(path) == [1, 2, 3]


def test_resuming_without_a_log_starts_one(tmp_path):
    MetricsFile(tmp_path / "metrics.jsonl", keep_until=7).log(step=8)
    assert steps(tmp_path / "metrics.jsonl") == [8]


def test_without_a_terminal_progress_is_plain_lines_on_stderr(capsys):
    assert not sys.stderr.isatty()
    with progress("tnews", 40) as shown:
        shown.every = 0.0
        shown.step(None, 0.0)
        shown.step(0.5, 1234.0)
        shown.say("tnews  epoch 1")
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert re.fullmatch(r"tnews  step 2/40  loss 0\.500  1,234 tokens/s  \d:\d\d left", first)
    assert second == "tnews  epoch 1"


def test_plain_lines_come_no_oftener_than_asked(capsys):
    shown = Progress("tnews", 1000, every=1000.0)
    for _ in range(100):
        shown.step(1.0, 1.0)
    assert capsys.readouterr().err == ""


def test_a_resumed_run_counts_on_from_where_it_was(capsys):
    shown = Progress("tnews", 40, done=30, every=0.0)
    shown.step(1.0, 1.0)
    assert "step 31/40" in capsys.readouterr().err


def test_progress_that_is_not_shown_says_nothing(capsys):
    with progress("tnews", 4, shown=False) as shown:
        shown.step(1.0, 1.0)
        shown.say("tnews  epoch 1")
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_the_bar_leaves_only_the_lines_that_stay(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with progress("tnews", 2) as shown:
        shown.step(1.0, 1.0)
        shown.step(None, 1.0)
        shown.say("tnews  epoch 1  accuracy 50.00 *")
    assert "tnews  epoch 1  accuracy 50.00 *" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00"), (59.9, "0:59"), (60.0, "1:00"), (3599.0, "59:59"), (36061.0, "10:01:01")],
)
def test_time_reads_as_a_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.filterwarnings("ignore")  # tensorboard's own imports
def test_a_tensorboard_tracker_receives_losses_and_scores(toy, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is an optional tracker")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = make_accelerator(FitSettings(tracker="tensorboard"), tmp_path)
    accelerator.init_trackers("run")
    toy.train(tmp_path, tracker="tensorboard", accelerator=accelerator)
    accelerator.end_training()
    [file] = tmp_path.glob("run/**/events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    assert {"loss", "learning_rate", "dev/accuracy"} <= set(events.Tags()["scalars"])
    logged = {line["step"]: line["loss"] for line in toy.metrics(tmp_path) if "loss" in line}
    seen = {event.step: event.value for event in events.Scalars("loss")}
    assert seen == pytest.approx(logged)
    assert [event.step for event in events.Scalars("dev/accuracy")] == [toy.steps, 2 * toy.steps]


def test_the_loop_keeps_precision_and_accumulation_to_itself(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert make_accelerator(FitSettings()).gradient_accumulation_steps == 1
    assert make_accelerator(FitSettings()).mixed_precision == "no"
