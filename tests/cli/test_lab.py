"""`kexue lab` on the command line."""

import json

import pytest
from typer.testing import CliRunner

from kexue.cli.lab import app
from kexue.lab import Outcome, Verdict

RUN = CliRunner()


def test_list_names_every_experiment_with_its_claim():
    shown = RUN.invoke(app, ["list"])
    assert shown.exit_code == 0
    assert "S01-assignment" in shown.stdout
    assert "成语不重复" in shown.stdout
    listed = json.loads(RUN.invoke(app, ["list", "--json"]).stdout)
    assert {"id", "claim_en", "claim_zh", "published"} <= listed[0].keys()


def test_run_writes_results_and_a_page(tmp_path):
    done = RUN.invoke(app, ["run", "S01-windows", "--out", str(tmp_path), "--json"])
    assert done.exit_code == 0
    (result,) = json.loads(done.stdout)["results"]
    assert result["id"] == "S01-windows"
    assert (tmp_path / "S01-windows.json").is_file()
    assert (tmp_path / "index.html").is_file()


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_a_failed_experiment_gives_exit_code_one(monkeypatch, tmp_path, json_option):
    outcomes = [
        Outcome("S01-a", "A", "甲", 1.0, Verdict.FAILS, {"x [bold]": 1.5}),
        Outcome("S01-b", "B", "乙", 1.0, failed="ValueError: no"),
    ]

    def pretend(ids, out, *, on_done, **_):
        for outcome in outcomes if on_done else []:
            on_done(outcome)
        return outcomes

    monkeypatch.setattr("kexue.lab.run_experiments", pretend)
    done = RUN.invoke(app, ["run", "all", "--out", str(tmp_path), *json_option])
    assert done.exit_code == 1
    assert "1 of 2 experiments failed: S01-b" in done.stderr
    assert "ValueError: no" in done.stdout
    assert "x [bold]" in done.stdout
    if json_option:
        json.loads(done.stdout)


def test_a_claim_that_does_not_hold_is_no_failure(monkeypatch, tmp_path):
    outcome = Outcome("S01-a", "A", "甲", 1.0, Verdict.FAILS)
    monkeypatch.setattr("kexue.lab.run_experiments", lambda *_, **__: [outcome])
    assert RUN.invoke(app, ["run", "all", "--out", str(tmp_path)]).exit_code == 0


def test_an_unknown_experiment_fails_with_one_line(tmp_path):
    done = RUN.invoke(app, ["run", "S00-nothing", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: there is no experiment 'S00-nothing'")
    assert done.stderr.count("\n") == 1


def test_a_missing_data_folder_fails_before_anything_runs(tmp_path):
    done = RUN.invoke(app, ["run", "all", "--data", str(tmp_path / "no"), "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "is not a folder" in done.stderr


@pytest.mark.parametrize("command", ["list", "run"])
def test_help_shows_an_example(command):
    shown = RUN.invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert f"Example: kexue lab {command}" in shown.stdout
