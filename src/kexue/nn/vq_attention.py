r"""Transformer-VQ：“Key”复用的线性注意力 — exact softmax attention of quantised keys (S30)

Attend to any number of tokens in linear time, exactly, once every key is one of c codes.

Each key is replaced by its nearest codeword, K^ = Δ C with Δ one-hot (`vector_quantizer.py`). Then
all tokens of code s have the same logit, and a softmax over n keys is one over c codes:

    exp(Q K^^T) V = exp(Q C^T) (Δ^T V)                                                         (1)
    o_i = sum_s w_is M_s,   w_i = softmax_s(q_i · C_s + ln N_s)                                 (2)

N_s counts the tokens of code s and M_s is the mean of their values; a code without token has
logit −inf. Nearby tokens stay single, because a bias B of the distance i − j tells them apart and
because only they pass a gradient to their keys. With blocks of L tokens, query i of block b has

    logits  q_i · C_s + ln N_s^(far)            for codes of tokens outside the window          (3)
            q_i · K^_j + B_{i−j}                for tokens j of the window
    window  blocks b − 1 and b (causal), or b − 1, b, b + 1                                     (4)

in one softmax. Every gradient runs through the window; the far part passes one to q alone
(stop-gradient of C, N, M, as in the paper), or to v as well with `cache_gradient`.

Symbols: queries q, quantised keys k_hat (K^), codes z = argmin_s |K − C_s|, codebook C, values v,
block L, bias B.   Axes: B batch, H heads, N tokens, c codes, W distances.
Cost: n (c + 2L)(d_k + d_v) multiplications per head; memory n (d_k + d_v) + (n/L) c d_v. Sums by
code are sorted segment sums, without a one-hot product and without atomics.
Source: arXiv 2309.16354; article 9844. No 1/sqrt(d) here: scale q and k before quantising.
Different from the author's code: sums and counts are float32 and divided when used, where his cache
holds running means in bfloat16; empty codes are −inf, not −1e30; any n, left padding; a form
without causality. See also: `soft_vq.py`, `performer.py`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from kexue.nn.attention_mask import check_attention_mask
from kexue.nn.distance_bias import RelativeBias, check_bias, distance_table, minus_infinity
from kexue.nn.vq_blocks import BlockAttention
from kexue.nn.vq_cache import VQCache, sums_by_code

__all__ = ["RelativeBias", "vq_attention"]


def vq_attention(
    q: Float[Tensor, "B H N k"],
    k_hat: Float[Tensor, "B H N k"],
    codes: Int[Tensor, "B H N"],
    codebook: Float[Tensor, "H c k"],
    v: Float[Tensor, "B H N v"],
    block: int = 512,
    bias: Float[Tensor, "H W"] | RelativeBias | None = None,
    causal: bool = True,
    key_mask: Bool[Tensor, "B N"] | None = None,
    state: VQCache | None = None,
    *,
    cache_gradient: bool | None = None,
) -> Float[Tensor, "B H N v"]:
    """Softmax attention of quantised keys in linear time: (3), (4).

    Args:
        q: queries; the logits are q · k_hat, without a further scale.
        k_hat: quantised keys, straight-through: values codebook[codes], gradient to the keys.
        codes: index of the codeword of every key.
        codebook: the codewords; a constant here, it gets no gradient.
        v: values.
        block: L, tokens per block; the paper has 512, as many as codes.
        bias: added to the logits by distance. (H, W): entry d of a head is for i − j = d when
            causal; otherwise W is odd and entry d is for i − j = d − (W − 1)/2. At most 2·block
            distances back; with at most block + 1 of them the result does not depend on where the
            blocks begin. A `RelativeBias` reaches `block` tokens back at the most. Zero beyond.
        causal: query i sees keys up to i.
        key_mask: True = visible. Hidden keys and values may hold anything.
        state: cache of a causal layer; the tokens of this call follow those it has seen. It is
            changed in place and meant for inference: no gradient reaches earlier calls.
        cache_gradient: whether v gets a gradient from outside its window; the paper's False when
            causal, True otherwise, which costs one more product per block.

    Returns:
        Outputs in the dtype of q, computed in float32 or better; zeros for a row without a visible
        key.

    Raises:
        ValueError: block < 1; a codebook, bias or mask of the wrong size; a bias that reaches
            beyond the window; a state without causal.
        TypeError: the mask is not boolean.

    Example:
        >>> import torch
        >>> C = torch.eye(2)[None]
        >>> codes = torch.tensor([[[0, 1, 0, 1]]])
        >>> q = torch.tensor([[[[1.0, 0], [0, 1], [1, 1], [2, -1]]]])
        >>> v = torch.tensor([[[[1.0], [2], [3], [4]]]])
        >>> vq_attention(q, C[0][codes], codes, C, v, causal=False).flatten()
        tensor([2.2689, 2.7311, 2.5000, 2.0474])
    """
    _check(q, codes, codebook, v, block, bias, causal, key_mask, state)
    if q.shape[2] == 0:
        return v.to(q.dtype)  # (B, H, 0, v)
    wide = torch.promote_types(q.dtype, torch.float32)
    codebook = codebook.detach().to(wide)
    if key_mask is not None:  # NaN · 0 is NaN: what is hidden must go before any product
        hidden = ~key_mask[:, None, :, None]
        k_hat, v = k_hat.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
    if isinstance(bias, RelativeBias):
        bias = RelativeBias(bias.query.to(wide), bias.key.to(wide))
    elif bias is not None:
        bias = bias.to(wide)
    parts = (q.to(wide), k_hat.to(wide), codes, v.to(wide), key_mask)
    with torch.autocast(q.device.type, enabled=False):
        if state is not None:
            out = _with_state(*parts, codebook, block, bias, state)
        elif q.shape[2] <= (2 * block if causal else block):
            out = _window(parts[0], parts[1], parts[3], key_mask, bias, causal)
        else:
            keep = cache_gradient if cache_gradient is not None else not causal
            out = _blocks(*parts, codebook, block, bias, causal, keep)
    return out.to(q.dtype)


def _window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | RelativeBias | None,
    causal: bool,
    far: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """The last rows of one window, with the far part (codebook, counts, sums) if there is one."""
    rows, columns = q.shape[2], k.shape[2]
    logits = q @ k.mT  # (B, H, Q, K)
    table = distance_table(rows, columns, columns - rows, bias, causal, q)
    if table is not None:
        logits = logits + table
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None, :], -torch.inf)
    if far is None:
        near, distant = logits, None
    else:
        codebook, counts, sums = far
        distant = q @ codebook.mT + counts.log().unsqueeze(2)  # (B, H, Q, c)  # (2)
        near = torch.cat([distant, logits], dim=-1)
    if mask is not None:
        seen = near.detach().amax(-1, keepdim=True) > -torch.inf
        near = near.masked_fill(~seen, 0.0)  # a row that sees nothing: no NaN, then erased
        weights = near.softmax(dim=-1).masked_fill(~seen, 0.0)
    else:
        weights = near.softmax(dim=-1)
    if distant is None:
        out: Tensor = weights @ v
        return out
    c = distant.shape[-1]
    means = sums / counts.clamp(min=1.0).unsqueeze(-1)  # (B, H, c, v)
    return weights[..., :c] @ means + weights[..., c:] @ v  # (3)


def _blocks(
    q: Tensor,
    k: Tensor,
    codes: Tensor,
    v: Tensor,
    mask: Tensor | None,
    codebook: Tensor,
    block: int,
    bias: Tensor | RelativeBias | None,
    causal: bool,
    cache_gradient: bool,
    start: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """All blocks at once; `start` holds counts and sums of the tokens before the first block."""
    B, _, n, _ = q.shape
    c, after = codebook.shape[1], 0 if causal else 1
    fill = -n % block

    def in_blocks(x: Tensor, before: int = 0, behind: int = 0) -> Tensor:
        padded = F.pad(x, (0, 0, before * block, fill + behind * block))
        blocks: Tensor = padded.unflatten(2, (-1, block))
        return blocks

    visible = q.new_zeros(B, 1, n) if mask is None else minus_infinity(~mask, q)[:, None]
    visible = F.pad(visible, (block, fill + after * block), value=-torch.inf)
    key_bias = visible.unflatten(2, (-1, block))  # (B, 1, n/L + 1 or 2, L)
    with torch.set_grad_enabled(cache_gradient and torch.is_grad_enabled()):
        counts, sums = sums_by_code(codes, v, mask, c, block)  # (B, H, n/L, c), (…, c, v)
        counts, sums = _far(counts, causal), _far(sums, causal)
        if start is not None:
            counts, sums = counts + start[0].unsqueeze(2), sums + start[1].unsqueeze(2)
        means = sums / counts.clamp(min=1.0).unsqueeze(-1)
    empty = None
    if mask is not None:
        seen = mask.cumsum(1) if causal else mask.sum(1, keepdim=True).expand(-1, n)
        if start is not None:
            seen = seen + start[0][:, 0].sum(-1, keepdim=True)
        empty = F.pad(seen == 0, (0, fill), value=False).unflatten(1, (-1, block))[
            :, None, ..., None
        ]
    rel_q = rel_k = None
    past = 0
    if isinstance(bias, RelativeBias):
        rel_q, rel_k = in_blocks(bias.query), bias.key.flip(1)  # the farthest past comes first
        past = (rel_k.shape[1] - 1) // (1 if causal else 2)
        table = distance_table(block, 2 * block, block, None, True, q) if causal else None
    else:
        table = distance_table(block, (2 + after) * block, block, bias, causal, q)
    out: Tensor = BlockAttention.apply(
        in_blocks(q),
        in_blocks(k, 1, after),
        in_blocks(v, 1, after),
        key_bias,
        codebook,
        counts.log(),
        means,
        table,
        rel_q,
        rel_k,
        past,
        empty,
    )  # (B, H, n/L, L, v)
    return out.flatten(2, 3)[:, :, :n]


def _with_state(
    q: Tensor,
    k: Tensor,
    codes: Tensor,
    v: Tensor,
    mask: Tensor | None,
    codebook: Tensor,
    block: int,
    bias: Tensor | RelativeBias | None,
    state: VQCache,
) -> Tensor:
    """Tokens that follow those of the cache; the cache is brought up to date."""
    n = q.shape[2]
    window = state.extend(k, codes, v, mask, codebook.shape[1], block)
    if window.fits:
        far = (codebook, state.counts, state.sums) if state.folded else None
        return _window(q, window.keys, window.values, window.mask, bias, True, far)
    before = window.keys.shape[2] - n  # rows that were answered in earlier calls
    rows = F.pad(q, (0, 0, before, 0))
    if isinstance(bias, RelativeBias):
        bias = RelativeBias(F.pad(bias.query, (0, 0, before, 0)), bias.key)
    out = _blocks(
        rows,
        window.keys,
        window.codes,
        window.values,
        window.mask,
        codebook,
        block,
        bias,
        True,
        False,
        window.start,
    )
    return out[:, :, before:]


def _far(x: Tensor, causal: bool) -> Tensor:
    """For every block of axis 2, the sum over the blocks outside its window (4)."""
    past = x.cumsum(2)
    far = F.pad(past.movedim(2, -1), (2, 0)).movedim(-1, 2)[:, :, : x.shape[2]]
    if causal:
        return far
    future = x.flip(2).cumsum(2)
    ahead = F.pad(future.movedim(2, -1), (2, 0)).movedim(-1, 2)[:, :, : x.shape[2]]
    return far + ahead.flip(2)


def _check(
    q: Tensor,
    codes: Tensor,
    codebook: Tensor,
    v: Tensor,
    block: int,
    bias: Tensor | RelativeBias | None,
    causal: bool,
    key_mask: Tensor | None,
    state: VQCache | None,
) -> None:
    B, H, n, d = q.shape
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    if codebook.shape[0] != H or codebook.shape[2] != d:
        raise ValueError(
            f"codebook must have shape (heads, codes, head_dim) = ({H}, c, {d}) to match "
            f"the queries, got {tuple(codebook.shape)}"
        )
    check_attention_mask(key_mask, B, n, "key_mask")
    if state is not None and not causal:
        raise ValueError("a state needs causal=True: without it early outputs see later tokens")
    if bias is not None:
        check_bias(bias, H, block, causal)
