"""What must hold for any shuffle: every byte, one order, whatever the way there."""

import bz2
import gzip
import lzma
import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import kexue.data.shuffle
from families.shuffling import below
from kexue.data.shuffle import shuffle_lines
from naive.shuffle import parts, shuffled

ODD = [
    b"",
    b"\n",
    b"\n\n\n",
    b"one",
    b"one\n",
    b"\xef\xbb\xbfwith a mark\nand one more",
    b"\xff\n\xff\xff\n\0\n\0",
    b"a\rb\r\nc\n\rd",
    b"\xe4\xb8\n\xad\n\xf0\x9f\n",
    b"same\nsame\nsame\nother\nsame",
    "第一行\u2028不分行\x0b\x85\n第二行".encode(),
]


@pytest.mark.parametrize("buckets", [None, 3])
@pytest.mark.parametrize("content", ODD, ids=repr)
def test_odd_bytes_come_through(shuffle, engine, content, buckets):
    _, rows = shuffled([content], 7)
    assert shuffle(content, buckets=buckets) == b"".join(rows)


@pytest.mark.parametrize("buckets", [None, 3])
def test_a_missing_final_newline_never_merges_two_lines(shuffle, engine, buckets):
    files = [b"a\nb", b"c", b"", b"\n", b"d\n"]
    made = shuffle(files, buckets=buckets)
    assert sorted(made.split(b"\n")) == [b"", b"", b"a", b"b", b"c", b"d"]
    assert made == b"".join(shuffled(files, 7)[1])


def test_many_files_are_the_same_as_one(shuffle):
    lines = [b"%d\n" % i for i in range(1000)]
    whole = shuffle(b"".join(lines))
    for cuts in ([500], [1, 2, 999], range(0, 1000, 100)):
        edges = [0, *cuts, 1000]
        files = [b"".join(lines[a:b]) for a, b in pairwise(edges)]
        assert shuffle(files) == whole
        assert shuffle(files, buckets=7) == whole


@pytest.mark.parametrize(
    ("delimiter", "content"),
    [
        (b"\0", b"a\nb\0c\0\0d"),
        (b"\r\n", b"a\nb\r\nc\r\r\n\r\nlast\r"),
        (b"\n\n", b"a\nb\n\nc\n\n\nd\n\n\n\n\ne\n"),
        (b"aa", b"xaaaaayaaaza"),
        (b"<|end|>", b"one<|end|><|end<|end|>two<|"),
        (b"\xff\xfe", b"\xff\xfe\xff\xff\xfe\xfe\xff"),
    ],
)
@pytest.mark.parametrize("buckets", [None, 2])
def test_any_delimiter_ends_records(shuffle, engine, delimiter, content, buckets):
    files = [content, content[::-1], delimiter]
    made = shuffle(files, delimiter=delimiter, buckets=buckets)
    assert made == b"".join(shuffled(files, 7, delimiter=delimiter)[1])


def corpus(lines, longest=300):
    random = np.random.Generator(np.random.PCG64(5))
    pool = random.integers(0, 256, 1 << 20, dtype=np.uint8).tobytes().replace(b"\n", b" ")
    starts = random.integers(0, len(pool) - longest, lines).tolist()
    sizes = random.integers(0, longest, lines).tolist()
    return b"".join(pool[a : a + n] + b"\n" for a, n in zip(starts, sizes, strict=True))


@pytest.fixture(scope="module")
def text():
    return corpus(2000)


@pytest.fixture(scope="module")
def wanted(text):
    return b"".join(shuffled([text], 7)[1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threads": 1},
        {"threads": 8},
        {"memory": "6GB"},
        {"buckets": 2},
        {"buckets": 3, "threads": 1},
        {"buckets": 64, "threads": 8},
        {"buckets": 1500, "threads": 1},
    ],
    ids=str,
)
def test_the_same_bytes_for_any_memory_threads_and_buckets(shuffle, engine, text, wanted, options):
    assert shuffle(text, **options) == wanted


def test_blocks_of_any_size_give_the_same_bytes(shuffle, text, wanted, monkeypatch):
    for block in (301, 999, 4096, 100_000):
        monkeypatch.setattr("kexue.data.shuffle.plan.Memory.block", block)
        assert shuffle(text, buckets=5) == wanted
        assert shuffle(text, buckets=5, threads=1) == wanted


def test_slices_of_any_size_give_the_same_bytes(shuffle, engine, text, wanted, monkeypatch):
    for size in (1, 150, 300, 5000):
        monkeypatch.setattr("kexue.data.shuffle.plan.Memory.slice", size)
        assert shuffle(text, buckets=5) == wanted


