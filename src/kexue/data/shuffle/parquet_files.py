"""Parquet files in: rows with their numbers, in plain tables of bounded size.

What a row group takes once it is decoded is known for columns that lie there plainly. A column
coded by a dictionary may take a thousand times as much; it is read as indices into the dictionary,
and made plain a few rows at a time.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kexue.data.shuffle.arrow_rows import arrow, as_arrow, plain_schema, row_bytes

__all__ = ["RowFiles", "holds_rows", "is_parquet"]

Array = NDArray[Any]
MAGIC, ENCRYPTED = b"PAR1", b"PARE"
SUFFIX = ".parquet"
FIRST_ROWS, GLIMPSES = 1024, 8
"""Judged by the first rows of some groups: how large rows are once they are decoded."""
LEAST_PLAIN = 16
"""Bytes of a value in a file, on average: with fewer, a dictionary may hide long values."""


def holds_rows(
    paths: Sequence[str], output: str, *, delimiter: bytes = b"\n", header: int = 0
) -> bool:
    """Whether the inputs are Parquet files, once it is clear that this fits the rest.

    Raises:
        ValueError: Parquet and lines are mixed, or options of lines are given for rows.
    """
    rows = [is_parquet(path) for path in paths]
    if not any(rows):
        if output.endswith(SUFFIX):
            raise ValueError(
                f"{output}: a Parquet output needs Parquet inputs, {paths[0]} holds lines; name "
                "the output .jsonl or .txt"
            )
        return False
    if not all(rows):
        raise ValueError(
            f"{paths[rows.index(False)]}: holds lines, {paths[rows.index(True)]} Parquet rows; "
            "shuffle them apart, or convert one kind"
        )
    if not output.endswith(SUFFIX):
        raise ValueError(
            f"{output}: rows of Parquet files are written as Parquet; give an output that ends in "
            "'.parquet', and convert it afterwards if lines are needed"
        )
    if header or delimiter != b"\n":
        raise ValueError("header and delimiter are for lines; rows of Parquet files have neither")
    return True


def is_parquet(path: str) -> bool:
    """Told by its first and last bytes; a name that ends in .parquet must keep its promise."""
    if path == "-" or not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        first = last = file.read(4)
        if first in (MAGIC, ENCRYPTED):  # a line may begin like this
            file.seek(-4, os.SEEK_END)
            last = file.read(4) if file.tell() >= 8 else b""
    if first == last == ENCRYPTED:
        raise ValueError(f"{path}: this Parquet file is encrypted; decrypt it first")
    found = first == last == MAGIC
    if path.endswith(SUFFIX) and not found:
        raise ValueError(f"{path}: is no Parquet file, its first and last bytes are not PAR1")
    return found


class RowFiles:
    """All inputs as one stream of rows.

    Args:
        paths: Parquet files.

    Raises:
        ValueError: a damaged file, or one with other columns than the first.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.arrow, self.parquet = arrow()
        self.paths = list(paths)
        self.rows, self.reading, packed = 0, 0, 0
        self.compression: str | dict[str, str] = "snappy"
        self.coded: dict[str, list[str]] = {}
        schemas: list[Any] = []
        codecs: list[str] = []
        groups: list[tuple[str, int, int]] = []
        for path in self.paths:
            with self.opened(path) as file:
                meta = file.metadata
                schemas = schemas or [file.schema_arrow]
                self.check(path, file.schema_arrow, schemas[0])
                coded = set[str]()
                for j in range(meta.num_row_groups):
                    group = meta.row_group(j)
                    packed += group.total_byte_size
                    groups += [(path, j, group.num_rows)] * bool(group.num_rows)
                    columns = [group.column(c) for c in range(group.num_columns)]
                    codecs = codecs or [one.compression.lower() for one in columns]
                    coded |= {one.path_in_schema for one in columns if may_hide(one)}
                self.rows += meta.num_rows
                self.coded[path] = sorted(coded)
        self.schema = schemas[0]
        self.plain = plain_schema(self.schema)
        if codecs:
            self.compression = self.compressed_as(codecs)
        name = "kexue row number"
        while name in self.schema.names:
            name += "_"
        self.numbered = self.plain.append(self.arrow.field(name, self.arrow.uint64()))
        self.row_bytes = max(packed / max(self.rows, 1), self.judged(groups), 1.0)

    def opened(self, path: str, coded: Sequence[str] = ()) -> Any:
        """A file, read a piece at a time, some columns as indices into dictionaries."""
        try:
            return self.parquet.ParquetFile(
                path, pre_buffer=False, buffer_size=1 << 20, read_dictionary=list(coded)
            )
        except PermissionError:
            raise
        except (self.arrow.ArrowInvalid, NotImplementedError, OSError) as error:
            raise ValueError(f"{path}: cannot be read as Parquet: {error}") from None

    def check(self, path: str, schema: Any, wanted: Any) -> None:
        """Refuses other columns than the first file's."""
        if not len(schema):
            raise ValueError(f"{path}: has no columns; there is nothing to shuffle")
        if schema.equals(wanted, check_metadata=False):
            return
        ours, first = (
            [f"{one.name}: {one.type}{'' if one.nullable else ' not null'}" for one in columns]
            for columns in (schema, wanted)
        )
        longest = max(len(ours), len(first))
        pairs = zip(
            ours + ["no column"] * (longest - len(ours)),
            first + ["no column"] * (longest - len(first)),
            strict=True,
        )
        here, there = next((pair for pair in pairs if pair[0] != pair[1]), ("?", "?"))
        raise ValueError(
            f"{path}: has '{here}' where {self.paths[0]} has '{there}'; all inputs need the same "
            "columns in the same order: cast or rename them first"
        )

    def compressed_as(self, codecs: list[str]) -> str | dict[str, str]:
        """What a writer is told of the codecs of the columns, by their names in our files."""
        codecs = ["none" if codec == "uncompressed" else codec for codec in codecs]
        if len(set(codecs)) == 1:
            return codecs[0]
        sink = self.arrow.BufferOutputStream()
        self.parquet.ParquetWriter(sink, self.schema).close()
        columns = self.parquet.ParquetFile(self.arrow.BufferReader(sink.getvalue())).schema
        return {columns.column(c).path: codec for c, codec in enumerate(codecs)}

    def judged(self, groups: list[tuple[str, int, int]]) -> float:
        """Bytes of a decoded row, by the first rows of evenly spread groups."""
        before = self.arrow.total_allocated_bytes()
        some = [groups[len(groups) * j // GLIMPSES] for j in range(GLIMPSES)] if groups else []
        found = rows = 0.0
        for path, group, size in dict.fromkeys(some):
            with self.opened(path, self.coded[path]) as file:
                batches = file.iter_batches(FIRST_ROWS, row_groups=[group], use_threads=False)
                batch = self.following(path, batches)
                self.reading = max(self.reading, self.arrow.total_allocated_bytes() - before)
                if batch is not None:
                    found, rows = found + size * float(row_bytes(batch).mean()), rows + size
        return found / max(rows, 1)

    def tables(
        self,
        most: int,
        longest: int,
        threads: bool,
        seen: Callable[[int], None],
        per_row: int = 0,
    ) -> Iterator[Any]:
        """The rows with their numbers, in plain tables of about `most` bytes, which are not kept.

        Args:
            most: bytes.
            longest: bytes that a row may have.
            per_row: bytes that a row takes beside its own.
            threads: decode columns side by side.
            seen: called with the rows so far.

        Raises:
            ValueError: a damaged file, or a row that is too long.
        """
        pending: list[Any] = []
        size = number = 0
        for path, batches in self.batches(most // 4, threads, per_row):
            while (batch := self.following(path, batches)) is not None:
                sizes = row_bytes(batch)
                if sizes.max(initial=0) > longest:
                    row = int(np.argmax(sizes > longest))
                    raise ValueError(
                        f"{path}: row {number + row} of the input has {sizes[row] / 1e6:,.0f} MB, "
                        f"more than the {longest / 1e6:,.0f} MB that this memory limit allows; "
                        "give more --memory"
                    )
                sizes += per_row
                for start, stop in pieces(sizes, most // 2):
                    size += int(sizes[start:stop].sum())
                    pending.append(self.numbered_rows(batch.slice(start, stop - start), number))
                    number += stop - start
                    if size >= most:
                        size = 0
                        yield self.joined(pending)
                del batch  # nothing is held while the next one is read
                seen(number)
        if pending:
            yield self.joined(pending)

    def numbered_rows(self, batch: Any, first: int) -> Any:
        """Rows made plain, with their numbers behind them."""
        numbers = as_arrow(np.arange(first, first + batch.num_rows, dtype=np.uint64))
        columns = [
            column if column.type == field.type else column.cast(field.type)
            for column, field in zip(batch.columns, self.plain, strict=True)
        ]
        return self.arrow.RecordBatch.from_arrays([*columns, numbers], schema=self.numbered)

    def batches(
        self, most: int, threads: bool, per_row: int
    ) -> Iterator[tuple[str, Iterator[Any]]]:
        """The row groups of all files, each as a stream of batches of about `most` bytes."""
        for path in self.paths:
            with self.opened(path, self.coded[path]) as file:
                for j in range(file.metadata.num_row_groups):
                    group = file.metadata.row_group(j)
                    mean = max(self.row_bytes, group.total_byte_size / max(group.num_rows, 1))
                    rows = max(1, min(1 << 20, int(most / (mean + per_row))))
                    yield path, iter(file.iter_batches(rows, row_groups=[j], use_threads=threads))

    def joined(self, batches: list[Any]) -> Any:
        """A table of the batches; empties the list."""
        table = self.arrow.Table.from_batches(batches)
        batches.clear()
        return table

    def following(self, path: str, batches: Iterator[Any]) -> Any:
        """The next batch; None behind the last one."""
        try:
            return next(batches, None)
        except NotImplementedError as error:
            raise ValueError(f"{path}: cannot be read: {error}") from None
        except (self.arrow.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path}: this Parquet file is damaged: {error}") from None

    def as_given(self, table: Any) -> Any:
        """A plain table with the dictionaries and views of the first file.

        Raises:
            ValueError: more different words than its indices can count.
        """
        if self.plain.equals(self.schema):
            return table
        try:
            return table.cast(self.schema)
        except self.arrow.ArrowInvalid:
            raise ValueError(
                f"{self.paths[0]}: the dictionary of a column has too small indices for the words "
                "of all inputs; cast it to plain text, or to 32-bit indices"
            ) from None


def may_hide(column: Any) -> bool:
    """Whether a column chunk may be much larger once it is decoded."""
    coded = any("DICTIONARY" in one for one in column.encodings)
    small = column.total_uncompressed_size < LEAST_PLAIN * column.num_values
    return column.physical_type == "BYTE_ARRAY" and coded and small


def pieces(sizes: Array, most: int) -> Iterator[tuple[int, int]]:
    """Stretches of rows of at most so many bytes together, or of one row."""
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield start, stop
        start = stop
