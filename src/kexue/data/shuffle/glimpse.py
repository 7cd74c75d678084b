"""What a shuffle will do, judged by the first megabytes of its input."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kexue.data.shuffle.held import room_of
from kexue.data.shuffle.loops import Array
from kexue.data.shuffle.parquet import holds_rows, plan_rows
from kexue.data.shuffle.plan import Memory, buckets_for, open_files
from kexue.data.shuffle.request import Request, checked

__all__ = ["Plan", "bucket_count", "first_lengths", "glimpse", "plan_shuffle"]

SPEED = 400e6
"""Bytes per second through both passes, on cached files and two cores."""
GLIMPSE = 4 << 20


def glimpse(request: Request) -> Array:
    """The first bytes of the input; none of a stream, which could not be read again."""
    head = np.empty(GLIMPSE, np.uint8)
    if "-" in request.paths or not all(map(os.path.isfile, request.paths)):
        return head[:0]
    with request.inputs(quiet=True) as inputs:
        return head[: inputs.readinto(head.data)]


def first_lengths(request: Request, head: Array) -> Array:
    """Lengths of the first records."""
    lengths = np.empty(1 << 18, np.uint32)
    lines, _ = request.loops.scan(head[:GLIMPSE], request.delimiter, lengths)
    return lengths[:lines]


def bucket_count(
    memory: Memory,
    size: int | None,
    sampled: Array,
    given: int,
    progress: tuple[int, int] | None,
) -> int:
    """How many buckets an input will need.

    Args:
        memory: the limit.
        size: bytes of the input, None if unknown.
        sampled: lengths of some records.
        given: bytes that were read, after decompression.
        progress: bytes of the files that were read, and of all.
    """
    if size is None:
        if progress is None or not progress[0]:
            return memory.block >> 16
        size = round(1.05 * given * max(1.0, progress[1] / progress[0]))
    if not len(sampled):
        return max(1, math.ceil(size / memory.bucket))
    costs = sampled.astype(np.float64) + memory.per_line
    lines = size / max(1.0, float(sampled.mean()))
    cost, squares = lines * float(costs.mean()), lines * float((costs**2).mean())
    return buckets_for(memory, 1.02 * cost, 1.5 * squares)


@dataclass(frozen=True)
class Plan:
    """What a run will do, as far as it is known before it begins.

    Args:
        inputs: how many files.
        bytes: of all records; None where only reading tells (compressed, standard input).
        lines: estimated from the first records.
        in_memory: no temporary files.
        buckets: on the first level; 1 in memory.
        levels: how often a record is written before the output.
        temporary_bytes: on the disk of `tmp_dir`.
        memory: the limit.
        seconds: estimated from the speed of this program on cached files; a disk may be slower.
    """

    inputs: int
    bytes: int | None
    lines: int | None
    in_memory: bool
    buckets: int
    levels: int
    temporary_bytes: int | None
    memory: int
    seconds: float | None


def plan_shuffle(
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
    overwrite: bool = False,
    warn: Callable[[str], None] | None = None,
) -> Plan:
    """What `shuffle_lines` with these arguments would do; nothing is written.

    Raises:
        ValueError: as `shuffle_lines`.
        OSError: as `shuffle_lines`.
    """
    request = checked(**locals(), progress=False, resume=False, fsync=False)
    if holds_rows(request.paths, request.output, delimiter=delimiter, header=header):
        return Plan(**plan_rows(request))
    head = glimpse(request)
    sampled = first_lengths(request, head)
    mean = float(sampled.mean()) if len(sampled) else 0.0
    with request.inputs(quiet=True) as stream:
        size = stream.size()
        room = np.empty(GLIMPSE, np.uint8)
        if len(head):
            stream.readinto(room.data)
        lines = None if size is None or not mean else round(size / mean)
        cost = None if size is None else size + request.memory.per_line * (lines or 0)
        held = cost is not None and cost <= room_of(request) and buckets in (None, 1)
        wanted = bucket_count(request.memory, size, sampled, stream.given, stream.progress())
    most = max(2, min(request.memory.block >> 16, open_files()))
    number = 1 if held else buckets or max(2, min(wanted, most))
    levels = 0 if held else 1 if wanted <= number else 2
    temporary = None if size is None else levels * (size + 8 * (lines or 0))
    return Plan(
        inputs=len(request.paths),
        bytes=size,
        lines=lines,
        in_memory=held,
        buckets=number,
        levels=levels,
        temporary_bytes=0 if held else temporary,
        memory=request.memory.limit,
        seconds=None if size is None else size * max(1, levels) / SPEED,
    )
