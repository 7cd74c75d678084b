"""The Ray engine: the bytes of the local engine, whatever the cluster does to its tasks."""

import bz2
import gzip
import json
import lzma
import os
import random
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import types
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kexue.cli.shuffle import shuffle
from kexue.data.shuffle import shuffle_lines
from kexue.data.shuffle.arrow_loops import ArrowLoops
from kexue.data.shuffle.inputs import Inputs
from kexue.data.shuffle.loops import loops
from kexue.data.shuffle.plan import Memory
from kexue.data.shuffle.progress import Progress
from kexue.data.shuffle_ray import cost_model, engine, ranges, shuffle_lines_ray, tasks
from kexue.data.shuffle_ray.cluster import Cluster, connected
from kexue.data.shuffle_ray.settings import Settings

QUIET = {"progress": False, "warn": lambda text: None, "memory": "500MB", "seed": 7}
EXCHANGES = ("shared", "objects")


pytestmark = pytest.mark.xdist_group("ray")  # two clusters at once get in each other's way


@pytest.fixture(scope="module")
def ray():
    """Ray with two CPUs on this machine, without dashboard or network."""
    package = pytest.importorskip("ray", reason='Ray is not installed: pip install "kexue[ray]"')
    folder = tempfile.mkdtemp(prefix="kxr-", dir="/tmp")  # its sockets need a short path
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # of this test run alone
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        warnings.filterwarnings("ignore", category=ResourceWarning, module=r"ray\.")
        try:
            package.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=100_000_000,
                log_to_driver=False,
                logging_level="error",
                _temp_dir=folder,
            )
            yield package
        finally:
            package.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def odd_records(count, seed=1):
    """Bytes of every value, empty records, a mark of byte order, CRLF, lone CR and duplicates."""
    source = random.Random(seed)
    found = [b"", b"", b"\xef\xbb\xbfmark", b"line\r", b"\rlone", b"same", b"same", b"\0\xff\xfe"]
    found += [source.randbytes(source.randrange(60)).replace(b"\n", b"\xff") for _ in range(count)]
    source.shuffle(found)
    return found


