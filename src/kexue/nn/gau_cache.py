r"""GAU 解码缓存 — keys and values of a gated attention unit, kept while tokens are decoded (S18)

    cache.append(k, v, kept)     T grows by the tokens of the call
    cache.keys, cache.values     everything seen so far, (B, T, s) and (B, T, e)

Keys and values stand side by side in one buffer that doubles when it is full, so a token costs O(1)
copies. What is stored is detached: decoding is for inference.

Axes: B batch, L tokens of a call, T tokens seen, s key size, e value size.
Cost: at most twice the memory of what was seen.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["GAUCache"]


class GAUCache:
    """Keys and values of one head with a wide value.

    Attributes:
        length: tokens seen per sequence, masked ones included.
        kept: (B, T), True = visible; None while nothing was masked.

    Example:
        >>> import torch
        >>> cache = GAUCache()
        >>> cache.append(torch.ones(1, 3, 2), torch.ones(1, 3, 4), None)
        >>> cache.length, cache.keys.shape, cache.values.shape
        (3, torch.Size([1, 3, 2]), torch.Size([1, 3, 4]))
    """

    def __init__(self) -> None:
        self.length = 0
        self.kept: Tensor | None = None
        self._size = 0  # s
        self._room = torch.empty(0, 0, 0)  # (B, room, s + e)

    @property
    def keys(self) -> Float[Tensor, "B T s"]:
        """Keys, rotated."""
        return self._room[:, : self.length, : self._size]

    @property
    def values(self) -> Float[Tensor, "B T e"]:
        """Values."""
        return self._room[:, : self.length, self._size :]

    @torch.no_grad()
    def append(
        self,
        keys: Float[Tensor, "B L s"],
        values: Float[Tensor, "B L e"],
        kept: Bool[Tensor, "B L"] | None,
    ) -> None:
        """Add the tokens of a call.

        Raises:
            ValueError: another number of sequences than the cache holds.
        """
        start, end = self.length, self.length + keys.shape[1]
        if start and len(keys) != len(self._room):
            raise ValueError(f"the cache holds {len(self._room)} sequences, got {len(keys)}")
        if self.kept is not None or kept is not None:
            before = self.kept if self.kept is not None else _all(keys, start)
            now = kept if kept is not None else _all(keys, end - start)
            self.kept = torch.cat((before, now), dim=1)
        if end > self._room.shape[1]:
            old, self._size = self._room, keys.shape[2]
            width = keys.shape[2] + values.shape[2]
            self._room = values.new_empty(len(keys), 2 * end if start else end, width)
            if start:
                self._room[:, :start] = old[:, :start]
        self._room[:, start:end, : self._size] = keys
        self._room[:, start:end, self._size :] = values
        self.length = end

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Take these sequences, in this order, as beam search does."""
        if self.length:
            self._room = self._room[rows]
        if self.kept is not None:
            self.kept = self.kept[rows]


def _all(like: Tensor, length: int) -> Tensor:
    return torch.ones(len(like), length, dtype=torch.bool, device=like.device)
