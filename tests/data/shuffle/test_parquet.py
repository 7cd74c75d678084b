"""Rows of Parquet files: the order of lines, any type of column, bounded memory, clear errors."""

import datetime
import decimal
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kexue.data.shuffle import parquet_outputs, plan_shuffle, shuffle_lines
from kexue.data.shuffle.arrow_rows import row_bytes, value_bytes
from kexue.data.shuffle.parquet_files import RowFiles, holds_rows
from kexue.data.shuffle.philox import philox_keys


@pytest.fixture
def rows(tmp_path):
    """Shuffles tables and returns the output, or the outputs in the order of their names."""

    def call(tables, *, name="out.parquet", **options):
        tables = [tables] if isinstance(tables, pa.Table) else tables
        paths = []
        for number, table in enumerate(tables):
            paths.append(tmp_path / f"{number:03}.parquet")
            pq.write_table(table, paths[-1], row_group_size=1000)
        call.inputs = paths
        (tmp_path / "made").mkdir(exist_ok=True)
        options = {"seed": 7, "progress": False, "overwrite": True} | options
        call.report = shuffle_lines(paths, tmp_path / "made" / name, **options)
        call.paths = [Path(path) for path in call.report.outputs]
        left = sorted((tmp_path / "made").iterdir())
        assert left == sorted(call.paths), "nothing is left beside the outputs"
        call.bytes = [path.read_bytes() for path in call.paths]
        found = [pq.ParquetFile(path).read() for path in call.paths]
        for path in call.paths:
            path.unlink()
        return found if len(found) != 1 else found[0]

    return call


def numbers(n):
    return pa.table({"i": np.arange(n)})


def order_of(n, seed=7):
    keys = philox_keys(np.arange(n, dtype=np.uint64), seed)
    return np.lexsort((keys[:, 1], keys[:, 0]))


def every_type(n):
    day = datetime.date(2020, 1, 1)
    columns = {
        "int": pa.array(range(n), pa.int32()),
        "text": pa.array([None if j % 7 == 0 else "文" * (j % 9) for j in range(n)]),
        "bytes": pa.array([bytes([j % 256]) * (j % 5) for j in range(n)], pa.large_binary()),
        "fixed": pa.array([j.to_bytes(4, "big") for j in range(n)], pa.binary(4)),
        "word": pa.array([f"w{j % 11}" for j in range(n)]).dictionary_encode(),
        "list": pa.array([None if j % 5 == 0 else list(range(j % 4)) for j in range(n)]),
        "struct": pa.array([{"a": j, "b": [str(j)]} for j in range(n)]),
        "map": pa.array([[("k", j)] for j in range(n)], pa.map_(pa.string(), pa.int64())),
        "decimal": pa.array([decimal.Decimal(j) / 4 for j in range(n)], pa.decimal128(12, 2)),
        "time": pa.array([j * 1000 for j in range(n)], pa.timestamp("us", tz="Asia/Shanghai")),
        "date": pa.array([day + datetime.timedelta(j % 999) for j in range(n)]),
        "truth": pa.array([None if j % 3 == 0 else j % 2 == 0 for j in range(n)]),
        "nothing": pa.nulls(n),
    }
    return pa.table(columns)


@pytest.mark.parametrize("buckets", [None, 2, 9])
def test_rows_come_in_the_order_of_as_many_lines(rows, tmp_path, buckets):
    lines = tmp_path / "lines"
    lines.write_text("".join(f"{j}\n" for j in range(5000)))
    shuffle_lines(lines, tmp_path / "lines.out", seed=7, progress=False)
    wanted = [int(line) for line in (tmp_path / "lines.out").read_text().split()]
    assert rows(numbers(5000), buckets=buckets)["i"].to_pylist() == wanted
    assert rows.report.buckets == (buckets or 1)
    assert rows.report.lines == 5000


