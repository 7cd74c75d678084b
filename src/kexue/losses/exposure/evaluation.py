r"""The gap between teacher forcing and free running, by position (S31)

Exposure bias is what the model loses when it reads its own words instead of the gold ones:

    a_t = P(argmax f(y_<t) = y_t)              prefix gold: teacher forcing                      (1)
    b_t = P(argmax f(ŷ_<t) = y_t)              prefix its own: free running, greedy              (2)
    gap_t = a_t − b_t                                                                            (3)

A rise of a_t alone is ordinary regularisation; a remedy against exposure bias narrows (3).

Greedy decoding is the fixed point of "read, predict everywhere, read the predictions":

    x^{0} = gold inputs,   x^{n+1}_t = argmax f(x^{n})_{t−1} at target tokens                    (4)

The first prediction is exact from the start, and each round makes at least one more exact, so (4)
ends with the greedy output after at most L rounds; a good model needs a few. The first round is
teacher forcing, which (1) needs anyway.

Symbols: f the model, y gold, ŷ predictions, x inputs.   Axes: B rows, L tokens, T target positions.
Cost: as many forward passes as the longest chain of errors, L at most; no cache is needed.
Source: article 7259 states the bias; (4) is the idea of Jacobi decoding, arXiv 2002.03629.
Position by position, a dropped word makes all that follow wrong: for long free text look at ROUGE
or exact match as well. What follows a wrong end token is still compared.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kexue.losses.exposure.places import LabelsOf, check_aligned, is_target_input, next_labels

__all__ = ["ExposureGap", "exposure_gap", "free_running"]


@dataclass(frozen=True)
class ExposureGap:
    """Counts of right tokens; add those of several batches with `+`.

    Args:
        forced: right tokens per target position when the prefix is gold, shape (T,).
        free: the same when the prefix is the model's own.
        count: target tokens per position.
        exact: rows whose free-running output is right as a whole.
        rows: rows with a target.
    """

    forced: Int[Tensor, " T"]
    free: Int[Tensor, " T"]
    count: Int[Tensor, " T"]
    exact: int
    rows: int

    def __add__(self, other: "ExposureGap") -> "ExposureGap":
        size = max(len(self.count), len(other.count))

        def both(a: Tensor, b: Tensor) -> Tensor:
            total = a.new_zeros(size)
            total[: len(a)] += a
            total[: len(b)] += b
            return total

        return ExposureGap(
            both(self.forced, other.forced),
            both(self.free, other.free),
            both(self.count, other.count),
            self.exact + other.exact,
            self.rows + other.rows,
        )

    @property
    def teacher_forced(self) -> float:
        """Token accuracy with gold prefixes: (1) over all positions."""
        return int(self.forced.sum()) / max(int(self.count.sum()), 1)

    @property
    def free_running(self) -> float:
        """Token accuracy with the model's own prefixes: (2) over all positions."""
        return int(self.free.sum()) / max(int(self.count.sum()), 1)

    @property
    def gap(self) -> float:
        """(3) over all positions."""
        return self.teacher_forced - self.free_running

    @property
    def exact_match(self) -> float:
        """Share of rows right as a whole when running freely."""
        return self.exact / max(self.rows, 1)

    @property
    def by_position(self) -> Float[Tensor, " T"]:
        """(3) at every target position."""
        return (self.forced - self.free).double() / self.count.clamp(min=1)


def free_running(
    forward: Callable[[Tensor], Tensor],
    decoder_input_ids: Int[Tensor, "B L"],
    labels: Int[Tensor, "B L"],
    *,
    labels_of: LabelsOf = "next",
    ignore_index: int = -100,
) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Predictions with gold prefixes and with the model's own: (4).

    Args:
        forward: logits (B, L, V) of decoder inputs (B, L). Causal, and without dropout.
        decoder_input_ids: the gold inputs; only first tokens, prompts and padding are used of them.
        labels: what is to be predicted, `ignore_index` where nothing is; they say which inputs are
            target tokens and how far to run.
        labels_of: "next" if labels[t] follows the input t, "own" if it is the input t.
        ignore_index: marks positions without a target.

    Returns:
        Both predictions; those at t say what follows the input t.

    Raises:
        ValueError: unequal shapes; no target; the fixed point is not reached in L + 1 rounds, as
            happens when `forward` draws random numbers or looks ahead.

    Example:
        >>> table = torch.tensor([[0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]])  # 0 → 1 → 2 → 0
        >>> labels = torch.tensor([[2, 2, 0]])
        >>> inputs = torch.tensor([[0, 2, 2]])
        >>> free_running(lambda ids: table[ids], inputs, labels)
        (tensor([[1, 0, 0]]), tensor([[1, 2, 0]]))
    """
    check_aligned(decoder_input_ids, labels)
    following = next_labels(labels, labels_of, ignore_index)
    ahead = (following != ignore_index).flip(1).cumsum(1).flip(1) > 0  # a target at t or later
    own = is_target_input(following, ignore_index) & ahead  # (B, L)
    inputs, first = decoder_input_ids, None
    with torch.no_grad():
        for _ in range(labels.shape[1] + 1):
            predicted = forward(inputs).argmax(-1).to(inputs.dtype)  # (B, L)
            first = predicted if first is None else first
            fed = torch.where(own, predicted.roll(1, 1), inputs)  # (4)
            if torch.equal(fed, inputs):
                return first, predicted
            inputs = fed
    raise ValueError(
        f"free running did not settle in {labels.shape[1] + 1} rounds: forward must be causal and "
        "deterministic (model.eval())"
    )


def exposure_gap(
    forward: Callable[[Tensor], Tensor],
    decoder_input_ids: Int[Tensor, "B L"],
    labels: Int[Tensor, "B L"],
    *,
    labels_of: LabelsOf = "next",
    ignore_index: int = -100,
) -> ExposureGap:
    """Teacher-forced and free-running accuracy of a batch: (1) to (3); arguments as above.

    Example:
        >>> table = torch.tensor([[0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]])  # 0 → 1 → 2 → 0
        >>> gap = exposure_gap(
        ...     lambda ids: table[ids], torch.tensor([[0, 2, 0]]), torch.tensor([[2, 0, 1]])
        ... )
        >>> gap.forced.tolist(), gap.free.tolist(), round(gap.gap, 3)  # one error, then all wrong
        ([0, 1, 1], [0, 0, 0], 0.667)
    """
    forced, free = free_running(
        forward, decoder_input_ids, labels, labels_of=labels_of, ignore_index=ignore_index
    )
    following = next_labels(labels, labels_of, ignore_index)
    asked = following != ignore_index  # (B, L)
    place = (asked.cumsum(1) - 1).clamp(min=0)  # which target token of its row

    def per_position(counted: Tensor) -> Tensor:
        total = torch.zeros(following.shape[1], dtype=torch.long, device=following.device)
        total.scatter_add_(0, place.flatten(), (counted & asked).long().flatten())
        return total[: int(asked.sum(1).max())]

    right = (free == following) | ~asked
    some = asked.any(1)
    return ExposureGap(
        per_position(forced == following),
        per_position(free == following),
        per_position(asked),
        int((right.all(1) & some).sum()),
        int(some.sum()),
    )