@pytest.fixture
def corpus(tmp_path):
    """Three files, the second empty, two without a final newline, one with a long record."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\n".join(odd_records(300)))
    (folder / "b.txt").write_bytes(b"")
    (folder / "c.txt").write_bytes(b"\n".join([b"x" * 30_000, *odd_records(200, 2), b"the end"]))
    return [folder / name for name in ("a.txt", "b.txt", "c.txt")]


def local(inputs, folder, **options):
    """What the local engine makes of it."""
    output = Path(folder) / "local.txt"
    shuffle_lines(inputs, output, seed=7, progress=False, warn=print, overwrite=True, **options)
    return output.read_bytes()


def kept(folder):
    """Names of all files in a folder, hidden ones too."""
    return sorted(path.name for path in Path(folder).iterdir())


def content(report):
    """Of all outputs, one behind the other."""
    return b"".join(Path(name).read_bytes() for name in report.outputs)


# --- the same bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize(
    ("range_bytes", "buckets"), [(None, None), (1 << 20, 5), (900, 1), (4000, 40)]
)
def test_bytes_are_those_of_the_local_engine(ray, tmp_path, corpus, exchange, range_bytes, buckets):
    output = tmp_path / "out.txt"
    report = shuffle_lines_ray(
        corpus, output, exchange=exchange, range_bytes=range_bytes, buckets=buckets, **QUIET
    )
    assert output.read_bytes() == local(corpus, tmp_path)
    assert report.lines == output.read_bytes().count(b"\n") == 300 + 200 + 2 * 8 + 2
    assert (report.bytes, report.seed) == (output.stat().st_size, 7)
    assert report.buckets == (buckets or 1)
    assert report.outputs == (str(output),)
    assert kept(tmp_path) == ["in", "local.txt", "out.txt"]


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("kind", ["gz", "zst", "xz", "bz2"])
def test_compression_does_not_change_the_content(ray, tmp_path, corpus, exchange, kind):
    zstandard = pytest.importorskip("zstandard")
    pack = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}
    pack["zst"] = zstandard.ZstdCompressor().compress
    packed = tmp_path / f"c.{kind}"
    packed.write_bytes(pack[kind](corpus[2].read_bytes()))
    output = tmp_path / f"out.txt.{kind}"
    shuffle_lines_ray(
        [*corpus[:2], packed], output, exchange=exchange, buckets=4, range_bytes=5000, **QUIET
    )
    with Inputs([str(output)], b"\n", loops()) as unpacked:
        data = bytearray(1 << 20)
        found = bytes(data[: unpacked.readinto(memoryview(data))])
    assert unpacked.kinds == [kind]
    assert found == local(corpus, tmp_path)
    assert kept(tmp_path) == sorted(["in", "local.txt", packed.name, output.name])


@pytest.mark.parametrize("delimiter", [b"\0", b"\r\n", b"aa", b"abcab", b"\n--\n"])
def test_any_delimiter_is_cut_where_the_local_engine_cuts(ray, tmp_path, delimiter):
    source = random.Random(3)
    letters = [b"a", b"b", b"c", b"\r", b"\n", b"-", b"\0", delimiter]
    for name in ("a", "b"):
        text = b"".join(source.choice(letters) for _ in range(2000))
        (tmp_path / name).write_bytes(text + delimiter[: len(delimiter) // 2])
    inputs = [tmp_path / "a", tmp_path / "b"]
    options = {"delimiter": delimiter}
    shuffle_lines_ray(inputs, tmp_path / "out", range_bytes=300, buckets=3, **options, **QUIET)
    assert (tmp_path / "out").read_bytes() == local(inputs, tmp_path, **options)


@pytest.mark.parametrize(
    "split", [{"files": 1}, {"files": 7}, {"lines_per_file": 100}, {"files": 60, "sample": 40}]
)
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_several_outputs_have_the_records_of_the_local_ones(ray, tmp_path, corpus, split, suffix):
    for path in corpus:
        path.write_bytes(b"title\nunits\n" + path.read_bytes())
    (tmp_path / "ray").mkdir()
    (tmp_path / "local").mkdir()
    options = {"header": 2, **split}
    report = shuffle_lines_ray(
        corpus, tmp_path / "ray" / f"part{suffix}", range_bytes=3000, buckets=6, **options, **QUIET
    )
    shuffle_lines(corpus, tmp_path / "local" / f"part{suffix}", seed=7, progress=False, **options)
    assert kept(tmp_path / "ray") == kept(tmp_path / "local")
    assert [Path(name).name for name in report.outputs] == kept(tmp_path / "ray")
    read = gzip.decompress if suffix.endswith("gz") else bytes
    for name in kept(tmp_path / "ray"):
        found = read((tmp_path / "ray" / name).read_bytes())
        assert found.startswith(b"title\nunits\n")
        assert found == read((tmp_path / "local" / name).read_bytes())


@pytest.mark.parametrize("sample", [0, 1, 250, 10_000])
def test_a_sample_is_the_head_of_the_whole_order(ray, tmp_path, corpus, sample):
    whole = local(corpus, tmp_path).split(b"\n")[:-1]
    for exchange in EXCHANGES:
        report = shuffle_lines_ray(
            corpus,
            tmp_path / "out.txt",
            sample=sample,
            buckets=4,
            exchange=exchange,
            overwrite=True,
            **QUIET,
        )
        found = (tmp_path / "out.txt").read_bytes()
        assert found.split(b"\n")[:-1] == whole[:sample]
        assert (report.lines, report.bytes) == (min(sample, len(whole)), len(found))
    parts = shuffle_lines_ray(corpus, tmp_path / "part", sample=sample, buckets=4, files=3, **QUIET)
    assert content(parts) == found


def test_progress_of_a_stage_begins_with_it_and_ends_with_all(ray, tmp_path, corpus, monkeypatch):
    """A first word only once a task has ended would take its bytes for those of no time."""
    told = {}
    monkeypatch.setattr(
        Progress,
        "at",
        lambda self, stage, done, size=None: told.setdefault(stage, []).append(done),
    )
    shuffle_lines_ray(corpus, tmp_path / "out.txt", files=2, buckets=3, range_bytes=9000, **QUIET)
    assert list(told) == ["count", "scatter", "measure", "merge"]
    for calls in told.values():
        assert calls[0] == (0, calls[0][1])
        assert calls[-1] == (calls[0][1], calls[0][1])


def test_nothing_in_is_nothing_out(ray, tmp_path):
    for size in (0, 1):
        (tmp_path / "in").write_bytes(b"\n" * size)
        output = tmp_path / f"out{size}.txt"
        assert shuffle_lines_ray(tmp_path / "in", output, **QUIET).lines == size
        assert output.read_bytes() == b"\n" * size


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_bucket_too_large_for_a_task_is_read_part_by_part(
    ray, tmp_path, corpus, exchange, monkeypatch
):
    monkeypatch.setattr(engine, "passes", lambda lines, size, settings: 3)
    shuffle_lines_ray(
        corpus, tmp_path / "out.txt", exchange=exchange, buckets=2, range_bytes=9000, **QUIET
    )
    assert (tmp_path / "out.txt").read_bytes() == local(corpus, tmp_path)


def test_nodes_without_a_compiler_give_the_same_bytes(ray, tmp_path, corpus, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr("kexue.data.shuffle.request.loops", ArrowLoops)
    shuffle_lines_ray(corpus, tmp_path / "out.txt", buckets=3, range_bytes=9000, **QUIET)
    monkeypatch.undo()
    assert (tmp_path / "out.txt").read_bytes() == local(corpus, tmp_path)


def test_a_seed_is_drawn_and_told(ray, tmp_path, corpus):
    free = {**QUIET, "seed": None}
    first = shuffle_lines_ray(corpus, tmp_path / "a", **free)
    again = shuffle_lines_ray(corpus, tmp_path / "b", **{**free, "seed": first.seed})
    other = shuffle_lines_ray(corpus, tmp_path / "c", **free)
    assert content(first) == content(again) != content(other)


def test_a_task_holds_what_was_allowed(ray, tmp_path):
    size = 120_000_000  # more than the object store holds
    line = b"0123456789" * 12 + b"\n"
    (tmp_path / "in").write_bytes(line * (size // len(line)))
    report = shuffle_lines_ray(tmp_path / "in", tmp_path / "out", buckets=4, **QUIET)
    assert report.lines == size // len(line)
    assert 100_000_000 < report.peak_memory <= 500_000_000


# --- tasks that die -------------------------------------------------------------------------------


def dies_while_writing(name, mark):
    """A task that, once, writes half of what it has to and is gone like a killed worker."""

    def task(*arguments):
        from kexue.data.shuffle_ray import merging, pieces

        whole = {"scatter_to_file": pieces, "merge_group": merging, "concatenate": merging}[name]
        if not Path(mark).exists():
            true = whole.write_all

            def half(file, *data):
                view = memoryview(data[0])
                true(file, view[: len(view) // 2])
                Path(mark).touch()
                os._exit(1)

            whole.write_all = half
        return getattr(whole, name)(*arguments)

    return task


def dies_at_once(name, mark):
    """A task that, once, is gone before it begins."""

    def task(*arguments):
        if not Path(mark).exists():
            Path(mark).touch()
            os._exit(1)
        from kexue.data.shuffle_ray import tasks

        return getattr(tasks, name)(*arguments)

    return task


def objects_die_midway(mark):
    """A scatter task that, once, is gone when half of its objects are in the store."""

    def task(share, settings, edges):
        from kexue.data.shuffle_ray import tasks

        for j, one in enumerate(tasks.scatter_to_objects(share, settings, edges)):
            if j == len(edges) // 2 and not Path(mark).exists():
                Path(mark).touch()
                os._exit(1)
            yield one

    return task


@pytest.mark.parametrize(
    ("exchange", "name"),
    [
        ("shared", "count"),
        ("shared", "scatter_to_file"),
        ("shared", "merge_group"),
        ("objects", "scatter_to_objects"),
        ("objects", "merge_group"),
        ("shared", "concatenate"),
    ],
)
def test_a_worker_killed_in_the_middle_changes_nothing(
    ray, tmp_path, corpus, monkeypatch, exchange, name
):
    mark = str(tmp_path / "in" / "died")
    if name == "scatter_to_objects":
        task = objects_die_midway(mark)
    elif name == "count":
        task = dies_at_once(name, mark)
    else:
        task = dies_while_writing(name, mark)
    monkeypatch.setattr(tasks, name, task)
    output = tmp_path / ("out.txt.gz" if name == "concatenate" else "out.txt")
    shuffle_lines_ray(
        corpus, output, exchange=exchange, buckets=4, range_bytes=6000, files=2, **QUIET
    )
    assert Path(mark).exists()
    monkeypatch.undo()
    read = gzip.decompress if name == "concatenate" else bytes
    parts = [path for path in kept(tmp_path) if path.startswith("out")]
    assert len(parts) == 2
    found = b"".join(read((tmp_path / part).read_bytes()) for part in parts)
    assert found == local(corpus, tmp_path)
    assert kept(tmp_path) == ["in", "local.txt", *parts]


@pytest.mark.parametrize(
    ("name", "retries"), [("count", 0), ("scatter_to_file", 1), ("merge_group", 0)]
)
def test_a_task_that_always_dies_ends_the_run_and_leaves_nothing(
    ray, tmp_path, corpus, monkeypatch, name, retries
):
    log = str(tmp_path / "in" / "log")

    def task(*arguments):
        with Path(log).open("a") as file:
            file.write("once\n")
        os._exit(1)

    monkeypatch.setattr(tasks, name, task)
    (tmp_path / "out.txt").write_bytes(b"older\n")
    before = [path.read_bytes() for path in corpus]
    with pytest.raises(OSError, match=f"a task died {retries + 1} times"):
        shuffle_lines_ray(
            corpus, tmp_path / "out.txt", overwrite=True, max_retries=retries, **QUIET
        )
    assert kept(tmp_path) == ["in", "out.txt"]
    assert (tmp_path / "out.txt").read_bytes() == b"older\n"
    assert [path.read_bytes() for path in corpus] == before
    assert Path(log).read_text().count("once") == retries + 1


def test_an_error_of_the_data_is_told_as_it_is_and_not_tried_again(
    ray, tmp_path, corpus, monkeypatch
):
    log = str(tmp_path / "in" / "log")

    def task(*arguments):
        with Path(log).open("a") as file:
            file.write("once\n")
        raise ValueError("a.txt: this record is bad")

    monkeypatch.setattr(tasks, "scatter_to_file", task)
    with pytest.raises(ValueError, match=r"^a\.txt: this record is bad$"):
        shuffle_lines_ray(corpus, tmp_path / "out.txt", range_bytes=1 << 30, **QUIET)
    assert Path(log).read_text() == "once\n"
    assert kept(tmp_path) == ["in"]


def scatter_and(damage):
    """A scatter task after which something happens to its file."""

    def task(share, settings, path):
        from kexue.data.shuffle_ray import tasks

        found = tasks.scatter_to_file(share, settings, path)
        damage(path)
        return found

    return task


def truncated(path):
    os.truncate(path, Path(path).stat().st_size - 8)


def altered(path):
    data = bytearray(Path(path).read_bytes())
    data[data.index(b"xxx") + 1] = ord("y")
    Path(path).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (os.unlink, r"\.pieces: is lost"),
        (truncated, r"\.pieces: is damaged, it ends too early"),
        (altered, "records are not those that were written"),
    ],
)
def test_a_lost_or_damaged_piece_is_an_error_and_no_output(
    ray, tmp_path, corpus, monkeypatch, damage, message
):
    def task(share, settings, path):
        from kexue.data.shuffle_ray import tasks

        found = tasks.scatter_to_file(share, settings, path)
        damage(path)
        return found

    monkeypatch.setattr(tasks, "scatter_to_file", task)
    with pytest.raises((ValueError, OSError), match=message):
        shuffle_lines_ray(corpus, tmp_path / "out.txt", buckets=3, **QUIET)
    assert kept(tmp_path) == ["in"]


def test_a_damaged_object_is_an_error_and_no_output(ray, tmp_path, corpus, monkeypatch):
    def task(share, settings, edges):
        from kexue.data.shuffle_ray import tasks

        for one in tasks.scatter_to_objects(share, settings, edges):
            if len(one) == 4 and len(one[0]) > 100:
                one[0][one[0] == ord("x")] = ord("y")
            yield one

    monkeypatch.setattr(tasks, "scatter_to_objects", task)
    with pytest.raises(ValueError, match="records are not those that were written"):
        shuffle_lines_ray(corpus, tmp_path / "out.txt", exchange="objects", buckets=3, **QUIET)
    assert kept(tmp_path) == ["in"]


def test_a_lost_object_is_an_error_and_no_output(ray, tmp_path, corpus, monkeypatch):
    def never_made():
        os._exit(1)  # its worker dies, and it is not tried again

    true = engine.Merging.run

    def run(self, stage, buckets):
        self.pieces[0] = [ray.remote(max_retries=0)(never_made).remote()]
        return true(self, stage, buckets)

    monkeypatch.setattr(engine.Merging, "run", run)
    with pytest.raises(OSError, match="a piece is lost"):
        shuffle_lines_ray(corpus, tmp_path / "out.txt", exchange="objects", **QUIET)
    assert kept(tmp_path) == ["in"]


def test_an_input_that_changes_between_the_passes_is_refused(ray, tmp_path, corpus, monkeypatch):
    true = engine.bucket_count

    def longer(*arguments):
        with corpus[0].open("ab") as file:
            file.write(b"one more\n")
        corpus[2].write_bytes(corpus[2].read_bytes().replace(b"same", b"sa\ne"))
        return true(*arguments)

    monkeypatch.setattr(engine, "bucket_count", longer)
    with pytest.raises(ValueError, match="changed while it was read"):
        shuffle_lines_ray(corpus, tmp_path / "out.txt", **QUIET)
    assert kept(tmp_path) == ["in"]


def test_what_a_killed_run_left_is_removed_and_a_living_one_is_not(ray, tmp_path, corpus):
    from kexue.data.shuffle.run_files import RunFiles

    told = []
    options = {**QUIET, "warn": told.append}
    made = []
    true = engine.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "run", lambda job, cluster: made.append(job) or true(job, cluster))
        shuffle_lines_ray(corpus, tmp_path / "out.txt", **options)
    folder, mark = made[0].pieces, made[0].mark
    assert not folder.exists()
    assert told == []
    folder.mkdir()
    (folder / "manifest.json").write_text('{"pid": 1}')
    (folder / "00000000.pieces").write_bytes(b"old")
    (tmp_path / f".out.txt.{mark}").write_bytes(b"half")
    shuffle_lines_ray(corpus, tmp_path / "out.txt", overwrite=True, **options)
    assert len(told) == 1
    assert "left by a killed run, removed" in told[0]
    assert kept(tmp_path) == ["in", "out.txt"]
    held = RunFiles(folder)
    held.claim()
    with pytest.raises(ValueError, match="is at work on the same shuffle"):
        shuffle_lines_ray(corpus, tmp_path / "out.txt", overwrite=True, **options)
    assert folder.exists()
    held.remove()


LOSES_A_NODE = """
import logging, os, sys
from pathlib import Path
from ray.cluster_utils import Cluster
import ray
from kexue.data.shuffle_ray import engine, shuffle_lines_ray

