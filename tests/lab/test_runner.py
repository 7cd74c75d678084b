"""The runner: side by side, one thread each, and one failure stops nothing."""

import json
import os

import pytest

from kexue.lab import Verdict, run_experiments
from kexue.lab.experiment import discover
from kexue.lab.runner import select
from report.test_page import check

SAMPLES = """
import os, time
from kexue.lab.experiment import Experiment, Finding, Verdict

def good(seed, data):
    numbers = {"seed": seed, "threads": os.environ["OMP_NUM_THREADS"], "data": str(data)}
    return Finding(numbers, "<svg></svg>", Verdict.HOLDS, "fine", "好")

def bad(seed, data):
    raise RuntimeError("the <b>reason</b>\\nin two lines")

def dead(seed, data):
    os._exit(7)

def slow(seed, data):
    time.sleep(60)

def make(name, measure):
    id = f"S90-{name}"
    return Experiment(id, "S90", name, "题", "claim <i>", "结论", "12 %", measure)

EXPERIMENTS = tuple(make(f.__name__, f) for f in (good, bad, dead, slow))
"""


@pytest.fixture
def samples(tmp_path, monkeypatch):
    package = tmp_path / "lab_samples"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "s90_samples.py").write_text(SAMPLES)
    monkeypatch.syspath_prepend(tmp_path)
    return "lab_samples"


def test_failures_are_reported_and_the_others_go_on(samples, tmp_path):
    out, seen = tmp_path / "out", []
    names = ["S90-bad", "S90-dead", "S90-good"]
    outcomes = run_experiments(
        names, out, package=samples, seed=5, data=tmp_path, on_done=seen.append
    )
    bad, dead, good = outcomes
    assert [one.id for one in outcomes] == names
    assert sorted(one.id for one in seen) == sorted(names)
    assert bad.failed == "RuntimeError: the <b>reason</b> in two lines"
    assert dead.failed == "the process ended with exit code 7"
    assert good.failed is None
    assert good.verdict is Verdict.HOLDS
    assert good.numbers == {"seed": 5, "threads": "1", "data": str(tmp_path)}
    assert good.seconds >= 0
    assert {path.name for path in out.iterdir()} == {f"{n}.json" for n in names} | {"index.html"}


def test_an_experiment_that_takes_too_long_is_stopped(samples, tmp_path):
    (slow,) = run_experiments(["S90-slow"], tmp_path, package=samples, timeout=0.5)
    assert slow.failed == "stopped after 0.5 s"


def test_the_page_shows_claim_number_picture_and_failure(samples, tmp_path):
    run_experiments(["S90-good", "S90-bad"], tmp_path, package=samples)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    check(text)
    for words in ("claim &lt;i&gt;", "结论", "12 %", "holds", "成立", "<svg></svg>", "运行失败"):
        assert words in text
    assert "<b>reason</b>" not in text
    assert "https://" not in text


def test_earlier_results_stay_on_the_page_and_broken_ones_are_named(samples, tmp_path):
    run_experiments(["S90-good"], tmp_path, package=samples)
    (tmp_path / "S91-broken.json").write_text("{")
    run_experiments(["S90-bad"], tmp_path, package=samples)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'id="S90-good"' in text
    assert "S91-broken.json:1 is not JSON" in text


def test_a_stale_result_does_not_hide_a_crash(samples, tmp_path):
    (tmp_path / "S90-dead.json").write_text(json.dumps({"verdict": "holds"}))
    (dead,) = run_experiments(["S90-dead"], tmp_path, package=samples)
    assert dead.failed is not None


def test_the_environment_is_left_as_it_was(samples, tmp_path, monkeypatch):
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run_experiments(["S90-good"], tmp_path, package=samples)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in os.environ


def test_experiments_are_chosen_by_id_by_system_or_all(samples):
    known = discover(samples)
    assert [one.id for one in select(["s90-GOOD"], known)] == ["S90-good"]
    assert select(["S90"], known) == select(["all", "S90-bad"], known) == known


def test_an_unknown_name_lists_what_there_is(samples, tmp_path):
    with pytest.raises(ValueError, match=r"no experiment 'S77'; there are: S90-bad, "):
        run_experiments(["S77"], tmp_path, package=samples)


@pytest.mark.parametrize("wrong", [{"processes": 0}, {"timeout": 0.0}])
def test_impossible_settings_are_refused(samples, tmp_path, wrong):
    with pytest.raises(ValueError, match="must be"):
        run_experiments(["all"], tmp_path, package=samples, **wrong)
