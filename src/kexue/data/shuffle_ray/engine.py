r"""bojone/shuffle — 把几百 GB 的文本在有限内存里彻底打乱 — on a Ray cluster (S09)

The order of `kexue.data.shuffle`, made by many machines: the same keys and the same bytes, whatever
the number of nodes, tasks, ranges and buckets.

    (k_i, t_i) = Philox(seed, i), the output is the records in the order of (k, t)               (1)
    count      tasks cut the files into ranges of whole records and count them                   (2)
    number     range r begins with record Σ_{q<r} N_q, so that a task knows its keys             (3)
    scatter    tasks put the records of a range in the order of their buckets ⌊k K / 2^64⌋       (4)
    merge      tasks sort a bucket and write it at byte Σ_{c<b} S_c of the output                (5)

Pieces of buckets go from (4) to (5) as files on storage that every node sees ("shared") or as
objects of Ray's store ("objects"), which Ray moves between nodes and spills to their disks. With
several plain outputs, buckets in which an output begins are sorted twice, first to learn where
their last record goes. Compressed outputs are put together from a member per bucket.

A task that dies with its worker or node is run again. Errors of the data or the disk are not: they
end the run. Records, bytes and a hash of every bucket must agree between (4) and (5), or no output
gets its name. A run whose first process dies starts anew.

Cost: the input is read twice, pieces are written and read, the output is written: `cost.py`.
See also: `kexue.data.shuffle`, one machine, which reads the input once.
"""

import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kexue.data.shuffle import ShuffleReport
from kexue.data.shuffle.outputs import Outputs
from kexue.data.shuffle.parquet_files import holds_rows, is_parquet
from kexue.data.shuffle.part_names import older_parts
from kexue.data.shuffle.plan import check_space, parse_size
from kexue.data.shuffle.request import checked
from kexue.data.shuffle_ray.cluster import Cluster, connected
from kexue.data.shuffle_ray.cost import BASE
from kexue.data.shuffle_ray.layout import finish_plain, lay_members, lay_plain, put_together
from kexue.data.shuffle_ray.settings import Bucket, Settings
from kexue.data.shuffle_ray.stages import (
    Job,
    Merging,
    bucket_count,
    counted,
    groups,
    passes,
    scatter,
)

__all__ = ["shuffle_lines_ray"]


