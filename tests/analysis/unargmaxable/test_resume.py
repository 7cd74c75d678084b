"""A run that is killed goes on where it was."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from kexue.analysis.unargmaxable import check_argmaxable

SAME = ("verdict", "margin", "radius", "bound", "spread", "method", "twin")
RUN = """
import sys, time
import numpy as np
from kexue.analysis.unargmaxable import cascade, check_argmaxable, resume
resume.EVERY = 0.0
whole = cascade.newton
def slowly(*given):
    time.sleep(0.02)
    return whole(*given)
cascade.newton = slowly
held = np.load(sys.argv[1])
check_argmaxable(held["weight"], held["bias"], resume=sys.argv[2])
"""


@pytest.fixture(scope="module")
def layer():
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((300, 4))
    weight[5], bias = weight[9], draw.standard_normal(300)
    return weight, bias


def same(one, two):
    for name in SAME:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for k in one.argmaxable.tolist():
        np.testing.assert_array_equal(one.point(k), two.point(k))
    for k in one.unargmaxable.tolist():
        np.testing.assert_array_equal(one.mix(k).index, two.mix(k).index)
        np.testing.assert_array_equal(one.mix(k).weights, two.mix(k).weights)
    counts = [[(s.name, s.can, s.cannot) for s in report.stages] for report in (one, two)]
    assert counts[0] == counts[1]


def test_a_killed_run_goes_on_to_the_same_report(layer, tmp_path):
    weight, bias = layer
    held, path = tmp_path / "layer.npz", tmp_path / "new" / "folder" / "run.safetensors"
    np.savez(held, weight=weight, bias=bias)
    run = subprocess.Popen([sys.executable, "-c", RUN, held, path])
    try:
        until = time.monotonic() + 60
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.5)
    finally:
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    decided = []

    def note(stage, done, whole):
        decided.append((stage, whole))

    report = check_argmaxable(weight, bias, resume=path, progress=note)
    plain = []
    fresh = check_argmaxable(weight, bias, progress=lambda s, d, w: plain.append((s, w)))
    same(report, fresh)
    assert 0 < dict(decided)["newton"] < dict(plain)["newton"]


@pytest.mark.parametrize("method", ["auto", "lp", "climb", "min_norm"])
def test_a_finished_run_has_nothing_left_to_do(layer, tmp_path, method):
    weight, bias = layer[0][:40], layer[1][:40]
    path, told = tmp_path / "run.safetensors", []
    first = check_argmaxable(weight, bias, method=method, resume=path)
    again = check_argmaxable(
        weight, bias, method=method, resume=str(path), progress=lambda *news: told.append(news)
    )
    same(first, again)
    assert {whole for _, _, whole in told} <= {len(first.undecided)}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 1},
        {"bias": 1},
        {"method": "lp"},
        {"classes": [1, 2]},
        {"box": 5.0},
        {"tol": 1e-6},
    ],
)
def test_results_of_another_run_are_refused_and_kept(layer, tmp_path, change):
    weight, bias = layer[0][:20].copy(), layer[1][:20].copy()
    path = tmp_path / "run.safetensors"
    check_argmaxable(weight, bias, resume=path)
    before, settings = path.read_bytes(), dict(change)
    weight[3, 0] += settings.pop("weight", 0)
    bias[3] += settings.pop("bias", 0)
    with pytest.raises(ValueError, match="another layer, other classes or other settings"):
        check_argmaxable(weight, bias, resume=path, **settings)
    assert path.read_bytes() == before


def test_a_file_of_something_else_and_a_folder_are_refused(layer, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not ours")
    with pytest.raises(ValueError, match=r"notes\.txt is no file of a former run"):
        check_argmaxable(*layer, resume=path)
    assert path.read_text() == "not ours"
    with pytest.raises(ValueError, match="is a folder; name a file"):
        check_argmaxable(*layer, resume=tmp_path)


def test_a_write_that_fails_leaves_the_former_file_alone(layer, tmp_path, monkeypatch):
    import safetensors.torch

    weight, bias = layer[0][:20], layer[1][:20]
    path = tmp_path / "run.safetensors"
    check_argmaxable(weight, bias, resume=path)
    before = path.read_bytes()

    def half(tensors, name, **rest):
        name.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises(OSError, match="no space left"):
        check_argmaxable(weight, bias, resume=path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
