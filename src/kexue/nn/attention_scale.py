r"""从熵不变性看Attention的Scale操作 — entropy-invariant attention scale, log n (S07)

Keep attention as sharp over 4,096 keys as it was over 512.

A softmax over more keys is flatter. To keep its entropy, the logits grow with the logarithm of the
number n of keys that the row may see:

    Attention(Q, K, V)_i = softmax( log_base(n_i) / sqrt(d) · Q_i K^T ) V,   base = 512          (1)
    log_base(n) = ln n / ln base;   n at least min_len;   with clip at least 1                  (2)
    n_i = #{ j visible : first_i <= j <= last_i }                                               (3)

At n = base the factor is the usual 1/sqrt(d). Rows of one batch, even of one sequence, differ in n:

    rows of                     first_i                  last_i
    an encoder                  0                        K − 1
    a causal decoder            0                        offset + i
    a prefix LM                 0                        max(offset + i, prefix − 1)
    a sliding window w          offset + i − w + 1       offset + i
    documents in one sequence   start of the document    offset + i, or its end if not causal

`scaled_queries` multiplies the queries and leaves 1/sqrt(d) to the backend, so (1) runs on any
kernel: SDPA, flash or flex attention.

Symbols: n counts, d head_dim, offset cache_offset.   Axes: B batch, H heads, Q queries, K keys.
Cost: one multiplication of the queries; counting is O(B K), and no (Q, K) tensor is made.
Source: articles 8823, 9019. The article derives lambda proportional to log n / d and fixes the
constant at 512; its code floors n at 16 (`min_len=16`). A row without keys has n = 0 and the factor
of min_len, which is 0 for 1. With `clip` the factor suits models trained without any: rows below
the training length (`base`) stay as they were. LongRoPE's 1 + ln s / ln L is the same number: base
L at n = s L.
See also: `row_scale.py` (as modules, SSMax among them), `log_n_attention.py`, `models.log_n`.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["log_n_scale", "row_counts", "scaled_queries"]


def log_n_scale(
    n: int | Tensor,
    head_dim: int,
    base: float | int = 512,
    min_len: int = 1,
    clip: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The factor lambda = log_base(n) / sqrt(head_dim) of the logits: (1), (2).

    Args:
        n: number of keys that a row may see, any shape; counts of 0 in a tensor are allowed.
        head_dim: d; 1 gives log_base(n) alone.
        base: the n at which the factor is the usual one: 512 in the article, else the length a
            model was trained at.
        min_len: floor of n, applied first; the author's code has 16, because attention over two or
            three keys becomes almost uniform otherwise.
        clip: never below the usual factor; for models trained without log n.
        dtype: of the result; the logarithm is taken in float32 or better.

    Returns:
        The factor, in the shape of n.

    Raises:
        TypeError: dtype is not floating.
        ValueError: base is not finite and above 1; head_dim, min_len or an int n is not positive.

    Example:
        >>> log_n_scale(torch.tensor([64, 512, 4096]), head_dim=64)
        tensor([0.0833, 0.1250, 0.1667])
    """
    _check_scale(n, base, min_len)
    if head_dim < 1:
        raise ValueError(f"head_dim must be positive, got {head_dim}")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating, got {dtype}")
    counts = torch.as_tensor(n).to(torch.promote_types(dtype, torch.float32))
    factor = counts.clamp(min=min_len).log() / math.log(base)  # (2)
    if clip:
        factor = factor.clamp(min=1.0)
    return (factor / math.sqrt(head_dim)).to(dtype)  # (1)


def scaled_queries(
    q: Float[Tensor, "*shape"],
    n: int | Int[Tensor, "#B Q"],
    base: float | int = 512,
    min_len: int = 1,
    clip: bool = False,
) -> Float[Tensor, "*shape"]:
    """Queries times log_base(n), for a kernel that divides by sqrt(d) itself.

    Args:
        q: (B, Q, d), (B, H, Q, d) or more axes between batch and queries.
        n: keys that each row may see, such as `row_counts` gives; an int: the same for all.
        base: see `log_n_scale`, also for min_len and clip.
        min_len: floor of n.
        clip: never below 1.

    Raises:
        ValueError: n fits neither rows nor batch of q; else as `log_n_scale`.

    Example:
        >>> q, k, v = torch.randn(3, 2, 8, 100, 64)
        >>> n = row_counts(causal=True, q_len=100, k_len=100)
        >>> attention = torch.nn.functional.scaled_dot_product_attention
        >>> attention(scaled_queries(q, n), k, v, is_causal=True).shape
        torch.Size([2, 8, 100, 64])
    """
    factors = log_n_scale(n, 1, base, min_len, clip, torch.promote_types(q.dtype, torch.float32))
    if isinstance(n, Tensor):
        if q.ndim < 3 or n.shape[-1] != q.shape[-2] or n.shape[0] not in (1, q.shape[0]):
            raise ValueError(
                "n must have shape (batch or 1, queries) for queries (batch, ..., queries, "
                f"head_dim), got n {tuple(n.shape)} and q {tuple(q.shape)}"
            )
        factors = factors.view(len(n), *[1] * (q.ndim - 3), n.shape[1], 1)  # (B, 1, Q, 1)
    return q * factors.to(q.dtype)