@pytest.mark.parametrize("room", [20_000, 60_000, 300_000])
def test_buckets_that_are_too_large_are_scattered_again(
    shuffle, engine, text, wanted, monkeypatch, room
):
    monkeypatch.setattr("kexue.data.shuffle.plan.Memory.bucket", room)
    assert shuffle(text, buckets=2) == wanted
    assert shuffle(text, buckets=2, threads=1) == wanted
    monkeypatch.setattr("kexue.data.shuffle.plan.Memory.block", 1 << 17)
    assert shuffle(text, buckets=2) == wanted, "two buckets at a time"


def test_different_seeds_give_different_orders(shuffle, text):
    orders = {
        shuffle(text, seed=seed, buckets=seed % 3 + 1) for seed in (0, 1, 2, 2**63, 2**64 - 1)
    }
    assert len(orders) == 5
    assert {b"".join(sorted(one.split(b"\n"))) for one in orders} == {
        b"".join(sorted(text.split(b"\n")))
    }


def test_a_seed_is_drawn_and_told(shuffle, text):
    first = shuffle(text, seed=None)
    told = shuffle.report.seed
    assert shuffle(text, seed=told) == first
    assert shuffle(text, seed=None) != first


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def packed(kind, content):
    if kind == "zst":
        return pytest.importorskip("zstandard").compress(content)
    return PACKERS[kind](content)


def unpacked(kind, content):
    if kind == "zst":
        package = pytest.importorskip("zstandard")
        return package.ZstdDecompressor().stream_reader(content, read_across_frames=True).read()
    return {"gz": gzip.decompress, "bz2": bz2.decompress, "xz": lzma.decompress}[kind](content)


