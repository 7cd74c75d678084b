r"""FLASH 解码时的固定大小缓存 — what a causal mixed chunk layer remembers (S18)

Of closed chunks only their sum is left, of the open chunk its tokens:

    S ← S + K^lin^T V       when a chunk of c tokens is full                                     (1)
    y = relu(scale · q K^T)² V + q^lin S / N      with K, V of the open chunk                    (2)

so s·e + c (2s + e) numbers per sequence are kept, after any number of tokens. Sequences of a batch
that have seen unequal numbers of visible tokens close their chunks at different times and are
worked on one after the other; all others together.

Symbols: S state, N tokens summed up in it.
Axes: B batch, L tokens of a call, s key size, e value size.
Cost: O(c (s + e) + s e) per token; S is float32 or better.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kexue.nn.chunk_loop import add_product, local_roots

__all__ = ["FlashCache"]


class FlashCache:
    """State and open chunk of every sequence, for decoding without gradients.

    Attributes:
        length: tokens seen per sequence, masked ones included.
        visible: tokens seen without masked ones, by sequence.
    """

    def __init__(self) -> None:
        self.length = 0
        self.visible: list[int] = []
        self.state: Tensor | None = None  # (B, s, e)
        self.open: tuple[
            Tensor, ...
        ] = ()  # keys (B, c, s), linear keys (B, c, s), values (B, c, e)

    @torch.no_grad()
    def extend(
        self,
        maps: Sequence[Float[Tensor, "B L s"]],
        v: Float[Tensor, "B L e"],
        kept: Bool[Tensor, "B L"] | None,
        chunk: int,
        scale: float,
        mean: bool,
    ) -> Float[Tensor, "B L e"]:
        """What the tokens of a call see, themselves included; zeros where they are not kept.

        Args:
            maps: queries and keys inside chunks, queries and keys across them.
            v: values.
            kept: True = visible; those stand first.
            chunk: c.
            scale: of the product q k^T.
            mean: N counts the tokens in S; else N = c.
        """
        q, k, q_lin, k_lin = maps
        batch, length, width = v.shape
        if self.state is None:
            wide = torch.promote_types(v.dtype, torch.float32)
            self.state = v.new_zeros(batch, q.shape[2], width, dtype=wide)
            self.open = tuple(one.new_zeros(batch, chunk, one.shape[2]) for one in (k, k_lin, v))
            self.visible = [0] * batch
        if batch != len(self.visible):
            raise ValueError(f"the cache holds {len(self.visible)} sequences, got {batch}")
        added = [length] * batch if kept is None else kept.sum(dim=1).tolist()
        together = len(set(zip(self.visible, added, strict=True))) <= 1
        q, q_lin = q.to(self.open[0].dtype), q_lin.to(self.open[1].dtype)  # of the first call
        output = torch.zeros_like(v)
        for rows in [slice(batch)] if together else [slice(b, b + 1) for b in range(batch)]:
            seen, end = (
                counts[rows.start or 0] if batch else 0 for counts in (self.visible, added)
            )
            keys, linear_keys, values = (one[rows] for one in self.open)
            done = 0
            while done < end:
                fill = seen % chunk
                take = min(chunk - fill, end - done)
                here, now = slice(fill, fill + take), slice(done, done + take)
                for room, new in ((keys, k), (linear_keys, k_lin), (values, v)):
                    room[:, here] = new[rows, now]
                roots = local_roots(q[rows, now], keys[:, : here.stop], scale, True, offset=fill)
                y = roots.square_().to(values.dtype) @ values[:, : here.stop]
                if seen > fill:
                    share = self.state[rows] / (seen - fill if mean else chunk)
                    y += q_lin[rows, now] @ share.to(values.dtype)  # (2)
                output[rows, now] = y
                seen, done = seen + take, done + take
                if seen % chunk == 0:
                    add_product(self.state[rows], linear_keys.mT, values)  # (1)
        self.visible = [a + b for a, b in zip(self.visible, added, strict=True)]
        self.length += length
        return output

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Take these sequences, in this order, as beam search does."""
        if self.state is not None:
            self.state = self.state[rows]
            self.open = tuple(one[rows] for one in self.open)
            self.visible = [self.visible[row] for row in rows.tolist()]
