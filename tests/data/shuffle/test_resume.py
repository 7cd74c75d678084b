"""Killed runs: recognised, gone on with where they stopped, or begun anew after a change."""

import importlib
import json
import multiprocessing
import os
import random
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from families.shuffling import below
from kexue.data.shuffle import shuffle_lines
from kexue.data.shuffle.outputs import Outputs
from kexue.data.shuffle.run_files import RunFiles


class Killed(BaseException):
    """Stands for SIGKILL: nothing is tidied up."""


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    path = folder / "corpus.txt"
    path.write_bytes(b"".join(b"%06d %s\n" % (i, b"y" * (i % 90)) for i in range(6000)))
    return path


@pytest.fixture
def kill(monkeypatch):
    """Ends a run as SIGKILL would, when a function has been called so many times."""

    def at(where, times):
        calls = []
        owner, _, name = where.rpartition(".")
        holder = {"RunFiles": RunFiles, "Outputs": Outputs}[owner]
        original = getattr(holder, name)

        def counted(self, *given, **options):
            calls.append(None)
            if len(calls) == times:
                raise Killed
            return original(self, *given, **options)

        with monkeypatch.context() as patch:
            patch.setattr(holder, name, counted)
            patch.setattr(RunFiles, "remove", lambda self: self.release())
            patch.setattr(Outputs, "discard", lambda self: self.file and self.file.close())
            patch.setattr("kexue.data.shuffle.request.Request.leftovers", lambda self: [])
            yield

    return contextmanager(at)


def run(corpus, output, **options):
    options = {"seed": 7, "buckets": 8, "memory": "4GB", "progress": False} | options
    said = []
    report = shuffle_lines(corpus, output, warn=said.append, **options)
    return report, [Path(one).read_bytes() for one in report.outputs], said


SHAPES = [
    ("out.txt", {}),
    ("out.txt.gz", {}),
    ("out.txt.xz", {}),
    ("out.txt.bz2", {}),
    ("out.txt.zst", {}),
    ("out.txt", {"lines_per_file": 700}),
    ("out.txt", {"files": 30}),
    ("out.txt.gz", {"lines_per_file": 700, "header": 2}),
    ("out.txt", {"sample": 4000}),
    ("out.txt", {"threads": 1, "header": 1}),
    ("out.txt", {"fsync": True, "files": 3}),
]


@pytest.mark.parametrize("times", [1, 4, 8])
@pytest.mark.parametrize(("name", "options"), SHAPES, ids=str)
def test_a_resumed_run_gives_the_same_bytes_and_does_nothing_twice(
    tmp_path, corpus, kill, monkeypatch, name, options, times
):
    if name.endswith("zst"):
        pytest.importorskip("zstandard")
    if options.get("sample") and times == 8:
        pytest.skip("a sample ends before the eighth bucket")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    whole, wanted, _ = run(corpus, tmp_path / "a" / name, **options)
    output = tmp_path / "b" / name
    with kill("RunFiles.done", times), pytest.raises(Killed):
        run(corpus, output, **options)
    left = below(tmp_path / "b")
    assert all(one.startswith(".") for one in left), "no final file"
    [kept] = [one for one in left if one.startswith(".kexue-shuffle-")]
    loaded = []
    monkeypatch.setattr(
        "kexue.data.shuffle.order.Sorting.load",
        counting(loaded, "kexue.data.shuffle.order", "Sorting", "load"),
    )
    assert json.loads((tmp_path / "b" / kept / "manifest.json").read_text())["seed"] == 7
    report, made, said = run(corpus, output, resume=True, seed=None, **options)
    assert made == wanted
    assert said == [f"resuming behind bucket {times - 1} of 8"]
    assert (report.lines, report.bytes, report.seed) == (whole.lines, whole.bytes, 7)
    assert len(loaded) <= 9 - times, "finished buckets are not read again"
    assert below(tmp_path / "b") == sorted(Path(one).name for one in report.outputs)


