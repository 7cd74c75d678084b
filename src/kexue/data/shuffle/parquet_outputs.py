"""Parquet files out: row groups that are cut by their content alone."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kexue.data.shuffle.arrow_rows import as_arrow, row_bytes, whole
from kexue.data.shuffle.outputs import told
from kexue.data.shuffle.parquet_files import RowFiles

__all__ = ["GROUP_BYTES", "GROUP_ROWS", "RowOutputs"]

Array = NDArray[Any]
GROUP_BYTES, GROUP_ROWS = 16_000_000, 1 << 17


class RowOutputs:
    """One Parquet file or several, written a row group at a time.

    A group takes rows as long as they have `GROUP_BYTES` together, and `GROUP_ROWS` at most; one
    row that is longer makes a group of its own.

    Args:
        files: schema and compression.
        paths: temporary names.
        limits: rows of each; None: any number.
        wanted: rows to be written; more are left out.
    """

    def __init__(
        self, files: RowFiles, paths: list[str], limits: list[int | None], wanted: int
    ) -> None:
        self.files, self.paths, self.limits = files, paths, limits
        self.wanted, self.rows, self.bytes = wanted, 0, 0
        self.part, self.in_part = 0, 0
        self.pending: list[Any] = []
        self.pending_rows = self.pending_bytes = 0
        self.writer: Any = None

    def add(self, table: Any, order: Array) -> None:
        """Rows of a table in an order."""
        order = order[: self.wanted - self.rows]
        sizes = row_bytes(table)[order]
        at = 0
        while at < len(order):
            room = GROUP_ROWS - self.pending_rows
            ends = self.pending_bytes + np.cumsum(sizes[at : at + room])
            fit = int(np.searchsorted(ends, GROUP_BYTES, side="right"))
            if not self.pending_rows:
                fit = max(fit, 1)
            ended = fit < len(ends) or fit == room
            limit = self.limits[self.part]
            if limit is not None and fit >= limit - self.in_part:
                fit, ended = limit - self.in_part, True
            if fit:
                self.pending.append(table.take(as_arrow(order[at : at + fit])))
                self.pending_bytes = int(ends[fit - 1])
            at, self.rows = at + fit, self.rows + fit
            self.pending_rows, self.in_part = self.pending_rows + fit, self.in_part + fit
            if ended:
                self.end_group()
            if self.in_part == limit and self.part + 1 < len(self.limits):
                self.end_part()

    def end_group(self) -> None:
        """Writes the rows that wait."""
        files = self.files
        with told(self.paths[self.part]):
            if self.writer is None:
                self.writer = files.parquet.ParquetWriter(
                    self.paths[self.part], files.schema, compression=files.compression
                )
            if self.pending_rows:
                table = whole(files.arrow.concat_tables(self.pending))
                self.pending = []
                table = files.as_given(table)
                self.bytes += self.pending_bytes
                self.writer.write_table(table, row_group_size=table.num_rows)
        self.pending, self.pending_rows, self.pending_bytes = [], 0, 0

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