@pytest.mark.parametrize("buckets", [None, 5])
def test_every_type_of_column_comes_through(rows, buckets):
    table = every_type(3000)
    found = rows([table.slice(0, 1100), table.slice(1100)], buckets=buckets)
    wanted = table.take(pa.array(order_of(3000)))
    assert found.schema == wanted.schema
    assert found.to_pylist() == wanted.to_pylist()


def test_the_bytes_do_not_depend_on_memory_buckets_threads_or_how_the_input_is_cut(rows):
    table = every_type(2500)
    made = set()
    for cut, options in (
        (0, {}),
        (700, {"buckets": 3}),
        (2499, {"buckets": 11, "threads": 1}),
        (1, {"buckets": 2, "memory": "4GB", "threads": 4}),
    ):
        rows([table.slice(0, cut), table.slice(cut)] if cut else table, **options)
        made.add(rows.bytes[0])
    assert len(made) == 1


def test_metadata_nullability_and_compression_are_the_first_files(tmp_path):
    schema = pa.schema([pa.field("i", pa.int64(), nullable=False)], {"who": "kexue"})
    first = pa.table({"i": [1, 2, 3]}, schema=schema)
    other = first.replace_schema_metadata({"who": "else"})
    pq.write_table(first, tmp_path / "a.parquet", compression="zstd")
    pq.write_table(other, tmp_path / "b.parquet", compression="gzip")
    for buckets in (None, 2):
        report = shuffle_lines(
            [tmp_path / "a.parquet", tmp_path / "b.parquet"],
            tmp_path / "out.parquet",
            buckets=buckets,
            overwrite=True,
            progress=False,
        )
        file = pq.ParquetFile(report.outputs[0])
        assert file.schema_arrow.equals(schema, check_metadata=True)
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_column_called_like_our_row_numbers_and_two_of_one_name_are_kept(rows):
    table = pa.Table.from_arrays(
        [pa.array(range(50)), pa.array(["x"] * 50), pa.array(range(50, 100))],
        names=["kexue row number", "twice", "twice"],
    )
    found = rows(table, buckets=4)
    assert found.schema.names == table.schema.names
    assert found.column(0).to_pylist() == order_of(50).tolist()
    assert found.column(2).to_pylist() == (order_of(50) + 50).tolist()


@pytest.mark.parametrize("buckets", [None, 6])
def test_several_outputs_one_behind_the_other_are_the_single_one(rows, buckets):
    wanted = rows(numbers(2000))["i"].to_pylist()
    by_lines = rows(numbers(2000), lines_per_file=300, buckets=buckets)
    assert [len(one) for one in by_lines] == [300] * 6 + [200]
    assert rows.paths[0].name == "out-00000.parquet"
    by_files = rows(numbers(2000), files=7, buckets=buckets)
    for parts in (by_lines, by_files):
        assert [i for one in parts for i in one["i"].to_pylist()] == wanted


@pytest.mark.parametrize("buckets", [None, 6])
def test_a_sample_is_the_beginning_of_the_whole(rows, buckets):
    wanted = rows(numbers(2000))["i"].to_pylist()
    assert rows(numbers(2000), sample=137, buckets=buckets)["i"].to_pylist() == wanted[:137]
    assert rows(numbers(20), sample=100)["i"].to_pylist() == order_of(20).tolist()
    assert rows(numbers(20), sample=0).num_rows == 0