def row_counts(
    attention_mask: Bool[Tensor, "B K"] | None = None,
    causal: bool = False,
    *,
    q_len: int,
    k_len: int,
    cache_offset: int = 0,
    prefix: int | Int[Tensor, " B"] | None = None,
    window: int | None = None,
    documents: Int[Tensor, "#B K"] | None = None,
    device: torch.device | None = None,
) -> Int[Tensor, "#B Q"]:
    """How many keys each row may see: (3).

    In cross-attention give the mask of the encoder and leave `causal` off.

    Args:
        attention_mask: True = visible key, cached keys included; None: all are.
        causal: row i sees keys up to cache_offset + i.
        q_len: Q.
        k_len: K, cached keys included.
        cache_offset: keys before the first query.
        prefix: length of the part that every row sees, per sequence or one for all; as much of it
            as there are keys; needs `causal`.
        window: keys a causal row looks back over, itself included.
        documents: a number per key; a new document begins where it changes, and rows see their own
            document only. Queries are the last Q keys from `cache_offset` on.
        device: where to count when no tensor is given.

    Returns:
        Counts, with one row for all sequences where they do not differ.

    Raises:
        TypeError: a mask that is not boolean.
        ValueError: sizes that do not fit or are negative, prefix or window without `causal`, both,
            or prefix with documents.

    Example:
        >>> mask = torch.tensor([[False, True, True, True]])
        >>> row_counts(mask, causal=True, q_len=4, k_len=4)
        tensor([[0, 1, 2, 3]])
        >>> row_counts(causal=True, q_len=4, k_len=4, window=2)
        tensor([[1, 2, 2, 2]])
        >>> row_counts(causal=True, q_len=5, k_len=5, documents=torch.tensor([[7, 7, 7, 8, 8]]))
        tensor([[1, 2, 3, 1, 2]])
    """
    _check_counts(attention_mask, causal, q_len, k_len, cache_offset, prefix, window, documents)
    for given in (attention_mask, documents, prefix):
        device = given.device if isinstance(given, Tensor) else device
    if not causal and documents is None:
        if attention_mask is None:
            return torch.full((1, q_len), k_len, device=device)
        return attention_mask.sum(dim=-1, keepdim=True).expand(-1, q_len)
    own = torch.arange(cache_offset, cache_offset + q_len, device=device)[None]  # (1, Q)
    first, last = torch.zeros_like(own), own
    if documents is not None:
        start, end = (edge[:, cache_offset : cache_offset + q_len] for edge in _edges(documents))
        first, last = start, (own if causal else end)
    if prefix is not None:
        ends = torch.as_tensor(prefix, device=device).reshape(-1, 1) - 1  # (#B, 1)
        last = own.maximum(ends.clamp(max=k_len - 1))  # (#B, Q)
    if window is not None:
        first = first.maximum(own - window + 1)
    if attention_mask is None:
        return last - first + 1  # (3)
    kept = attention_mask.cumsum(dim=-1)  # (B, K)
    before = torch.nn.functional.pad(kept, (1, 0))  # (B, K + 1): kept keys before each key
    first, last = (edge.expand(len(kept), -1) for edge in (first, last))
    return kept.gather(1, last) - before.gather(1, first)  # (3)


def _edges(documents: Int[Tensor, "B K"]) -> tuple[Int[Tensor, "B K"], Int[Tensor, "B K"]]:
    """First and last position of the document that each key belongs to."""
    size = documents.shape[1]
    at = torch.arange(size, device=documents.device).expand_as(documents)  # (B, K)
    changes = documents[:, 1:] != documents[:, :-1]  # (B, K − 1)
    begins = torch.nn.functional.pad(changes, (1, 0), value=True)
    ends = torch.nn.functional.pad(changes, (0, 1), value=True)
    start = torch.where(begins, at, 0).cummax(dim=1).values
    end = torch.where(ends, at, size - 1).flip(1).cummin(dim=1).values.flip(1)
    return start, end


def _check_scale(n: int | Tensor, base: float | int, min_len: int) -> None:
    if not 1 < base < math.inf:
        raise ValueError(f"base must be above 1 (the log of 1 is 0) and finite, got {base}")
    if min_len < 1:
        raise ValueError(f"min_len must be at least 1, got {min_len}")
    if isinstance(n, int) and n < 1:
        raise ValueError(f"n must be at least 1, got {n}; for rows without a key give a tensor")


def _check_counts(
    mask: Tensor | None,
    causal: bool,
    q_len: int,
    k_len: int,
    offset: int,
    prefix: int | Tensor | None,
    window: int | None,
    documents: Tensor | None,
) -> None:
    for name, keys in (("attention_mask", mask), ("documents", documents)):
        if keys is not None and (keys.ndim != 2 or keys.shape[1] != k_len):
            raise ValueError(
                f"{name} must have shape (batch, k_len) = (batch, {k_len}), cached keys included, "
                f"got {tuple(keys.shape)}"
            )
    rows = {
        name: len(given)
        for name, given in (("attention_mask", mask), ("documents", documents), ("prefix", prefix))
        if isinstance(given, Tensor) and given.ndim and len(given) != 1
    }
    if len(set(rows.values())) > 1:
        raise ValueError(f"all must speak of the same sequences, got as many rows: {rows}")
    if min(q_len, k_len, offset) < 0:
        raise ValueError(
            "q_len, k_len and cache_offset must be at least 0, "
            f"got q_len={q_len}, k_len={k_len}, cache_offset={offset}"
        )
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"attention_mask must be bool with True = visible, got {mask.dtype}")
    if (causal or documents is not None) and offset + q_len > k_len:
        raise ValueError(
            f"{q_len} queries after {offset} cached keys need at least {offset + q_len} keys, "
            f"got k_len={k_len}"
        )
    if not causal and (prefix is not None or window is not None):
        raise ValueError("prefix and window are about causal rows: set causal=True")
    if isinstance(prefix, int) and prefix < 0:
        raise ValueError(f"prefix must be at least 0, got {prefix}")
    if prefix is not None and (window is not None or documents is not None):
        raise ValueError("prefix goes with neither window nor documents: count from the mask")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 (a row sees itself), got {window}")
