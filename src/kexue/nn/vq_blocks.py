r"""Transformer-VQ：局部与缓存的联合softmax — blocks of queries, far codes, near keys (S30)

The inner loop of `vq_attention`: block b of L queries attends to c codes, which stand for all
distant tokens, and to the tokens of its own block and its neighbours one by one:

    K_b = [C | ln N_b ;  K^_{b−1} | 0 ;  K^_b | 0 ; …],    V_b = [M_b ;  V_{b−1} ;  V_b ; …]    (1)
    S_b = [Q_b | 1] K_b^T + T + shift(Q'_b R^T)                                                (2)
    O_b = softmax(S_b) V_b                                                                     (3)

The logarithms of the counts, and −inf for masked keys, ride as one more coordinate of the keys, so
they cost no pass over S. T holds what depends on i − j alone: the causal −inf and a learned bias.
Q' R^T is a bias per query and distance; `shift` moves its column for distance d of row r to the key
that stands d before r, which in memory is a view of S with one longer steps, not a copy.

Only inputs and output are kept: the backward pass computes S again, block by block, so memory
grows with n (d_k + d_v), not with n (c + 2L). With G the gradient of O,

    dS = P ∘ (G V^T − rowsum(G ∘ O)),   dQ = dS K,   dK^ = dS^T Q,   dV = P^T G                 (4)

Axes: B batch, H heads, n blocks, L block length, c codes, w blocks in a window, W distances.
Cost: n·L (c + wL)(d_k + d_v) multiplications per head; one (c + wL)-wide group of rows at a time.
Source: the joint softmax follows arXiv 2309.16354; the extra coordinate, the shifted view and the
recomputation are ours.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["BlockAttention"]

CPU_BYTES, DEVICE_BYTES = 1 << 23, 1 << 30
"""Logits held at a time: what a core's cache holds, or enough to fill an accelerator."""


