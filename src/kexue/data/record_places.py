"""Where records stand in files, found again by their hash: for measuring how they are mixed (S09).

A first file gives the hashes of all records in evenly spread windows, a second one the places of
records with these hashes. Nothing is held per record but for those of the windows, and no Python
object is made per record.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kexue.data.shuffle import loops as loops_module
from kexue.data.shuffle.arrow_loops import powers
from kexue.data.shuffle.blocks import Blocks
from kexue.data.shuffle.inputs import Inputs
from kexue.data.shuffle.loops import loops
from kexue.data.shuffle.plan import Memory
from kexue.native import native_function

__all__ = ["Lookup", "Total", "Windows", "hashed", "record_hashes"]

Array = NDArray[Any]


def hashed(
    paths: list[str],
    delimiter: bytes,
    header: int,
    memory: Memory,
    warn: Callable[[str], None] | None,
) -> Iterator[tuple[int, Array, int]]:
    """Records of files a block at a time: the first one's number, their hashes, their bytes."""
    with Inputs(paths, delimiter, loops(), header, warn) as inputs:
        blocks = Blocks(inputs, memory, delimiter, loops())
        while (batch := blocks.read()) is not None:
            yield batch.first, record_hashes(batch.block, batch.lengths), len(batch.block)


def record_hashes(block: Array, lengths: Array) -> Array:
    """The hash of each record, as `loops().hash` gives it.

    Args:
        block: records one behind the other, bytes.
        lengths: of the records, uint32.
    """
    out = np.zeros(len(lengths), np.uint64)
    compiled = native_function(loops_module.__file__, "hash_records", "xxnx")
    if compiled is not None:
        compiled(block.ctypes.data, lengths.ctypes.data, len(lengths), out.ctypes.data)
        return out
    ends = np.cumsum(lengths, dtype=np.int64)
    low_power, high_power = powers()
    for low in range(0, len(block), 1 << 18):
        place = np.arange(low, min(low + (1 << 18), len(block)))
        record = np.searchsorted(ends, place, side="right")
        inside = place - ends[record] + lengths[record] + 1
        weight = low_power[inside & 0xFFFF] * high_power[inside >> 16]
        value = (block[place].astype(np.uint64) + np.uint64(1)) * weight
        edge = np.flatnonzero(np.diff(record, prepend=-1))
        out[record[edge]] += np.add.reduceat(value, edge)
    return out


@dataclass
class Total:
    """What a set of records is, whatever their order: number, bytes, sum of hashes."""

    records: int = 0
    bytes: int = 0
    hash: int = 0

    def add(self, hashes: Array, size: int) -> None:
        """Some records more."""
        self.records += len(hashes)
        self.bytes += size
        self.hash = (self.hash + int(hashes.sum(dtype=np.uint64))) % (1 << 64)


class Windows:
    """Every 2^s-th window of a stream, with the s that keeps them few.

    Args:
        length: records of a window.
        most: records that may be held.
    """

    def __init__(self, length: int, most: int) -> None:
        self.length, self.most, self.step = length, most, 1
        self.places: list[Array] = []
        self.hashes: list[Array] = []
        self.held = 0

    def add(self, first: int, hashes: Array) -> None:
        """Records from number `first` on."""
        self.take(np.arange(first, first + len(hashes)), hashes)
        while self.held > self.most:
            self.step *= 2
            parts = list(zip(self.places, self.hashes, strict=True))
            self.places, self.hashes, self.held = [], [], 0
            for places, some in parts:
                self.take(places, some)

    def take(self, places: Array, hashes: Array) -> None:
        """Those in windows that are kept."""
        kept = places // self.length % self.step == 0
        self.places.append(places[kept])
        self.hashes.append(hashes[kept])
        self.held += int(kept.sum())

    def kept(self) -> tuple[Array, Array]:
        """Places and hashes of all records held."""
        none = np.empty(0, np.int64)
        return np.concatenate([none, *self.places]), np.concatenate(
            [none.astype(np.uint64), *self.hashes]
        )


class Lookup:
    """Where records with given hashes stand in a stream."""

    def __init__(self, hashes: Array) -> None:
        self.keys, self.here = np.unique(hashes, return_counts=True)
        self.times = np.zeros(len(self.keys), np.int64)
        self.place = np.zeros(len(self.keys), np.int64)
        self.may = np.zeros(1 << 22, bool)  # most records are told apart by 22 bits
        self.may[self.keys >> np.uint64(42)] = True

    def add(self, first: int, hashes: Array) -> None:
        """Records from number `first` on."""
        some = np.flatnonzero(self.may[hashes >> np.uint64(42)])
        slot = np.searchsorted(self.keys, hashes[some])
        slot[slot == len(self.keys)] = 0
        hit = self.keys[slot] == hashes[some] if len(self.keys) else np.zeros(0, bool)
        np.add.at(self.times, slot[hit], 1)
        self.place[slot[hit]] = first + some[hit]

    def of(self, hashes: Array) -> tuple[Array, Array]:
        """How often each occurs, there or among the hashes, and where."""
        slot = np.searchsorted(self.keys, hashes)
        times = np.where(self.times > 0, np.maximum(self.times, self.here), 0)
        return times[slot], self.place[slot]
