"""A run that was stopped at any moment ends in the same bits as one that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from kexue.data.batching import LengthBatches
from kexue.training.checkpoint import Checkpoints, replace_folder, whole_or_nothing
from kexue.training.processes import make_accelerator
from kexue.training.settings import FitSettings

SETTINGS = {"epochs": 3, "dropout": 0.2, "seed": 5, "max_tokens": 40}


class Stopped(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def undisturbed(toy, tmp_path_factory):
    """Weights, result and losses of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    state, result = toy.train(folder, checkpoint_minutes=0.0, **SETTINGS)
    return state, result, facts(toy, folder)


def facts(toy, folder):
    """metrics.jsonl without what depends on the clock."""
    lines = toy.metrics(folder)
    return [{k: v for k, v in line.items() if not k.endswith("per_second")} for line in lines]


def stopped_in_step(toy, folder, step, done=0, **settings):
    """A run that fails in the first micro-batch of a step, after `done` steps of earlier runs."""
    counted = examples_before(toy, done + 1)

    def objective(model, batch):
        nonlocal counted
        counted += batch.count
        if counted > examples_before(toy, step):
            raise Stopped
        return toy.objective(model, batch)

    with pytest.raises(Stopped):
        toy.train(folder, objective=objective, **{**SETTINGS, **settings})


def examples_before(toy, step):
    """Examples in all steps before this one."""
    epoch, steps = divmod(step - 1, toy.steps)
    plan = LengthBatches(toy.features.lengths, batch_size=5, seed=SETTINGS["seed"])
    return epoch * toy.rows + sum(map(len, plan.batches(epoch)[:steps]))


def assert_same_run(toy, same, folder, resumed, undisturbed):
    (state, result), (expected, reference, lines) = resumed, undisturbed
    same(state, expected)
    assert result.history == reference.history
    assert (result.best_epoch, result.best) == (reference.best_epoch, reference.best)
    assert facts(toy, folder) == lines


@pytest.mark.parametrize("minutes", [0.0, 10.0])
@pytest.mark.parametrize("step", [1, 2, 4, 5, 6, 8, 11, 13, 15])
def test_a_run_stopped_in_any_step_resumes_to_the_same_bits(
    toy, same, tmp_path, undisturbed, step, minutes
):
    stopped_in_step(toy, tmp_path, step, checkpoint_minutes=minutes)
    resumed = toy.train(tmp_path, resume=True, checkpoint_minutes=minutes, **SETTINGS)
    assert_same_run(toy, same, tmp_path, resumed, undisturbed)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_stopped_in_an_evaluation_resumes_to_the_same_bits(
    toy, same, tmp_path, undisturbed, epoch
):
    done = []

    def broken(model):
        done.append(1)
        raise Stopped

    if epoch > 1:  # the epochs before are scored by the real thing
        stopped_in_step(toy, tmp_path, (epoch - 1) * toy.steps + 1, checkpoint_minutes=0.0)
    options = {"resume": True, "checkpoint_minutes": 0.0, **SETTINGS}
    with pytest.raises(Stopped):
        toy.train(tmp_path, evaluate=broken, **options)
    assert done == [1]
    resumed = toy.train(tmp_path, **options)
    assert_same_run(toy, same, tmp_path, resumed, undisturbed)


def test_a_run_stopped_while_its_best_weights_are_kept_resumes_to_the_same_bits(
    toy, same, tmp_path, undisturbed
):
    def keep(model):
        raise Stopped

    with pytest.raises(Stopped):
        toy.train(tmp_path, keep=keep, checkpoint_minutes=0.0, **SETTINGS)
    kept = []
    resumed = toy.train(tmp_path, resume=True, keep=kept.append, checkpoint_minutes=0.0, **SETTINGS)
    assert kept, "the first epoch is better than none and must be kept again"
    assert_same_run(toy, same, tmp_path, resumed, undisturbed)


def test_a_run_may_be_stopped_many_times(toy, same, tmp_path, undisturbed):
    done = 0
    for step in (2, 3, 6, 10, 12):
        stopped_in_step(toy, tmp_path, step, done, resume=True, checkpoint_minutes=0.0)
        done = step - 1
    resumed = toy.train(tmp_path, resume=True, **SETTINGS)
    assert_same_run(toy, same, tmp_path, resumed, undisturbed)


def test_a_resumed_run_takes_only_the_steps_that_were_left(toy, tmp_path):
    stopped_in_step(toy, tmp_path, 8, checkpoint_minutes=0.0)
    counts = []

    def objective(model, batch):
        counts.append(batch.count)
        return toy.objective(model, batch)

    toy.train(tmp_path, resume=True, objective=objective, **SETTINGS)
    assert sum(counts) == 3 * toy.rows - examples_before(toy, 8)


def test_resuming_a_finished_run_changes_nothing(toy, same, tmp_path, undisturbed):
    toy.train(tmp_path, **SETTINGS)
    resumed = toy.train(tmp_path, resume=True, **SETTINGS)
    assert_same_run(toy, same, tmp_path, resumed, undisturbed)


def test_a_run_that_stopped_early_stays_stopped(toy, tmp_path):
    def evaluate(model):
        return {"accuracy": 1.0}

    options = {**SETTINGS, "epochs": 9, "patience": 1, "evaluate": evaluate}
    toy.train(tmp_path, **options)
    _, result = toy.train(tmp_path, resume=True, **options)
    assert result.epochs == 2
    assert len(facts(toy, tmp_path)) == 4


