"""What the tasks of a run agree on, and what they tell one another."""

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kexue.data.shuffle.arrow_loops import ArrowLoops
from kexue.data.shuffle.loops import CompiledLoops, Loops
from kexue.data.shuffle.plan import Memory
from kexue.data.shuffle_ray.ranges import Slice

__all__ = [
    "Bucket",
    "Settings",
    "Share",
]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Settings:
    """What all tasks of a run agree on."""

    delimiter: bytes
    header: int
    seed: int
    engine: str
    memory: Memory
    buckets: int = 0
    longest: int = 0
    kind: str = ""
    fsync: bool = False

    @property
    def free(self) -> int:
        """Bytes of a task for data."""
        return self.memory.free

    def loops(self) -> Loops:
        """The same on all nodes, because hashes are compared."""
        if self.engine == ArrowLoops.name:
            return ArrowLoops()
        try:
            return CompiledLoops()
        except TypeError:
            raise ValueError(
                f"node {os.uname().nodename} has no C compiler and the node that began has one; "
                "install it, or set KEXUE_NATIVE=0 on all of them"
            ) from None


@dataclass
class Share:
    """What one scatter task reads.

    Args:
        slices: with their true borders.
        runs: bytes and records of what is scattered at once.
        longest: bytes of a record.
        cost: sum of c_i, the bytes of a record in a bucket with what belongs to it.
        squares: sum of c_i².
        first: number of the first record.
        peak: memory of the task's process.
    """

    slices: list[Slice]
    runs: list[tuple[int, int]] = field(default_factory=list)
    longest: int = 0
    cost: float = 0.0
    squares: float = 0.0
    first: int = 0
    peak: int = 0

    @property
    def bytes(self) -> int:
        """Of all records."""
        return sum(size for size, _ in self.runs)

    @property
    def lines(self) -> int:
        """How many records."""
        return sum(lines for _, lines in self.runs)


@dataclass
class Bucket:
    """A bucket to be merged.

    Args:
        number: of the bucket.
        lines: records.
        bytes: of them.
        hash: sum of theirs.
        segments: (path, offset, records) of what goes where, in order.
        passes: how often its pieces are read; more than once if it does not fit.
    """

    number: int
    lines: int
    bytes: int
    hash: int
    segments: list[tuple[str, int, int]] = field(default_factory=list)
    passes: int = 1
