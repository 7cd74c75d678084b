"""Length-bucketed batches under a token budget.

One optimizer step takes `batch_size` examples whatever they cost; `max_tokens` bounds what one
forward pass holds, padding counted. So a step is a list of micro-batches: short texts go through
in one, long ones in several, and the gradient is that of the whole step as long as the losses are
weighted by the number of examples each micro-batch holds. The batch size is the recipe's, the
token budget is the machine's.

Order: examples are shuffled, cut into windows of `window` batches, sorted by length inside a
window, cut into batches, and the batches shuffled. All of it follows from (seed, epoch) alone, so
an epoch can be entered at any step, and every process of a distributed run makes the same plan and
takes its own share: with W processes each micro-batch is dealt out round robin.

Cost: O(n log n) once an epoch, no tensor touched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["Batch", "LengthBatches", "MicroBatch", "pad_rows", "padded_length"]


@dataclass(slots=True)
class Batch:
    """What a model sees at once.

    Args:
        inputs: keyword arguments of the model, e.g. input_ids (R, L) and attention_mask (R, L).
        targets: what the loss compares with, by name.
        count: how many examples the mean of the loss runs over (its weight in a step).
        examples: index of each feature's example in its split.
        tokens: visible tokens, for the speed display.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    examples: list[int] = field(default_factory=list)
    tokens: int = 0

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on a device."""
        inputs = {k: v.to(device, non_blocking=True) for k, v in self.inputs.items()}
        targets = {k: v.to(device, non_blocking=True) for k, v in self.targets.items()}
        return Batch(inputs, targets, self.count, self.examples, self.tokens)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        inputs = {k: v.pin_memory() for k, v in self.inputs.items()}
        targets = {k: v.pin_memory() for k, v in self.targets.items()}
        return Batch(inputs, targets, self.count, self.examples, self.tokens)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The features of one forward pass; not counted where a process only keeps step."""

    indices: list[int]
    counted: bool = True


class LengthBatches:
    """Plans the steps of every epoch from the lengths of the features.

    Args:
        lengths: tokens of each feature's longest row.
        batch_size: features per optimizer step, over all processes.
        max_tokens: padded tokens per forward pass and process; None: no bound.
        rows: rows a feature brings (4 choices, 10 candidates); counts towards `max_tokens`.
        seed: together with the epoch it fixes the order.
        shuffle: False keeps the order of lengths (for evaluation).
        window: batches that are sorted by length together; larger saves padding, smaller mixes.
        rank, world_size: this process and how many there are.

    Raises:
        ValueError: no features, or a size below 1.

    Example:
        >>> plan = LengthBatches([3, 9, 4, 8], batch_size=2, max_tokens=10, shuffle=False)
        >>> [[m.indices for m in step] for step in plan.epoch(0)]
        [[[0, 2]], [[3], [1]]]
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        batch_size: int,
        max_tokens: int | None = None,
        rows: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        window: int = 50,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        sizes = {"batch_size": batch_size, "rows": rows, "window": window, "world_size": world_size}
        if max_tokens is not None:
            sizes["max_tokens"] = max_tokens
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.lengths = np.asarray(lengths, dtype=np.int64)
        if self.lengths.ndim != 1 or len(self.lengths) == 0:
            raise ValueError(f"lengths must be a non-empty list, got shape {self.lengths.shape}")
        self.batch_size, self.max_tokens, self.rows = batch_size, max_tokens, rows
        self.seed, self.shuffle, self.window = seed, shuffle, window
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Optimizer steps an epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def epoch(self, epoch: int) -> list[list[MicroBatch]]:
        """The steps of one epoch, each a list of this process's micro-batches."""
        return [self.share(batch) for batch in self.batches(epoch)]

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The global batches of one epoch, each sorted by length."""
        if not self.shuffle:
            order = np.argsort(self.lengths, kind="stable")
            return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.lengths))
        width = self.window * self.batch_size
        batches = []
        for start in range(0, len(order), width):
            window = order[start : start + width]
            window = window[np.argsort(self.lengths[window], kind="stable")]
            batches += [
                window[i : i + self.batch_size] for i in range(0, len(window), self.batch_size)
            ]
        return [batches[i] for i in random.permutation(len(batches))]

    def share(self, batch: np.ndarray) -> list[MicroBatch]:
        """This process's part of one global batch, cut by the token budget.

        Every process gets the same number of micro-batches; one without an example of its own
        passes the micro-batch's first along uncounted, so that collectives stay matched.
        """
        parts = []
        for group in self.groups(batch):
            own = group[self.rank :: self.world_size]
            parts.append(MicroBatch(own, True) if own else MicroBatch(group[:1], False))
        return parts

    def groups(self, batch: np.ndarray) -> Iterator[list[int]]:
        """Runs of a length-sorted batch that fit the budget of all processes together."""
        if self.max_tokens is None:
            yield batch.tolist()
            return
        group: list[int] = []
        for index in batch.tolist():
            columns = -(-(len(group) + 1) // self.world_size)  # features per process
            width = padded_length(int(self.lengths[index]))
            if group and columns * self.rows * width > self.max_tokens:
                yield group
                group = []
            group.append(index)
        yield group


def padded_length(length: int) -> int:
    """The width a batch gets for its longest row: above 128 tokens the next multiple of 16.

    Every new width costs the matrix library a new kernel, about a megabyte each; sixteen times
    fewer widths cost at most a ninth of padding.
    """
    return length if length <= 128 else -(-length // 16) * 16


def pad_rows(
    rows: Sequence[Sequence[int]], pad: int, limit: int | None = None
) -> tuple[Int[Tensor, "R L"], Int[Tensor, "R L"]]:
    """Ids padded on the right, and the mask (1 = visible) of the same shape.

    Args:
        rows: token ids.
        pad: the id to fill with.
        limit: no wider than this, unless a row is.
    """
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    longest = int(lengths.max())
    width = padded_length(longest)
    if limit is not None:
        width = max(longest, min(width, limit))
    visible = np.arange(width)[None, :] < lengths[:, None]  # (R, L)
    ids = np.full(visible.shape, pad, dtype=np.int64)
    ids[visible] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return torch.from_numpy(ids), torch.from_numpy(visible.astype(np.int64))
