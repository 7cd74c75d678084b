"""Records that fit into memory: one pass, no temporary file; and what to do if they do not fit."""

from dataclasses import dataclass

import numpy as np

from kexue.data.shuffle.blocks import Scatter, too_long
from kexue.data.shuffle.inputs import Inputs
from kexue.data.shuffle.loops import ENTRY, Array
from kexue.data.shuffle.plan import Arena
from kexue.data.shuffle.request import Request

__all__ = ["Held", "hold", "may_fit", "spill"]

STEP = 4 << 20


@dataclass
class Held:
    """Records in memory: bytes from its beginning on, their entries from its end backwards.

    Args:
        arena: the memory.
        have: bytes read.
        used: bytes of whole records among them.
        lines: records.
        whole: this is the whole input.
    """

    arena: Arena
    have: int = 0
    used: int = 0
    lines: int = 0
    whole: bool = False

    @property
    def data(self) -> Array:
        """What was read."""
        return self.arena.bytes[: self.have]

    @property
    def entries(self) -> Array:
        """One per record, the latest first until they are sorted."""
        return self.entries_from(0, self.lines)

    def entries_from(self, first: int, last: int) -> Array:
        """Entries of records, counted from the end of memory."""
        size, end = ENTRY.itemsize, len(self.arena.bytes)
        entries: Array = self.arena.bytes[end - size * last : end - size * first].view(ENTRY)
        return entries


def may_fit(request: Request, size: int | None) -> bool:
    """Whether it is worth while to read the input into memory."""
    return size is None or size <= room_of(request)


def room_of(request: Request) -> int:
    """Bytes for records and what sorting them takes."""
    memory = request.memory
    return (memory.free - 3 * memory.slice) >> 12 << 12


def hold(request: Request, inputs: Inputs, seed: int) -> Held:
    """Reads as far as memory goes.

    Args:
        request: says how far that is.
        inputs: the stream.
        seed: of the keys.
    """
    loops, delimiter, room = request.loops, request.delimiter, room_of(request)
    if inputs.size() is None:
        room -= 2 * STEP  # for the way to the buckets, which is probable
    held = Held(Arena(room))
    data = held.arena.bytes
    lengths = np.empty(1 << 17, np.uint32)
    searched = 0
    while True:
        free = room - held.have - request.memory.per_line * held.lines
        read = inputs.readinto(data.data[held.have : held.have + min(STEP, max(free, 0))])
        held.have += read
        if not read:
            held.whole = free > 0
            return held
        if not loops.scan(data[searched : held.have], delimiter, lengths[:1])[0]:
            searched = max(held.used, held.have - len(delimiter) + 1)
            continue
        count = len(lengths)
        while count == len(lengths):
            count, _ = loops.scan(data[held.used : held.have], delimiter, lengths)
            lines = held.lines + count
            if held.have + request.memory.per_line * lines > room:
                return held
            entries = held.entries_from(held.lines, lines)
            held.used += loops.enter(
                data[: held.have], held.used, delimiter, held.lines, seed, entries
            )
            held.lines = lines
        searched = held.used
        request.progress.at("read", inputs.progress(), inputs.given)


def spill(request: Request, inputs: Inputs, held: Held, scatter: Scatter) -> tuple[Array, int]:
    """Scatters what is held, and gives its memory back as it goes.

    Returns:
        The beginning of a record that is left, and the number of records scattered.
    """
    loops, delimiter, data = request.loops, request.delimiter, held.data
    held.arena.drop(held.have)
    lengths = np.empty(STEP // 16, np.uint32)
    at = lines = 0
    while at < held.have:
        block = data[at : min(at + STEP, held.have)]
        count, size = loops.scan(block, delimiter, lengths)
        if not count:  # a record longer than a step, or the beginning of one
            count, size = loops.scan(data[at:], delimiter, lengths[:1])
            if (size if count else held.have - at) > request.memory.longest:
                raise too_long(inputs, held.have - at, request.memory)
            if not count:
                break
        scatter.add(data[at : at + size], lengths[:count], lines)
        lines, at = lines + count, at + size
        held.arena.drop(0, at)
    rest = data[at:].copy()
    return rest, lines