def test_without_resume_a_checkpoint_is_not_used(toy, same, tmp_path, undisturbed):
    stopped_in_step(toy, tmp_path, 8, checkpoint_minutes=0.0)
    anew = toy.train(tmp_path, **SETTINGS)
    assert_same_run(toy, same, tmp_path, anew, undisturbed)


# The files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_only_the_newest_checkpoint_stays(toy, tmp_path):
    stopped_in_step(toy, tmp_path, 8, checkpoint_minutes=0.0)
    assert names(tmp_path / "checkpoints") == ["step-00000007"]
    toy.train(tmp_path / "whole", checkpoint_minutes=0.0, **SETTINGS)
    assert names(tmp_path / "whole" / "checkpoints") == ["step-00000015"]


def test_between_epochs_checkpoints_come_no_oftener_than_asked(toy, tmp_path):
    stopped_in_step(toy, tmp_path, 9, checkpoint_minutes=10.0)
    assert names(tmp_path / "checkpoints") == ["step-00000005"]


def test_unfinished_checkpoints_are_ignored_and_then_removed(toy, same, tmp_path, undisturbed):
    stopped_in_step(toy, tmp_path, 8, checkpoint_minutes=0.0)
    folder = tmp_path / "checkpoints"
    for name in (".writing-00000009", ".old-step-00000003", "step-00000099"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"half")
    resumed = toy.train(tmp_path, resume=True, **SETTINGS)
    assert names(folder) == ["step-00000015"]
    assert_same_run(toy, same, tmp_path, resumed, undisturbed)


def test_the_newest_whole_checkpoint_is_chosen(tmp_path):
    for step in (9, 10, 100_000_000):
        (tmp_path / f"step-{step:08d}").mkdir()
    for step in (2, 9, 10):
        (tmp_path / f"step-{step:08d}").mkdir(exist_ok=True)
        (tmp_path / f"step-{step:08d}" / "state.json").write_text("{}")
    assert Checkpoints(tmp_path, None).newest().name == "step-00000010"


def test_without_checkpoints_there_is_nothing_to_load(tmp_path):
    assert Checkpoints(tmp_path / "none", make_accelerator(FitSettings())).load() is None


def test_a_checkpoint_holds_no_pickled_weights(toy, tmp_path):
    toy.train(tmp_path, **SETTINGS)
    [checkpoint] = (tmp_path / "checkpoints").iterdir()
    assert "model.safetensors" in names(checkpoint)
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["step"] == 15


def test_a_folder_is_replaced_in_whole(tmp_path):
    for name in ("new", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "final")
    assert names(tmp_path) == ["final"]
    assert names(tmp_path / "final") == ["new"]


def test_what_a_kill_between_two_renames_left_is_removed(tmp_path):
    (tmp_path / ".old-final").mkdir()
    (tmp_path / "new").mkdir()
    replace_folder(tmp_path / "new", tmp_path / "final")
    assert names(tmp_path) == ["final"]


def test_a_folder_that_could_not_be_filled_is_removed(tmp_path):
    partial = tmp_path / "partial"

    def fill():
        with whole_or_nothing(partial):
            partial.mkdir()
            (partial / "weights").write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fill()
    assert names(tmp_path) == []


# A real kill


def command(data, out, *more):
    options = ["--epochs", "3", "--batch-size", "8", "--checkpoint-minutes", "0"]
    return [
        *(sys.executable, "-m", "kexue", "clue", "train", "tnews"),
        *("--data", str(data), "--out", str(out), *options, *more),
    ]


def finished(data, out, *more):
    done = subprocess.run(command(data, out, *more), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def killed_when(data, out, seen):
    """Starts training and kills it as soon as `seen()` holds."""
    process = subprocess.Popen(
        command(data, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not seen() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"


def lines(out):
    text = (out / "tnews" / "metrics.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in x.items() if not k.endswith("per_second")} for x in found]


def assert_same_files(out, reference):
    for name in ("best/model.safetensors", "best/head.safetensors", "predictions.jsonl"):
        assert (out / "tnews" / name).read_bytes() == (reference / "tnews" / name).read_bytes()
    submission = "submission/tnews11_predict.json"
    assert (out / submission).read_bytes() == (reference / submission).read_bytes()
    assert lines(out) == lines(reference)
    hidden = [p for p in out.rglob("*") if p.name.startswith(".") or p.name == "checkpoints"]
    assert hidden == []


@pytest.fixture(scope="module")
def uninterrupted(mini, tmp_path_factory):
    return finished(mini, tmp_path_factory.mktemp("cli") / "run")


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX signal")
@pytest.mark.parametrize("moment", ["middle of epoch 2", "start of epoch 3", "before training"])
def test_a_killed_command_resumes_to_the_same_files(mini, tmp_path, uninterrupted, moment):
    out = tmp_path / "run"
    checkpoints = out / "tnews" / "checkpoints"

    def past(step):
        return any(int(p.name[5:]) >= step for p in checkpoints.glob("step-*"))

    seen = {
        "middle of epoch 2": lambda: past(8),
        "start of epoch 3": lambda: past(12),
        "before training": lambda: (out / "config.json").exists(),
    }[moment]
    killed_when(mini, out, seen)
    assert not (out / "results.json").exists()
    finished(mini, out, "--resume")
    assert_same_files(out, uninterrupted)
    steps = [line["step"] for line in lines(out) if "loss" in line]
    assert steps == sorted(set(steps))
