"""Rows of Parquet files in uniformly random order, in bounded memory (S09).

Row i of all inputs, counted through the files in their order, has the key of line i, and rows come
out in the order of their keys: a seed gives rows the order that it gives to as many lines. What
does not fit into memory goes through buckets, Arrow IPC files that hold rows and their numbers; a
bucket that is too large is scattered again.

    memory   two tables of a bucket, free / 4 each; a table read, in one piece, and in the order
             of its buckets, free / 12 each, where a row costs its bytes and 40 for its number, key
             and place in the order; a row group of the output; what reading a file takes, seen
             while the first rows are read; a row of free / 10 at most
    groups   as many rows as have 16 MB, at most 131,072; rows alone say where they are cut, so the
             bytes of the output too follow from the input and the seed

Schema, its metadata and the compression of the output are the first file's; the other files must
have the same columns. Columns are plain in between: a dictionary is made anew for each row group.
"""

import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from kexue.data.shuffle.arrow_rows import arrow, as_arrow, numbers_of, whole
from kexue.data.shuffle.outputs import told
from kexue.data.shuffle.parquet_files import RowFiles, holds_rows
from kexue.data.shuffle.parquet_outputs import GROUP_BYTES, RowOutputs
from kexue.data.shuffle.part_names import older_parts
from kexue.data.shuffle.philox import buckets_of, philox_keys
from kexue.data.shuffle.plan import check_space, megabytes, open_files, resident
from kexue.data.shuffle.request import Request
from kexue.data.shuffle.run_files import RunFiles

__all__ = ["RowWork", "holds_rows", "plan_rows"]

SPEED = 80e6
"""Bytes per second of decoded rows, two cores."""

GROUPS = 3.5
"""Memory for the output, in row groups: one that waits, one in one piece, the rest encoded."""
SLACK, LEAST_FREE = 20_000_000, 30_000_000
"""For threads and small things, and for rows: bytes."""
PER_ROW = 40
"""Bytes of a row in a bucket, beside its own: of two tables, twice as many for keys and order."""
LONGEST = 10
"""Copies of a row that Arrow may hold at once, from the page of its file to that of the output."""
MOST_ROOM = 1 << 30
"""Bytes of a bucket at most: texts of one column of a table have less than 2 GB in Arrow."""


@dataclass
class RowBucket:
    """A bucket file and what is in it."""

    path: Path
    rows: int = 0
    bytes: int = 0

    @property
    def cost(self) -> int:
        """Memory that it takes."""
        return self.bytes + PER_ROW * self.rows


