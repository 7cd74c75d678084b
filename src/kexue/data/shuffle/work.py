"""One run: everything in memory, or the two passes; from the beginning, or behind a killed run."""

import errno
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kexue.data.shuffle.blocks import Blocks, Scatter
from kexue.data.shuffle.buckets import Bucket, BucketFiles
from kexue.data.shuffle.glimpse import bucket_count, first_lengths, glimpse
from kexue.data.shuffle.held import Held, hold, may_fit, spill
from kexue.data.shuffle.inputs import Inputs
from kexue.data.shuffle.killed import refuse
from kexue.data.shuffle.order import Order, Sorting
from kexue.data.shuffle.outputs import Outputs, older_parts
from kexue.data.shuffle.plan import check_space, megabytes, open_files
from kexue.data.shuffle.request import Request
from kexue.data.shuffle.run_files import NOTHING, Progressed, RunFiles

__all__ = ["Work"]


class Work:
    """One run.

    Args:
        request: what is asked.
        run: its folder.
    """

    def __init__(self, request: Request, run: RunFiles) -> None:
        self.request, self.run = request, run
        self.seed = secrets.randbits(64) if request.seed is None else request.seed
        self.lines = self.bytes = 0
        self.parts = 1
        self.names: tuple[str, ...] = ()

    def anew(self, pool: Executor | None) -> None:
        """From the beginning."""
        request, held = self.request, None
        with request.inputs() as inputs:
            if request.buckets in (None, 1) and may_fit(request, inputs.size()):
                held = hold(request, inputs, self.seed)
                if held.whole:
                    self.write_held(inputs.header or b"", held, pool)
                    return
            buckets = self.scatter(inputs, held, pool)
            header = inputs.header or b""
        self.write_buckets(buckets, header, pool)

    def write_held(self, header: bytes, held: Held, pool: Executor | None) -> None:
        """(2), in memory."""
        request = self.request
        request.loops.sort(held.entries)
        outputs = self.outputs(header, held.lines)
        if not request.stdout and not outputs.kind and request.sample is None:
            check_space(Path(outputs.temporary[0]).absolute().parent, held.used, "the output")
        order = self.order(outputs, pool)
        with self.told(lambda: held.used - order.bytes), order:
            order.add(held.data, held.entries)
            self.complete(outputs, order, held.lines)

    def scatter(self, inputs: Inputs, held: Held | None, pool: Executor | None) -> list[Bucket]:
        """(3), for what is in memory already and the rest of the input."""
        request, memory, size = self.request, self.request.memory, inputs.size()
        self.run.claim()
        seen = {**request.arguments, "seen": request.seen}
        self.run.begin(self.seed, request.loops.name, memory.limit, seen)
        if size is not None:
            check_space(self.run.path, round(1.02 * size), "temporary files")
        pending: Future[None] | None = None

        def settle() -> None:
            nonlocal pending
            if pending is not None:
                done, pending = pending, None
                done.result()

        sampled = first_lengths(request, glimpse(request) if held is None else held.data)
        wanted = bucket_count(memory, size, sampled, inputs.given, inputs.progress())
        files = open_files()
        number = request.buckets or max(2, min(wanted, memory.block >> 16, files))
        bucket_files = BucketFiles(self.run.path / "buckets", number, files)
        scatter = Scatter(bucket_files, [number], self.seed, memory, request.loops)
        left = lambda: (inputs.size() or inputs.given) - written(bucket_files)  # noqa: E731
        with self.told(left), bucket_files, waited(settle):
            rest, lines = None, 0
            if held is not None:
                rest, lines = spill(request, inputs, held, scatter)
            blocks = Blocks(
                inputs,
                memory,
                request.delimiter,
                request.loops,
                before=rest,
                lines=lines,
                settle=settle,
            )
            while (batch := blocks.read()) is not None:
                settle()
                if pool is None:
                    scatter.add(batch.block, batch.lengths, batch.first)
                else:
                    pending = pool.submit(scatter.add, batch.block, batch.lengths, batch.first)
                request.progress.at("scatter", inputs.progress(), inputs.given)
            settle()
            bucket_files.close()
        self.run.scattered(bucket_files.buckets, inputs.header or b"")
        return bucket_files.buckets

    def write_buckets(
        self,
        buckets: list[Bucket],
        header: bytes,
        pool: Executor | None,
        after: Progressed = NOTHING,
    ) -> None:
        """(4), from the beginning or behind the last bucket of a killed run."""
        request, run = self.request, self.run
        lines, size = sum(one.lines for one in buckets), sum(one.bytes for one in buckets)
        self.parts = len(buckets)
        outputs = self.outputs(header, lines)
        order = self.order(outputs, pool)
        first, order.written, order.bytes, mark = after
        if first:
            outputs.go_back(mark)
        elif not request.stdout and request.sample is None and not outputs.kind:
            folder = Path(outputs.temporary[0]).absolute().parent
            same = folder.stat().st_dev == run.path.stat().st_dev
            # on one disk the buckets make room as they go
            needed = 2 * max((one.bytes for one in buckets), default=0) if same else size
            check_space(folder, round(1.01 * needed), "the output")

        def done(bucket: int) -> None:
            if not request.stdout:
                run.done(bucket, order.written, order.bytes, outputs.mark())
            request.progress.at("write", (order.bytes, size))

        sorting = Sorting(
            seed=self.seed,
            delimiter=request.delimiter,
            memory=request.memory,
            open_files=open_files(),
            loops=request.loops,
            order=order,
            pool=pool,
        )
        with self.told(lambda: size - order.bytes), order:
            sorting.buckets(run.path / "buckets", buckets, [len(buckets)], first, done)
            self.complete(outputs, order, lines)

    def go_on(self, state: dict[str, Any], pool: Executor | None) -> None:
        """The rest of a run that was killed while it wrote.

        Raises:
            ValueError: its files are no longer what they were.
        """
        after = self.run.progressed()
        buckets = self.run.take_over()
        self.seed = int(state["seed"])
        header = bytes.fromhex(state["header"])
        if state["stage"] == "write":
            self.request.warn(f"resuming behind bucket {after[0]} of {len(buckets)}")
            self.write_buckets(buckets, header, pool, after)
            return
        self.request.warn("resuming: the outputs get their names")
        self.parts, self.lines, self.bytes = len(buckets), after[1], after[2]
        outputs = self.request.outputs(header, sum(one.lines for one in buckets))
        outputs.publish()
        self.names = outputs.names

    def outputs(self, header: bytes, lines: int) -> Outputs:
        """The outputs; their names are known only now."""
        outputs = self.request.outputs(header, lines)
        if not self.request.overwrite and not outputs.stdout:
            refuse(outputs.names)
        return outputs

    def order(self, outputs: Outputs, pool: Executor | None) -> Order:
        """What writes records."""
        request = self.request
        return Order(
            outputs, request.memory, request.delimiter, request.loops, pool, request.sample
        )

    def complete(self, outputs: Outputs, order: Order, lines: int) -> None:
        """Checks the count, closes the outputs and gives them their names."""
        request = self.request
        wanted = lines if request.sample is None else min(lines, request.sample)
        if order.written != wanted:
            raise ValueError(f"{order.written} records were written instead of {wanted}")
        outputs.finish()
        if self.run.state:
            self.run.published()
        if request.several and request.overwrite:
            for name in set(older_parts(request.output)) - set(outputs.names):
                Path(name).unlink()
        outputs.publish()
        self.lines, self.bytes = order.written, order.bytes
        self.names = outputs.names

    @contextmanager
    def told(self, left: Callable[[], int]) -> Iterator[None]:
        """Says of a full disk how much is missing."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            missing = f"{error.strerror}; {megabytes(max(left(), 1))} are still to be written"
            raise OSError(error.errno, missing) from None


@contextmanager
def waited(settle: Callable[[], None]) -> Iterator[None]:
    """Behind an error, the other thread comes to its end before files are closed."""
    try:
        yield
    finally:
        with suppress(Exception):
            settle()


def written(files: BucketFiles) -> int:
    """Bytes in buckets."""
    return sum(one.bytes for one in files.buckets)