@pytest.mark.parametrize("buckets", [None, 4])
@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_compression_in_and_out_changes_nothing(shuffle, text, wanted, kind, buckets):
    half = text.index(b"\n", len(text) // 2) + 1
    files = [packed(kind, text[:half]), text[half:]]
    assert shuffle(files, buckets=buckets) == wanted
    made = shuffle(text, buckets=buckets, name=f"out.txt.{kind}")
    assert unpacked(kind, made) == wanted
    assert shuffle(text, buckets=buckets, name=f"out.txt.{kind}") == made, "no time stamp"


@pytest.mark.parametrize("buckets", [None, 4])
@pytest.mark.parametrize(
    "split", [{"lines_per_file": 199}, {"lines_per_file": 2000}, {"files": 1}, {"files": 7}]
)
def test_parts_one_behind_the_other_are_the_single_output(
    shuffle, engine, text, wanted, split, buckets
):
    made = shuffle(text, buckets=buckets, **split)
    rows = shuffled([text], 7)[1]
    assert made == [b"".join(part) for part in parts(rows, **split)]
    assert b"".join(made) == wanted


def test_a_header_stands_once_at_the_head_of_every_part(shuffle, engine):
    files = [b"id,text\n1,a\n2,b\n", b"id,text\n3,c", b"id,text", b""]
    for buckets in (None, 2):
        said = []
        made = shuffle(files, header=1, files=3, buckets=buckets, warn=said.append)
        assert all(part.startswith(b"id,text\n") for part in made)
        assert sorted(b"".join(made).split()) == [b"1,a", b"2,b", b"3,c"] + 3 * [b"id,text"]
        assert said == []


def test_a_header_that_differs_is_told(shuffle):
    said = []
    made = shuffle([b"a\n1\n", b"b\n2\n"], header=1, warn=said.append)
    assert made.startswith(b"a\n")
    assert sorted(made.split()) == [b"1", b"2", b"a"]
    assert len(said) == 1
    assert said[0].endswith("001: its header differs from the first file's and is dropped")


def test_the_header_of_an_empty_first_file_is_that_of_the_next(shuffle):
    assert shuffle([b"", b"h\n1\n"], header=1) == b"h\n1\n"


@pytest.mark.parametrize("buckets", [None, 6])
@pytest.mark.parametrize("sample", [0, 1, 777, 2000, 10**9])
def test_a_sample_is_the_beginning_of_the_order(shuffle, engine, text, sample, buckets):
    rows = shuffled([text], 7)[1][:sample]
    assert shuffle(text, sample=sample, buckets=buckets) == b"".join(rows)
    assert shuffle.report.lines == len(rows)
    assert shuffle.report.bytes == sum(map(len, rows))
    made = shuffle(text, sample=sample, buckets=buckets, files=3)
    assert made == [b"".join(part) for part in parts(rows, files=3)]


@pytest.mark.parametrize("buckets", [None, 3])
def test_an_empty_input_gives_an_empty_output(shuffle, engine, buckets):
    for files in (b"", [b"", b""]):
        assert shuffle(files, buckets=buckets) == b""
        assert shuffle.report.lines == 0
    assert shuffle(b"", files=2, buckets=buckets) == [b"", b""]
    assert shuffle(b"", lines_per_file=2, buckets=buckets) == [b""]
    assert gzip.decompress(shuffle(b"", name="out.gz", buckets=buckets)) == b""


def test_more_parts_than_records(shuffle, engine):
    made = shuffle(b"1\n2\n", header=0, files=5)
    assert sorted(made) == [b"", b"", b"", b"1\n", b"2\n"]


def test_records_longer_than_blocks_and_slices(shuffle, engine, monkeypatch):
    monkeypatch.setattr("kexue.data.shuffle.plan.Memory.block", 5000)
    monkeypatch.setattr("kexue.data.shuffle.plan.Memory.slice", 900)
    sizes = [0, 1, 899, 900, 901, 4999, 5000, 5001, 50_000, 70_000, 3, 60_000, 60_000, 2]
    content = b"".join(bytes([65 + j]) * size + b"\n" for j, size in enumerate(sizes))
    wanted = b"".join(shuffled([content], 7)[1])
    for options in ({}, {"buckets": 3}, {"buckets": 3, "threads": 1}):
        assert shuffle(content, **options) == wanted
        assert shuffle([content, content[:-1]], **options) == b"".join(
            shuffled([content, content[:-1]], 7)[1]
        )


def test_a_record_that_is_too_long_is_named_with_file_and_byte(shuffle, monkeypatch):
    monkeypatch.setattr("kexue.data.shuffle.plan.Memory.block", 5000)
    monkeypatch.setattr("kexue.data.shuffle.plan.Memory.longest", 20_000)
    files = [b"fine\n", b"h\n" + b"short\n" + b"y" * 20_000 + b"\nmore\n"]
    with pytest.raises(ValueError, match=r"001, byte 8: a record is longer than a quarter"):
        shuffle(files, buckets=2, header=0)
    with pytest.raises(ValueError, match=r"001, byte 8: a record is longer than a quarter"):
        shuffle(files, buckets=2, header=1)
    files[1] = gzip.compress(files[1])
    with pytest.raises(ValueError, match=r"001, byte 8 of its content: a record is longer"):
        shuffle(files, buckets=2)
    assert len(shuffle([b"x" * 19_999 + b"\n"], buckets=2)) == 20_000


def test_what_was_held_in_memory_goes_to_buckets_when_there_is_more(
    shuffle, engine, text, wanted, monkeypatch
):
    for room in (1 << 14, 1 << 18):
        monkeypatch.setattr("kexue.data.shuffle.held.room_of", lambda request, room=room: room)
        monkeypatch.setattr("kexue.data.shuffle.held.may_fit", lambda *given: True)
        monkeypatch.setattr("kexue.data.shuffle.work.may_fit", lambda *given: True)
        for step in (700, 1 << 16):
            monkeypatch.setattr("kexue.data.shuffle.held.STEP", step)
            assert shuffle(text) == wanted
            assert shuffle.report.buckets > 1
            assert shuffle(text, threads=1) == wanted


def test_two_runs_at_once_in_one_process_do_not_disturb_each_other(tmp_path, text):
    (tmp_path / "in").write_bytes(text)
    said = []

    def run():
        try:
            shuffle_lines(
                tmp_path / "in", tmp_path / "out", seed=7, memory="4GB", buckets=50, progress=False
            )
        except (ValueError, OSError) as error:
            said.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert (tmp_path / "out").read_bytes() == b"".join(shuffled([text], 7)[1])
    assert below(tmp_path) == ["in", "out"]
    assert all("at work on the same shuffle" in one or "exists" in one for one in said)


def test_importing_the_package_needs_numpy_alone():
    code = (
        "import sys, kexue.data.shuffle; "
        "print(*sorted({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'pyarrow', 'zstandard', 'transformers', 'scipy', 'jaxtyping'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == ""


def test_everything_public_is_named():
    assert set(kexue.data.shuffle.__all__) == {
        "Plan",
        "ShuffleReport",
        "plan_shuffle",
        "shuffle_lines",
    }


def test_the_report_tells_what_was_done(shuffle, text):
    shuffle(text, buckets=9)
    report = shuffle.report
    assert (report.lines, report.bytes, report.seed, report.buckets) == (2000, len(text), 7, 9)
    assert report.seconds > 0
    assert report.peak_memory > 10**7
    assert [Path(one).name for one in report.outputs] == ["out.txt"]
    assert not os.path.exists(report.outputs[0])  # noqa: PTH110 - the fixture has taken it
