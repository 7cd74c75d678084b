"""Parquet files in and out: rows with their numbers, and row groups of a fixed size."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kexue.data.shuffle.outputs import told

__all__ = [
    "RowFiles",
    "RowOutputs",
    "arrow",
    "as_arrow",
    "holds_rows",
    "is_parquet",
    "numbers_of",
    "whole",
]

Array = NDArray[Any]
MAGIC = b"PAR1"
SUFFIX = ".parquet"
GROUP_BYTES, GROUP_ROWS = 16_000_000, 1 << 17
FIRST_ROWS = 1024
"""Judged by these: how large rows are once they are decoded."""


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
        found = file.read(4) == MAGIC
        if found:  # a line may begin like this
            found = file.seek(0, os.SEEK_END) >= 12
            file.seek(-4, os.SEEK_END)
            found &= file.read(4) == MAGIC
    if path.endswith(SUFFIX) and not found:
        raise ValueError(f"{path}: is no Parquet file, its first and last bytes are not PAR1")
    return found


def arrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet part."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError('Parquet needs pyarrow: pip install "kexue[shuffle]"') from None
    return pyarrow, pyarrow.parquet


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
        self.rows, self.packed_bytes = 0, 0
        self.compression = "snappy"
        schemas: list[Any] = []
        for path in self.paths:
            with self.opened(path) as file:
                meta = file.metadata
                self.rows += meta.num_rows
                groups = [meta.row_group(j) for j in range(meta.num_row_groups)]
                self.packed_bytes += sum(group.total_byte_size for group in groups)
                schemas = schemas or [file.schema_arrow]
                self.check(path, file.schema_arrow, schemas[0])
                if path == self.paths[0] and groups:
                    self.compression = groups[0].column(0).compression.lower()
        self.schema = schemas[0]
        if self.compression == "uncompressed":
            self.compression = "none"
        name = "kexue row number"
        while name in self.schema.names:
            name += "_"
        self.numbered = self.schema.append(self.arrow.field(name, self.arrow.uint64()))
        self.row_bytes = self.judged()

    def opened(self, path: str) -> Any:
        """A file, read a piece at a time."""
        try:
            return self.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        except PermissionError:
            raise
        except (self.arrow.ArrowInvalid, OSError) as error:
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

    def judged(self) -> float:
        """Bytes of a decoded row, from the first ones; not less than it takes on disk."""
        mean = self.packed_bytes / max(self.rows, 1)
        for path in self.paths:
            with self.opened(path) as file:
                batch = self.following(path, file.iter_batches(FIRST_ROWS))
                if batch is not None and batch.num_rows:
                    return max(mean, float(batch.nbytes) / int(batch.num_rows), 1.0)
        return max(mean, 1.0)

    def tables(
        self, most: int, longest: int, threads: bool, seen: Callable[[int], None]
    ) -> Iterator[Any]:
        """The rows with their numbers, in tables of about `most` bytes, which are not kept.

        Args:
            most: bytes.
            longest: bytes that a row may have.
            threads: decode columns side by side.
            seen: called with the rows so far.

        Raises:
            ValueError: a damaged file, or a row that is too long.
        """
        pending: list[Any] = []
        size = number = 0
        for path, batches in self.batches(most // 4, threads):
            while (batch := self.following(path, batches)) is not None:
                if batch.num_rows == 1 and batch.nbytes > longest:
                    raise ValueError(
                        f"{path}: row {number} of the input has {batch.nbytes / 1e6:,.0f} MB, more "
                        "than a quarter of the memory limit; give more --memory"
                    )
                stop = number + batch.num_rows
                numbers = as_arrow(np.arange(number, stop, dtype=np.uint64))
                columns = [*batch.columns, numbers]
                number, size = stop, size + batch.nbytes
                pending.append(self.arrow.RecordBatch.from_arrays(columns, schema=self.numbered))
                del batch, columns  # nothing is held while the next one is read
                if size >= most:
                    size = 0
                    yield self.joined(pending)
                seen(number)
        if pending:
            yield self.joined(pending)

    def batches(self, most: int, threads: bool) -> Iterator[tuple[str, Iterator[Any]]]:
        """The row groups of all files, each as a stream of batches of about `most` bytes."""
        for path in self.paths:
            with self.opened(path) as file:
                for j in range(file.metadata.num_row_groups):
                    group = file.metadata.row_group(j)
                    mean = max(self.row_bytes, group.total_byte_size / max(group.num_rows, 1))
                    rows = max(1, min(1 << 20, int(most / mean)))
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
        except (self.arrow.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path}: this Parquet file is damaged: {error}") from None


def numbers_of(table: Any) -> Array:
    """The last column."""
    chunks = table.column(table.num_columns - 1).chunks
    parts = [np.frombuffer(one.buffers()[1], np.uint64)[one.offset :][: len(one)] for one in chunks]
    return np.concatenate([np.empty(0, np.uint64), *parts])


def as_arrow(numbers: Array) -> Any:
    """The same numbers for Arrow, whose own ways from and to numpy load pandas, 50 MB."""
    pyarrow, _ = arrow()
    kind = pyarrow.from_numpy_dtype(numbers.dtype)
    return pyarrow.Array.from_buffers(kind, len(numbers), [None, pyarrow.py_buffer(numbers)])


def whole(table: Any) -> Any:
    """The table in one piece, with one dictionary per column."""
    return table.unify_dictionaries().combine_chunks()


class RowOutputs:
    """One Parquet file or several, written a row group at a time.

    Args:
        files: schema and compression.
        paths: temporary names.
        limits: rows of each; None: any number.
        most: bytes of a row group, whatever its rows.
        wanted: rows to be written; more are left out.
    """

    def __init__(
        self,
        files: RowFiles,
        paths: list[str],
        limits: list[int | None],
        most: int,
        wanted: int,
    ) -> None:
        self.files, self.paths, self.limits, self.most = files, paths, limits, most
        self.group = max(1, min(GROUP_ROWS, int(GROUP_BYTES / files.row_bytes)))
        self.wanted, self.rows, self.bytes = wanted, 0, 0
        self.part, self.in_part = 0, 0
        self.pending: list[Any] = []
        self.pending_rows = 0
        self.writer: Any = None

    def add(self, table: Any, order: Array) -> None:
        """Rows of a table in an order."""
        order = order[: self.wanted - self.rows]
        for start in range(0, len(order), self.group):
            piece = table.take(as_arrow(order[start : start + self.group]))
            self.rows += piece.num_rows
            while piece.num_rows:
                room = self.group - self.pending_rows
                limit = self.limits[self.part]
                if limit is not None:
                    room = min(room, limit - self.in_part)
                some = piece.slice(0, room)
                self.pending.append(some)
                self.pending_rows += some.num_rows
                self.in_part += some.num_rows
                piece = piece.slice(some.num_rows)
                full = limit is not None and self.in_part == limit
                large = sum(one.nbytes for one in self.pending) > self.most
                if self.pending_rows == self.group or full or large:
                    self.end_group()
                if full and self.part + 1 < len(self.limits):
                    self.end_part()

    def end_group(self) -> None:
        """Writes the rows that wait."""
        with told(self.paths[self.part]):
            if self.writer is None:
                self.writer = self.files.parquet.ParquetWriter(
                    self.paths[self.part], self.files.schema, compression=self.files.compression
                )
            if self.pending_rows:
                table = whole(self.files.arrow.concat_tables(self.pending))
                self.bytes += table.nbytes
                self.writer.write_table(table, row_group_size=table.num_rows)
        self.pending, self.pending_rows = [], 0

    def end_part(self) -> None:
        """Closes the file and goes on to the next."""
        self.end_group()
        with told(self.paths[self.part]):
            self.writer.close()
        self.writer, self.part, self.in_part = None, self.part + 1, 0

    def finish(self, fsync: bool = False) -> None:
        """Closes all files; those that no row reached hold the schema alone."""
        while self.part < len(self.paths):
            self.end_part()
        for path in self.paths if fsync else []:
            with told(path), Path(path).open("rb+") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        """Lets go of the file after an error."""
        if self.writer is not None:
            with suppress(OSError):
                self.writer.close()
            self.writer = None
