r"""突破瓶颈，打造更强大的Transformer — how wide keys must be for a pattern (S25)

The exact key size that an attention pattern needs, and the best pattern of a smaller size.

Softmax does not see a number added to a row of logits. For a positive stochastic P (n × m) let

    L = log P,      M = I − 1 1ᵀ / m      (L M: log attention, each row centred)                 (1)
    required size = rank(L M)  ≤  min(n, m − 1)                                                 (2)
    P_r = softmax((L M)_r),   (·)_r the truncated singular value decomposition                   (3)

(2) holds because P = softmax(Q Kᵀ) says L + c 1ᵀ = Q Kᵀ for some column c. Then L M = Q Kᵀ M has
rank ≤ d; and conversely L M itself is such a product, with c minus the means of the rows. So size
m − 1 is always enough, uniform attention needs none, and in (3) no product of size r is closer to
the centred logits (Eckart and Young): their squared error is the sum of the squared singular values
that were cut.

Symbols: P attention.   Axes: n queries, m keys.
Cost: one singular value decomposition per map, O(n m min(n, m)), in float64.
Sources: article 7325; arXiv 2002.07028 proves that d ≥ n suffices and d < n sometimes does not.
Ours: (2) as the exact criterion, and (3).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["centred_log_attention", "low_rank_attention", "required_key_size"]


def centred_log_attention(
    P: Float[Tensor, "*batch n m"], keys: Bool[Tensor, " m"] | None = None
) -> Float[Tensor, "*batch n seen"]:
    """L M of (1), in float64.

    Args:
        P: attention weights, positive where a key is visible.
        keys: True = visible key; the others are left out.

    Raises:
        ValueError: P holds a number that is not positive among the visible keys, or no key is.
    """
    if keys is not None:
        P = P[..., keys]
    if not P.shape[-1]:
        raise ValueError("P has no visible key; give keys with at least one True")
    if not bool((P > 0).all()):
        raise ValueError(
            "P must be positive, because log 0 is not a number of any product Q Kᵀ: leave masked "
            "keys out with keys=, cut P to rows and columns that all see each other, or clamp it"
        )
    L = P.double().log()
    return L - L.mean(dim=-1, keepdim=True)  # (1)


def required_key_size(
    P: Float[Tensor, "*batch n m"],
    tol: float | None = None,
    *,
    keys: Bool[Tensor, " m"] | None = None,
) -> Int[Tensor, "*batch"]:
    """The smallest key size whose softmax(Q Kᵀ) can be P: (2).

    Args:
        P: attention weights, positive; rows sum to 1 (a factor per row changes nothing).
        tol: singular values count above tol · max(1, largest); default max(n, m) times the
            rounding error of P's dtype.
        keys: True = visible key; the others are left out.

    Raises:
        ValueError: as `centred_log_attention`.

    Example:
        >>> P = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]])
        >>> required_key_size(P), required_key_size(torch.full((5, 5), 0.2))
        (tensor(2), tensor(0))
    """
    centred = centred_log_attention(P, keys)
    if tol is None:
        tol = max(centred.shape[-2:]) * torch.finfo(P.dtype).eps
    sigma = torch.linalg.svdvals(centred)  # (*batch, min(n, m))
    least = tol * sigma.amax(dim=-1, keepdim=True).clamp(min=1)
    size: Tensor = (sigma > least).sum(dim=-1)  # (2)
    return size


def low_rank_attention(P: Float[Tensor, "*batch n m"], r: int) -> Float[Tensor, "*batch n m"]:
    """The pattern with key size r whose centred logits are closest to those of P: (3).

    Args:
        P: attention weights, positive.
        r: key size; from `required_key_size(P)` on the result is P.

    Raises:
        ValueError: r is negative, or as `centred_log_attention`.

    Example:
        >>> P = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]])
        >>> low_rank_attention(P, 1)
        tensor([[0.3868, 0.4035, 0.2097],
                [0.3847, 0.4005, 0.2149],
                [0.1077, 0.0938, 0.7985]])
    """
    if r < 0:
        raise ValueError(f"r must not be negative, got {r}")
    left, sigma, right = torch.linalg.svd(centred_log_attention(P), full_matrices=False)
    logits: Tensor = (left[..., :r] * sigma[..., None, :r]) @ right[..., :r, :]
    return logits.softmax(dim=-1).to(P.dtype)  # (3)
