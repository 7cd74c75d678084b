r"""bojone/shuffle — 把几百 GB 的文本在有限内存里彻底打乱 — records in uniformly random order (S09)

Put the records of files far larger than memory into an order that is exactly uniform, depends on
the seed and the input alone, and needs a fixed amount of memory.

    record i gets the key (k_i, t_i), two 64-bit words of a counter-based generator             (1)
    the output is the records in the order of (k, t)                                            (2)

Independent uniform keys make every order equally likely. Sorting by them in bounded memory:

    pass 1   record i goes to bucket ⌊k_i K / 2^64⌋, an interval of keys, on disk               (3)
    pass 2   each bucket is read, sorted by (k, t) and written, bucket behind bucket            (4)

If everything fits into memory there is one pass and no temporary file: the same keys, the same
output. The keys do not know about memory, threads, blocks or files, so nor does the output.

Cost: the input is read once, written and read once more in buckets (8 bytes per record more), and
the output written. Memory: `plan.py`. Ties of k have probability about n² / 2^65, and t breaks
them; ties of both 3e-39 n².
Source: article 8662; scatter shuffles, Rao 1961 and Sandelius 1962; Salmon et al. 2011. The
article's own two stages give a fixed share of all orders: two chunks of two lines, 16 of 24.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kexue.data.shuffle.killed import prepared
from kexue.data.shuffle.parquet import RowWork, holds_rows
from kexue.data.shuffle.plan import peak_resident
from kexue.data.shuffle.request import checked
from kexue.data.shuffle.run_files import RunFiles
from kexue.data.shuffle.work import Work

__all__ = ["ShuffleReport", "shuffle_lines"]


@dataclass(frozen=True)
class ShuffleReport:
    """What a shuffle did.

    Args:
        lines: records written.
        bytes: their bytes, delimiters included, before compression.
        seed: of the order.
        buckets: on the first level; 1: everything was held in memory.
        seconds: of the whole run.
        peak_memory: bytes, of the process.
        outputs: the files.
    """

    lines: int
    bytes: int
    seed: int
    buckets: int
    seconds: float
    peak_memory: int
    outputs: tuple[str, ...] = ()


def shuffle_lines(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    memory: str | int | None = None,
    seed: int | None = None,
    threads: int | None = None,
    tmp_dir: str | Path | None = None,
    lines_per_file: int | None = None,
    files: int | None = None,
    header: int = 0,
    delimiter: bytes = b"\n",
    sample: int | None = None,
    buckets: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
    resume: bool = False,
    fsync: bool = False,
    warn: Callable[[str], None] | None = None,
) -> ShuffleReport:
    """Writes the records of the inputs in uniformly random order.

    Args:
        inputs: files, patterns, or "-" for standard input; .gz, .zst, .xz, .bz2 by their content.
        output: a file, or "-" for standard output; compressed by its suffix.
        memory: what the whole process may hold, at least 128 MB. Default: 2 GB, and in a process
            that holds much already 1 GB for the shuffle beside that.
        seed: of the order, below 2^64; None: drawn, and told in the report.
        threads: 1 works alone; more scatter, load and write beside the main thread. Default: the
            cores, at most 4.
        tmp_dir: where buckets go; default the output's folder.
        lines_per_file: records of each of several outputs, `name-00000.txt`, …
        files: how many outputs, equally long to within one record.
        header: lines at the head of every input that are no records; the first file's go to the
            head of every output.
        delimiter: ends a record; `b"\\0"` for NUL.
        sample: write this many records only, a uniform sample.
        buckets: overrides the number that follows from the memory.
        progress: show it on standard error.
        overwrite: replace outputs that exist.
        resume: go on with a run that was killed.
        fsync: ask the disk to keep the outputs before they get their names.
        warn: receives remarks for people; default: standard error.

    Raises:
        ValueError: an argument out of range, a record that is too long, a damaged input.
        OSError: a file that cannot be read or written, a disk that is full or too small.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "in.txt").write_text("a\\nb\\nc\\nd")
        >>> report = shuffle_lines(folder / "in.txt", folder / "out.txt", seed=7, progress=False)
        >>> report.lines, sorted((folder / "out.txt").read_text().split())
        (4, ['a', 'b', 'c', 'd'])
    """
    given = locals()
    began = time.perf_counter()
    request = checked(**given)
    rows = holds_rows(
        request.paths, request.output, delimiter=request.delimiter, header=request.header
    )
    run = RunFiles(request.tmp_dir / f".kexue-shuffle-{request.fingerprint}")
    try:
        state = None if request.stdout else prepared(run, request)
        work = RowWork(request, run) if rows else Work(request, run)
        with workers(request.threads) as pool:
            work.anew(pool) if state is None else work.go_on(state, pool)
    except BaseException:
        if run.lock is not None:  # ours
            for leftover in request.leftovers():
                leftover.unlink(missing_ok=True)
        raise
    finally:
        if run.lock is not None:
            run.remove()
        request.progress.end()
    return ShuffleReport(
        lines=work.lines,
        bytes=work.bytes,
        seed=work.seed,
        buckets=work.parts,
        seconds=time.perf_counter() - began,
        peak_memory=peak_resident(),
        outputs=work.names,
    )


@contextmanager
def workers(threads: int) -> Iterator[Executor | None]:
    """A pool that scatters, loads and writes, or None to work alone."""
    if threads == 1:
        yield None
        return
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield pool
