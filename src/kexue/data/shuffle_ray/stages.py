"""The stages of a shuffle on a cluster: count, scatter, merge."""

import math
import shutil
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kexue.data.shuffle.progress import Progress
from kexue.data.shuffle.request import Request
from kexue.data.shuffle.run_files import RunFiles
from kexue.data.shuffle_ray import tasks
from kexue.data.shuffle_ray.cluster import Cluster
from kexue.data.shuffle_ray.cost import BUCKET, RANGE
from kexue.data.shuffle_ray.pieces import PieceFiles
from kexue.data.shuffle_ray.ranges import cut
from kexue.data.shuffle_ray.settings import Bucket, Settings, Share

__all__ = ["Job", "Merging", "bucket_count", "counted", "groups", "passes", "scatter"]

LEAST_OBJECT = 1 << 20
LEAST_RANGE = 16 << 20
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Job:
    """A request, and what only this engine asks."""

    request: Request
    exchange: str
    range_bytes: int | None

    @property
    def pieces(self) -> Path:
        """The folder of the pieces and of the manifest."""
        return self.request.tmp_dir / f".kexue-shuffle-{self.mark}"

    @property
    def segments(self) -> Path:
        """The folder of what compressed outputs are put together from."""
        return Path(self.request.output).parent / f".kexue-segments-{self.mark}"

    @property
    def mark(self) -> str:
        """Of the request, in the names of its temporary files."""
        return f"{self.request.fingerprint}-ray"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps others from the same request, and leaves nothing but the outputs."""
        files, request = RunFiles(self.pieces), self.request
        if files.claim():
            request.warn(f"{self.pieces}: left by a killed run, removed")
        self.clean()
        memory = request.memory.limit
        files.begin(request.seed or 0, request.loops.name, memory, request.arguments)
        try:
            yield
        finally:
            self.clean()
            files.remove()

    def clean(self) -> None:
        """Removes temporary files."""
        for piece in self.pieces.glob("*.pieces*"):
            piece.unlink(missing_ok=True)
        shutil.rmtree(self.segments, ignore_errors=True)
        for kept in self.segments.parent.glob(f".*.{self.mark}*"):
            kept.unlink(missing_ok=True)


def counted(job: Job, cluster: Cluster, settings: Settings) -> tuple[list[Share], bytes]:
    """The shares of the scatter tasks, with the number of their first records."""
    request = job.request
    total = sum(Path(path).stat().st_size for path in request.paths)
    most = int(RANGE * settings.free)
    step = job.range_bytes or min(most, max(LEAST_RANGE, total // (4 * cluster.slots)))
    slices, header = cut(
        request.paths, request.delimiter, request.header, step, request.loops, request.warn
    )
    shares: list[Share] = [Share([])] * len(slices)
    calls = [partial(cluster.start, tasks.count, part, settings) for part in slices]
    done = size = 0
    request.progress.at("count", (0, len(calls)))
    for j, share, _ in cluster.each(calls):
        shares[j], done, size = share, done + 1, size + share.bytes
        request.progress.at("count", (done, len(calls)), size)
    first = 0
    for share in shares:
        share.first = first
        first += share.lines
    return [share for share in shares if share.runs], header


def bucket_count(
    shares: list[Share], settings: Settings, slots: int, size: int, store: float | int = math.inf
) -> int:
    r"""The fewest buckets whose mean and 8 standard deviations fit into a task.

    With objects, also so many that the pieces of one take a quarter of an object store at most.

    With c_i the cost of a record and C the room, Σc / K + 8 √(Σc² / K) ≤ C; with y = 1 / √K a
    quadratic, y = (−8 √Σc² + √(64 Σc² + 4 C Σc)) / (2 Σc).
    """
    cost, squares = sum(share.cost for share in shares), sum(share.squares for share in shares)
    if not cost:
        return 1
    room = BUCKET * settings.free
    y = (math.sqrt(64 * squares + 4 * room * cost) - 8 * math.sqrt(squares)) / (2 * cost)
    least = max(min(2 * slots, size // LEAST_RANGE), math.ceil(4 * cost / store), 1)
    return max(math.ceil(1 / y**2), least)


def passes(lines: int, size: int, settings: Settings) -> int:
    """How often the pieces of a bucket are read: once if it fits into a task."""
    cost = size + settings.memory.per_line * lines
    if cost <= 0.9 * settings.free or lines <= 1:
        return 1
    return math.ceil(cost / (0.1 * settings.free)) + 1  # beside a run that is read and copied


def groups(
    settings: Settings, size: int, shares: int, slots: int, store: float | int = math.inf
) -> list[int]:
    """Edges of the groups of buckets that one merge task takes.

    A bucket for each with files. With objects so few groups that an object has a megabyte, yet
    work for every slot, and no group beyond half of an object store.
    """
    number = settings.buckets
    most = number
    if store < math.inf:
        least = max(slots, math.ceil(2 * size / store))
        most = min(number, max(least, size // max(1, shares * LEAST_OBJECT)))
    return [number * j // most for j in range(most + 1)]


def scatter(
    job: Job, cluster: Cluster, settings: Settings, shares: list[Share], edges: list[int]
) -> tuple[Array, list[Any], int]:
    """Pieces on their way.

    Returns:
        Records, bytes and hash of every bucket, shape (3, K); the pieces of every group; and the
        peak memory.
    """
    sums, peak, done = np.zeros((3, settings.buckets), np.uint64), 0, 0
    total, width = sum(share.bytes for share in shares), len(edges) - 1
    files = [str(job.pieces / f"{j:08d}.pieces") for j in range(len(shares))]
    objects: list[list[Any]] = [[] for _ in shares]
    job.request.progress.at("scatter", (0, total))

    def call(j: int) -> list[Any]:
        if job.exchange == "shared":
            return cluster.start(tasks.scatter_to_file, shares[j], settings, files[j])
        results = width * len(shares[j].runs) + 1
        return cluster.start(tasks.scatter_to_objects, shares[j], settings, edges, results=results)

    for j, (found, more), references in cluster.each([partial(call, j) for j in range(len(files))]):
        sums, peak, done = sums + found, max(peak, more), done + shares[j].bytes
        objects[j] = references
        job.request.progress.at("scatter", (done, total))
    if job.exchange == "shared":
        runs = [(path, share.runs) for path, share in zip(files, shares, strict=True)]
        return sums, [cluster.ray.put(PieceFiles(runs, settings.buckets))] * width, peak
    return sums, [[one for row in objects for one in row[j::width]] for j in range(width)], peak


@dataclass
class Merging:
    """Merge tasks.

    Args:
        progress: is told.
        cluster: runs them.
        settings: of the run.
        pieces: of every group; given up once they are merged, so that Ray can free them.
        edges: of the groups.
        peak: the memory of all tasks so far.
    """

    progress: Progress
    cluster: Cluster
    settings: Settings
    pieces: list[Any]
    edges: list[int]
    peak: int = 0

    def run(self, stage: str, buckets: list[Bucket]) -> dict[int, list[int]]:
        """Sorts buckets and, in the stage "merge", writes them; bytes of the segments of each."""
        batches: dict[int, list[Bucket]] = {}
        for bucket in buckets:
            group = bisect_right(self.edges, bucket.number) - 1
            batches.setdefault(group, []).append(bucket)
        order, write = list(batches), stage == "merge"

        def call(group: int) -> list[Any]:
            pieces, rest = self.pieces[group], (batches[group], self.settings, write)
            if isinstance(pieces, list):
                return self.cluster.start(tasks.merge_group, self.edges[group], *rest, *pieces)
            return self.cluster.start(tasks.merge_group, pieces, *rest)

        sizes, done = dict[int, list[int]](), 0
        total = sum(bucket.bytes for bucket in buckets)
        calls = [partial(call, group) for group in order]
        self.progress.at(stage, (0, total))
        for j, (found, peak), _ in self.cluster.each(calls):
            for bucket, one in zip(batches[order[j]], found, strict=True):
                sizes[bucket.number], done = one, done + bucket.bytes
            if write:
                self.pieces[order[j]] = None
            self.peak = max(self.peak, peak)
            self.progress.at(stage, (done, total))
        return sizes
