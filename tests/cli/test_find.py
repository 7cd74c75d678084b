import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner, Result

from kexue.cli.find import find


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(find)
    return app


def run(app: typer.Typer, *arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})


def test_a_chinese_role_prints_both_titles_and_the_module(app):
    result = run(app, "熵不变")
    assert result.exit_code == 0
    assert "S07" in result.stdout
    assert "Entropy-invariant attention scale" in result.stdout
    assert "从熵不变性看Attention的Scale操作" in result.stdout
    assert "kexue.nn.attention_scale" in result.stdout


@pytest.mark.parametrize(
    ("lang", "there", "missing"),
    [("en", "Entropy-invariant", "从熵不变性"), ("zh", "从熵不变性", "Entropy-invariant")],
)
def test_one_language_can_be_asked_for(app, lang, there, missing):
    result = run(app, "S07", "--lang", lang)
    assert there in result.stdout
    assert missing not in result.stdout


def test_a_single_match_comes_with_its_summary_article_and_papers(app):
    output = run(app, "8739").stdout
    assert "Eleven Chinese tasks with one recipe" in output
    assert "十一个中文任务，一套做法" in output
    assert "https://kexue.fm/archives/8739\n" in output
    assert "https://arxiv.org/abs/2004.05986\n" in output


def test_json_holds_whole_rows_with_chinese_as_it_is(app):
    result = run(app, "8739", "--json")
    rows = json.loads(result.stdout)
    assert [row["id"] for row in rows] == ["S01"]
    assert rows[0]["lab"] == ["S01-assignment", "S01-windows"]
    assert "基准代码" in result.stdout


def test_all_without_text_lists_the_whole_index(app):
    result = run(app, "--all", "--json")
    assert len(json.loads(result.stdout)) == 38


def test_many_matches_are_cut_and_counted_unless_all_is_given(app):
    cut, full = run(app, "nn"), run(app, "nn", "--all")
    assert "more: add --all" in cut.stdout
    assert "more: add --all" not in full.stdout
    assert len(full.stdout) > len(cut.stdout)


@pytest.mark.parametrize(
    ("typo", "meant"), [("tigr", "Tiger"), ("类别不平横", "类别不平衡"), ("adafactr", "AdaFactor")]
)
def test_a_typo_fails_with_one_line_and_a_near_word(app, typo, meant):
    result = run(app, typo)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: nothing found for")
    assert result.stderr.count("\n") == 1
    assert meant in result.stderr


def test_something_unlike_anything_points_to_the_whole_list(app):
    result = run(app, "qqqqqqqqqq")
    assert result.exit_code == 1
    assert "kexue find --all" in result.stderr


@pytest.mark.parametrize("text", [(), ("",), ("  ",), ("《》",)])
def test_no_text_fails_with_an_example(app, text):
    result = run(app, *text)
    assert result.exit_code == 1
    assert "e.g. kexue find" in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_shows_an_example(app):
    assert "Example: kexue find" in run(app, "--help").stdout


def test_finding_does_not_import_torch():
    code = "import sys, kexue.cli.find; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
