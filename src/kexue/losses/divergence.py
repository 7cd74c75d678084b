"""Kullback–Leibler divergence between two predictions, from logits.

    softmax   KL(p || q) = sum_k p_k (log p_k − log q_k)                                        (1)
    sigmoid   KL(p || q) = sum_k p_k (log p_k − log q_k) + (1−p_k) (log(1−p_k) − log(1−q_k))    (2)
    both      KL(p || q) + KL(q || p) = sum_k (p_k − q_k) (a_k − b_k)                           (3)

In (3) a and b are log-probabilities for softmax, logits for sigmoid; no term is negative, so
nothing cancels, and equal predictions give 0 exactly. A class whose logit is −inf on either side is
masked: it takes no part in (2) and (3), and none in (1) where p is 0.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["kl_divergence", "symmetric_kl", "without_rows"]


def kl_divergence(
    logits_p: Float[Tensor, "*rows C"],
    logits_q: Float[Tensor, "*rows C"],
    *,
    kind: Literal["softmax", "sigmoid"] = "softmax",
) -> Float[Tensor, "*rows"]:
    """KL(p || q) of every row, in float32 or better: (1) or (2).

    Raises:
        ValueError: two shapes, no last axis, or an unknown kind.

    Example:
        >>> p, q = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> kl_divergence(p, q)
        tensor([0.1201])
    """
    a, b = _checked(logits_p, logits_q, kind)
    if kind == "softmax":
        dead = a.isneginf()
        a, b = (_log_softmax(one).masked_fill(dead, 0.0) for one in (a, b))
        return (a.exp().masked_fill(dead, 0.0) * (a - b)).sum(dim=-1)  # (1)
    dead = a.isneginf() | b.isneginf()
    a, b = a.masked_fill(dead, 0.0), b.masked_fill(dead, 0.0)
    return (torch.sigmoid(a) * (a - b) + F.softplus(b) - F.softplus(a)).sum(dim=-1)  # (2)


def symmetric_kl(
    logits_p: Float[Tensor, "*rows C"],
    logits_q: Float[Tensor, "*rows C"],
    *,
    kind: Literal["softmax", "sigmoid"] = "softmax",
) -> Float[Tensor, "*rows"]:
    """KL(p || q) + KL(q || p) of every row, in float32 or better: (3).

    Raises:
        ValueError: two shapes, no last axis, or an unknown kind.

    Example:
        >>> p, q = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> symmetric_kl(p, q), symmetric_kl(p, p)
        (tensor([0.2311]), tensor([0.]))
    """
    a, b = _checked(logits_p, logits_q, kind)
    dead = a.isneginf() | b.isneginf()
    if kind == "softmax":
        a, b = (_log_softmax(one).masked_fill(dead, 0.0) for one in (a, b))
        difference = a.exp() - b.exp()
    else:
        a, b = a.masked_fill(dead, 0.0), b.masked_fill(dead, 0.0)
        difference = torch.sigmoid(a) - torch.sigmoid(b)
    return (difference * (a - b)).sum(dim=-1)  # (3)


def without_rows(logits: Tensor, dead: Tensor) -> Tensor:
    """Zeros in the rows that do not count, so that nothing broken there reaches a gradient.

    Args:
        logits: (…, C).
        dead: True for the rows to leave out, broadcastable to the logits without their last axis.
    """
    return logits.masked_fill(dead.expand(logits.shape[:-1])[..., None], 0.0)


def _log_softmax(logits: Tensor) -> Tensor:
    empty = logits.isneginf().all(dim=-1, keepdim=True)  # a row without classes would give NaN
    return logits.masked_fill(empty, 0.0).log_softmax(dim=-1)


def _checked(logits_p: Tensor, logits_q: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    if kind not in ("softmax", "sigmoid"):
        raise ValueError(f'kind must be "softmax" or "sigmoid", got {kind!r}')
    if logits_p.shape != logits_q.shape or logits_p.dim() == 0:
        raise ValueError(
            "both logits need one shape (..., C), got "
            f"{tuple(logits_p.shape)} and {tuple(logits_q.shape)}"
        )
    kept = torch.promote_types(torch.promote_types(logits_p.dtype, logits_q.dtype), torch.float32)
    return logits_p.to(kept), logits_q.to(kept)
