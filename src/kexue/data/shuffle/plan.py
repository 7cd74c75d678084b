"""How a shuffle divides its memory, how many buckets that makes, and whether disks suffice.

`memory` bounds the resident memory of the whole process: what it holds before it begins (the base),
a slack for threads and small things, coders, and what is left for data, `free`. A record has at
most L = limit / 4 bytes, and there is one such record in memory at a time.

    pass 1   two blocks of B bytes read, one written, lengths (4), buckets (4) and numbers (8) of
             B / 16 records, and a long record:            B = (free − L) / 5                   (1)
    pass 2   two buckets, each its bytes and 40 per record, and slices of output:
             C = (free − slices) / 2                                                           (2)
    buckets  the fewest K with  mean + 8 sd ≤ C,  where records of b_i bytes cost c_i = b_i + 40:
             mean = Σ c_i / K,  sd = sqrt(Σ c_i² / K)                                          (3)

Without a compiler 5 and 40 are 12 and 80 (`arrow_loops.py`).
"""

import math
import mmap
import os
import re
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = [
    "LEAST_MEMORY",
    "Arena",
    "Memory",
    "buckets_for",
    "check_space",
    "megabytes",
    "open_files",
    "parse_size",
    "peak_resident",
    "resident",
    "usual_limit",
]

LEAST_MEMORY = 128_000_000
SLACK = 20_000_000
LEAST_FREE = 10_000_000
"""Beside the longest record."""
PAGE = mmap.PAGESIZE
LEAST_RUN = 1 << 16
UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {f"{unit}B": size for unit, size in UNITS.items() if unit in "KMGT" and unit}
UNITS |= {f"{unit}IB": 1024**power for power, unit in enumerate("KMGT", start=1)}


def parse_size(text: str | int) -> int:
    """A size such as "2GB", "512MiB" or a number of bytes.

    Raises:
        ValueError: it is none.

    Example:
        >>> parse_size("2GB"), parse_size("1.5 MiB"), parse_size(4096)
        (2000000000, 1572864, 4096)
    """
    if isinstance(text, int):
        return text
    number = text.strip().upper().rstrip("BIKMGT ")
    unit = text.strip().upper()[len(number) :].strip()
    try:
        size = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        raise ValueError(f"a size such as 2GB, 512MiB or 4096 is needed, got {text!r}") from None
    if not 0 < size < math.inf:
        raise ValueError(f"a size must be positive, got {text!r}")
    return int(size)


def usual_limit(held: int) -> int:
    """The memory limit where none is given: 2 GB, and 1 GB of data beside what is `held`.

    Example:
        >>> usual_limit(60_000_000), usual_limit(1_500_000_000)
        (2000000000, 3360000000)
    """
    return max(2 * 10**9, (held + SLACK + 10**9) * 4 // 3)


def resident() -> int:
    """Bytes of memory that this process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_resident() -> int:
    """Bytes of memory that this process has held at most.

    The kernel's own mark: what `getrusage` says may be that of the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        status = ""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.M)
    if found is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(found[1]) * 1024


@dataclass(frozen=True)
class Memory:
    """A memory limit, divided.

    Args:
        limit: bytes that the process may hold.
        base: bytes that it holds before it begins.
        coders: bytes that compressors and decompressors need.
        per_line: bytes per record of a bucket, beside its own.
        blocks: memory of pass 1, in blocks.
    """

    limit: int
    base: int
    coders: int = 0
    per_line: int = 40
    blocks: int = 5

    def __post_init__(self) -> None:
        least = max(LEAST_MEMORY, round((self.base + self.coders + SLACK + LEAST_FREE) * 4 / 3))
        if self.limit < least:
            raise ValueError(
                f"memory must be at least {megabytes(least)} here (this process holds "
                f"{megabytes(self.base)} before it begins), got {megabytes(self.limit)}"
            )

    @property
    def free(self) -> int:
        """For data."""
        return self.limit - self.base - self.coders - SLACK

    @property
    def longest(self) -> int:
        """A record may have this many bytes."""
        return min(self.limit // 4, (1 << 32) - 1)

    @property
    def block(self) -> int:
        """B of (1)."""
        return min(64 << 20, (self.free - self.limit // 4) // self.blocks)

    @property
    def most_lines(self) -> int:
        """Records of a block."""
        return self.block // 16

    @property
    def slice(self) -> int:
        """Bytes written to the output at once; three of these exist."""
        return min(4 << 20, self.free // 24)

    @property
    def bucket(self) -> int:
        """C of (2)."""
        return (self.free - 3 * self.slice) // 2 >> 12 << 12


class Arena:
    """Memory that is used again and again, so that the system has to clear it only once.

    Args:
        size: bytes; those never written to take no memory.
        huge: in pages of 2 MB: faster to use, but slow to find where much memory is asked for.
    """

    def __init__(self, size: int, huge: bool = False) -> None:
        self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if huge and hasattr(mmap, "MADV_HUGEPAGE"):
            self.map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = np.frombuffer(self.map, np.uint8)

    def drop(self, start: int = 0, stop: int | None = None) -> None:
        """Gives the memory of whole pages back; what stood there is lost."""
        first, last = -(-start // PAGE), (len(self.bytes) if stop is None else stop) // PAGE
        if first < last:
            self.map.madvise(mmap.MADV_DONTNEED, first * PAGE, (last - first) * PAGE)


def buckets_for(memory: Memory, cost: float | int, squares: float | int) -> int:
    """The fewest buckets whose mean and 8 standard deviations fit: (3).

    Args:
        memory: the limit.
        cost: sum of c_i.
        squares: sum of c_i².

    Example:
        >>> buckets_for(Memory(256_000_000, 40_000_000), 1.07e9, 1.07e9 * 613)
        12
    """
    number = max(1, math.ceil(cost / memory.bucket))
    while cost / number + 8 * math.sqrt(squares / number) > memory.bucket:
        wanted = math.ceil(number * 1.02)
        if number > 1 << 30:
            break
        number = max(number + 1, wanted)
    return number


def open_files() -> int:
    """How many files a run may have open: three quarters of what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):
            pass
    if soft == resource.RLIM_INFINITY:
        return 1 << 20
    return max(1, soft * 3 // 4 - 16)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuses to begin what the disk cannot hold.

    Raises:
        OSError: too little space; the message says how much is missing.
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(
            28,
            f"{folder}: needs {megabytes(needed)} for {what}, {megabytes(free)} are free, "
            f"{megabytes(needed - free)} are missing; free space, or give another --tmp-dir",
        )


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 10**10 else f"{math.ceil(size / 1e6):,} MB"
