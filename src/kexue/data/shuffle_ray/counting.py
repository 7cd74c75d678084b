"""Count: borders of a share of the input, and its records in runs that fit into a task.

A run of S bytes in N records is read and copied into the order of buckets: 2 S + 24 N bytes.
"""

import numpy as np

from kexue.data.shuffle.plan import peak_resident
from kexue.data.shuffle_ray.cost import RANGE
from kexue.data.shuffle_ray.ranges import Slice, Stream, record_blocks, settled
from kexue.data.shuffle_ray.settings import Settings, Share

__all__ = ["count"]


def count(slices: list[Slice], settings: Settings) -> Share:
    """Borders, records and runs of a share: (1).

    Raises:
        ValueError: a record is too long for a task, or a file is damaged.
    """
    loops, longest = settings.loops(), min(settings.free // 8, (1 << 32) - 1)
    parts = [settled(part, settings.delimiter, longest) for part in slices]
    share = Share(parts)
    stream = Stream(parts, settings.delimiter, settings.header, loops)
    room, size, lines = 2 * RANGE * settings.free * 5 / loops.blocks, 0, 0
    for lengths in record_blocks(stream, settings.delimiter, loops, longest):
        share.longest = max(share.longest, int(lengths.max()))
        costs = lengths.astype(np.float64) + loops.per_line
        share.cost += float(costs.sum())
        share.squares += float((costs**2).sum())
        ends = np.cumsum(lengths, dtype=np.int64)
        done, begin = 0, 0
        while begin < len(lengths):
            here = lines + 1 + np.arange(len(ends)) - begin
            held = 2 * (size + ends - done) + 24 * here  # a run is read and copied
            fit = int(np.searchsorted(held, room, side="right"))
            if fit < len(lengths) and fit == begin and not lines:
                fit += 1  # longer than a run, yet not too long
            if fit > begin:
                size, lines = size + int(ends[fit - 1]) - done, lines + fit - begin
                done, begin = int(ends[fit - 1]), fit
            if begin < len(lengths):
                share.runs.append((size, lines))
                size = lines = 0
    if lines:
        share.runs.append((size, lines))
    share.peak = peak_resident()
    return share