def shuffle_lines_ray(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    memory: str | int = "2GB",
    seed: int | None = None,
    exchange: str = "shared",
    tmp_dir: str | Path | None = None,
    lines_per_file: int | None = None,
    files: int | None = None,
    header: int = 0,
    delimiter: bytes = b"\n",
    sample: int | None = None,
    buckets: int | None = None,
    range_bytes: int | None = None,
    ray_address: str | None = None,
    num_cpus: float | int = 1,
    max_retries: int = 3,
    progress: bool = True,
    overwrite: bool = False,
    fsync: bool = False,
    warn: Callable[[str], None] | None = None,
) -> ShuffleReport:
    """Writes the records of the inputs in uniformly random order, on a Ray cluster.

    Args:
        inputs: files and patterns on storage that every node sees.
        output: a file there; compressed by its suffix.
        memory: what a task may hold, at least 330 MB; Ray is told, and starts no more tasks on a
            node than it has memory for.
        seed: of the order, below 2^64; None: drawn, and told in the report.
        exchange: "shared": pieces are files in `tmp_dir`, which every node must see; "objects":
            they are in Ray's object store.
        tmp_dir: for pieces; default the output's folder.
        lines_per_file: records of each of several outputs.
        files: how many outputs, equally long to within one record.
        header: lines at the head of every input that are no records.
        delimiter: ends a record.
        sample: write this many records only.
        buckets: overrides the number that follows from the memory.
        range_bytes: what a scatter task reads; default: what its memory holds.
        ray_address: of a cluster, "auto" for that of this machine. None: the one this process is
            connected to, or else Ray is started here and stopped again.
        num_cpus: of each task.
        max_retries: how often a task is run again whose worker or node died.
        progress: show it on standard error.
        overwrite: replace outputs that exist.
        fsync: ask the disks to keep the outputs before they get their names.
        warn: receives remarks for people; default: standard error.

    Returns:
        The report; its `peak_memory` is the most that a process of a task held.

    Raises:
        ImportError: Ray is not installed.
        ValueError: an argument out of range, a record that is too long, a damaged input or piece.
        OSError: a file that cannot be read or written; a task that died too often.
    """
    began = time.perf_counter()
    for name, value, least in (
        ("range_bytes", range_bytes, 1),
        ("num_cpus", num_cpus, 0.01),
        ("max_retries", max_retries, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if exchange not in ("shared", "objects"):
        raise ValueError(f"exchange must be 'shared' or 'objects', got {exchange!r}")
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if "-" in map(str, (*given, output)):
        raise ValueError(
            "Ray's tasks do not see standard input or output (-); name files that every node "
            "sees, or use the local engine"
        )
    request = checked(
        given,
        output,
        memory=1 << 62,  # this process holds no records; its tasks do
        seed=seed,
        threads=1,
        tmp_dir=tmp_dir,
        lines_per_file=lines_per_file,
        files=files,
        header=header,
        delimiter=delimiter,
        sample=sample,
        buckets=buckets,
        progress=progress,
        overwrite=overwrite,
        resume=False,
        fsync=fsync,
        warn=warn,
    )
    for path in map(Path, request.paths):
        if not path.is_file():
            raise ValueError(f"{path}: is no regular file, and would be read by several tasks")
        if is_parquet(str(path)):
            raise ValueError(f"{path}: holds Parquet rows; use the local engine for them")
    holds_rows(request.paths, request.output)  # lines are not called .parquet
    request.paths = [str(Path(path).absolute()) for path in request.paths]
    request.output = str(Path(request.output).absolute())  # where it points to, if it is a link
    request.tmp_dir = request.tmp_dir.absolute()
    request.memory = replace(request.memory, limit=parse_size(memory), base=BASE)
    request.seed = secrets.randbits(64) if seed is None else seed
    job = Job(request, exchange, range_bytes)
    with connected(ray_address) as ray, job.alone():
        try:
            cluster = Cluster(ray, request.memory.limit, num_cpus, max_retries)
            report = run(job, cluster)
        finally:
            request.progress.end()
    return replace(report, seconds=time.perf_counter() - began)


def run(job: Job, cluster: Cluster) -> ShuffleReport:
    """Count, scatter, merge, check, rename."""
    request, folder = job.request, Path(job.request.output).parent
    cluster.same_everywhere(request.paths, [str(job.pieces), str(folder)])
    settings = Settings(
        delimiter=request.delimiter,
        header=request.header,
        seed=request.seed or 0,
        engine=request.loops.name,
        memory=request.memory,
        fsync=request.fsync,
    )
    shares, header = counted(job, cluster, settings)
    lines, size = sum(share.lines for share in shares), sum(share.bytes for share in shares)
    store = cluster.store if job.exchange == "objects" else math.inf
    outputs = Outputs(
        request.output, header, request.limits(lines), fsync=request.fsync, partial=job.mark
    )
    settings = replace(
        settings,
        buckets=request.buckets or bucket_count(shares, settings, cluster.slots, size, store),
        longest=max((share.longest for share in shares), default=0),
        kind=outputs.kind,
    )
    check_disks(job, size + 8 * lines, size, outputs.kind)
    edges = groups(settings, size, len(shares), cluster.slots, store)
    sums, pieces, held = scatter(job, cluster, settings, shares, edges)
    if (int(sums[0].sum()), int(sums[1].sum())) != (lines, size):
        raise ValueError(f"{int(sums[0].sum())} of {lines} records were scattered; please report")
    buckets = [
        Bucket(b, found, taken, total, passes=passes(found, taken, settings))
        for b, (found, taken, total) in enumerate(sums.T.tolist())
    ]
    wanted = lines if request.sample is None else min(lines, request.sample)
    limits = [wanted if limit is None else limit for limit in outputs.limits]
    merging = Merging(request.progress, cluster, settings, pieces, edges)
    if outputs.kind:
        job.segments.mkdir()
        lay_members(buckets, limits, str(job.segments))
    else:
        lay_plain(buckets, limits, outputs, merging)
    written = merging.run("merge", [bucket for bucket in buckets if bucket.segments])
    if outputs.kind:
        put_together(cluster, buckets, outputs, settings)
    else:
        finish_plain(buckets, written, outputs)
    if request.several and request.overwrite:
        for name in set(older_parts(request.output)) - set(outputs.names):
            Path(name).unlink()
    outputs.publish()
    return ShuffleReport(
        lines=wanted,
        bytes=sum(map(sum, written.values())),
        seed=settings.seed,
        buckets=settings.buckets,
        seconds=0.0,
        peak_memory=max(held, merging.peak, *(share.peak for share in shares), 0),
        outputs=tuple(outputs.names),
    )


def check_disks(job: Job, pieces: int, output: int, kind: str) -> None:
    """Refuses to begin what the disks cannot hold; a compressed output is not foreseen."""
    places = [(job.pieces, pieces)] if job.exchange == "shared" else []
    places += [] if kind else [(Path(job.request.output).parent, output)]
    if len(places) == 2 and places[0][0].stat().st_dev == places[1][0].stat().st_dev:
        places = [(job.pieces, pieces + output)]
    for place, needed in places:
        check_space(place, round(1.01 * needed), "pieces and output")
