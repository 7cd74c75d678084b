r"""Contrastive pairs: from embeddings to the odds against each positive (S03)

Who is compared with whom, without ever holding all the scores.

With unit vectors a_i (anchors) and c_j (candidates), target t(i) and negatives N(i), the places
that are neither the positive, nor the anchor itself, nor declared false negatives:

    s_ij = a_i·c_j / tau                                                                       (1)
    log xi_i = log sum_{j in N(i)} exp(s_ij − s_{i,t(i)})                                      (2)
    d log xi_i / d s_ij = w_ij = exp(s_ij) / sum_{k in N(i)} exp(s_ik) on N(i),  −1 at t(i)    (3)
    d / d a_i = g_i sum_j w_ij c_j / tau,     d / d c_j = sum_i g_i w_ij a_i / tau             (4)

Every contrastive loss of this folder is a function of (2). A chunk of rows of (1) is computed, used
and dropped; the backward pass computes it again, so memory is O(K · chunk) instead of O(B · K).

Symbols: temperature tau, log_xi log xi, g the gradient that arrives.   Axes: B anchors, K
candidates, D embedding, N pairs.
Cost: four products of 2·B·K·D operations (one forward, three backward) and two exponentials per
score; three products where one chunk holds all rows, whose (3) is then kept.
Source: SimCLR arXiv 2002.05709 (two views), SimCSE and CLIP (in batch); recomputing (3) is ours, as
in fused attention.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kexue.losses.gather import gather_with_gradient

__all__ = [
    "Pairs",
    "check_odds",
    "in_batch",
    "log_odds_of_pairs",
    "pair_scores",
    "two_views",
    "unit",
]

CPU_SCORES, DEVICE_SCORES = 1 << 20, 1 << 26
"""Scores held at a time: 4 MiB, which stay in a CPU's cache; 256 MiB keep an accelerator busy."""


class Pairs(NamedTuple):
    """Row i of `anchors` is compared with all `candidates`, of which `target[i]` is its positive.

    Args:
        anchors: unit vectors (B, D).
        candidates: unit vectors (K, D).
        never: candidates that are no negatives (B, 1 or 2): the positive, then the anchor itself.
        groups: what belongs together, for anchors (B,) and candidates (K,).
    """

    anchors: Tensor
    candidates: Tensor
    never: Tensor
    groups: tuple[Tensor, Tensor] | None = None

    @property
    def target(self) -> Tensor:
        """The positive of each anchor (B,)."""
        return self.never[:, 0]


