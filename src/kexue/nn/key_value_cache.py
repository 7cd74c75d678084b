"""Keys and values of an attention layer, kept from call to call while tokens are decoded.

    k, v, kept = cache.append(k, v, kept)     in: L tokens of a call, out: all T seen so far

A buffer is made larger by doubling, so a token costs O(1) copies, not one of all keys. What is
stored is detached: decoding is for inference.

Axes: B batch, L tokens of a call, T tokens seen, d size of a key, e size of a value; between B and
L any heads, which keys and values need not have in common.
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
        keys: (B, *heads, room, d), rotated where the layer rotates; None before the first call.
        values: (B, *heads, room, e).
        kept: (B, T), True = visible; None while nothing was masked.

    Example:
        >>> import torch
        >>> cache = KeyValueCache()
        >>> for _ in range(2):
        ...     keys, values, kept = cache.append(torch.ones(1, 3, 2), torch.ones(1, 3, 4), None)
        >>> cache.length, keys.shape, values.shape
        (6, torch.Size([1, 6, 2]), torch.Size([1, 6, 4]))
    """

    def __init__(self) -> None:
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.kept: Tensor | None = None

    def append(
        self,
        keys: Float[Tensor, "B *key_heads L d"],
        values: Float[Tensor, "B *value_heads L e"],
        kept: Bool[Tensor, "B L"] | None,
    ) -> tuple[
        Float[Tensor, "B *key_heads T d"],
        Float[Tensor, "B *value_heads T e"],
        Bool[Tensor, "B T"] | None,
    ]:
        """Add the tokens of a call; the room doubles when it is full.

        Returns:
            Keys, values and mask of all tokens seen, views without a gradient.

        Raises:
            ValueError: another number of sequences than the cache holds.
        """
        start, end = self.length, self.length + keys.shape[-2]
        if self.keys is not None and len(keys) != len(self.keys):
            raise ValueError(
                f"the cache holds {len(self.keys)} sequences, got {len(keys)}: reorder the cache, "
                "or start a new one"
            )
        if kept is not None or self.kept is not None:
            ones = torch.ones(len(keys), end, dtype=torch.bool, device=keys.device)
            before = ones[:, :start] if self.kept is None else self.kept
            self.kept = torch.cat((before, ones[:, start:] if kept is None else kept), dim=1)
        self.keys = _written(self.keys, keys.detach(), start)
        self.values = _written(self.values, values.detach(), start)
        self.length = end
        return self.keys[..., :end, :], self.values[..., :end, :], self.kept

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Take these rows, in this order, as beam search does."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]
        if self.kept is not None:
            self.kept = self.kept[rows]


def _written(room: Tensor | None, new: Tensor, start: int) -> Tensor:
    """The buffer with `new` from position `start` on, grown where needed."""
    end = start + new.shape[-2]
    if room is None or room.shape[-2] < end:
        larger = end if room is None else 2 * end
        grown = new.new_empty(*new.shape[:-2], larger, new.shape[-1])
        if room is not None:
            grown[..., :start, :] = room[..., :start, :]
        room = grown
    room[..., start:end, :] = new
    return room
