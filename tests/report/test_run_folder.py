"""Run folders: whole files or none."""

import errno
import json
import os

import pytest

from kexue.data.files import atomic_write_text, atomic_writer
from kexue.report import RunFolder


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read_back(tmp_path):
    run = RunFolder(tmp_path / "new" / "run")
    value = {"task": "成语", "scores": [1, 2.5, None, True], "none": {}}
    assert run.read_json(run.write_json("a/config.json", value).name and "a/config.json") == value
    assert "成语" in run.file("a/config.json").read_text(encoding="utf-8")


def test_appended_lines_are_read_back_in_order(tmp_path):
    run = RunFolder(tmp_path)
    rows = [{"step": step, "text": "行\u2028尾"} for step in range(5)]
    for row in rows:
        run.append_jsonl("tnews/metrics.jsonl", row)
    assert run.read_jsonl("tnews/metrics.jsonl") == rows


def test_a_failing_writer_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "results.json"
    atomic_write_text(path, "old")

    def interrupted():
        with atomic_writer(path) as file:
            file.write("half")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["results.json"]


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    atomic_write_text(path, "old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=r"no space left.*results\.json") as caught:
        atomic_write_text(path, "new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert names(tmp_path) == ["results.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")  # noqa: PTH110
def test_a_really_full_device_is_reported(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"no space left|Invalid argument"):
        run.append_jsonl("metrics.jsonl", {"step": 1})


def test_a_line_that_does_not_fit_is_taken_back(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    run.append_jsonl("log.jsonl", {"step": 1})

    def half(file, data):
        file.write(data[:4])
        no_space()

    with monkeypatch.context() as patch:
        patch.setattr("kexue.data.files._write_all", half)
        with pytest.raises(OSError, match="no space left"):
            run.append_jsonl("log.jsonl", {"step": 2})
    assert run.file("log.jsonl").read_text() == '{"step": 1}\n'
    run.append_jsonl("log.jsonl", {"step": 3})
    assert run.read_jsonl("log.jsonl") == [{"step": 1}, {"step": 3}]


def test_a_torn_last_line_is_skipped_and_then_removed(tmp_path):
    run = RunFolder(tmp_path)
    run.append_jsonl("log.jsonl", {"step": 1})
    with run.file("log.jsonl").open("a") as file:
        file.write('{"step": 2, "text": "' + "x" * 10_000)
    assert run.read_jsonl("log.jsonl") == [{"step": 1}]
    run.append_jsonl("log.jsonl", {"step": 3})
    assert run.read_jsonl("log.jsonl") == [{"step": 1}, {"step": 3}]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    run = RunFolder(tmp_path)
    run.write_json("a.json", {"loss": float("nan"), "more": [float("inf"), 1.0]})
    text = run.file("a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"loss": None, "more": [None, 1.0]}


def test_paths_and_arrays_are_written_as_text_and_lists(tmp_path):
    numpy = pytest.importorskip("numpy")
    run = RunFolder(tmp_path)
    value = {"out": tmp_path, "a": numpy.arange(3), "b": numpy.float32(0.5), "c": numpy.float64(2)}
    run.write_json("a.json", value)
    assert run.read_json("a.json") == {"out": str(tmp_path), "a": [0, 1, 2], "b": 0.5, "c": 2.0}


def test_what_json_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        RunFolder(tmp_path).write_json("a.json", {"x": object()})
    assert names(tmp_path) == []


def test_broken_files_are_named_with_their_line(tmp_path):
    run = RunFolder(tmp_path)
    run.file("a.json").write_text('{"a": 1,\n oops}')
    run.file("b.jsonl").write_text('{"a": 1}\noops\n')
    with pytest.raises(ValueError, match=r"a\.json:2 is not JSON"):
        run.read_json("a.json")
    with pytest.raises(ValueError, match=r"b\.jsonl:2 is not JSON"):
        run.read_jsonl("b.jsonl")


@pytest.mark.parametrize("name", ["../a.json", "/etc/a.json", "a/../../b", ""])
def test_a_name_outside_the_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="a name inside the run folder is needed"):
        RunFolder(tmp_path).write_json(name, {})