class RowWork:
    """One run over Parquet files.

    Args:
        request: what is asked; `resume` begins anew.
        run: its folder.
    """

    def __init__(self, request: Request, run: RunFiles) -> None:
        self.request, self.run = request, run
        self.seed = secrets.randbits(64) if request.seed is None else request.seed
        self.lines = self.bytes = 0
        self.parts = 1
        self.names: tuple[str, ...] = ()

    def go_on(self, state: dict[str, Any], pool: Executor | None) -> None:
        """Never asked for: no run over rows is ever written down as ready to go on."""
        raise ValueError(f"{self.run.path}: a shuffle of Parquet rows cannot go on; start anew")

    def look(self) -> None:
        """How large the rows are, and how the memory is divided; nothing is written."""
        with frugal_memory():
            self.files = RowFiles(self.request.paths)
        limit, base = self.request.memory.limit, resident()  # Arrow is in it by now
        taken = base + self.files.reading + round(GROUPS * GROUP_BYTES) + SLACK
        if limit < taken + LEAST_FREE:
            raise ValueError(
                f"memory must be at least {megabytes(taken + LEAST_FREE)} for these Parquet files "
                f"(this process holds {megabytes(base)}, reading a file takes "
                f"{megabytes(self.files.reading)} beside the rows), got {megabytes(limit)}"
            )
        self.free = limit - taken
        self.longest = self.free // LONGEST
        self.room = min(MOST_ROOM, self.free // 4)
        self.most = max(2, min(open_files(), self.free // 12 >> 16))
        self.size = round(self.files.rows * self.files.row_bytes)
        cost = self.size + PER_ROW * self.files.rows
        self.may_fit = self.request.buckets in (None, 1) and cost <= self.room
        self.wanted = max(2, ceil(1.25 * cost / self.room))
        self.temporary = self.size + 8 * self.files.rows

    def anew(self, pool: Executor | None) -> None:
        """From the beginning."""
        request = self.request
        self.look()
        outputs = request.outputs(b"", self.files.rows)
        self.to = RowOutputs(
            self.files,
            outputs.temporary,
            outputs.limits,
            self.files.rows if request.sample is None else min(self.files.rows, request.sample),
        )
        try:
            with frugal_memory():
                self.shuffle(threads=pool is not None)
            if self.to.rows != self.to.wanted:
                raise ValueError(f"{self.to.rows} rows were written instead of {self.to.wanted}")
            self.to.finish(request.fsync)
        finally:
            self.to.close()
        if request.several and request.overwrite:
            for name in set(older_parts(request.output)) - set(outputs.names):
                Path(name).unlink()
        outputs.publish()
        self.lines, self.bytes, self.names = self.to.rows, self.to.bytes, outputs.names

    def shuffle(self, threads: bool) -> None:
        """Both passes, or one if all rows fit into memory."""
        request, files = self.request, self.files
        block = min(64 << 20, self.free // 12)
        tables = files.tables(block, self.longest, threads, self.seen, PER_ROW)
        held: list[Any] = []
        if self.may_fit:
            for table in tables:
                held.append(table)
                if sum(one.nbytes + PER_ROW * one.num_rows for one in held) > self.room:
                    break
            else:
                self.write(held)
                return
        self.run.claim()
        seen = {**request.arguments, "seen": request.seen}
        self.run.begin(self.seed, "parquet", request.memory.limit, seen)
        check_space(self.run.path, round(1.02 * self.temporary), "temporary files")
        self.parts = request.buckets or min(self.most, self.wanted)
        rows = chain(popped(held), tables)
        self.in_order(self.scatter(rows, self.run.path / "buckets", [self.parts]), [self.parts])

    def seen(self, rows: int) -> None:
        """A word about how far the inputs are read."""
        size = round(rows * self.files.row_bytes)
        self.request.progress.at("scatter", (rows, self.files.rows), size)

    def scatter(self, tables: Iterable[Any], folder: Path, levels: list[int]) -> list[RowBucket]:
        """Pass 1: each row into the bucket of its key.

        Args:
            tables: rows, the last column being their numbers.
            folder: where buckets are made.
            levels: how many buckets on each level, the last ones being these.
        """
        pyarrow, _ = arrow()
        with told(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        size = levels[-1]
        buckets = [RowBucket(folder / f"{b:06d}.arrow") for b in range(size)]
        writers: dict[int, Any] = {}
        try:
            for table in tables:
                keys = philox_keys(numbers_of(table), self.seed)[:, 0]
                bucket = buckets_of(keys, np.array(levels, np.uint64)).astype(np.int64)
                order = as_arrow(np.argsort(bucket, kind="stable"))
                table = whole(table)
                taken = table.take(order)
                del table
                at = 0
                for b, rows in enumerate(np.bincount(bucket, minlength=size).tolist()):
                    if not rows:
                        continue
                    one, part = buckets[b], taken.slice(at, rows)
                    with told(str(one.path)):
                        if b not in writers:
                            writers[b] = pyarrow.ipc.new_stream(str(one.path), self.files.numbered)
                        writers[b].write_table(part)
                    one.rows, one.bytes, at = one.rows + rows, one.bytes + part.nbytes, at + rows
                    del part
                del taken, keys, bucket, order  # nothing is held while the next one is read
                pyarrow.default_memory_pool().release_unused()
        finally:
            for b, writer in writers.items():
                with told(str(buckets[b].path)):
                    writer.close()
        return buckets

    def in_order(self, buckets: list[RowBucket], levels: list[int]) -> None:
        """Pass 2: the buckets one behind the other; those too large are scattered again."""
        pyarrow = self.files.arrow
        for bucket in buckets:
            if not bucket.rows or self.to.rows == self.to.wanted:
                continue
            with told(str(bucket.path)), pyarrow.OSFile(str(bucket.path)) as file:
                stream = pyarrow.ipc.open_stream(file)
                fits = bucket.cost <= self.room or bucket.rows == 1
                if fits:
                    tables = [pyarrow.Table.from_batches(stream, schema=self.files.numbered)]
                else:
                    size = ceil(1.25 * bucket.cost / self.room)
                    again = [*levels, max(2, min(self.most, size))]
                    batches = (pyarrow.Table.from_batches([batch]) for batch in stream)
                    smaller = self.scatter(batches, bucket.path.with_suffix(".again"), again)
            if fits:
                if tables[0].num_rows != bucket.rows:
                    raise ValueError(f"{bucket.path}: is damaged, rows are missing")
                self.write(tables)
            else:
                self.in_order(smaller, again)
            bucket.path.unlink(missing_ok=True)

    def write(self, tables: list[Any]) -> None:
        """Rows of a bucket in the order of (k, t); empties the list."""
        if not tables:
            return
        pyarrow = self.files.arrow
        table = pyarrow.concat_tables(list(popped(tables)))
        keys = philox_keys(numbers_of(table), self.seed)
        table = whole(table.remove_column(table.num_columns - 1))
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        del keys
        self.to.add(table, order)
        del table, order
        pyarrow.default_memory_pool().release_unused()
        self.request.progress.at("write", (self.to.rows, self.to.wanted), self.to.bytes)


def popped(tables: list[Any]) -> Iterator[Any]:
    """The tables, each let go of once it is used."""
    while tables:
        yield tables.pop(0)


def plan_rows(request: Request) -> dict[str, Any]:
    """The fields of a `Plan`; bytes are those of decoded rows, estimated."""
    work = RowWork(request, RunFiles(request.tmp_dir))
    work.look()
    number = 1 if work.may_fit else request.buckets or min(work.most, work.wanted)
    levels = 0 if work.may_fit else 1 if work.wanted <= number else 2
    return {
        "inputs": len(request.paths),
        "bytes": work.size,
        "lines": work.files.rows,
        "in_memory": work.may_fit,
        "buckets": number,
        "levels": levels,
        "temporary_bytes": levels * work.temporary,
        "memory": request.memory.limit,
        "seconds": work.size * max(1, levels) / SPEED,
    }


@contextmanager
def frugal_memory() -> Iterator[None]:
    """Has Arrow give memory back at once, which its usual allocator keeps for later."""
    pyarrow, _ = arrow()
    usual = pyarrow.default_memory_pool()
    try:
        pyarrow.jemalloc_set_decay_ms(0)
        pool = pyarrow.jemalloc_memory_pool()
    except NotImplementedError:  # left out of this build of Arrow
        pool = pyarrow.system_memory_pool()
    pyarrow.set_memory_pool(pool)
    try:
        yield
    finally:
        pyarrow.set_memory_pool(usual)
