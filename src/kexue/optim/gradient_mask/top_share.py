"""Keep the top share of all entries of many tensors, exactly and without sorting them (S12)

    M_i = [F_i is among the round(p N) largest]            N entries of all tensors together     (1)

For ChildTuning's fixed child F is the Fisher information of `fisher`. The paper's code copies all
entries into one array and keeps what reaches its percentile, hence more than asked for where values
are equal; here it is always round(p N).

Cost: two passes over the entries (float64: four) for histograms of their bits, one for the masks;
in memory the bits of one tensor at a time.
Sources: arXiv 2109.05687; article 8764.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["topk_masks"]

DIGIT = 16
"""Bits of one histogram."""


def topk_masks(
    fisher: Mapping[str, Tensor], keep_prob: float, scope: str = "global"
) -> dict[str, Tensor]:
    """Masks that keep the entries with the largest values, (1).

    Exactly round(keep_prob · N) of them: of equal values at the threshold the first are kept, in
    the order of the tensors and of the entries in each. The entries are never put together.

    Args:
        fisher: name → values ≥ 0, as of `fisher_diagonal`.
        keep_prob: the share p that is kept.
        scope: "global" draws one threshold through all tensors, as the paper does; "tensor" keeps
            the share p of each.

    Returns:
        Name → bool tensor, True where an entry is kept.

    Raises:
        ValueError: keep_prob not in (0, 1] or so small that nothing is kept; values that are
            negative, not finite, or all zero.

    Example:
        >>> fisher = {"a": torch.tensor([0.1, 3.0]), "b": torch.tensor([[2.0], [0.5]])}
        >>> {name: mask.tolist() for name, mask in topk_masks(fisher, 0.5).items()}
        {'a': [False, True], 'b': [[True], [False]]}
    """
    if not 0 < keep_prob <= 1:
        raise ValueError(f"keep_prob must be above 0 and at most 1, got {keep_prob}")
    if scope == "tensor":
        each = (topk_masks({name: value}, keep_prob) for name, value in fisher.items())
        return {name: mask for masks in each for name, mask in masks.items()}
    if scope != "global":
        raise ValueError(f"scope must be 'global' or 'tensor', got {scope!r}")
    if not fisher:
        raise ValueError("fisher is empty; give name → values, as fisher_diagonal returns them")
    names = ", ".join(list(fisher)[:4])
    for name, value in fisher.items():
        if not bool((value >= 0).all() & value.isfinite().all()):
            raise ValueError(f"the Fisher values of {name} must be finite and not negative")
    if not any(bool(value.any()) for value in fisher.values()):
        raise ValueError(
            f"all Fisher values are zero ({names}): nothing tells the entries apart; leave out "
            "parameters that the loss does not reach, and check that it depends on the others"
        )
    total = sum(value.numel() for value in fisher.values())
    keep = round(keep_prob * total)
    if keep == 0:
        raise ValueError(f"keep_prob={keep_prob} of {total} entries ({names}) keeps none; raise it")
    wide = (
        torch.float64 if any(v.dtype == torch.float64 for v in fisher.values()) else torch.float32
    )
    threshold, ties = _kth_largest(list(fisher.values()), keep, wide)
    masks = {}
    for name, value in fisher.items():
        bits = _bits(value, wide)
        mask = bits > threshold  # (1)
        if ties:
            first = (bits == threshold).nonzero()[:ties, 0]
            mask[first] = True
            ties -= len(first)
        masks[name] = mask.view(value.shape)
    return masks


def _kth_largest(values: list[Tensor], k: int, dtype: torch.dtype) -> tuple[int, int]:
    """The bits of the k-th largest value, and how many of the values equal to it are among the k.

    Floats without sign are ordered as their bits are, so one histogram of 16 bits after the other,
    from above, narrows down the k-th.
    """
    width, prefix = 8 * dtype.itemsize, 0
    for shift in range(width - DIGIT, -1, -DIGIT):
        histogram = torch.zeros(1 << DIGIT, dtype=torch.int64)
        for value in values:
            bits = _bits(value, dtype)
            if shift + DIGIT < width:
                bits = bits[bits >> (shift + DIGIT) == prefix]
            digits = (bits >> shift) & ((1 << DIGIT) - 1)
            histogram += digits.bincount(minlength=1 << DIGIT).cpu()
        from_above = histogram.flip(0).cumsum(0)
        place = int((from_above < k).sum())
        k -= int(from_above[place - 1]) if place else 0
        prefix = prefix << DIGIT | ((1 << DIGIT) - 1 - place)
    return prefix, k


def _bits(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Values ≥ 0 as integers of the same order; −0 is 0."""
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    return value.to(dtype).abs().flatten().view(integer)