def two_views(
    embeddings: Float[Tensor, "rows D"],
    *,
    groups: Int[Tensor, " N"] | None = None,
    gather_distributed: bool = False,
) -> Pairs:
    """Two views stacked: rows i and i + N are a pair, all 2N rows are anchors (SimCLR).

    Args:
        embeddings: first views, then second views, (2N, D); normalised here.
        groups: a number per pair; candidates of the anchor's own group are no negatives.
        gather_distributed: candidates from all processes, anchors from this one.

    Raises:
        ValueError: an odd number of rows; not one group per pair; processes with unequal batches.

    Example:
        >>> import torch
        >>> two_views(torch.eye(4)).target
        tensor([2, 3, 0, 1])
    """
    if embeddings.dim() != 2 or len(embeddings) % 2:
        raise ValueError(
            "two views need embeddings of shape (2N, D), first views before second views, "
            f"got {tuple(embeddings.shape)}"
        )
    rows = len(embeddings)
    _check_groups(groups, rows // 2)
    unit_rows = unit(embeddings)
    candidates, start = _candidates(unit_rows, gather_distributed)
    itself = torch.arange(rows, device=embeddings.device)
    target = (itself + rows // 2) % max(rows, 1)
    own = None if groups is None else groups.repeat(2)
    return Pairs(
        unit_rows,
        candidates,
        torch.stack((target, itself), dim=1) + start,
        None if own is None else (own, _candidates(own, gather_distributed)[0]),
    )


def in_batch(
    anchor: Float[Tensor, "N D"],
    positive: Float[Tensor, "N D"],
    *,
    groups: Int[Tensor, " N"] | None = None,
    gather_distributed: bool = False,
) -> Pairs:
    """Each anchor against the positives of the whole batch, in this direction only.

    Args:
        anchor: embeddings such as queries or images; normalised here.
        positive: row i belongs to row i of `anchor`; the other rows are its negatives.
        groups: a number per pair; candidates of the anchor's own group are no negatives.
        gather_distributed: candidates from all processes, anchors from this one.

    Raises:
        ValueError: shapes that differ; not one group per pair; processes with unequal batches.
    """
    if anchor.dim() != 2 or anchor.shape != positive.shape:
        raise ValueError(
            "anchor and positive must both have shape (N, D), row i with row i, "
            f"got {tuple(anchor.shape)} and {tuple(positive.shape)}"
        )
    _check_groups(groups, len(anchor))
    candidates, start = _candidates(unit(positive), gather_distributed)
    target = torch.arange(len(anchor), device=anchor.device) + start
    both = None if groups is None else (groups, _candidates(groups, gather_distributed)[0])
    return Pairs(unit(anchor), candidates, target[:, None], both)


def unit(x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Vectors of length 1 in float32 or better; a zero vector stays zero and gets no gradient."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scaled: Tensor = x / length.where(length > 0, torch.inf)
    return scaled


def pair_scores(
    pairs: Pairs, temperature: float = 0.07
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """All scores (1), and True where a candidate is no negative, to look at or to modify.

    Example:
        >>> import torch
        >>> scores, ignore = pair_scores(two_views(torch.eye(4)), temperature=0.5)
        >>> scores[0], ignore[0]
        (tensor([2., 0., 0., 0.]), tensor([ True, False,  True, False]))
    """
    _check_temperature(temperature)
    with torch.autocast(pairs.anchors.device.type, enabled=False):
        scores = (pairs.anchors / temperature) @ pairs.candidates.T  # (B, K)  # (1)
    ignore = torch.zeros_like(scores, dtype=torch.bool).scatter(1, pairs.never, True)
    if pairs.groups is not None:
        ignore = ignore | (pairs.groups[0][:, None] == pairs.groups[1])
    return scores, ignore


def log_odds_of_pairs(
    pairs: Pairs,
    temperature: float = 0.07,
    *,
    ignore: Bool[Tensor, "B K"] | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, " B"]:
    """(2) for every anchor.

    Args:
        pairs: from `two_views` or `in_batch`.
        temperature: divides the cosines; SimCSE 0.05, SimCLR 0.1 to 0.5.
        ignore: True where a candidate must not count as a negative, beyond `pairs`.
        chunk_size: anchors at a time; None: as many as give 2^20 scores on a CPU, 2^26 elsewhere.

    Raises:
        ValueError: an anchor without a negative or with NaN, by its row; a temperature or
            chunk size that is not positive; an `ignore` of another shape.
        RuntimeError: differentiated twice; use `pair_scores` for that.
    """
    _check_temperature(temperature)
    anchors = pairs.anchors / temperature
    size = (len(anchors), len(pairs.candidates))
    if ignore is not None and ignore.shape != size:
        raise ValueError(f"ignore must have shape {size}, got {tuple(ignore.shape)}")
    if chunk_size is None:
        held = CPU_SCORES if anchors.device.type == "cpu" else DEVICE_SCORES
        chunk_size = max(64, held // max(size[1], 1))
    elif chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    own, theirs = pairs.groups or (None, None)
    if theirs is own and theirs is not None:
        theirs = theirs.clone()  # torch.compile wants no tensor twice
    log_xi: Tensor = _LogOdds.apply(
        anchors, pairs.candidates, pairs.never, own, theirs, ignore, chunk_size
    )
    check_odds(log_xi, size[1])
    return log_xi


class _LogOdds(torch.autograd.Function):
    """(2) forward and (4) backward, a chunk of rows at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        never: Tensor,
        own: Tensor | None,
        theirs: Tensor | None,
        ignore: Tensor | None,
        chunk: int,
    ) -> Tensor:
        inputs = (anchors, candidates, never, own, theirs, ignore)
        lse, positive = anchors.new_empty(len(anchors), 1), anchors.new_empty(len(anchors), 1)
        kept = None
        for start in range(0, len(anchors), chunk):
            rows = slice(start, start + chunk)
            s, positive[rows] = _scores(rows, *inputs)  # (chunk, K)
            top = s.amax(dim=1, keepdim=True).clamp(min=torch.finfo(s.dtype).min)
            total = s.sub_(top).exp_().sum(dim=1, keepdim=True)
            lse[rows] = top + total.log()
            if len(anchors) <= chunk:
                kept = s.div_(total).scatter_(1, never[:, :1], -1.0)  # (3)
        ctx.save_for_backward(*inputs, lse, kept)
        ctx.chunk = chunk
        return (lse - positive).squeeze(1)  # (2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            raise RuntimeError(
                "log_odds_of_pairs cannot be differentiated twice (create_graph=True): "
                "pass the scores of pair_scores to flat_nce_loss or info_nce_loss instead"
            )
        *inputs, lse, kept = ctx.saved_tensors
        anchors, candidates, never = inputs[:3]
        grad_anchors, grad_candidates = torch.empty_like(anchors), torch.zeros_like(candidates)
        for start in range(0, len(anchors), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            w = kept
            if w is None:
                w = _scores(rows, *inputs)[0].sub_(lse[rows]).exp_()  # (chunk, K)
                w.scatter_(1, never[rows, :1], -1.0)  # (3)
            with torch.autocast(anchors.device.type, enabled=False):
                grad_anchors[rows] = g[rows, None] * (w @ candidates)  # (4)
                grad_candidates.addmm_(w.T, g[rows, None] * anchors[rows])
        return grad_anchors, grad_candidates, None, None, None, None, None


def _scores(
    rows: slice,
    anchors: Tensor,
    candidates: Tensor,
    never: Tensor,
    own: Tensor | None,
    theirs: Tensor | None,
    ignore: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(1) for some rows, −inf where j is no negative, and the positives' scores."""
    with torch.autocast(anchors.device.type, enabled=False):
        s = anchors[rows] @ candidates.T  # (chunk, K)  # (1)
    positive = s.gather(1, never[rows, :1])  # (chunk, 1)
    if own is not None and theirs is not None:
        s.masked_fill_(own[rows, None] == theirs, -torch.inf)
    if ignore is not None:
        s.masked_fill_(ignore[rows], -torch.inf)
    return s.scatter_(1, never[rows], -torch.inf), positive


def check_odds(log_xi: Float[Tensor, " B"], candidates: int) -> None:
    """Refuses odds that are not finite, with the row and the reason; nothing when compiling.

    Raises:
        ValueError: no negative left, or a score that is NaN or infinite.
    """
    if torch.compiler.is_compiling() or (usable := log_xi.detach().isfinite()).all():
        return
    row = int((~usable).nonzero()[0])
    if log_xi[row] == -torch.inf:
        raise ValueError(
            f"row {row} has no negative left among {candidates} candidates: give at least two "
            "candidates and leave at least one of them unmasked"
        )
    raise ValueError(f"row {row} has a score that is NaN or infinite: check the embeddings")


def _candidates(x: Tensor, gather: bool) -> tuple[Tensor, int]:
    return gather_with_gradient(x) if gather else (x, 0)


def _check_groups(groups: Tensor | None, pairs: int) -> None:
    if groups is not None and groups.shape != (pairs,):
        raise ValueError(
            f"groups needs one number per pair, shape ({pairs},), got {tuple(groups.shape)}"
        )


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < torch.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
