"""What a replaced token is drawn from: the ids of its row, or a weight per id (S31).

    row      the n-th usable id, n = r · size / 2^31, found by bisection of the running count    (1)
    table    the id whose stretch of the cumulative weights holds a number of 53 bits            (2)

Cost: (1) one running count per row, (2) one table for all; then O(log P) per token.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kexue.losses.exposure.places import unprotected

__all__ = ["TABLE_BITS", "check_pools", "drawn_from_rows", "id_table", "row_pool"]

TABLE_BITS = 53


def drawn_from_rows(
    ids: Int[Tensor, "B P"], usable: Bool[Tensor, "B P"], draw: Int[Tensor, "B L"]
) -> Int[Tensor, "B L"]:
    """One usable id of its row per draw, a number of 31 bits; any id where none is usable."""
    counts = usable.cumsum(1)  # (B, P)
    nth = draw * counts[:, -1:] >> 31  # (B, L), uniform on 0 … size − 1
    at = torch.searchsorted(counts, nth, right=True).clamp(max=ids.shape[1] - 1)
    return ids.gather(1, at)  # (1)


def id_table(weights: Float[Tensor, " V"], protect: Iterable[int] = ()) -> Int[Tensor, " V"]:
    """Cumulative weights of the ids in units of 2^-53, for drawing by bisection.

    Raises:
        ValueError: weights that are negative, not finite, or 0 for all unprotected ids.
    """
    weights = weights.detach().double().clone()
    if weights.dim() != 1 or not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError(
            f"pool needs one finite weight >= 0 per id, shape (V,), got {tuple(weights.shape)}"
        )
    for token in protect:
        if 0 <= token < len(weights):
            weights[token] = 0
    if not weights.sum() > 0:
        raise ValueError("the pool is empty: every id is protected or has weight 0")
    total = weights.cumsum(0)
    return (total / total[-1] * 2.0**TABLE_BITS).round().long()  # (2)


def row_pool(
    pool: str,
    inputs: Tensor,
    following: Tensor,
    protect: tuple[int, ...],
    ignore_index: int,
    sequence: Tensor | None,
    sequence_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The ids of each row's pool and where they count."""
    if pool == "target":
        usable = (following != ignore_index) & unprotected(following, protect)
        return following, usable
    if pool != "sequence":
        raise ValueError(f'pool must be "target", "sequence" or a table of ids, got {pool!r}')
    ids = inputs if sequence is None else sequence
    if sequence_mask is None and not protect:
        raise ValueError(
            'pool="sequence" would draw padding: give sequence_mask, or the padding id in protect'
        )
    if len(ids) != len(inputs) or (sequence_mask is not None and sequence_mask.shape != ids.shape):
        given = None if sequence_mask is None else tuple(sequence_mask.shape)
        raise ValueError(
            f"sequence {tuple(ids.shape)} and sequence_mask {given} need one shape and a row for "
            f"each of the {len(inputs)} rows of inputs"
        )
    usable = unprotected(ids, protect)
    return ids, usable if sequence_mask is None else usable & sequence_mask.bool()


def check_pools(free: Bool[Tensor, "B L"], some: Bool[Tensor, " B"]) -> None:
    """Looks for empty pools where reading costs nothing."""
    if torch.compiler.is_compiling() or free.device.type != "cpu":
        return
    if (empty := free.any(1) & ~some).any():
        row = int(empty.nonzero()[0])
        raise ValueError(f"row {row} has inputs to replace but its pool is empty: protect less")