def counting(calls, module, owner, name):
    """The method, which notes its calls."""
    original = getattr(getattr(importlib.import_module(module), owner), name)

    def counted(self, *given, **options):
        calls.append(given)
        return original(self, *given, **options)

    return counted


@pytest.mark.parametrize("options", [{}, {"files": 3}], ids=str)
def test_a_run_killed_while_the_outputs_get_their_names_is_completed(
    tmp_path, corpus, kill, options
):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    _, wanted, _ = run(corpus, tmp_path / "a" / "out", **options)
    with kill("Outputs.publish", 1), pytest.raises(Killed):
        run(corpus, tmp_path / "b" / "out", **options)
    hidden = [one for one in below(tmp_path / "b") if not one.startswith(".kexue")]
    first = hidden[0]
    os.rename(tmp_path / "b" / first, tmp_path / "b" / first[1:].rpartition(".")[0])  # noqa: PTH104
    report, made, said = run(corpus, tmp_path / "b" / "out", resume=True, **options)
    assert made == wanted
    assert said == ["resuming: the outputs get their names"]
    assert report.lines == 6000
    assert below(tmp_path / "b") == sorted(Path(one).name for one in report.outputs)


def killed_run(tmp_path, corpus, kill, times=3, **options):
    with kill("RunFiles.done", times), pytest.raises(Killed):
        run(corpus, tmp_path / "out", **options)
    [folder] = [tmp_path / one for one in below(tmp_path) if one.startswith(".kexue-shuffle-")]
    return folder


def test_an_input_that_changed_since_is_not_gone_on_with(tmp_path, corpus, kill):
    killed_run(tmp_path, corpus, kill)
    corpus.write_bytes(b"new\n" * 5)
    _, made, said = run(corpus, tmp_path / "out", resume=True)
    assert made == [b"new\n" * 5]
    assert said == ["the inputs have changed since the run was killed; starting anew"]
    assert below(tmp_path) == ["given", "out"]


def test_without_resume_a_killed_run_is_removed_and_told(tmp_path, corpus, kill):
    folder = killed_run(tmp_path, corpus, kill)
    _, made, said = run(corpus, tmp_path / "out", seed=8)
    assert said == [f"{folder}: left by a killed run, removed (--resume goes on with one)"]
    assert len(made[0]) == corpus.stat().st_size
    assert below(tmp_path) == ["given", "out"]


def test_another_seed_is_refused_and_the_killed_run_stays(tmp_path, corpus, kill):
    folder = killed_run(tmp_path, corpus, kill)
    with pytest.raises(ValueError, match="the run to resume has the seed 7, got 8"):
        run(corpus, tmp_path / "out", seed=8, resume=True)
    assert (folder / "manifest.json").exists()
    assert run(corpus, tmp_path / "out", resume=True)[2] == ["resuming behind bucket 2 of 8"]


def test_a_run_killed_in_the_first_pass_begins_anew(tmp_path, corpus, kill):
    with kill("RunFiles.scattered", 1), pytest.raises(Killed):
        run(corpus, tmp_path / "out")
    _, made, said = run(corpus, tmp_path / "out", resume=True)
    assert len(made[0]) == corpus.stat().st_size
    assert said == ["the run was killed before all records were in buckets; starting anew"]


def test_nothing_to_resume_is_told(tmp_path, corpus):
    assert run(corpus, tmp_path / "out", resume=True)[2] == ["nothing to resume; starting anew"]


def test_another_start_of_the_machine_begins_anew_unless_the_disk_was_asked(
    tmp_path, corpus, kill, monkeypatch
):
    monkeypatch.setattr("kexue.data.shuffle.killed.boot", lambda: "another")
    killed_run(tmp_path, corpus, kill)
    _, _, [said] = run(corpus, tmp_path / "out", resume=True)
    assert said.startswith("the machine was started since")
    (tmp_path / "out").unlink()
    killed_run(tmp_path, corpus, kill, fsync=True)
    said = run(corpus, tmp_path / "out", resume=True, fsync=True)[2]
    assert said == ["resuming behind bucket 2 of 8"]


