"""`kexue leaderboard` on the command line."""

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from kexue.cli.leaderboard import leaderboard

RUN = CliRunner()


@pytest.fixture(scope="module")
def app():
    app = typer.Typer()
    app.command()(leaderboard)
    return app


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("model,A,B,AX\nx,90,80,50\ny,70,60,99\n", encoding="utf-8")
    return path


def run(app, *arguments):
    return RUN.invoke(app, [str(one) for one in arguments])


def refused(result, words):
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_the_built_in_table_is_ranked_under_every_mean(app, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = run(app, "superglue")
    assert result.exit_code == 0, result.output
    line = next(line for line in result.stdout.splitlines() if line.startswith("Human  "))
    assert " ".join(line.split()) == "Human 89.79 8 89.09 8 88.32 10 56.0 4 9.5 2 1–10"
    assert "column 'published' is taken as the table's own average" in result.stdout
    assert "GM 1.000, HM 0.939, Borda 0.848" in result.stdout
    assert "all of them" in result.stdout


def test_json_holds_everything_and_the_page_is_written(app, tmp_path):
    page = tmp_path / "new" / "page.html"
    found = json.loads(run(app, "glue", "--json", "--out", page).stdout)
    assert found["tasks_left_out"] == ["AX"]
    assert found["findings"][0]["level"] == "bad"
    assert found["ranks"]["harmonic"] == [3, 1, 2]
    assert found["audit"]["consistent"]
    assert found["about"]["source"] == "glue"
    assert found["report"] == str(page)
    assert page.read_text(encoding="utf-8").count("<svg") == 3


def test_tasks_are_dropped_merged_and_weighted(app, table):
    found = json.loads(run(app, table, "--drop", "AX", "--json").stdout)
    assert found["tasks"] == ["A", "B"]
    found = json.loads(run(app, table, "--merge", "AB=A,B", "--weight", "AX=3", "--json").stdout)
    assert found["tasks"] == ["AB", "AX"]
    assert found["values"]["arithmetic"] == [85 / 4 + 50 * 3 / 4, 65 / 4 + 99 * 3 / 4]


def test_one_mean_alone_takes_negative_scores(app, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("m,RTE,CoLA\nx,50,-3\ny,60,20\n")
    refused(run(app, path), "row 'x', column 'CoLA': -3 is negative")
    found = json.loads(run(app, path, "--mean", "arithmetic", "--json").stdout)
    assert found["ranks"]["arithmetic"] == [2, 1]
    assert list(found["values"]) == ["arithmetic", "borda", "wins"]


def test_run_folders_are_compared_over_their_seeds(app, tmp_path):
    for name, scores in (("bert", (50.0, 60.0)), ("gau", (54.0, 54.0))):
        rows = [
            {"task": "tnews", "seed": s, "metric": "accuracy", "scores": {"accuracy": score}}
            for s, score in enumerate(scores)
        ]
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(rows))
    arguments = (tmp_path / "bert", tmp_path / "gau", "--over", "seeds", "--json")
    found = json.loads(run(app, *arguments).stdout)
    assert found["models"] == ["bert", "gau"]
    assert found["scores"] == [[55], [54]]
    assert found["bootstrap"]["of"]["arithmetic"]["first"][0] == pytest.approx(0.75, abs=0.02)


def test_the_same_seed_prints_the_same(app, table):
    first, again = (run(app, table, "--json", "--resamples", 5).stdout for _ in range(2))
    other = run(app, table, "--json", "--resamples", 5, "--seed", 1).stdout
    assert first == again != other


def test_what_is_no_table_is_one_line(app, table, tmp_path):
    empty, text = tmp_path / "empty.csv", tmp_path / "text.csv"
    empty.write_text("model,A\n")
    text.write_text("model,A\nx,good\n")
    for arguments, words in (
        (["nowhere.csv"], "nowhere.csv: no such file or folder"),
        ([empty], "is empty"),
        ([text], f"{text}:2: row 'x', column 'A': 'good' is no score"),
        ([tmp_path], "no results.json here"),
        ([table, "--drop", "C"], "'C' is no task of the table; it has A, B, AX"),
        ([table, "--weight", "A"], "--weight 'A': NAME=VALUE is needed"),
        ([table, "--weight", "A=much"], "'much' is no number"),
        ([table, "--weight", "C=2"], "weight for 'C', which is no task"),
        ([table, "--weight", "A=1", "--weight", "A=2"], "--weight names 'A' twice"),
        ([table, "--merge", "AB=A,C"], "'C' is no task"),
        ([table, "--mean", "median"], "arithmetic, geometric, harmonic"),
        ([table, "--missing", "guess"], 'must be "common", "drop_rows" or "error"'),
        ([table, "--over", "rows"], "choose from: tasks, seeds"),
        ([table, "--over", "seeds"], "one score per cell"),
        ([table, "--published", "C"], "no column 'C'"),
        ([table, "--out", tmp_path], "is a folder; name a file in it"),
        ([table, "--out", table / "x.html"], "is a file, not a folder"),
    ):
        refused(run(app, *arguments), words)


def test_a_table_of_ones_own_named_like_a_built_in_one_comes_first(app, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glue").write_text("m,A\nx,1\n")
    assert json.loads(run(app, "glue", "--json").stdout)["models"] == ["x"]


def test_help_shows_examples(app):
    assert "Example: kexue leaderboard superglue" in run(app, "--help").stdout


@pytest.mark.parametrize("page", [False, True])
def test_a_score_table_does_not_wait_for_torch_or_scipy(tmp_path, page):
    """Neither does its page."""
    arguments = ["kexue", "leaderboard", "glue", "--json"]
    arguments += ["--out", str(tmp_path / "page.html")] if page else []
    code = (
        f"import sys, atexit; sys.argv = {arguments!r}\n"
        "atexit.register(lambda: print({'torch', 'scipy'} & set(sys.modules), file=sys.stderr))\n"
        "from kexue.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["models"][0] == "Human"
    assert done.stderr.strip() == "set()"


def test_the_command_is_registered_and_asking_for_it_does_not_import_torch():
    code = "import sys, kexue.cli.leaderboard; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    command = [sys.executable, "-m", "kexue", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "leaderboard" in done.stdout
