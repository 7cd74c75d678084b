"""`kexue shuffle` as a process: streams, signals, messages, exit codes."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import typer

from families.shuffling import COMMAND, below, kexue_shuffle, wait_for
from kexue.cli.shuffle import read_delimiter
from kexue.data.shuffle.philox import philox_keys
from naive.shuffle import shuffled

TEXT = b"".join(b"%05d\n" % i for i in range(3000))
WANTED = b"".join(shuffled([TEXT], 7)[1])
IN_BUCKETS = [
    sys.executable,
    "-c",
    "import functools, kexue.data.shuffle as s\n"
    "s.shuffle_lines = functools.partial(s.shuffle_lines, buckets=200)\n"
    "from kexue.cli import main; main()",
    "shuffle",
]


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "in.txt").write_bytes(TEXT)
    return tmp_path / "in.txt"


def test_a_file_is_shuffled_and_the_seed_told(tmp_path, corpus):
    done = kexue_shuffle(corpus, "-o", tmp_path / "out", "--seed", 7)
    assert (done.returncode, done.stdout) == (0, b"")
    assert (tmp_path / "out").read_bytes() == WANTED
    assert done.stderr.startswith(b"3,000 records, 0.0 MB in")
    assert done.stderr.endswith(b"seed 7\n")


def test_standard_input_and_output_are_the_default_of_a_pipe(corpus):
    done = kexue_shuffle("-", "--seed", 7, "-q", input=TEXT)
    assert (done.returncode, done.stdout, done.stderr) == (0, WANTED, b"")
    done = kexue_shuffle(corpus, "-", "--seed", 7, "-n", 5, input=b"more\n" * 3)
    assert done.stdout == b"".join(shuffled([TEXT, b"more\n" * 3], 7)[1][:5])


def test_process_substitution_is_an_input(corpus):
    command = f"{' '.join(COMMAND)} <(head -100 {corpus}) <(tail -n +101 {corpus}) --seed 7 -q"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, WANTED), done.stderr


def test_a_compressed_pipe_that_comes_byte_by_byte_is_recognised(tmp_path):
    packed = gzip.compress(b"b\na\nc\n")
    process = subprocess.Popen([*COMMAND, "-", "-q"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for j in range(len(packed)):
        process.stdin.write(packed[j : j + 1])
        process.stdin.flush()
        time.sleep(0.005)
    made, _ = process.communicate()
    assert sorted(made.split()) == [b"a", b"b", b"c"]


def test_delimiters_and_records_of_other_sorts(tmp_path):
    done = kexue_shuffle("-", "-z", "--seed", 7, "-q", input=b"a\n1\0b\0")
    assert sorted(done.stdout.split(b"\0")) == [b"", b"a\n1", b"b"]
    done = kexue_shuffle("-", "--delimiter", r"\n\n", "-q", input=b"a\nb\n\nc\n")
    assert sorted(done.stdout.split(b"\n\n")) == [b"", b"a\nb", b"c"]
    assert read_delimiter(r"\x1e\t\r\0\\") == b"\x1e\t\r\0\\"
    assert read_delimiter("。") == "。".encode()
    for wrong in (r"\q", r"\x1", "", "\\"):
        with pytest.raises(typer.Exit):
            read_delimiter(wrong)


def test_a_report_and_a_plan_as_json(tmp_path, corpus):
    done = kexue_shuffle(corpus, "-o", tmp_path / "out", "--seed", 7, "--json")
    report = json.loads(done.stdout)
    assert (report["lines"], report["bytes"], report["seed"]) == (3000, len(TEXT), 7)
    done = kexue_shuffle(corpus, "-o", tmp_path / "new", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert (plan["in_memory"], plan["buckets"], plan["lines"]) == (True, 1, 3000)
    done = kexue_shuffle("-", "--dry-run", input=TEXT)
    assert b"unknown until read" in done.stdout
    assert below(tmp_path) == ["in.txt", "out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.txt"], "error: none.txt: no such file"),
        (["*.none"], "error: *.none: no file matches"),
        (["."], "error: .: is a folder; give its files, such as './*'"),
        (["in.txt", "-o", "in.txt"], "error: in.txt: is an input and an output"),
        (["in.txt", "--memory", "1MB"], "error: memory must be at least 128 MB"),
        (["in.txt", "--split-files", "3"], "error: several outputs need a file name"),
        (["-", "-"], "error: standard input (-) can be read once only"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_exit_code_one(tmp_path, corpus, arguments, message):
    done = kexue_shuffle(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith(message)
    assert done.stderr.count(b"\n") == 1
    assert below(tmp_path) == ["in.txt"]


@pytest.mark.parametrize(("handle", "message"), [(0, b"input"), (1, b"output")])
def test_a_closed_stream_is_told(corpus, handle, message):
    arguments = ["-"] if handle == 0 else [corpus]
    done = kexue_shuffle(*arguments, preexec_fn=lambda: os.close(handle), capture_output=False,
                         stderr=subprocess.PIPE)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == b"error: standard %s is closed\n" % message


def test_a_reader_that_goes_away_is_no_crash(tmp_path):
    big = tmp_path / "big"
    big.write_bytes(TEXT * 100)
    process = subprocess.Popen(
        [*COMMAND, str(big), "-q"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert len(process.stdout.read(10)) == 10
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert said == b"error: standard output was closed before everything was written\n"
    assert below(tmp_path) == ["big"]


SIGNALS = [(signal.SIGINT, 130, b"interrupted"), (signal.SIGTERM, 143, b"terminated")]


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
@pytest.mark.parametrize("stage", ["scatter", "write"])
def test_a_signal_removes_what_is_temporary_and_keeps_the_inputs(
    tmp_path, number, code, word, stage
):
    corpus, output = tmp_path / "in", tmp_path / "out"
    corpus.write_bytes(TEXT * 1500)
    process = subprocess.Popen(
        [*IN_BUCKETS, str(corpus), "-o", str(output), "-q"], stderr=subprocess.PIPE
    )
    sign = ".kexue-*/manifest.json" if stage == "scatter" else ".kexue-*/journal.jsonl"
    assert wait_for(process, lambda: list(tmp_path.glob(sign)))
    process.send_signal(number)
    _, said = process.communicate()
    if process.returncode == 0:
        pytest.skip("the run was over before the signal")
    assert process.returncode == code
    assert said == b"error: %s; temporary files are removed\n" % word
    assert below(tmp_path) == ["in"]
    assert corpus.read_bytes() == TEXT * 1500


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
@pytest.mark.parametrize("blocked", ["input", "output"])
def test_a_signal_ends_a_run_that_waits_for_a_pipe(tmp_path, number, code, word, blocked):
    corpus = tmp_path / "in"
    corpus.write_bytes(TEXT * 1000)
    arguments = ["-", "-o", str(tmp_path / "out")] if blocked == "input" else [str(corpus)]
    process = subprocess.Popen(
        [*IN_BUCKETS, *arguments, "-q"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    if blocked == "input":
        process.stdin.write(TEXT)
        process.stdin.flush()
    assert wait_for(process, lambda: list(tmp_path.glob(".kexue-*/manifest.json")))
    time.sleep(0.7)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    assert word in process.stderr.read()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    assert below(tmp_path) == ["in"]


def test_the_same_request_twice_at_once_is_refused(tmp_path, corpus):
    first = subprocess.Popen(
        [*IN_BUCKETS, "-", "-o", "out", "-q"], stdin=subprocess.PIPE, cwd=tmp_path
    )
    assert wait_for(first, lambda: list(tmp_path.glob(".kexue-*/manifest.json")))
    done = kexue_shuffle("-", "-o", "out", cwd=tmp_path, input=b"b\n")
    assert done.returncode == 1
    assert b"process %d is at work on the same shuffle" % first.pid in done.stderr
    first.communicate(b"a\n")
    assert first.returncode == 0
    assert (tmp_path / "out").read_bytes() == b"a\n"
    assert below(tmp_path) == ["in.txt", "out"]


def test_two_runs_to_standard_output_do_not_meet(tmp_path, corpus):
    runs = [
        subprocess.Popen(
            [*IN_BUCKETS, "in.txt", "--seed", str(seed), "-q"],
            stdout=subprocess.PIPE,
            cwd=tmp_path,
        )
        for seed in (7, 8, 7)
    ]
    made = [one.communicate()[0] for one in runs]
    assert made[0] == made[2] == WANTED
    assert sorted(made[1].split()) == sorted(WANTED.split())
    assert below(tmp_path) == ["in.txt"]


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """122 MB, and the hash of what must come out."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else tmp_path_factory.mktemp("larger")))
    lines = [b"%09d %s\n" % (i, b"k" * 600) for i in range(200_000)]
    (folder / "in").write_bytes(b"".join(lines))
    keys = philox_keys(np.arange(len(lines), dtype=np.uint64), 7)
    order = np.lexsort((keys[:, 1], keys[:, 0])).tolist()
    wanted = hashlib.sha256(b"".join(lines[i] for i in order)).hexdigest()
    yield folder, wanted
    shutil.rmtree(folder)


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("memory", ["128MB", "256MB", "1GB", "4GB"])
def test_the_same_bytes_for_every_memory_and_number_of_threads(larger, memory, threads):
    folder, wanted = larger
    done = kexue_shuffle(
        "in",
        "-o",
        "out",
        "--seed",
        7,
        "--memory",
        memory,
        "--threads",
        threads,
        "--json",
        cwd=folder,
    )
    report = json.loads(done.stdout)
    assert memory != "128MB" or report["buckets"] > 1
    assert memory not in ("1GB", "4GB") or report["buckets"] == 1
    assert hashlib.sha256((folder / "out").read_bytes()).hexdigest() == wanted
    (folder / "out").unlink()