class BlockAttention(torch.autograd.Function):
    """(1) to (3) for all blocks, all tensors in float32 or float64.

    Args of `apply`:
        q: (B, H, n, L, d_k) queries.
        k: (B, H, n + w − 1, L, d_k) keys; block b sees blocks b … b + w − 1 of this list.
        v: (B, H, n + w − 1, L, d_v) values.
        key_bias: (B, 1, n + w − 1, L), 0 or −inf.
        codebook: (H, c, d_k); no gradient.
        log_counts: (B, H, n, c), −inf for a code without a token; no gradient.
        means: (B, H, n, c, d_v).
        table: (1 or H, L, wL) or None.
        rel_q: (B, H, n, L, d_k) or None.
        rel_k: (H, W, d_k), from the farthest past distance to the farthest future one, or None.
        past: the largest past distance of rel_k, at most L.
        empty: (B, 1, n, L, 1), True for a row that sees nothing, or None.
    """

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        """The outputs, (B, H, n, L, d_v)."""
        q, _, v = inputs[:3]
        out: Tensor = q.new_empty(*q.shape[:-1], v.shape[-1])
        for group in _groups(inputs):
            probabilities, _, values = _probabilities(inputs, group)
            out[:, :, group] = probabilities @ values  # (3)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep inputs and output."""
        ctx.past = inputs[10]
        ctx.save_for_backward(*inputs[:10], inputs[11], output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """(4), group by group."""
        *saved, empty, out = ctx.saved_tensors
        inputs = (*saved, ctx.past, empty)
        q, k, v, _, codebook, _, means, table, rel_q, rel_k = saved
        c, L, d_k = codebook.shape[1], q.shape[3], q.shape[4]
        window = k.shape[2] - q.shape[2] + 1
        need = ctx.needs_input_grad
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        d_means = torch.empty_like(means) if need[6] else None
        d_table = torch.zeros_like(table) if need[7] else None
        d_rel_q = None if rel_q is None else torch.empty_like(rel_q)
        d_rel_k = None if rel_k is None else torch.zeros_like(rel_k)
        with torch.autocast(q.device.type, enabled=False):
            for group in _groups(inputs):
                P, keys, values = _probabilities(inputs, group)
                G = grad[:, :, group]
                dS = G @ values.mT  # (B, H, g, L, c + wL)
                dS.sub_((G * out[:, :, group]).sum(-1, keepdim=True)).mul_(P)  # (4)
                dq[:, :, group] = dS @ keys[..., :d_k]
                dk_window = dS[..., c:].mT @ q[:, :, group]  # (B, H, g, wL, d_k)
                dv_window = P[..., c:].mT @ G
                for s in range(window):
                    place = slice(group.start + s, group.stop + s)
                    dk[:, :, place] += dk_window[..., s * L : (s + 1) * L, :]
                    dv[:, :, place] += dv_window[..., s * L : (s + 1) * L, :]
                if d_means is not None:
                    d_means[:, :, group] = P[..., :c].mT @ G
                if d_table is not None:
                    total = dS[..., c:].sum((0, 2))  # (H, L, wL)
                    d_table += total if len(table) > 1 else total.sum(0, keepdim=True)
                if d_rel_q is not None and d_rel_k is not None:
                    band = _shifted_back(dS, rel_k.shape[1], c + L - ctx.past)  # (B, H, g, L, W)
                    d_rel_q[:, :, group] = band @ rel_k[:, None]
                    d_rel_k += (band.mT @ rel_q[:, :, group]).sum((0, 2))
        return dq, dk, dv, None, None, None, d_means, d_table, d_rel_q, d_rel_k, None, None


def _groups(inputs: tuple[Any, ...]) -> list[slice]:
    """Blocks to work on together, so many that their logits fit."""
    q, k, codebook = inputs[0], inputs[1], inputs[4]
    B, H, n, L, _ = q.shape
    row = codebook.shape[1] + (k.shape[2] - n + 1) * L
    budget = CPU_BYTES if q.device.type == "cpu" else DEVICE_BYTES
    size = max(1, budget // max(1, B * H * L * row * q.element_size()))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _probabilities(inputs: tuple[Any, ...], group: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax of a group, (B, H, g, L, c + wL), with its keys and values: (1) and (2)."""
    q, k, v, key_bias, codebook, log_counts, means, table, rel_q, rel_k, past, empty = inputs
    B, H, n, L, _ = q.shape
    c, window = codebook.shape[1], k.shape[2] - n + 1
    size = group.stop - group.start
    places = [slice(group.start + s, group.stop + s) for s in range(window)]
    codes = codebook[None, :, None].expand(B, H, size, -1, -1)
    extra = [log_counts[:, :, group], *(key_bias[:, :, p].expand(-1, H, -1, -1) for p in places)]
    keys = torch.cat([codes, *(k[:, :, p] for p in places)], dim=3)  # (B, H, g, c + wL, d_k)
    keys = torch.cat([keys, torch.cat(extra, dim=3)[..., None]], dim=4)  # (1)
    values = torch.cat([means[:, :, group], *(v[:, :, p] for p in places)], dim=3)  # (1)
    one = q.new_ones(B, H, size, L, 1)
    logits = torch.cat([q[:, :, group], one], dim=4) @ keys.mT  # (B, H, g, L, c + wL)  # (2)
    if table is not None:
        logits[..., c:] += table[:, None]
    if rel_q is not None:
        _add_shifted(logits, rel_q[:, :, group] @ rel_k.mT[:, None], c + L - past)
    P = torch.softmax(logits, dim=-1)
    if empty is not None:
        P = P.masked_fill_(empty[:, :, group], 0.0)
    return P, keys, values


def _add_shifted(logits: Tensor, band: Tensor, first: int) -> None:
    """Add row r of the band, (…, L, W), to logits from column first + r on: `shift` of (2)."""
    if torch.compiler.is_compiling():  # which forbids writing through such a view
        L, width = logits.shape[-2:]
        rows = F.pad(band, (first, width + 1 - first - band.shape[-1]))  # (…, L, width + 1)
        logits += rows.flatten(-2)[..., : L * width].unflatten(-1, (L, width))
    else:
        _view(logits, band.shape[-1], first).add_(band)


def _shifted_back(logits: Tensor, W: int, first: int) -> Tensor:
    """The W columns of every row r that begin at first + r."""
    if torch.compiler.is_compiling():
        L, width = logits.shape[-2:]
        rows = F.pad(logits.flatten(-2), (0, L)).unflatten(-1, (L, width + 1))
        columns: Tensor = rows[..., first : first + W]
        return columns
    return _view(logits, W, first).contiguous()


def _view(logits: Tensor, W: int, first: int) -> Tensor:
    """Rows one longer than those of the contiguous logits, so that each starts one further."""
    strides = (*logits.stride()[:-2], logits.shape[-1] + 1, 1)
    return logits.as_strided((*logits.shape[:-1], W), strides, first)
