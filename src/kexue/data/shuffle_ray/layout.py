"""Which records of which bucket go where in the outputs."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from kexue.data.shuffle.outputs import Outputs, told
from kexue.data.shuffle_ray import tasks
from kexue.data.shuffle_ray.cluster import Cluster
from kexue.data.shuffle_ray.settings import Bucket, Settings
from kexue.data.shuffle_ray.stages import Merging

__all__ = ["finish_plain", "lay_members", "lay_plain", "put_together"]


def lay(buckets: list[Bucket], limits: list[int]) -> Iterator[tuple[Bucket, int, int]]:
    """Which records of which bucket go to which part: bucket, part, records; in order."""
    part, room = 0, limits[0]
    for bucket in buckets:
        left = bucket.lines
        while left:
            while not room and part + 1 < len(limits):
                part += 1
                room = limits[part]
            if not room:  # a sample ends here
                return
            taken = min(left, room)
            yield bucket, part, taken
            left, room = left - taken, room - taken


def lay_members(buckets: list[Bucket], limits: list[int], folder: str) -> None:
    """Every segment a compressed file of its own."""
    for bucket, part, lines in lay(buckets, limits):
        path = f"{folder}/{part:08d}-{bucket.number:08d}"
        bucket.segments.append((path, -1, lines))


def lay_plain(buckets: list[Bucket], limits: list[int], outputs: Outputs, merging: Merging) -> None:
    """Every segment a place in a file: behind the bytes of those before it in the same part.

    How many bytes of a bucket belong to the part that begins in it, only sorting tells.
    """
    parts = [outputs.temporary[part] for part in range(len(limits))]
    for bucket, part, lines in lay(buckets, limits):
        bucket.segments.append((parts[part], 0, lines))
    used = [bucket for bucket in buckets if bucket.segments]
    cut_up = merging.run("measure", [bucket for bucket in used[:-1] if len(bucket.segments) > 1])
    ends = dict.fromkeys(parts, len(outputs.header))
    for bucket in used:
        sizes = cut_up.get(bucket.number, [bucket.bytes] * len(bucket.segments))
        for j, (path, _, lines) in enumerate(bucket.segments):
            bucket.segments[j] = path, ends[path], lines
            ends[path] += sizes[j]
    for path, end in ends.items():
        with told(path):
            Path(path).write_bytes(outputs.header)
            os.truncate(path, end)  # at once, so that no node believes that it ends earlier


def finish_plain(buckets: list[Bucket], written: dict[int, list[int]], outputs: Outputs) -> None:
    """Cuts the files to what was written: a last bucket may have been laid too long.

    Raises:
        ValueError: there is a gap between two segments.
    """
    parts = [outputs.temporary[part] for part in range(len(outputs.limits))]
    ends = dict.fromkeys(parts, len(outputs.header))
    for bucket in buckets:
        sizes = written.get(bucket.number, [])
        for (path, offset, _), size in zip(bucket.segments, sizes, strict=True):
            if offset != ends[path]:
                raise ValueError(f"{path}: a segment is not where it belongs; please report")
            ends[path] += size
    for path, end in ends.items():
        if Path(path).stat().st_size < end:
            raise ValueError(f"{path}: is shorter than what was written to it")
        with told(path), Path(path).open("rb+") as file:
            file.truncate(end)
            if outputs.fsync:  # the tasks did, before the file got its header and its end
                os.fsync(file.fileno())


def put_together(
    cluster: Cluster, buckets: list[Bucket], outputs: Outputs, settings: Settings
) -> None:
    """Compressed outputs from their members; one that is a single member is renamed."""
    members: list[list[str]] = [[] for _ in outputs.limits]
    for bucket in buckets:
        for path, _, _ in bucket.segments:
            members[int(Path(path).name[:8])].append(path)
    calls = []
    for part, paths in enumerate(members):
        target = outputs.temporary[part]
        if len(paths) == 1 and not outputs.header:
            Path(paths[0]).replace(target)
            continue
        calls.append(
            partial(cluster.start, tasks.concatenate, target, outputs.header, paths, settings)
        )
    for _ in cluster.each(calls):
        pass