@pytest.mark.parametrize("n", [0, 1, 2])
def test_no_row_and_few_rows(rows, n):
    assert rows(numbers(n)).equals(numbers(n).take(pa.array(order_of(n))))
    assert rows([numbers(0), numbers(n), numbers(0)], buckets=3).num_rows == n
    parts = rows(numbers(n), files=3)
    assert [len(one) for one in parts] == [n * (j + 1) // 3 - n * j // 3 for j in range(3)]


def test_a_bucket_that_is_too_large_is_scattered_again(rows, monkeypatch):
    """The first rows are short, so too few buckets are made for those that follow."""
    from kexue.data.shuffle import parquet

    long = pa.table({"i": range(2000), "s": ["x" * (1 if j < 1024 else 5000) for j in range(2000)]})
    depth = []
    scatter = parquet.RowWork.scatter

    def counted(self, tables, folder, levels):
        depth.append(levels)
        return scatter(self, tables, folder, levels)

    monkeypatch.setattr(parquet.RowWork, "scatter", counted)
    monkeypatch.setattr(RowFiles, "judged", lambda self, groups: 10.0)
    monkeypatch.setattr(parquet, "MOST_ROOM", 200_000)
    found = rows(long, buckets=2)
    assert found["i"].to_pylist() == order_of(2000).tolist()
    assert [len(levels) for levels in depth][:2] == [1, 2]
    depth.clear()
    monkeypatch.setattr(
        RowFiles, "judged", lambda self, groups: 1e-9
    )  # believed to fit into memory
    assert rows(long)["i"].to_pylist() == order_of(2000).tolist()
    assert depth


def test_row_groups_are_cut_by_rows_and_bounded_in_bytes(tmp_path):
    table = pa.table({"s": ["x" * 4000] * 20_000})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none")
    report = shuffle_lines(
        tmp_path / "a.parquet", tmp_path / "b.parquet", seed=1, buckets=4, progress=False
    )
    meta = pq.ParquetFile(report.outputs[0]).metadata
    rows = [meta.row_group(j).num_rows for j in range(meta.num_row_groups)]
    assert len(set(rows[:-1])) == 1
    assert 2000 < rows[0] * 1.0 < 4100
    assert sum(rows) == 20_000


def test_row_groups_are_cut_by_rows_alone_where_rows_differ_in_length(rows, monkeypatch):
    monkeypatch.setattr(parquet_outputs, "GROUP_BYTES", 20_000)
    monkeypatch.setattr(parquet_outputs, "GROUP_ROWS", 300)
    sizes = np.random.default_rng(0).lognormal(3, 2, 3000).astype(int)
    table = pa.table({"s": ["x" * size for size in sizes], "w": every_type(3000)["word"]})
    made = set()
    for cut, buckets in ((0, None), (1500, 3), (2, 11)):
        rows([table.slice(0, cut), table.slice(cut)] if cut else table, buckets=buckets)
        made.add(rows.bytes[0])
    assert len(made) == 1
    wanted, group, size = [], 0, 0
    for j in order_of(3000):
        more = sizes[j] + 4 + len(f"w{j % 11}") + 4
        if group and (size + more > 20_000 or group == 300):
            wanted.append(group)
            group = size = 0
        group, size = group + 1, size + more
    meta = pq.ParquetFile(pa.BufferReader(made.pop())).metadata
    assert [meta.row_group(j).num_rows for j in range(meta.num_row_groups)] == [*wanted, group]
    assert rows.report.bytes == sizes.sum() + 4 * 3000 + sum(
        4 + len(f"w{j % 11}") for j in range(3000)
    )


@pytest.mark.parametrize("buckets", [None, 7])
@pytest.mark.parametrize(("most", "rows_of", "wanted"), [(30, 99, 3), (39, 99, 3), (999, 4, 4)])
def test_a_row_group_is_as_full_as_it_may_be(rows, monkeypatch, buckets, most, rows_of, wanted):
    """Rows of 10 bytes; a bucket begins anywhere in a group."""
    monkeypatch.setattr(parquet_outputs, "GROUP_BYTES", most)
    monkeypatch.setattr(parquet_outputs, "GROUP_ROWS", rows_of)
    rows(pa.table({"s": ["sixsix"] * 100}), buckets=buckets)
    meta = pq.ParquetFile(pa.BufferReader(rows.bytes[0])).metadata
    found = [meta.row_group(j).num_rows for j in range(meta.num_row_groups)]
    assert found == [wanted] * (100 // wanted) + [100 % wanted] * bool(100 % wanted)


def sized(value, kind):
    """Bytes of a value as Arrow holds it, without those of its null bit: the slow way."""
    types = pa.types
    if types.is_null(kind):
        return 0
    if types.is_dictionary(kind):
        return sized(value, kind.value_type)
    if types.is_struct(kind):
        return sum(sized((value or {}).get(one.name), one.type) for one in kind)
    if types.is_map(kind):
        pairs = value or []
        return 4 + sum(sized(k, kind.key_type) + sized(v, kind.item_type) for k, v in pairs)
    if types.is_fixed_size_list(kind):
        return sum(sized(one, kind.value_type) for one in value or [None] * kind.list_size)
    if types.is_large_list(kind) or types.is_list(kind):
        head = 8 if types.is_large_list(kind) else 4
        return head + sum(sized(one, kind.value_type) for one in value or [])
    if types.is_large_string(kind) or types.is_large_binary(kind):
        return 8 + len(value or b"")
    if types.is_string(kind) or types.is_binary(kind):
        return 4 + len((value or "").encode() if types.is_string(kind) else value or b"")
    return -(-kind.bit_width // 8)


def test_bytes_of_rows_are_those_of_their_values():
    table = every_type(300)
    more = {
        "large": pa.array([list(range(j % 3)) for j in range(300)], pa.large_list(pa.int16())),
        "pair": pa.array([["x" * (j % 9), None] for j in range(300)], pa.list_(pa.string(), 2)),
        "deep": pa.array([[{"a": "x" * (j % 5), "b": [j]}] * (j % 3) for j in range(300)]),
        "words": pa.array(
            [[None, f"w{j % 7}"] for j in range(300)], pa.list_(pa.dictionary(pa.int8(), "string"))
        ),
        "empty": pa.array([None] * 300, pa.dictionary(pa.int8(), pa.string())),
        "id": pa.array([os.urandom(16) for _ in range(300)], pa.uuid()),
    }
    for name, column in more.items():
        table = table.append_column(name, column)
    wanted = {
        one.name: [
            sized(value, pa.binary(16) if one.name == "id" else one.type)
            for value in table[one.name].to_pylist()
        ]
        for one in table.schema
    }
    part = table.combine_chunks().slice(37, 200)
    for name in table.schema.names:
        assert value_bytes(part[name]).tolist() == wanted[name][37:237], name
    whole = np.sum(list(wanted.values()), axis=0)
    assert row_bytes(part).tolist() == whole[37:237].tolist()
    assert row_bytes(table.combine_chunks().to_batches()[0]).tolist() == whole.tolist()


@pytest.mark.parametrize("buckets", [None, 4])
def test_views_and_nested_words_come_through(rows, buckets):
    words = pa.array([f"w{j % 7}" for j in range(400)]).dictionary_encode()
    edges = pa.array(range(401), pa.int32())
    table = pa.table(
        {
            "text": pa.array(["x" * (j % 30) for j in range(400)], pa.string_view()),
            "bytes": pa.array([b"x" * (j % 30) for j in range(400)], pa.binary_view()),
            "words": pa.ListArray.from_arrays(edges, words),
            "word": pa.StructArray.from_arrays([words], ["w"]),
            "grade": pa.DictionaryArray.from_arrays(
                pa.array([j % 3 for j in range(400)], pa.int8()),
                pa.array(list("abc")),
                ordered=True,
            ),
            "id": pa.array([os.urandom(16) for _ in range(400)], pa.uuid()),
        }
    )
    found = rows([table.slice(0, 150), table.slice(150)], buckets=buckets)
    assert found.schema == pq.ParquetFile(rows.inputs[0]).schema_arrow
    wanted = table.to_pylist()
    assert found.to_pylist() == [wanted[j] for j in order_of(400)]


def test_more_words_than_an_index_counts_are_refused_with_the_way_out(tmp_path):
    paths = []
    for name in "ab":
        words = pa.array([f"{name}{j % 100}" for j in range(300)])
        table = pa.table({"w": words.cast(pa.dictionary(pa.int8(), pa.string()))})
        paths.append(parquet(tmp_path / f"{name}.parquet", table))
    with pytest.raises(ValueError, match=r"too small indices .* cast it to plain text"):
        shuffle_lines(paths, tmp_path / "o.parquet", progress=False)
    assert len(list(tmp_path.iterdir())) == 2


def test_each_column_keeps_its_compression_and_files_without_rows_do_not_count(tmp_path):
    table = pa.table({"a": range(50), "l": [[j] for j in range(50)], "b": ["x"] * 50})
    file = pa.BufferOutputStream()
    with pq.ParquetWriter(file, table.schema, compression="gzip"):
        pass
    (tmp_path / "a.parquet").write_bytes(file.getvalue())
    codecs = {"a": "zstd", "l.list.element": "none", "b": "gzip"}
    pq.write_table(table, tmp_path / "b.parquet", compression=codecs)
    inputs = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    report = shuffle_lines(inputs, tmp_path / "o.parquet", progress=False)
    group = pq.ParquetFile(report.outputs[0]).metadata.row_group(0)
    assert [group.column(j).compression for j in range(3)] == ["ZSTD", "UNCOMPRESSED", "GZIP"]


@pytest.mark.parametrize("buckets", [None, 4])
def test_what_pandas_and_datasets_wrote_they_read_again(tmp_path, buckets):
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"kind": pandas.Categorical([f"k{j % 5}" for j in range(300)]), "x": np.arange(300.0)},
        index=pandas.Index([f"row {j}" for j in range(300)], name="id"),
    )
    frame.to_parquet(tmp_path / "p.parquet")
    kept = {"seed": 7, "progress": False, "buckets": buckets}
    shuffle_lines(tmp_path / "p.parquet", tmp_path / "p.out.parquet", **kept)
    found = pandas.read_parquet(tmp_path / "p.out.parquet")
    assert found.index.equals(frame.index[order_of(300)])
    assert found["kind"].dtype == "category"
    assert (found["kind"].astype(str) == frame["kind"].astype(str).iloc[order_of(300)]).all()
    frame.reset_index().to_parquet(tmp_path / "r.parquet")  # numbered rows: the numbers begin anew
    shuffle_lines([tmp_path / "r.parquet"] * 2, tmp_path / "r.out.parquet", **kept)
    assert len(pandas.read_parquet(tmp_path / "r.out.parquet").index) == 600
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=["no", "yes"]), "text": datasets.Value("string")}
    )
    rows = {"label": [j % 2 for j in range(300)], "text": [f"t{j}" for j in range(300)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d.parquet")
    shuffle_lines(tmp_path / "d.parquet", tmp_path / "d.out.parquet", **kept)
    found = datasets.Dataset.from_parquet(
        str(tmp_path / "d.out.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert found.features == features
    assert found["text"][:] == [f"t{j}" for j in order_of(300)]


@pytest.mark.parametrize("buckets", [None, 5])
def test_files_whose_words_have_other_dictionaries_are_joined(rows, buckets):
    words = [f"w{j % 7}" for j in range(300)], [f"v{j % 5}" for j in range(300)]
    tables = [pa.table({"word": pa.array(one).dictionary_encode()}) for one in words]
    found = rows(tables, buckets=buckets)
    both = words[0] + words[1]
    assert found["word"].to_pylist() == [both[j] for j in order_of(600)]
    assert found.schema == tables[0].schema


def test_row_groups_with_longer_rows_are_read_in_smaller_batches(tmp_path):
    parts = [pa.table({"s": ["x" * size] * 2000}) for size in (1, 10_000)]
    path = tmp_path / "a.parquet"
    with pq.ParquetWriter(path, parts[0].schema, use_dictionary=False) as writer:
        for part in parts:
            writer.write_table(part)
    sizes = [
        table.nbytes
        for table in RowFiles([str(path)]).tables(1_000_000, 1 << 30, False, lambda rows: None)
    ]
    assert len(sizes) > 10
    assert max(sizes) < 2_000_000


def test_the_plan_says_rows_buckets_and_disk_and_writes_nothing(tmp_path):
    table = pa.table({"s": ["x" * 1000] * 3000})
    path = parquet(tmp_path / "a.parquet", table)
    plan = plan_shuffle(path, tmp_path / "o.parquet")
    assert (plan.lines, plan.in_memory, plan.buckets, plan.temporary_bytes) == (3000, True, 1, 0)
    assert plan.bytes == pytest.approx(3000 * 1004, rel=0.01)
    plan = plan_shuffle(path, tmp_path / "o.parquet", buckets=9)
    assert (plan.in_memory, plan.buckets, plan.levels) == (False, 9, 1)
    assert plan.temporary_bytes == plan.bytes + 8 * 3000
    with pytest.raises(ValueError, match="are written as Parquet"):
        plan_shuffle(path, tmp_path / "o.jsonl")
    assert [one.name for one in tmp_path.iterdir()] == ["a.parquet"]


# --- what is refused ------------------------------------------------------------------------------


def parquet(path, table=None):
    pq.write_table(numbers(3) if table is None else table, path)
    return path


def test_other_columns_are_refused_with_both_files_and_both_types(tmp_path):
    first = parquet(tmp_path / "a.parquet", pa.table({"i": [1], "s": ["x"]}))
    for other, words in (
        (pa.table({"i": [1], "s": [2.5]}), "'s: double' where .*a.parquet has 's: string'"),
        (pa.table({"i": [1]}), "'no column' where .*a.parquet has 's: string'"),
        (pa.table({"s": ["x"], "i": [1]}), "'s: string' where .*a.parquet has 'i: int64'"),
        (pa.table({"i": [1], "s": ["x"], "t": [1]}), "'t: int64' where .* has 'no column'"),
    ):
        second = parquet(tmp_path / "b.parquet", other)
        with pytest.raises(ValueError, match=f"b.parquet: has {words}.*cast or rename"):
            shuffle_lines([first, second], tmp_path / "out.parquet", progress=False)
        assert not (tmp_path / "out.parquet").exists()


def test_rows_and_lines_are_not_mixed(tmp_path):
    rows, lines = parquet(tmp_path / "a.parquet"), tmp_path / "a.txt"
    lines.write_text("x\n")
    for inputs, output, words in (
        ([rows, lines], "o.parquet", "a.txt: holds lines"),
        ([lines, rows], "o.txt", "a.txt: holds lines"),
        ([rows], "o.jsonl", "o.jsonl: rows of Parquet files are written as Parquet"),
        ([rows], "o.parquet.gz", "are written as Parquet"),
        ([lines], "o.parquet", "needs Parquet inputs, .*a.txt holds lines"),
    ):
        with pytest.raises(ValueError, match=words):
            shuffle_lines(inputs, tmp_path / output, progress=False)
    with pytest.raises(ValueError, match="are written as Parquet"):
        shuffle_lines([rows], "-", progress=False)
    for options in ({"header": 1}, {"delimiter": b"\0"}):
        with pytest.raises(ValueError, match="header and delimiter are for lines"):
            shuffle_lines([rows], tmp_path / "o.parquet", progress=False, **options)


def test_parquet_is_told_by_its_content(tmp_path):
    rows = parquet(tmp_path / "no_suffix")
    assert holds_rows([str(rows)], "o.parquet")
    assert not holds_rows(["-"], "o.txt")
    for content in (b"", b"i\n1\n"):
        (tmp_path / "fake.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"fake.parquet: is no Parquet file"):
            holds_rows([str(tmp_path / "fake.parquet")], "o.parquet")


@pytest.mark.parametrize("buckets", [None, 3])
def test_a_damaged_file_is_named_and_leaves_nothing(tmp_path, buckets):
    table = pa.table({"s": [os.urandom(50).hex() for _ in range(5000)]})
    whole = parquet(tmp_path / "a.parquet", table).read_bytes()
    bad = tmp_path / "bad.parquet"
    cut, burnt = whole[: len(whole) // 2], bytearray(whole)
    burnt[4 : len(whole) // 2] = os.urandom(len(whole) // 2 - 4)
    for content, words in (
        (cut, "is no Parquet file"),
        (b"PAR1" * 5, "cannot be read as Parquet"),
        (bytes(burnt), "this Parquet file is damaged"),
    ):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=rf"bad\.parquet: {words}"):
            shuffle_lines(bad, tmp_path / "o.parquet", buckets=buckets, progress=False)
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == ["a.parquet", "bad.parquet"]


@pytest.mark.parametrize("buckets", [None, 3])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch, buckets):
    def full(*given, **options):
        raise OSError(errno.ENOSPC, "Error writing bytes to file")

    parquet(tmp_path / "a.parquet", numbers(100))
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match=r"o\.parquet\.\w+: the disk is full; free space on"):
        shuffle_lines(
            tmp_path / "a.parquet", tmp_path / "o.parquet", buckets=buckets, progress=False
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_an_encrypted_file_and_a_codec_that_is_missing_are_told(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PARE" + bytes(20) + b"PARE")
    with pytest.raises(ValueError, match=r"a\.parquet: this Parquet file is encrypted"):
        shuffle_lines(tmp_path / "a.parquet", tmp_path / "o.parquet", progress=False)
    for content in (b"PAR1", b"PARE", b"PAR1PAR"):
        (tmp_path / "text").write_bytes(content)  # lines that begin like this
        assert not holds_rows([str(tmp_path / "text")], "o.txt")
    path = parquet(tmp_path / "b.parquet")

    def unknown(*given, **options):
        raise pa.ArrowNotImplementedError("Support for codec 'lzo' not built")
        yield

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", unknown)
    with pytest.raises(ValueError, match=r"b\.parquet: cannot be read: Support for codec 'lzo'"):
        shuffle_lines(path, tmp_path / "o.parquet", progress=False)


def test_a_file_without_columns_is_refused(tmp_path):
    empty = parquet(tmp_path / "a.parquet", pa.table({}))
    with pytest.raises(ValueError, match="has no columns"):
        shuffle_lines(empty, tmp_path / "o.parquet", progress=False)


def test_the_leftovers_of_a_killed_run_are_removed_and_the_run_begins_anew(rows, tmp_path):
    """Killed while buckets are written; --resume is told that there is nothing to go on with."""
    code = (
        "import os, sys; from kexue.data.shuffle import shuffle_lines, parquet\n"
        "parquet.RowWork.in_order = lambda *a: os._exit(9)\n"
        "shuffle_lines(sys.argv[1], sys.argv[2], seed=7, buckets=3, progress=False)\n"
    )
    source, made = parquet(tmp_path / "000.parquet", numbers(500)), tmp_path / "made"
    made.mkdir()
    done = subprocess.run([sys.executable, "-c", code, str(source), str(made / "out.parquet")])
    assert done.returncode == 9
    assert [path.name[:15] for path in made.iterdir()] == [".kexue-shuffle-"]
    said = []
    found = rows(numbers(500), resume=True, overwrite=False, warn=said.append)
    assert found["i"].to_pylist() == order_of(500).tolist()
    assert said == ["a run over Parquet rows cannot go on; starting anew"]
    rows(numbers(500), resume=True, overwrite=False, warn=said.append)
    assert said[1] == "nothing to resume; starting anew"
