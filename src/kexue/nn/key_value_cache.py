"""Keys and values of an attention layer, kept from call to call while tokens are decoded.

    cache.append(k, v, kept)          T grows by the tokens of the call
    cache.keys[:, :, :cache.length]   everything seen so far

A buffer is made larger by doubling, so a token costs O(1) copies, not one of all keys. What is
stored is detached: decoding is for inference.

Axes: B batch, G key/value heads, L tokens of a call, T tokens seen, d head size.
Cost: at most twice the memory of the keys and values seen.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["KeyValueCache"]


class KeyValueCache:
    """Keys and values of the tokens seen so far, for decoding without gradients.

    Attributes:
        length: tokens seen per row, masked ones included.
    """

    def __init__(self) -> None:
        self.length = 0
        self.keys: Tensor | None = None  # (B, G, room, d), rotated
        self.values: Tensor | None = None
        self.kept: Tensor | None = None  # (B, room); None while nothing was masked

    def append(
        self,
        keys: Float[Tensor, "B G L d"],
        values: Float[Tensor, "B G L d"],
        kept: Bool[Tensor, "B L"] | None,
    ) -> None:
        """Add the tokens of a call; the room doubles when it is full."""
        start, end = self.length, self.length + keys.shape[2]
        if self.kept is None and kept is not None:
            self.kept = kept.new_ones(len(kept), start)
        elif self.kept is not None and kept is None:
            kept = self.kept.new_ones(len(keys), end - start)
        if self.kept is not None and kept is not None:
            self.kept = torch.cat((self.kept[:, :start], kept), dim=1)  # (B, T)
        self.keys = _written(self.keys, keys.detach(), start)
        self.values = _written(self.values, values.detach(), start)
        self.length = end

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Take these rows, in this order, as beam search does."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]
        if self.kept is not None:
            self.kept = self.kept[rows]


def _written(room: Tensor | None, new: Tensor, start: int) -> Tensor:
    """The buffer with `new` from position `start` on, grown where needed."""
    end = start + new.shape[2]
    if room is None or room.shape[2] < end:
        grown = new.new_empty(*new.shape[:2], end if room is None else 2 * end, new.shape[3])
        if room is not None:
            grown[:, :, :start] = room[:, :, :start]
        room = grown
    room[:, :, start:end] = new
    return room
