"""`kexue shuffle --mixing-report` and `--shuffled`."""

import json
import subprocess
import sys

import numpy as np
import pytest


def kexue(*arguments, **options):
    command = [sys.executable, "-m", "kexue", "shuffle", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{j}\n" for j in range(20_000)))
    return path


def test_after_a_shuffle_the_page_and_a_line_say_how_it_is_mixed(lines, tmp_path):
    page = tmp_path / "page.html"
    done = kexue(lines, "-o", tmp_path / "out.txt", "--seed", 7, "--mixing-report", page)
    assert done.returncode == 0, done.stderr
    assert ": uniform; the same records" in done.stderr
    assert done.stdout == ""
    text = page.read_text(encoding="utf-8")
    assert "No number differs" in text
    assert "<dd>7</dd>" in text


@pytest.mark.parametrize("content", ["", "one\n", "alike\n" * 50])
def test_a_shuffle_of_what_cannot_be_judged_succeeds_all_the_same(tmp_path, content):
    (tmp_path / "in.txt").write_text(content)
    page, out = tmp_path / "page.html", tmp_path / "out.txt"
    done = kexue(tmp_path / "in.txt", "-o", out, "--mixing-report", page)
    assert done.returncode == 0, done.stderr
    assert "no mixing score" in done.stderr
    assert "Too few records" in page.read_text(encoding="utf-8")
    assert out.read_text() == content


def test_the_parts_of_a_split_output_are_measured_together(lines, tmp_path):
    done = kexue(
        lines, "-o", tmp_path / "o.txt", "--split-files", 3, "--header", 1,
        "--mixing-report", tmp_path / "page.html", "--json",
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["lines"] == found["mixing"]["records"] == 19_999
    assert found["mixing"]["same"]
    assert found["mixing"]["kind"] == "uniform"


def test_the_output_of_another_program_is_measured_without_a_shuffle(lines, tmp_path):
    order = np.random.default_rng(0).permutation(20_000)
    (tmp_path / "theirs-0").write_text("".join(f"{j}\n" for j in order[:5000]))
    (tmp_path / "theirs-1").write_text("".join(f"{j}\n" for j in order[5000:]))
    before = sorted(tmp_path.iterdir())
    done = kexue(lines, "--shuffled", tmp_path / "theirs-*")
    assert (done.returncode, done.stderr) == (0, "")
    assert ": uniform; the same records" in done.stdout
    assert sorted(tmp_path.iterdir()) == before
    done = kexue(lines, "--shuffled", lines, "--json", "--mixing-report", tmp_path / "p.html")
    found = json.loads(done.stdout)
    assert (found["kind"], found["mixing"]["correlation"]) == ("local", 1)
    assert "Local" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_what_cannot_be_measured_is_refused_before_anything_is_done(lines, tmp_path):
    page = tmp_path / "page.html"
    for arguments, words in (
        ([lines, "--mixing-report", page], "give it a file name with --output"),
        (["-", "-o", tmp_path / "o.txt", "--mixing-report", page], "standard input"),
        ([lines, "--shuffled", "-"], "standard input"),
        ([lines, "--shuffled", lines, "-o", tmp_path / "o.txt"], "leave --output out"),
        ([lines, "-o", tmp_path / "o.txt", "--mixing-report", tmp_path], "name of a file"),
        ([lines, "-o", tmp_path / "o.txt", "--mixing-report", tmp_path / "no/p"], "folder"),
        ([lines, "-o", tmp_path / "o.parquet", "--mixing-report", page], "measures lines"),
        ([lines, "--shuffled", tmp_path / "none"], "no such file"),
    ):
        done = kexue(*arguments, stdin=subprocess.DEVNULL)
        assert done.returncode == 1, arguments
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]