@pytest.mark.parametrize("damage", ["shorter", "missing"])
def test_a_temporary_output_that_is_no_longer_whole_is_refused(tmp_path, corpus, kill, damage):
    killed_run(tmp_path, corpus, kill, times=5)
    [partial] = [tmp_path / one for one in below(tmp_path) if one.startswith(".out")]
    os.truncate(partial, 10) if damage == "shorter" else partial.unlink()
    with pytest.raises(ValueError, match="is missing or shorter than it was"):
        run(corpus, tmp_path / "out", resume=True)
    assert below(tmp_path) == ["given"]


@pytest.mark.parametrize(
    "damage", ["flip", "cut", "longer", "swap numbers", "empty", "head", "gone"]
)
@pytest.mark.parametrize("room", [None, 20_000])
def test_a_damaged_bucket_file_is_noticed(tmp_path, corpus, kill, monkeypatch, damage, room):
    folder = killed_run(tmp_path, corpus, kill)
    path = folder / "buckets" / "000005.bucket"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-30] ^= 4
    elif damage == "cut":
        del content[-1]
    elif damage == "longer":
        content += b"more\n"
    elif damage == "swap numbers":
        content[12] ^= 1
    elif damage == "empty":
        content.clear()
    elif damage == "head":
        content[0:4] = b"\xff\xff\xff\xff"
    path.unlink() if damage == "gone" else path.write_bytes(content)
    if room:
        monkeypatch.setattr("kexue.data.shuffle.plan.Memory.bucket", room)
    with pytest.raises((ValueError, FileNotFoundError), match=r"000005\.bucket"):
        run(corpus, tmp_path / "out", resume=True)
    assert below(tmp_path) == ["given"], "nothing half, nothing left"


def test_sigkill_at_fifty_moments_leaves_no_half_file_and_can_be_resumed(tmp_path, corpus):
    """Real processes, killed after waits that cover the whole run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kexue.data.shuffle.run"])
    options = {"seed": 7, "buckets": 150, "memory": "300MB", "progress": False}
    corpus.write_bytes(corpus.read_bytes() * 3)
    _, [wanted], _ = run(corpus, tmp_path / "reference")
    before, waits = corpus.read_bytes(), random.Random(1)
    stages = {"before": 0, "scatter": 0, "write": 0, "publish": 0, "finished": 0}
    resumed = 0
    for number in range(50):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        output = folder / "out"
        process = context.Process(target=shuffle_lines, args=(corpus, output), kwargs=options)
        process.start()
        kept = {0: ".kexue-*", 1: ".kexue-*/manifest.json"}.get(number % 4, ".kexue-*/journal*")
        end = time.monotonic() + 30
        while not list(folder.glob(kept)) and process.is_alive():
            assert time.monotonic() < end
        time.sleep(waits.random() * 0.08)
        process.kill()
        process.join()
        left = below(folder)
        if "out" in left:
            assert output.read_bytes() == wanted
            stages["finished"] += 1
        else:
            manifests = list(folder.glob(".kexue-*/manifest.json"))
            stage = json.loads(manifests[0].read_text())["stage"] if manifests else "before"
            stages[stage] += 1
            report, made, said = run(corpus, output, resume=True, seed=None)
            if stage == "write":
                resumed += 1
                assert said[0].startswith("resuming behind bucket")
            assert sorted(made[0].split(b"\n")) == sorted(before.split(b"\n"))
            assert made == [wanted] or (stage in ("before", "scatter") and report.seed != 7)
            assert below(folder) == ["out"]
        assert corpus.read_bytes() == before
    assert resumed > 5, stages
    assert stages["finished"] < 40, stages