folder, sockets = sys.argv[1:]
node = {"num_cpus": 1, "memory": 10**9, "object_store_memory": 80_000_000}
head = {**node, "include_dashboard": False, "temp_dir": sockets}
cluster = Cluster(initialize_head=True, head_node_args=head)
ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
other = cluster.add_node(**node)
true = engine.Merging.run

def run(self, stage, buckets):
    if stage == "measure":
        cluster.remove_node(other, allow_graceful=False)
    return true(self, stage, buckets)

engine.Merging.run = run
shuffle_lines_ray(
    folder + "/in", folder + "/out", seed=7, memory="500MB", exchange="objects", buckets=6,
    range_bytes=2_000_000, progress=False,
)
print("nodes", sum(node["Alive"] for node in ray.nodes()))
ray.shutdown()
cluster.shutdown()
"""


def test_a_node_lost_with_its_objects_changes_nothing(tmp_path):
    pytest.importorskip("ray", reason='Ray is not installed: pip install "kexue[ray]"')
    source = random.Random(5)
    lines = (source.randbytes(200).replace(b"\n", b"") + b"\n" for _ in range(60_000))
    (tmp_path / "in").write_bytes(b"".join(lines))
    sockets = tempfile.mkdtemp(prefix="kxr-", dir="/tmp")
    told = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_failure_threshold": "2",
        "RAY_health_check_period_ms": "300",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOSES_A_NODE, str(tmp_path), sockets],
            env=os.environ | told,
            capture_output=True,
            text=True,
            timeout=100,
        )
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "nodes 1" in done.stdout
    assert (tmp_path / "out").read_bytes() == local(tmp_path / "in", tmp_path)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": "-"}, "do not see standard input or output"),
        ({"output": "-"}, "do not see standard input or output"),
        ({"memory": "100MB"}, "memory must be at least"),
        ({"memory": "900TB"}, "no node of the Ray cluster has 1 CPUs and 900,000,000 MB"),
        ({"num_cpus": 3}, "no node of the Ray cluster has 3 CPUs"),
        ({"exchange": "carrier pigeons"}, "exchange must be 'shared' or 'objects'"),
        ({"range_bytes": 0}, "range_bytes must be at least 1, got 0"),
        ({"max_retries": -1}, "max_retries must be at least 0, got -1"),
        ({"seed": -1}, "seed must be in"),
        ({"buckets": 0}, "buckets must be at least 1, got 0"),
        ({"delimiter": b""}, "delimiter must not be empty"),
        ({"files": 2, "lines_per_file": 2}, "lines_per_file or files, not both"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    ray, tmp_path, corpus, options, message
):
    given = {"inputs": corpus, "output": tmp_path / "out.txt", **QUIET, **options}
    with pytest.raises(ValueError, match=message):
        shuffle_lines_ray(**given)
    assert kept(tmp_path) == ["in"]


def test_parquet_is_left_to_the_local_engine(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and so on PAR1")
    for name in ("out.txt", "out.parquet"):
        with pytest.raises(ValueError, match="Parquet rows; use the local engine"):
            shuffle_lines_ray(tmp_path / "rows.parquet", tmp_path / name, **QUIET)
    (tmp_path / "lines").write_bytes(b"PAR1 is the first hole\n")
    with pytest.raises(ValueError, match=r"a Parquet output needs Parquet inputs, .*lines holds"):
        shuffle_lines_ray(tmp_path / "lines", tmp_path / "out.parquet", **QUIET)
    assert kept(tmp_path) == ["lines", "rows.parquet"]


def test_inputs_and_older_outputs_are_not_overwritten(ray, tmp_path, corpus):
    with pytest.raises(ValueError, match="is an input and an output"):
        shuffle_lines_ray(corpus, corpus[0], overwrite=True, **QUIET)
    (tmp_path / "out.txt").write_bytes(b"older\n")
    with pytest.raises(FileExistsError, match="give --overwrite"):
        shuffle_lines_ray(corpus, tmp_path / "out.txt", **QUIET)
    assert (tmp_path / "out.txt").read_bytes() == b"older\n"


def test_an_output_that_is_a_link_is_written_where_it_points(ray, tmp_path, corpus):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "true.txt").write_bytes(b"older\n")
    (tmp_path / "out.txt").symlink_to(tmp_path / "far" / "true.txt")
    report = shuffle_lines_ray(corpus, tmp_path / "out.txt", overwrite=True, **QUIET)
    assert (tmp_path / "out.txt").is_symlink()
    assert report.outputs == (str(tmp_path / "far" / "true.txt"),)
    assert (tmp_path / "far" / "true.txt").read_bytes() == local(corpus, tmp_path)
    (tmp_path / "back").symlink_to(corpus[0])
    with pytest.raises(ValueError, match="is an input and an output"):
        shuffle_lines_ray(corpus, tmp_path / "back", overwrite=True, **QUIET)


def test_outputs_are_synced_with_their_ends(ray, tmp_path, corpus, monkeypatch):
    """A part that no record reached, and one that was cut, are synced by the process that began."""
    synced, true = [], os.fsync

    def sync(handle):
        synced.append(os.fstat(handle).st_size)
        true(handle)

    monkeypatch.setattr(os, "fsync", sync)
    report = shuffle_lines_ray(
        corpus, tmp_path / "part.txt", sample=3, files=4, fsync=True, buckets=4, **QUIET
    )
    sizes = [Path(name).stat().st_size for name in report.outputs]
    assert sizes[0] == 0
    assert synced[:4] == sizes


def test_a_record_too_long_for_a_task_is_named_with_its_place(ray, tmp_path, monkeypatch):
    (tmp_path / "in").write_bytes(b"short\n" + b"x" * 40_000_000 + b"\nshort\n")
    for range_bytes in (None, 1 << 20):
        with pytest.raises(ValueError, match=r"in, byte \d+: a record here is longer"):
            shuffle_lines_ray(tmp_path / "in", tmp_path / "out", range_bytes=range_bytes, **QUIET)
    assert kept(tmp_path) == ["in"]


def test_a_damaged_compressed_input_is_named(ray, tmp_path, corpus):
    (tmp_path / "bad.gz").write_bytes(gzip.compress(corpus[0].read_bytes())[:-20])
    with pytest.raises(ValueError, match=r"bad\.gz: this gz file is damaged"):
        shuffle_lines_ray([*corpus, tmp_path / "bad.gz"], tmp_path / "out.txt", **QUIET)
    assert kept(tmp_path) == ["bad.gz", "in"]


def test_without_ray_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "in").write_bytes(b"a\n")
    with pytest.raises(ImportError, match=re.escape('pip install "kexue[ray]"')):
        shuffle_lines_ray(tmp_path / "in", tmp_path / "out", **QUIET)
    assert kept(tmp_path) == ["in"]


def test_a_node_tells_what_it_does_not_see(tmp_path, corpus, monkeypatch):
    seen = [(str(path), path.stat().st_size) for path in corpus]
    assert tasks.unseen(seen, [str(tmp_path)]) == ""
    node = os.uname().nodename
    assert tasks.unseen([("/no/such", 1)], []).startswith(f"node {node} does not see the input")
    assert "sees another" in tasks.unseen([(str(corpus[0]), 1)], [])
    assert "choose a folder that all nodes share" in tasks.unseen(seen, ["/no/such"])
    for right, words in (
        (os.R_OK, f"may not read {corpus[0]}"),
        (os.W_OK, f"may not write to {tmp_path}"),
    ):
        monkeypatch.setattr(os, "access", lambda path, mode, right=right: mode != right)
        assert tasks.unseen(seen, [str(tmp_path)]).startswith(f"node {node} {words}")


# --- how Ray is used ------------------------------------------------------------------------------


class FakeRay(types.ModuleType):
    """As much of Ray as starts, stops and hands out tasks that end in any order."""

    def __init__(self, initialized=False, fails=None):
        super().__init__("ray")
        self.initialized, self.fails, self.calls, self.running, self.most = (
            initialized,
            fails,
            [],
            0,
            0,
        )
        self.exceptions = types.SimpleNamespace(RayError=OSError, RayTaskError=KeyError)

    def is_initialized(self):
        return self.initialized

    def init(self, **options):
        if self.fails:
            raise self.fails
        self.calls.append(options)

    def shutdown(self):
        self.calls.append("shutdown")

    def nodes(self):
        node = {
            "Alive": True,
            "Resources": {"CPU": 3.0, "memory": 2.5e9, "object_store_memory": 4e9},
        }
        return [
            node,
            {**node, "Resources": {"CPU": 9.0, "memory": 1.5e9}},
            {**node, "Alive": False},
        ]

    def wait(self, references, num_returns, timeout=None):
        self.most = max(self.most, len(references))
        return references[-1:], references[:-1]

    def get(self, reference):
        return reference * 10


def test_ray_is_started_and_stopped_only_if_nobody_did(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    with connected(None) as found:
        assert found is fake
    assert fake.calls[0]["include_dashboard"] is False
    assert fake.calls[1:] == ["shutdown"]
    with connected("auto"):
        assert fake.calls[2]["address"] == "auto"
    fake.initialized, fake.calls = True, []
    with connected("auto"):
        assert fake.calls == []
    assert fake.calls == []


def test_a_cluster_that_does_not_answer_is_an_error_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", FakeRay(fails=ConnectionError("nobody is there")))
    with pytest.raises(OSError, match="no Ray cluster at auto: nobody is there"), connected("auto"):
        pass


def test_no_more_tasks_are_handed_out_than_twice_what_runs_at_once():
    fake = FakeRay()
    cluster = Cluster(fake, memory=1_000_000_000, num_cpus=1, max_retries=3)
    assert cluster.slots == 2 + 1  # by memory, on the nodes that live
    assert cluster.store == 4e9
    found = {j: last for j, last, _ in cluster.each([lambda j=j: [j] for j in range(50)])}
    assert found == {j: 10 * j for j in range(50)}
    assert fake.most == 2 * cluster.slots


# --- the command ----------------------------------------------------------------------------------


def command(*words):
    """`kexue shuffle` with these words."""
    app = typer.Typer()
    app.command()(shuffle)
    return CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "200"})


def test_the_command_runs_on_a_cluster(ray, tmp_path, corpus):
    words = ["--seed", 7, "--engine", "ray", "--exchange", "objects", "--memory", "500MB", "--json"]
    found = command(*corpus, "-o", tmp_path / "out.txt", *words)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["lines"] == 518
    assert (tmp_path / "out.txt").read_bytes() == local(corpus, tmp_path)


def test_the_plan_of_a_cluster_needs_none(tmp_path, corpus):
    words = ["--dry-run", "--engine", "ray", "--nodes", 16, "--json"]
    found = command(*corpus, "-o", tmp_path / "out.txt", *words)
    assert found.exit_code == 0, found.output
    size = sum(path.stat().st_size for path in corpus)
    assert json.loads(found.stdout)["bytes"] == size
    assert json.loads(found.stdout)["nodes"] == 16
    assert kept(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "spark"], "--engine is local or ray, got 'spark'"),
        (["--engine", "ray", "--exchange", "fax"], "--exchange is shared or objects, got 'fax'"),
        (["--ray-address", "auto"], "are for --engine ray"),
        (["--engine", "ray", "--threads", "2"], "--threads is for the local engine"),
        (["--engine", "ray", "--resume"], "--resume is for the local engine"),
        (["--engine", "ray", "-o", "-"], "do not see standard input or output"),
    ],
)
def test_options_of_the_other_engine_are_refused(tmp_path, corpus, words, message):
    found = command(corpus[0], "-o", tmp_path / "out.txt", *words)
    assert found.exit_code != 0
    assert message in " ".join(found.output.split())
    assert kept(tmp_path) == ["in"]


# --- ranges and runs, without Ray -----------------------------------------------------------------


def read_all(stream):
    """All bytes of a stream."""
    data = bytearray(1 << 16)
    return bytes(data[: stream.readinto(memoryview(data))])


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from([b"a", b"b", b"ab", b"\n"])).map(b"".join), min_size=1),
    delimiter=st.sampled_from([b"\n", b"ab", b"aa", b"aba", b"a\n", b"abb"]),
    header=st.integers(0, 2),
    range_bytes=st.integers(1, 40),
)
def test_ranges_hold_every_record_once_and_whole(texts, delimiter, header, range_bytes):
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for j, text in enumerate(texts):
            paths.append(f"{folder}/{j}")
            Path(paths[-1]).write_bytes(text)
        shares, head = ranges.cut(paths, delimiter, header, range_bytes, loops())
        parts = [[ranges.settled(part, delimiter, 1 << 20) for part in share] for share in shares]
        found = [read_all(ranges.Stream(share, delimiter, header, loops())) for share in parts]
        with Inputs(paths, delimiter, loops(), header) as inputs:
            assert b"".join(found) == read_all(inputs)
            assert head == (inputs.header or b"")
        assert all(
            loops().skip(np.frombuffer(one, np.uint8), delimiter) == len(one) for one in found
        )


def test_runs_of_a_share_fit_into_the_memory_of_a_task(tmp_path):
    memory = replace(Memory(400_000_000, 200_000_000), limit=333_000_000)
    job = Settings(delimiter=b"\n", header=0, seed=7, engine=loops().name, memory=memory)
    (tmp_path / "in").write_bytes(b"\n" * 9_000_000 + b"x" * 10_000_000 + b"\n")
    size = (tmp_path / "in").stat().st_size
    share = tasks.count([ranges.Slice(str(tmp_path / "in"), 0, size, True, True)], job)
    assert (share.bytes, share.lines, share.longest) == (size, 9_000_001, 10_000_001)
    assert len(share.runs) > 2
    assert all(2 * taken + 24 * lines <= 0.8 * memory.free for taken, lines in share.runs)
    assert share.cost == size + memory.per_line * share.lines


# --- the cost model -------------------------------------------------------------------------------


def test_cost_of_a_shared_exchange_by_hand():
    cost = cost_model(
        8 * 10**12, 4, 500.0, 1000.0, record_bytes=80.0, cores=8, core_mb_s=100.0, memory=4 * 10**9
    )
    S, P = 2 * 10**12, 2.2 * 10**12  # of a node, a number of 8 bytes beside 80
    assert cost.read == 2 * S + P
    assert cost.written == P + S
    assert cost.moved == cost.read + cost.written
    assert cost.temporary == 4 * P
    assert cost.storage == 4 * (2 * S + P)
    # count: disk 4000 s, cores 2500 s; scatter: disk 8400 s; merge: disk 8400 s
    assert cost.hours == pytest.approx((4000 + 8400 + 8400) / 3600, rel=1e-12)
    assert cost.limit == "disk"
    assert cost.ranges == -(-8 * 10**12 // round(0.4 * 3.78e9))
    assert cost.buckets == -(-8 * 10**12 // round(0.8 * 3.78e9))
    assert cost.piece == round(0.4 * 3.78e9 * 0.8 * 3.78e9 / 8e12)


def test_cost_of_objects_by_hand():
    options = {"record_bytes": 80.0, "cores": 1000, "exchange": "objects"}
    cost = cost_model(8 * 10**12, 4, 500.0, 100.0, store_bytes=3 * 10**12, **options)
    S, P = 2 * 10**12, 2.2 * 10**12
    assert (cost.read, cost.written) == (2 * S, S)
    assert cost.moved == pytest.approx(2 * S + S + 2 * 0.75 * P)
    assert cost.hours == pytest.approx((20_000 + 20_000 + (S + 0.75 * P) / 1e8) / 3600)
    assert cost.limit == "network"
    spilled = cost_model(8 * 10**12, 4, 500.0, 100.0, store_bytes=10**12, **options)
    assert (spilled.read, spilled.written) == (2 * S + P, S + P)


def test_cost_falls_with_nodes_and_pieces_too_small_are_told():
    hours = [cost_model(10**14, nodes).hours for nodes in (4, 16, 64)]
    assert hours[0] / hours[1] == pytest.approx(4)
    assert hours[1] / hours[2] == pytest.approx(4)
    small = cost_model(10**14, 64)
    assert small.piece < 1 << 16
    wanted = int(re.search(r"--memory (\d+)GB", small.remark)[1]) * 10**9
    enough = cost_model(10**14, 64, memory=wanted)
    assert enough.piece >= 1 << 16
    assert enough.remark == ""
    assert cost_model(0, 1).hours == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 0}, "nodes must be at least 1, got 0"),
        ({"disk_mb_s": 0.0}, "disk_mb_s must be"),
        ({"exchange": "fax"}, "exchange must be"),
        ({"memory": 1000}, "memory must be at least"),
    ],
)
def test_cost_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        cost_model(**{"bytes": 10**12, "nodes": 4, **options})
