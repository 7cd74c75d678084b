"""`kexue audit --what words` on the command line."""

import csv
import json
import re
import subprocess
import sys

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from kexue.cli.audit import audit

RUN = CliRunner()
SQUARE = torch.tensor([[1.0, 2], [2, 1], [1, 0], [0, 1], [1, 1]])
"""The last is the mean of the others."""


@pytest.fixture(scope="module")
def app():
    app = typer.Typer()
    app.command()(audit)
    return app


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def square(tmp_path):
    file = tmp_path / "square.safetensors"
    save_file({"out.weight": SQUARE}, file)
    return file


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, tokenizer):
    """Words 9 and 10 share a row, 11 is the mean of all others, three rows have no token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from kexue.models.tiny import tiny_tokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpt2")
    small = tiny_tokenizer("abcdefghijklmnopqrstuvwxyz明月")
    size = len(small)
    config = GPT2Config(
        vocab_size=size + 3,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=32,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        rows = model.transformer.wte.weight
        rows[size:] = rows[size]
        rows[9] = rows[10]
        rows[11] = rows[: size + 1].mean(dim=0)
    model.save_pretrained(folder)
    small.save_pretrained(folder)
    return folder


def run(app, *arguments):
    return RUN.invoke(app, [*(str(one) for one in arguments), "--what", "words"])


def refused(result, words):
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_a_word_in_the_middle_is_found_with_its_bound_and_exit_code_0(app, square):
    result = run(app, square)
    assert result.exit_code == 0, result.output
    assert "1 word can never be predicted" in result.stdout
    row = next(line for line in result.stdout.splitlines() if "never wins" in line)
    assert row.split()[:7] == ["—", "4", "never", "wins", "p", "≤", "0.2"]
    assert "4 " in row
    assert result.stderr == ""


def test_the_columns_are_in_their_order(app, square):
    heading = next(line for line in run(app, square).stdout.splitlines() if "verdict" in line)
    names = ["token", "index", "verdict", "margin / bound", "spread", "nearest"]
    places = [heading.index(name) for name in [*names, "method", "ms"]]
    assert places == sorted(places)


def test_tokens_ties_and_padding_have_their_names(app, gpt2):
    shown = run(app, gpt2).stdout
    row = next(line for line in shown.splitlines() if "never wins  " in line)
    assert row.split()[:4] == ["f", "11", "never", "wins"]
    assert "2 words share their row with another: d (9) = e (10)" in shown
    assert "3 rows without a token never win: 34–36" in shown
    assert "after a LayerNorm; a typical feature has |z| = 4" in shown


def test_strictness_sampling_and_sizes_are_stated(app, gpt2):
    shown = run(app, gpt2).stdout
    assert "single most likely word for some features (strictly)" in shown
    assert "Sampling and beam search can still emit the others" in shown
    assert "(typical 4); without a bias any length does as well" in shown


def test_a_model_without_such_words_is_one_line_of_stages(app, tmp_path):
    save_file({"w": torch.eye(5)}, tmp_path / "eye.safetensors")
    shown = run(app, tmp_path / "eye.safetensors").stdout
    stages = next(line for line in shown.splitlines() if line.startswith("proven: "))
    assert sum(map(int, re.findall(r"(\d+) can win", stages))) == 5
    assert "every word with a row of its own can be predicted" in shown
    assert "verdict" not in shown


def test_json_holds_every_word_and_nothing_but_json(app, gpt2):
    found = json.loads(run(app, gpt2, "--json", "--top", 1).stdout)
    assert [row["index"] for row in found["hidden"]] == [11]
    row = found["hidden"][0]
    assert row["token"] == "f"
    assert 0 < row["bound"] < 0.5
    assert len(row["nearest"]) == 5
    assert found["counts"]["classes"] == 37
    assert found["counts"]["tied"] == 2
    assert found["padding"] == [[34, 36]]
    assert found["ties"][0]["wins"] is None
    assert found["norm"]["name"] == "LayerNorm"
    assert found["about"]["method"] == "auto"
    decided = sum(stage["can"] + stage["cannot"] for stage in found["stages"])
    assert decided == 37


def test_the_table_of_all_words_has_every_class_once(app, gpt2, tmp_path):
    out = tmp_path / "new" / "words.csv"
    assert f"table: {out}" in run(app, gpt2, "--out", out).stdout
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(37))
    assert rows[11]["verdict"] == "never wins"
    assert rows[11]["nearest"].count(";") == 4
    assert (rows[9]["verdict"], rows[9]["twin"]) == ("tied", "10")
    assert rows[32]["token"] == "明"
    assert rows[36]["kind"] == "padding"
    won = [row for row in rows if row["verdict"] == "can win"]
    assert len(won) == 31
    assert all(float(row["margin"]) > 0 and float(row["size"]) > 0 for row in won)


def test_the_page_is_written_and_named(app, gpt2, tmp_path):
    out = tmp_path / "new" / "words.html"
    assert f"page: {out}" in run(app, gpt2, "-o", out).stdout
    assert out.read_text(encoding="utf-8").count("<svg") == 1


def test_the_box_of_the_norm_and_a_number_are_understood(app, gpt2, tmp_path):
    found = json.loads(run(app, gpt2, "--box", "norm", "--json").stdout)
    assert found["box"] is True
    assert {stage["where"] for stage in found["stages"]} == {"", "box"}
    rows, bias = torch.tensor([[1.0], [-1.0], [2.0]]) + 0.5, torch.tensor([0.0, 0.0, -10.0])
    file = tmp_path / "line.safetensors"
    save_file({"weight": rows, "bias": bias}, file)
    shown = run(app, file, "--box", "5").stdout
    assert "1 word unreachable in the box: they win only for features outside it" in shown
    assert "can never be predicted" not in shown
    assert "unreachable" not in run(app, file, "--box", "20").stdout


def test_long_lists_are_cut_and_say_so(app, tmp_path):
    corners = torch.tensor([[9.0, 9], [9, -9], [-9, 9], [-9, -9]])
    inside = torch.rand(60, 2, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "many.safetensors"
    save_file({"w": torch.cat((corners, inside))}, file)
    shown = run(app, file, "--top", 7).stdout
    assert sum("never wins" in line for line in shown.splitlines()) == 7
    assert "… and 53 more: --top, or --out words.csv" in shown


def test_every_method_of_the_library_is_a_method_here(app, square):
    from kexue.analysis.unargmaxable.cascade import STAGES
    from kexue.cli.audit_words import METHODS

    assert tuple(STAGES) == METHODS
    for method in METHODS:
        found = json.loads(run(app, square, "--method", method, "--json").stdout)
        hidden = [row["index"] for row in found["hidden"]]
        undecided = [row["index"] for row in found["undecided"]]
        assert 4 in hidden + undecided
        assert set(hidden) <= {4}


def test_what_is_undecided_is_said(app, square):
    shown = run(app, square, "--method", "probe").stdout
    assert "1 word undecided: no proof was found either way" in shown
    assert "every word" not in shown


def test_a_run_goes_on_from_its_file_and_another_model_is_refused(app, square, gpt2, tmp_path):
    state = tmp_path / "state.safetensors"
    first = json.loads(run(app, square, "--resume", state, "--json").stdout)
    again = json.loads(run(app, square, "--resume", state, "--json").stdout)
    assert state.is_file()
    assert [r["bound"] for r in first["hidden"]] == [r["bound"] for r in again["hidden"]]
    refused(run(app, gpt2, "--resume", state), "holds the results of another layer")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--box", "large"], "--box 'large': give norm"),
        (["--box", "-1"], "--box '-1': give norm"),
        (["--box", "norm"], "normalisation before the output layer is not known"),
        (["--method", "guess"], "--method 'guess' is not known; choose from: auto"),
        (["--out", "words.txt"], "name a page, report.html, or a table of all words"),
        (["--device", "abacus"], "--device abacus"),
        (["--init"], "--init belongs to --what scales"),
        (["--text", "x"], "--text belongs to --what scales"),
    ],
)
def test_what_cannot_be_done_is_one_line(app, square, options, words):
    refused(run(app, square, *options), words)


def test_options_of_words_are_no_options_of_scales(app):
    result = RUN.invoke(app, ["tiny", "--box", "5"])
    refused(result, "--box belongs to --what words")


def test_models_without_an_output_layer_are_one_line(app, tmp_path):
    refused(run(app, "tiny"), "tiny is an encoder without an output layer over words")
    refused(run(app, "./nowhere"), "no such folder")
    refused(run(app, tmp_path), "no config.json here")
    save_file({"a": torch.eye(3), "b": torch.eye(4)}, tmp_path / "two.safetensors")
    refused(run(app, tmp_path / "two.safetensors"), "its matrices: a 3×3, b 4×4")
    save_file({"a": torch.full((3, 3), torch.nan)}, tmp_path / "nan.safetensors")
    refused(run(app, tmp_path / "nan.safetensors"), "not finite")


def test_a_page_that_cannot_be_written_is_refused_before_the_audit(app, square, monkeypatch):
    monkeypatch.setattr(
        "kexue.analysis.unargmaxable.words.find_head", lambda *a, **k: pytest.fail("ran")
    )
    (square.parent / "folder.html").mkdir()
    refused(run(app, square, "--out", square.parent / "folder.html"), "is a folder")


def test_a_bar_is_drawn_on_a_terminal_alone(app, square, monkeypatch):
    from kexue.cli import audit_words

    with audit_words._bar() as silent:
        assert silent is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with audit_words._bar() as told:
        told("probe", 1, 5)
        told("newton", 5, 5)


def test_on_a_narrow_screen_every_column_keeps_its_numbers(app, gpt2, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run(app, gpt2).stdout.splitlines()
    heading = next(n for n, line in enumerate(lines) if line.startswith("token"))
    assert lines[heading].split()[-2:] == ["method", "ms"]
    assert re.search(
        r"f +11 +never wins +p ≤ 0\.0\d+ .* (climb|newton) +[\d.]+$", lines[heading + 1]
    )
    assert all(len(line) <= 80 for line in lines[heading : heading + 2])


def test_asking_for_the_command_does_not_import_torch():
    code = "import sys, kexue.cli.audit_words; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_whole_command_prints_nothing_but_its_table(gpt2):
    done = subprocess.run(
        [sys.executable, "-m", "kexue", "audit", str(gpt2), "--what", "words"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "1 word can never be predicted" in done.stdout
