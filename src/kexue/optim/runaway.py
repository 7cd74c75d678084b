"""Lion/Tiger优化器训练下的Embedding异常和对策 (S29): rows that ran away to ±1/λ.

A step of Tiger or Lion on a row without gradient keeps the sign s of the last momentum:

    x ← x − η·(s + λ·x),        fixed point  x = −s/λ                                          (1)

so a rare token drifts at full step until its entries are ±1/λ (article 9736: ±100 at λ = 0.01),
while loss and samples look normal. This audit compares the largest entry of each row with 1/λ.

Cost: one pass over the embedding tables.
"""

from dataclasses import dataclass

from torch import nn

__all__ = ["Runaway", "runaway_rows"]


@dataclass(frozen=True)
class Runaway:
    """A row that is too large: the table's name, the row, its largest |entry|, its share of 1/λ."""

    table: str
    row: int
    largest: float
    share: float


def runaway_rows(
    model: nn.Module, weight_decay: float = 0.01, *, share: float = 0.1
) -> list[Runaway]:
    """Rows of embedding tables that have come near ±1/λ, the largest first.

    Args:
        model: its `nn.Embedding` and `nn.EmbeddingBag` tables are looked at.
        weight_decay: λ that the tables were trained with.
        share: report rows whose largest |entry| is above this share of 1/λ. Healthy entries are
            far below 1, and 1/λ is 100 at the default.

    Raises:
        ValueError: λ or share not positive (without decay there is no bound to compare with).

    Example:
        >>> import torch
        >>> table = torch.nn.Embedding(5, 3)
        >>> _ = torch.nn.init.normal_(table.weight, std=0.02)
        >>> _ = torch.nn.init.constant_(table.weight[2], -80.0)
        >>> [(found.row, found.share) for found in runaway_rows(table)]
        [(2, 0.8)]
    """
    if not (weight_decay > 0 and share > 0):
        raise ValueError(f"needs positive weight_decay and share, got {weight_decay} and {share}")
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            table = module.weight.detach()
            largest = table.abs().amax(dim=1) if table.numel() else table.new_zeros(0)
            rows = (largest * weight_decay > share).nonzero().flatten()
            for row, value in zip(rows.tolist(), largest[rows].tolist(), strict=True):
                found.append(Runaway(name, row, value, round(value * weight_decay, 6)))
    return sorted(found, key=lambda one: -one.largest)
