"""The memory limit, as the system counts it from outside, for any length of lines."""

import gzip
import subprocess
from pathlib import Path

import numpy as np
import pytest

from families.shuffling import peak_of, the_loops
from kexue.data.shuffle import plan_shuffle, shuffle_lines
from kexue.data.shuffle.loops import CompiledLoops
from kexue.data.shuffle.plan import Arena, Memory, buckets_for, parse_size

MB = 1_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """In memory where that is a file system: the disk is not what is tested."""
    shm = Path("/dev/shm")
    if shm.is_dir():
        import shutil
        import tempfile

        made = Path(tempfile.mkdtemp(dir=shm, prefix="kexue-test-"))
        yield made
        shutil.rmtree(made, ignore_errors=True)
    else:
        yield tmp_path_factory.mktemp("memory")


def write(path, size, length):
    """So many bytes in lines of about such a length, no two pieces alike."""
    random = np.random.Generator(np.random.PCG64(3))
    with path.open("wb") as file:
        while size > 0:
            part = random.integers(97, 123, min(size, 8 * MB), dtype=np.uint8)
            if length == 1:
                part[:] = 10
            elif length < MB:
                part[np.unique(random.integers(0, len(part), len(part) // length))] = 10
            file.write(part.tobytes())
            size -= len(part)
            if length >= MB and size % length < 8 * MB:
                file.write(b"\n")


CASES = [
    ("short lines", 12, 60, "128MB"),
    ("lines", 400, 250, "128MB"),
    ("lines", 400, 330, "256MB"),
    ("long lines", 200_000, 250, "128MB"),
    ("lines of 24 MB", 24 * MB, 200, "128MB"),
    ("lines of 56 MB", 56 * MB, 340, "256MB"),
    ("empty lines", 1, 10, "128MB"),
]


@pytest.mark.parametrize(("name", "length", "size", "limit"), CASES, ids=str)
def test_the_peak_stays_below_the_limit(folder, name, length, size, limit):
    path, output = folder / "in", folder / "out"
    output.unlink(missing_ok=True)
    write(path, size * MB, length)
    code, said, peak = peak_of(path, "-o", output, "--memory", limit, "--seed", 7, "-q")
    assert code == 0, said
    assert peak <= parse_size(limit), peak / MB
    assert abs(output.stat().st_size - path.stat().st_size) <= 1
    output.unlink()
    path.unlink()


@pytest.mark.parametrize("way", ["gz", "stdin", "arrow"])
def test_the_peak_stays_below_the_limit_on_other_ways_too(folder, way):
    path, output = folder / "in", folder / "out"
    output.unlink(missing_ok=True)
    write(path, 180 * MB, 150)
    arguments = ["-o", output, "--memory", "128MB", "--seed", 7]
    size = path.stat().st_size
    if way == "gz":
        packed = folder / "in.gz"
        content = path.read_bytes()
        with gzip.open(packed, "wb", compresslevel=1) as file:
            file.write(content)
        code, said, peak = peak_of(packed, *arguments)
        packed.unlink()
    elif way == "stdin":
        cat = subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE)
        code, said, peak = peak_of("-", *arguments, stdin=cat.stdout)
        cat.stdout.close()
        cat.wait()
    else:
        pytest.importorskip("pyarrow")
        arguments[3] = "360MB"
        code, said, peak = peak_of(path, *arguments, environment={"KEXUE_NATIVE": "0"})
    path.unlink()
    assert code == 0, said
    assert peak <= parse_size(arguments[3]), peak / MB
    assert abs(output.stat().st_size - size) <= 1
    output.unlink()


def test_a_limit_below_what_is_needed_is_refused_with_the_least(tmp_path):
    (tmp_path / "in").write_bytes(b"a\n")
    code, said, _ = peak_of(tmp_path / "in", "-o", tmp_path / "out", "--memory", "100MB")
    assert code == 1
    assert "memory must be at least 128 MB" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="this process holds 900 MB before it begins"):
        Memory(1000 * MB, 900 * MB)


@pytest.mark.parametrize("loops", ["compiled", "arrow"])
@pytest.mark.parametrize("held", [0.06, 1.6, 9.0])
def test_without_a_limit_a_process_that_holds_much_has_room_for_a_shuffle(
    tmp_path, monkeypatch, held, loops
):
    base = round(held * 1e9)
    made = the_loops(loops)
    monkeypatch.setattr("kexue.data.shuffle.request.resident", lambda: base)
    monkeypatch.setattr("kexue.data.shuffle.request.loops", lambda: made)
    (tmp_path / "in").write_bytes(b"b\na\n")
    plan = plan_shuffle(tmp_path / "in", tmp_path / "out")
    assert plan.memory == 2 * 10**9 or plan.memory - base > 10**9
    report = shuffle_lines(tmp_path / "in", tmp_path / "out", progress=False)
    assert (report.lines, report.buckets) == (2, 1)
    if held > 1:
        with pytest.raises(ValueError, match=r"memory must be at least .* got 2,000 MB"):
            shuffle_lines(tmp_path / "in", tmp_path / "o", memory="2GB", progress=False)


@pytest.mark.parametrize("blocks", [5, 12])
@pytest.mark.parametrize("base", [30 * MB, 45 * MB, 900 * MB])
@pytest.mark.parametrize("limit", [128 * MB, 256 * MB, 2000 * MB, 64_000 * MB])
def test_the_parts_fit_into_the_limit(limit, base, blocks):
    if limit * 3 / 4 < base + 30 * MB:
        pytest.skip("a limit this small is refused, which a test above shows")
    one = Memory(limit, base, blocks=blocks)
    least = min(limit // 4, 2**32 - 1)
    assert blocks * one.block + least <= one.free
    assert one.block >= MB // 2
    assert 2 * one.bucket + 3 * one.slice <= one.free
    assert 2 * one.bucket >= one.longest + 100, "the longest record fits into the arena"
    assert one.bucket % 4096 == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("1.5 MiB", 1572864), ("512k", 512_000), ("7", 7), (4096, 4096)],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "2 XB", "-1GB", "0", "nan", "inf", "1e400", "two"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="a size"):
        parse_size(text)


def test_buckets_are_the_fewest_that_fit_with_eight_sd():
    memory = Memory(256 * MB, 40 * MB)
    for cost, squares in ((1e9, 6e11), (3e11, 2e14), (1e7, 1e9), (1e9, 1e14)):
        number = buckets_for(memory, cost, squares)

        def room(k, cost=cost, squares=squares):
            return cost / k + 8 * (squares / k) ** 0.5

        assert room(number) <= memory.bucket
        assert number == 1 or room(int(number / 1.02) - 1 or 1) > memory.bucket


def test_an_arena_forgets_whole_pages_only():
    arena = Arena(10 * 4096)
    arena.bytes[:] = 1
    arena.drop(1, 4 * 4096 + 5)
    assert arena.bytes[:4096].all()
    assert not arena.bytes[4096 : 4 * 4096].any()
    assert arena.bytes[4 * 4096 :].all()
    arena.drop()
    assert not arena.bytes.any()


def test_the_memory_of_both_kinds_of_loops_is_known():
    from kexue.data.shuffle.arrow_loops import ArrowLoops

    assert (CompiledLoops.per_line, CompiledLoops.blocks) == (40, 5)
    assert ArrowLoops.per_line >= 24 + 8 + 24 + 8
