"""`kexue pretrain` as a user meets it."""

import json
import subprocess
import sys

import pytest


def kexue(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "kexue", "pretrain", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


SMALL = ("--epochs", 1, "--tokens", 4096, "--length", 64, "--width", 32, "--depth", 1)


def test_one_layer_from_texts_to_table_and_report(tmp_path):
    done = kexue("mini", "--layer", "attention", *SMALL, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "attention" in done.stdout
    assert (tmp_path / "run/report.html").exists()
    assert (tmp_path / "run/attention/best/model.safetensors").exists()


def test_json_is_all_that_stands_on_standard_output(tmp_path):
    done = kexue("mini", "--layer", "attention", *SMALL, "--json", "--out", tmp_path / "run")
    [result] = json.loads(done.stdout)
    assert result["layer"] == "attention"
    assert result["train_tokens"] == 4096


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.txt"], "nowhere.txt: no such file or folder; give mini"),
        (["mini", "--layer", "mamba"], "no layer is called 'mamba'; known: attention, gau"),
        (["mini", "--tokens", 3], "tokens must fill a row of 512 at least, got 3"),
        (["mini", "--lr", -1], "learning_rate must be positive"),
        (["mini", "--precision", "fp8"], "precision must be one of"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(words, says, tmp_path):
    done = kexue(*words, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
