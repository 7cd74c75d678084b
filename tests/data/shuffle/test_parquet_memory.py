"""Rows of Parquet files in bounded memory: of the whole process, and with the least that works."""

import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kexue.data.shuffle import shuffle_lines
from kexue.data.shuffle.parquet_files import RowFiles


def parquet(path, table):
    pq.write_table(table, path)
    return path


def texts():
    """150 MB in rows of 1,000 bytes, no two alike."""
    rng = np.random.default_rng(0)
    for _ in range(15):
        raw = rng.integers(97, 123, 10_000_000, np.uint8).tobytes().decode()
        yield pa.table({"s": [raw[j : j + 1000] for j in range(0, len(raw), 1000)]})


def words():
    """200 MB in a file of some KB: one row group, short words first, then long ones."""
    long = pa.array([chr(97 + j) * 4000 for j in range(20)])
    places = pa.array(np.arange(50_000) % 20, pa.int32())
    column = pa.chunked_array(
        [["x"] * 2000, pa.DictionaryArray.from_arrays(places, long).cast("string")]
    )
    yield pa.table({"s": column})


def bytes_alone():
    """Rows of one byte: what a row costs beside its own bytes is all."""
    yield pa.table({"i": (np.arange(3_000_000) % 100).astype(np.int8)})


def tokens():
    """Lists of numbers, in one row group."""
    ends = pa.array(np.arange(0, 10_000_001, 100), pa.int32())
    values = pa.array(np.random.default_rng(0).integers(0, 50_000, 10_000_000), pa.int32())
    yield pa.table({"t": pa.ListArray.from_arrays(ends, values)})


def long_rows():
    """A row of 5 MB among short ones, near the most that is allowed."""
    yield pa.table({"s": ["x" * 100] * 500 + ["y" * 5_000_000] + ["x" * 100] * 20_000})


@pytest.mark.parametrize("make", [texts, words, bytes_alone, tokens, long_rows])
def test_memory_stays_below_the_limit(tmp_path, make):
    """Of the whole process, at 256 MB, 90 of which Arrow takes by itself."""
    writer, count = None, 0
    for table in make():
        writer = writer or pq.ParquetWriter(tmp_path / "a.parquet", table.schema)
        writer.write_table(table)
        count += table.num_rows
    writer.close()
    del table
    code = (
        "import re, sys; from kexue.data.shuffle import shuffle_lines\n"
        "r = shuffle_lines(*sys.argv[1:], memory='256MB', seed=7, progress=False)\n"
        "status = open('/proc/self/status').read()\n"  # getrusage knows our memory, too
        "print(r.lines, r.buckets, re.search(r'VmHWM:\\s+(\\d+)', status)[1])\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "a.parquet", tmp_path / "o.parquet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines, buckets, kilobytes = map(int, done.stdout.split())
    assert lines == count
    assert buckets > 1 or make is long_rows
    assert 1024 * kilobytes < 256_000_000


@pytest.mark.parametrize("buckets", [None, 3])
def test_pandas_is_not_loaded_which_would_take_50_mb(tmp_path, buckets):
    path = parquet(tmp_path / "a.parquet", pa.table({"i": range(1000)}))
    code = (
        "import sys; from kexue.data.shuffle import shuffle_lines\n"
        f"shuffle_lines(sys.argv[1], sys.argv[2], buckets={buckets}, progress=False)\n"
        "print({'pandas', 'torch'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-c", code, path, tmp_path / "o.parquet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_row_too_long_for_the_memory_is_named(tmp_path):
    table = pa.table({"s": ["x", "y" * 70_000_000, "z"]})
    path = parquet(tmp_path / "a.parquet", table)
    with pytest.raises(ValueError, match=r"a\.parquet: row 1 of the input has 70 MB"):
        list(RowFiles([str(path)]).tables(1000, 64_000_000, False, lambda rows: None))


def test_a_row_may_have_a_tenth_of_what_is_left_and_the_error_says_so(tmp_path):
    """Of 300 MB, 60 are held, 76 go to a row group on its way out, and some to reading the file."""
    short = ["x" * 100] * 3000
    for size, fits in ((8_000_000, True), (17_000_000, False)):
        path = parquet(tmp_path / "a.parquet", pa.table({"s": [*short, "y" * size, *short]}))
        options = {"memory": "300MB", "progress": False, "overwrite": True}
        if fits:
            assert shuffle_lines(path, tmp_path / "o.parquet", **options).lines == 6001
            continue
        with pytest.raises(ValueError, match=r"row 3000 .* has 17 MB, more than the 1\d MB that"):
            shuffle_lines(path, tmp_path / "o.parquet", **options)


def test_too_little_memory_is_refused_with_what_reading_takes(tmp_path):
    least = []
    for columns in (1, 3000):
        table = pa.table({f"c{j}": range(1000) for j in range(columns)})
        path = parquet(tmp_path / "a.parquet", table)
        with pytest.raises(ValueError, match="memory must be at least") as raised:
            shuffle_lines(path, tmp_path / "o.parquet", memory="150MB", progress=False)
        found = re.search(
            r"at least (\d+) MB .* holds 60 MB, reading a file takes (\d+) MB", str(raised.value)
        )
        least.append(tuple(map(int, found.groups())))
    (few, little), (many, much) = least
    assert few == pytest.approx(60 + 56 + 20 + 30 + little, abs=2)
    assert many == pytest.approx(60 + 56 + 20 + 30 + much, abs=2)
    assert much > 20 + little
