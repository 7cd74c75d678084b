r"""FlatNCE：小批次对比学习效果差的原因竟是浮点误差？ — contrastive learning in small batches (S03)

Contrastive losses whose gradient does not drown in rounding error once the pairs are learnt.

For an anchor with scores s_1 … s_K and positive t, the odds against the positive are

    xi = sum_{i≠t} exp(s_i − s_t)                                                              (1)

and both losses push the same odds down:

    InfoNCE   L = log(1 + xi) = softplus(log xi)           dies with xi                        (2)
    FlatNCE   L = log xi                                   keeps its length                    (3)
    d FlatNCE / d s_i = w_i = exp(s_i) / sum_{j≠t} exp(s_j),    d FlatNCE / d s_t = −1         (4)

Per anchor, grad (3) = grad (2) / (1 − p_t), with p_t the positive's softmax: the same direction,
another length, so a batch weighs its anchors differently. To monitor a training:

    ESS = 1 / sum_{i≠t} w_i^2, how many negatives still push, in [1, negatives]                (5)
    I ≈ log(negatives) − log xi, mutual information, in nats; log K − (2) stays below log K    (6)

What is lost in a cross-entropy is the pull on the positive, p_t − 1, which cancels against 1 once
xi < machine epsilon; the push on negatives keeps its precision. (2) as a softplus loses neither.

What we do differently: the paper writes xi / stop_gradient(xi), 0/0 once xi underflows and always
1; its code shows InfoNCE's value with FlatNCE's gradient. (3) has that gradient, and `report`
chooses the value. DCL is the same loss before its weighting.

Symbols: scores s, target_index t, log_xi log xi.   Axes: B anchors, K candidates.
Cost: one pass over (B, K) scores, in float32 or better whatever autocast says.
Source: FlatNCE arXiv 2107.01152; article 8586; DCL arXiv 2110.06848. See also:
`kexue.losses.contrastive`, which goes from embeddings to log xi.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.losses.contrastive import check_odds, in_batch, log_odds_of_pairs, two_views
from kexue.losses.reduction import Reduced, Reduction, check_reduction, reduced

__all__ = [
    "FlatNCELoss",
    "InfoNCELoss",
    "effective_negatives",
    "flat_nce_loss",
    "info_nce_loss",
    "log_odds_against",
    "mutual_information",
]

Report = Literal["infonce", "log_xi", "flat"]
Pairing = Literal["two_views", "in_batch"]


def flat_nce_loss(
    scores: Float[Tensor, "B K"],
    target_index: Int[Tensor, " B"],
    *,
    ignore: Bool[Tensor, "B K"] | None = None,
    reduction: Reduction = "mean",
    report: Report = "infonce",
) -> Reduced:
    """FlatNCE of every anchor: the gradient (4) under a value to choose.

    Args:
        scores: similarity of each anchor with each candidate, already divided by the temperature.
        target_index: the positive candidate of each anchor.
        ignore: True where a candidate must not count as a negative (a duplicate, a same-class
            item); the positive's own entry has no effect.
        reduction: "mean" over the anchors, "sum", "none", or "sum_and_count" for (sum, number of
            anchors), which gradient accumulation needs.
        report: the value that is shown: "infonce" (2) as in the paper's code, "log_xi" (3), which
            may be negative, or "flat", the paper's constant 1. The gradient is the same.

    Returns:
        The loss in float32, or float64 for such scores.

    Raises:
        ValueError: a row without negatives, with NaN, or with a target out of range, by its
            number; shapes that do not match; an unknown reduction or report.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[1.0, 0.5, -0.2, 0.1]], requires_grad=True)
        >>> loss = flat_nce_loss(scores, torch.tensor([0]))
        >>> loss.backward()
        >>> round(loss.item(), 4), round(scores.grad[0, 0].item(), 4)
        (0.8391, -1.0)
    """
    check_reduction(reduction)
    return reduced(_flat(log_odds_against(scores, target_index, ignore), report), reduction)


def info_nce_loss(
    scores: Float[Tensor, "B K"],
    target_index: Int[Tensor, " B"],
    *,
    ignore: Bool[Tensor, "B K"] | None = None,
    reduction: Reduction = "mean",
    stable: bool = True,
) -> Reduced:
    """InfoNCE (2) of every anchor, with full relative precision however small it is.

    Args:
        scores: as in `flat_nce_loss`.
        target_index: as in `flat_nce_loss`.
        ignore: as in `flat_nce_loss`.
        reduction: as in `flat_nce_loss`.
        stable: False computes torch's cross-entropy instead, to compare with.

    Raises:
        ValueError: as in `flat_nce_loss`.

    Example:
        >>> import torch
        >>> scores, target = torch.tensor([[20.0, 0.0, 1.0]]), torch.tensor([0])
        >>> info_nce_loss(scores, target).item() > 0
        True
        >>> info_nce_loss(scores, target, stable=False).item()
        0.0
    """
    check_reduction(reduction)
    log_xi = log_odds_against(scores, target_index, ignore)
    if stable:
        return reduced(_info(log_xi), reduction)
    wide = scores.to(log_xi.dtype)
    if ignore is not None:
        positive = F.one_hot(target_index.long(), scores.shape[1]).bool()
        wide = wide.masked_fill(ignore & ~positive, -torch.inf)
    return reduced(F.cross_entropy(wide, target_index.long(), reduction="none"), reduction)


def log_odds_against(
    scores: Float[Tensor, "B K"],
    target_index: Int[Tensor, " B"],
    ignore: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, " B"]:
    """log xi (3): how strongly the negatives outweigh the positive, per anchor.

    Args:
        scores: as in `flat_nce_loss`.
        target_index: as in `flat_nce_loss`.
        ignore: as in `flat_nce_loss`.

    Raises:
        ValueError: as in `flat_nce_loss`.
    """
    negatives, positive = _split(scores, target_index, ignore)
    top = negatives.detach().amax(dim=1, keepdim=True).clamp(min=torch.finfo(negatives.dtype).min)
    total = (negatives - top).exp().sum(dim=1)
    log_xi = total.log() + (top.squeeze(1) - positive)  # (B,)  # (3); (4) has −1 to the last bit
    check_odds(log_xi + 0 * positive, scores.shape[1])  # a positive of +inf is its own complaint
    return log_xi


@torch.no_grad()
def effective_negatives(
    scores: Float[Tensor, "B K"],
    target_index: Int[Tensor, " B"],
    ignore: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, " B"]:
    """(5), the effective sample size of each anchor's negatives; near 1, a single one is left.

    Example:
        >>> import torch
        >>> effective_negatives(torch.tensor([[9.0, 1.0, 1.0, -50.0]]), torch.tensor([0]))
        tensor([2.])
    """
    log_odds_against(scores, target_index, ignore)  # complains about rows without negatives
    weights = _split(scores, target_index, ignore)[0].softmax(dim=1)
    return 1 / weights.square().sum(dim=1)  # (5)


@torch.no_grad()
def mutual_information(
    scores: Float[Tensor, "B K"],
    target_index: Int[Tensor, " B"],
    ignore: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, " B"]:
    """(6) per anchor, in nats; the mean over anchors estimates the mutual information.

    Not capped by log K, and biased upwards when negatives are few. InfoNCE's lower bound is
    log K − info_nce_loss.

    Example:
        >>> import torch
        >>> mutual_information(torch.zeros(1, 8), torch.tensor([3]))
        tensor([0.])
    """
    log_xi = log_odds_against(scores, target_index, ignore)
    negatives = (~_split(scores, target_index, ignore)[0].isneginf()).sum(dim=1)
    return negatives.to(log_xi.dtype).log() - log_xi  # (6)


class InfoNCELoss(nn.Module):
    """InfoNCE (2) of a batch of embedded pairs, NT-Xent in SimCLR's words.

    Args:
        temperature: divides the cosines; SimCSE 0.05, SimCLR 0.1 to 0.5.
        pairing: "two_views" for stacked views (2N, D), each of the 2N an anchor, or "in_batch"
            for (anchor, positive), each anchor against all positives, in this direction only.
        gather_distributed: negatives from all processes; the loss is that of this process's
            anchors, so that DDP's average is the mean over all.
        reduction: as in `flat_nce_loss`.
        chunk_size: anchors whose scores are held at a time; None: 2^20 scores on a CPU, 2^26
            elsewhere.

    Raises:
        ValueError: a temperature that is not positive; an unknown pairing or reduction.

    Example:
        >>> import torch
        >>> anchor, positive = torch.eye(4), torch.eye(4)
        >>> round(InfoNCELoss(0.5, "in_batch")(anchor, positive).item(), 4)
        0.3408
        >>> round(InfoNCELoss(0.5)(torch.cat((anchor, positive))).item(), 4)
        0.5944
    """

    def __init__(
        self,
        temperature: float = 0.07,
        pairing: Pairing = "two_views",
        gather_distributed: bool = False,
        *,
        reduction: Reduction = "mean",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < temperature < torch.inf:
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        if pairing not in get_args(Pairing):
            raise ValueError(f'pairing must be "two_views" or "in_batch", got {pairing!r}')
        check_reduction(reduction)
        self.temperature = temperature
        self.pairing = pairing
        self.gather_distributed = gather_distributed
        self.reduction = reduction
        self.chunk_size = chunk_size

    def forward(
        self,
        anchor: Float[Tensor, "rows D"],
        positive: Float[Tensor, "rows D"] | None = None,
        *,
        groups: Int[Tensor, " N"] | None = None,
        ignore: Bool[Tensor, "rows K"] | None = None,
    ) -> Reduced:
        """The loss.

        Args:
            anchor: with "two_views" the stacked views; any length, normalised here.
            positive: with "in_batch" the positives, row by row.
            groups: a number per pair, such as a label; a candidate of the anchor's own group is
                no negative.
            ignore: True where a candidate is no negative; K counts the gathered candidates.

        Raises:
            ValueError: embeddings that do not fit the pairing; an anchor without negatives or
                with NaN, by its row.
        """
        if (positive is None) != (self.pairing == "two_views"):
            need = "anchor and positive" if positive is None else "one tensor of stacked views"
            raise ValueError(f'pairing "{self.pairing}" takes {need}')
        gather = self.gather_distributed
        if positive is None:
            pairs = two_views(anchor, groups=groups, gather_distributed=gather)
        else:
            pairs = in_batch(anchor, positive, groups=groups, gather_distributed=gather)
        log_xi = log_odds_of_pairs(
            pairs, self.temperature, ignore=ignore, chunk_size=self.chunk_size
        )
        return reduced(self._value(log_xi), self.reduction)

    def _value(self, log_xi: Tensor) -> Tensor:
        return _info(log_xi)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, pairing={self.pairing!r}"


class FlatNCELoss(InfoNCELoss):
    """FlatNCE (3) of a batch of embedded pairs.

    Args:
        temperature: as in `InfoNCELoss`.
        pairing: as in `InfoNCELoss`.
        gather_distributed: as in `InfoNCELoss`.
        reduction: as in `InfoNCELoss`.
        chunk_size: as in `InfoNCELoss`.
        report: the value that is shown, as in `flat_nce_loss`.

    Raises:
        ValueError: as in `InfoNCELoss`; an unknown report.

    Example:
        >>> import torch
        >>> views = torch.cat((torch.eye(4), torch.eye(4)))
        >>> loss = FlatNCELoss(temperature=0.5, report="log_xi")
        >>> round(loss(views).item(), 4)  # log(6 e^{-2})
        -0.2082
    """

    def __init__(
        self,
        temperature: float = 0.07,
        pairing: Pairing = "two_views",
        gather_distributed: bool = False,
        *,
        reduction: Reduction = "mean",
        chunk_size: int | None = None,
        report: Report = "infonce",
    ) -> None:
        super().__init__(
            temperature, pairing, gather_distributed, reduction=reduction, chunk_size=chunk_size
        )
        _check_report(report)
        self.report = report

    def _value(self, log_xi: Tensor) -> Tensor:
        return _flat(log_xi, self.report)


def _info(log_xi: Tensor) -> Tensor:
    # Beyond torch's threshold of 20 softplus(x) becomes x, too early for float64.
    return F.softplus(log_xi, threshold=40)  # (2)


def _flat(log_xi: Tensor, report: Report) -> Tensor:
    _check_report(report)
    if report == "log_xi":
        return log_xi
    shown = _info(log_xi) if report == "infonce" else torch.ones_like(log_xi)
    return shown.detach() + (log_xi - log_xi.detach())  # exactly the value shown


def _split(scores: Tensor, target_index: Tensor, ignore: Tensor | None) -> tuple[Tensor, Tensor]:
    """Negatives (B, K), −inf at the positive and where ignored, and positives (B,)."""
    if scores.dim() != 2 or target_index.shape != scores.shape[:1]:
        raise ValueError(
            "scores need shape (B, K) and target_index (B,), "
            f"got {tuple(scores.shape)} and {tuple(target_index.shape)}"
        )
    if ignore is not None and ignore.shape != scores.shape:
        raise ValueError(
            f"ignore must have the scores' shape {tuple(scores.shape)}, got {tuple(ignore.shape)}"
        )
    index = target_index.long()[:, None]
    if not torch.compiler.is_compiling():
        outside = (target_index < 0) | (target_index >= scores.shape[1])
        if outside.any():
            row = int(outside.nonzero()[0])
            raise ValueError(
                f"row {row}: target {int(target_index[row])} is outside 0 … {scores.shape[1] - 1}"
            )
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    negatives = scores if ignore is None else scores.masked_fill(ignore, -torch.inf)
    return negatives.scatter(1, index, -torch.inf), scores.gather(1, index).squeeze(1)


def _check_report(report: str) -> None:
    if report not in get_args(Report):
        raise ValueError(f'report must be "infonce", "log_xi" or "flat", got {report!r}')
