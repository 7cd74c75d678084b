r"""Transformer-VQ, 固定大小的缓存 — what a causal VQ layer remembers, of constant size (S30)

A token that has left the window of two blocks is remembered by its code alone:

    N_s ← N_s + 1,   U_s ← U_s + v        for its code s                                       (1)

so c counts, c sums of values and at most 2L tokens are all a layer keeps, after any length.

Symbols: counts N, sums U.   Axes: B batch, H heads, N tokens, n blocks, c codes.
Cost: (1) once per block of L tokens; sums are float32 or better.
Source: arXiv 2309.16354.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["VQCache", "sums_by_code"]


def sums_by_code(
    codes: Tensor, v: Tensor, mask: Tensor | None, num_codes: int, block: int
) -> tuple[Tensor, Tensor]:
    """Counts (B, H, n, c) and sums of values (B, H, n, c, d_v) of every code in every block.

    Tokens are sorted by code inside their block and summed as runs: the order of the additions is
    fixed on every device, and n·d_v additions are made, not n·c·d_v.

    Args:
        codes: (B, H, N) indices below num_codes.
        v: (B, H, N, d_v).
        mask: (B, N), True = counted; None: all are.
        num_codes: c.
        block: tokens per block; the last block may be shorter.

    Example:
        >>> import torch
        >>> codes, v = torch.tensor([[[0, 1, 0]]]), torch.tensor([[[[1.0], [2.0], [3.0]]]])
        >>> counts, sums = sums_by_code(codes, v, None, 2, 4)
        >>> counts.tolist(), sums.flatten().tolist()
        ([[[[2.0, 1.0]]]], [4.0, 2.0])
    """
    N, d_v = v.shape[2:]
    if mask is not None:
        codes = codes.masked_fill(~mask[:, None], num_codes)  # a bin that is thrown away
    fill = -N % block
    codes = F.pad(codes, (0, fill), value=num_codes).unflatten(2, (-1, block))  # (B, H, n, L)
    rows = codes.flatten(0, 2)  # (G, L)
    in_order, token = rows.sort(dim=1, stable=True)
    bins = torch.arange(num_codes + 1, device=v.device).expand(len(rows), -1).contiguous()
    starts = torch.searchsorted(in_order, bins)  # (G, c + 1)
    counts = starts.diff(dim=1).to(v.dtype)  # (G, c)
    first = torch.arange(len(rows), device=v.device)[:, None] * block
    padded = F.pad(v, (0, 0, 0, fill)).reshape(-1, d_v)  # (G·L, v)
    offsets = (starts + first).flatten()
    sums = F.embedding_bag((token + first).flatten(), padded, offsets, mode="sum")
    sums = sums.view(*codes.shape[:3], num_codes + 1, d_v)[..., :num_codes, :]  # (1)
    return counts.view(*codes.shape[:3], num_codes), sums


class Window(NamedTuple):
    """Keys that the tokens of a call may see one by one, those of the call included."""

    keys: Tensor
    codes: Tensor
    values: Tensor
    mask: Tensor | None
    fits: bool
    start: tuple[Tensor, Tensor] | None


class VQCache:
    """What a causal Transformer-VQ layer has seen; filled at the first call.

    Attributes:
        length: tokens seen per row, masked ones included.
        folded: tokens that are known by their code alone; the rest is in the window.
        counts: (B, H, c) of the folded tokens, those that are visible.
        sums: (B, H, c, d_v) of their values.
        distances: what a layer computed once for all its steps.

    Example:
        >>> import torch
        >>> from kexue.nn.vq_attention import vq_attention
        >>> C, codes = torch.eye(2)[None], torch.tensor([[[0, 1, 0, 1]]])
        >>> k, v = C[0][codes], torch.tensor([[[[1.0], [2], [3], [4]]]])
        >>> whole = vq_attention(k, k, codes, C, v, block=1)
        >>> cache, parts = VQCache(), []
        >>> for t in range(4):
        ...     now = slice(t, t + 1)
        ...     step = (k[:, :, now], k[:, :, now], codes[:, :, now], C, v[:, :, now])
        ...     parts.append(vq_attention(*step, block=1, state=cache))
        >>> torch.allclose(torch.cat(parts, 2), whole), cache.length, cache.folded
        (True, 4, 2)
    """

    def __init__(self) -> None:
        self.length = 0
        self.folded = 0
        self.distances: Tensor | None = None
        self._masked = False  # without any mask there is nothing to look at per step
        self.counts = self.sums = torch.empty(0)
        self._keys = self._codes = self._values = self._mask = torch.empty(0)

    def extend(
        self,
        k: Tensor,
        codes: Tensor,
        v: Tensor,
        mask: Tensor | None,
        num_codes: int,
        block: int,
    ) -> Window:
        """Take in new tokens; returns their window, which starts at a block's beginning.

        Raises:
            ValueError: another batch, or other sizes, than at the first call.
        """
        k, v = k.detach(), v.detach()
        B, H, n, d_k = k.shape
        if self.length == 0:
            size = (B, H, 2 * block)
            self._keys, self._values = k.new_zeros(*size, d_k), v.new_zeros(*size, v.shape[-1])
            self._codes = codes.new_zeros(size)
            self._mask = torch.ones(B, 2 * block, dtype=torch.bool, device=k.device)
            self.counts = v.new_zeros(B, H, num_codes)
            self.sums = v.new_zeros(B, H, num_codes, v.shape[-1])
        have, given = self._keys.shape, (B, H, 2 * block, d_k)
        if have != given:
            raise ValueError(
                f"the cache holds (batch, heads, 2·block, head_dim) = {tuple(have)}, the call has "
                f"{given}: reorder the cache, or start a new one"
            )
        self._masked = self._masked or mask is not None
        if mask is None:
            mask = torch.ones(B, n, dtype=torch.bool, device=k.device)
        if self.length - self.folded == 2 * block:
            self._fold(block)
        filled = self.length - self.folded
        self.length += n
        if filled + n <= 2 * block:
            now = slice(filled, filled + n)
            self._keys[:, :, now], self._values[:, :, now] = k, v
            self._codes[:, :, now], self._mask[:, now] = codes, mask
            return self._window(slice(0, filled + n), True, None)
        start, old = (self.counts, self.sums), self._window(slice(0, filled), False, None)
        keys, values = torch.cat([old.keys, k], 2), torch.cat([old.values, v], 2)
        codes = torch.cat([old.codes, codes], 2)
        mask = torch.cat([self._mask[:, :filled], mask], 1)
        window = Window(keys, codes, values, mask if self._masked else None, False, start)
        away = (-(-(filled + n) // block) - 2) * block  # tokens that leave the last two blocks
        now_counts, now_sums = sums_by_code(
            codes[:, :, :away], values[:, :, :away], mask[:, :away], num_codes, away
        )
        self.counts, self.sums = start[0] + now_counts[:, :, 0], start[1] + now_sums[:, :, 0]
        self.folded += away
        left = slice(0, filled + n - away)
        self._keys[:, :, left], self._values[:, :, left] = keys[:, :, away:], values[:, :, away:]
        self._codes[:, :, left], self._mask[:, left] = codes[:, :, away:], mask[:, away:]
        return window

    def reorder(self, rows: Tensor) -> None:
        """Rows of the batch after a step of beam search: new row i is old row rows[i]."""
        for name in ("counts", "sums", "_keys", "_values", "_codes", "_mask"):
            if self.length:
                setattr(self, name, getattr(self, name).index_select(0, rows))

    def _fold(self, block: int) -> None:
        """The older block of a full window becomes counts and sums: (1)."""
        old = self._window(slice(0, block), True, None)
        counts, sums = sums_by_code(old.codes, old.values, old.mask, self.counts.shape[-1], block)
        self.counts, self.sums = self.counts + counts[:, :, 0], self.sums + sums[:, :, 0]
        for x in (self._keys, self._values, self._codes):
            x[:, :, :block] = x[:, :, block:].clone()
        self._mask[:, :block] = self._mask[:, block:].clone()
        self.folded += block

    def _window(self, part: slice, fits: bool, start: tuple[Tensor, Tensor] | None) -> Window:
        keys, codes, values = (x[:, :, part] for x in (self._keys, self._codes, self._values))
        mask = self._mask[:, part] if self._masked else None
        return Window(keys, codes, values, mask, fits, start)
