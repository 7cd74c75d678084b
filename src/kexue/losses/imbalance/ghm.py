r"""GHM: examples weighed by how many share their gradient (S37)

Cross-entropy in which neither the many easy examples nor the few hopeless ones dominate.

    g = |p − y|,  b = floor(g · bins), g = 1 joining the last bin                              (1)
    weight = N / (n_b M),  n_b examples in bin b, N in all, M bins not empty                   (2)
    loss = weight · cross-entropy, the weight held constant                                    (3)

g is the length of the gradient in the logit. With one bin every weight is 1. The weights of a batch
have mean 1 if n_b are its own counts; running counts are steadier: n_b ← momentum n_b + (1 −
momentum) counts, started at the first batch's. (From 0, as in the authors' code, the first weights
are 1/(1 − momentum) too large.) N is then the sum of the running counts, so that a batch of another
size is not weighed by its size, and M = sum min(n_b, 1), so that a bin that fades stops counting.

Symbols: logits z, targets y, counts n.   Axes: *shape any, elementwise.
Cost: one scattered sum more than binary cross-entropy. Source: arXiv 1811.05181 (bins 10 or 30,
momentum 0.75).
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.losses.imbalance.inputs import element_inputs, two_sided
from kexue.losses.imbalance.running import follow, sum_over_processes
from kexue.losses.reduction import Reduced, Reduction, reduced

__all__ = ["GHMCLoss", "gradient_histogram", "sigmoid_ghm_loss"]


def gradient_histogram(
    logits: Float[Tensor, "*shape"],
    targets: Shaped[Tensor, "*shape"],
    bins: int = 10,
    *,
    ignore_index: int = -100,
    mask: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, " bins"]:
    """How many elements have a gradient of each length: the counts of (1).

    Args:
        logits: no sigmoid before.
        targets: boolean, 0/1, or soft in [0, 1].
        bins: equal parts of [0, 1].
        ignore_index: target of elements that do not count.
        mask: True where an element counts; without the last axis, where a row counts.

    Raises:
        ValueError: no bins, shapes or targets that do not fit.

    Example:
        >>> import torch
        >>> gradient_histogram(torch.tensor([4.0, 3.0, 0.0]), torch.tensor([1, 1, 0]), bins=4)
        tensor([2., 0., 1., 0.])
    """
    _check_bins(bins)
    z, y, kept = element_inputs(logits, targets, ignore_index, mask)
    return _histogram(_bin_of(z, y, bins), kept, bins, z)


def sigmoid_ghm_loss(
    logits: Float[Tensor, "*shape"],
    targets: Shaped[Tensor, "*shape"],
    bins: int = 10,
    *,
    counts: Float[Tensor, " bins"] | None = None,
    ignore_index: int = -100,
    mask: Bool[Tensor, "..."] | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    """Cross-entropy of every element, weighed by (2): (3), in float32 or better.

    Args:
        logits: no sigmoid before.
        targets: boolean, 0/1, or soft in [0, 1].
        bins: equal parts of [0, 1]; 10 or 30 in the paper.
        counts: n_b, such as running ones; None: this batch's. A bin used here counts at least
            one example, however long ago it was used before.
        ignore_index: target of elements that do not count.
        mask: True where an element counts; without the last axis, where a row counts.
        reduction: "mean" over elements, "sum", "none" or "sum_and_count".

    Raises:
        ValueError: no bins, counts not one per bin, shapes or targets that do not fit.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([4.0, 3.0, 0.0]), torch.tensor([1, 1, 0])
        >>> [round(x, 4) for x in sigmoid_ghm_loss(z, y, bins=4, reduction="none").tolist()]
        [0.0136, 0.0364, 1.0397]
    """
    _check_bins(bins)
    z, y, kept = element_inputs(logits, targets, ignore_index, mask)
    where = _bin_of(z, y, bins)
    here = _histogram(where, kept, bins, z)
    if counts is None:
        n = here
    elif counts.shape != (bins,):
        raise ValueError(f"counts need shape ({bins},), one per bin, got {tuple(counts.shape)}")
    else:
        n = torch.maximum(counts.detach().to(z), here.clamp(max=1))
    used = n.clamp(max=1).sum().clamp(min=1)
    weight = (n.sum() / (n.clamp(min=torch.finfo(n.dtype).tiny) * used))[where]  # (2)
    values = weight * two_sided(lambda m: -F.logsigmoid(m), z, y)  # (3)
    return reduced(values, reduction, kept)


class GHMCLoss(nn.Module):
    """`sigmoid_ghm_loss` with running counts, updated in training mode before the loss.

    Args:
        bins: equal parts of [0, 1]; 10 or 30 in the paper.
        momentum: share of the past in the counts; 0.75 in the paper, 0 for the batch's alone.
        sync: add the counts of all processes before averaging (torch.distributed).
        ignore_index: target of elements that do not count.
        reduction: "mean", "sum", "none" or "sum_and_count".

    Raises:
        ValueError: no bins, or momentum outside [0, 1).

    Example:
        >>> import torch
        >>> loss = GHMCLoss(bins=4)
        >>> _ = loss(torch.tensor([4.0, 3.0, 0.0]), torch.tensor([1, 1, 0]))
        >>> loss.counts.tolist()
        [2.0, 0.0, 1.0, 0.0]
    """

    counts: Tensor

    def __init__(
        self,
        bins: int = 10,
        momentum: float = 0.75,
        *,
        sync: bool = False,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        _check_bins(bins)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.bins, self.momentum, self.sync = bins, momentum, sync
        self.ignore_index, self.reduction = ignore_index, reduction
        self.register_buffer("counts", torch.zeros(bins))

    def forward(
        self,
        logits: Float[Tensor, "*shape"],
        targets: Shaped[Tensor, "*shape"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Reduced:
        if self.training:
            here = gradient_histogram(
                logits, targets, self.bins, ignore_index=self.ignore_index, mask=mask
            )
            if self.sync:
                here = sum_over_processes(here)
            follow(self.counts, here, self.momentum, started=self.counts.sum() > 0)
        return sigmoid_ghm_loss(
            logits,
            targets,
            self.bins,
            counts=self.counts,
            ignore_index=self.ignore_index,
            mask=mask,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"bins={self.bins}, momentum={self.momentum}"


def _bin_of(z: Tensor, y: Tensor, bins: int) -> Int[Tensor, "*shape"]:
    g = (z.detach().sigmoid() - y.to(z.dtype)).abs()
    return (g * bins).long().clamp(max=bins - 1)  # (1)


def _histogram(where: Tensor, kept: Tensor, bins: int, like: Tensor) -> Tensor:
    ones = kept.flatten().to(like.dtype)
    return like.new_zeros(bins).scatter_add(0, where.flatten(), ones)


def _check_bins(bins: int) -> None:
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
