r"""Transformer-VQ：门控的线性注意力层 — the layer: quantised keys, gate, XL bias (S30)

A token mixer that takes the place of attention and feed-forward layer together, in linear time and
with a cache of constant size.

    q = N(x W_q) / τ^{1/2},   k = N(x W_k) / τ^{1/2},   τ = d_k^{1/2}                           (1)
    v = silu(x W_v),   g = silu(x W_g)                                                         (2)
    k^ = quantised k                                  (`vector_quantizer.py`)                  (3)
    logit_ij = (q_i + u) · k^_j + (q_i + w) · r_{i−j},  r_t = sinusoid(t) W_r / τ^{1/2}        (4)
    y = (attention(logits, v) ∘ g) W_o                (`vq_attention.py`)                      (5)

N divides a head by its root mean square and has no gain, so keys of a head lie on a sphere and a
codebook can cover them; u and w (the paper's v) are learned vectors per head, divided by τ^{1/2},
and zero at the start. r_t reaches one block back (and ahead without causality); farther tokens are
known by their code alone. There is no other position information.

The commitment loss of the last call is `layer.commit_loss`; add 1e-4 times its sum over layers to
the loss of the model: `commitment_loss(model)`.

Axes: B batch, L tokens, D hidden size, H heads.
Cost: L·D (2 H d_k + 2 H d_v) + L·H d_v·D, and `vq_attention` per head. Three times the parameters
of ordinary attention with value_dim = 2·dim, as many as attention and feed-forward together.
Source: arXiv 2309.16354 and its code (one head, d_k = 128, d_v = 2·dim, sinusoid base 1e5, weights
normal with variance 1/fan_in). No dropout inside: put it around the layer. See also: `gau.py`.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.nn.attention_mask import check_attention_mask
from kexue.nn.distance_bias import RelativeBias
from kexue.nn.vector_quantizer import VectorQuantizer
from kexue.nn.vq_attention import vq_attention
from kexue.nn.vq_cache import VQCache

__all__ = ["TransformerVQLayer", "commitment_loss"]

EPSILON = 1e-6


class TransformerVQLayer(nn.Module):
    """Gated linear-time attention over quantised keys: (1) to (5).

    No residual and no norm around it; the codebook learns in training mode, without a gradient.

    Args:
        dim: D.
        num_codes: c; 512 in all runs of the paper.
        heads: H; 1 in the paper's Enwik8 run.
        head_dim: d_k; 128 in the paper.
        value_dim: d_v of a head; 2·dim/heads by default, as in the paper.
        block: tokens per block; 512 in the paper.
        decay: of the codebook; 0.99.
        reseed_below: see `VectorQuantizer`.
        base: of the sinusoid's wavelengths; 1e5 in the author's scripts.
        causal: token i sees tokens up to i.

    Attributes:
        commit_loss: of the last call, with its gradient; None before the first call.

    Raises:
        ValueError: a size below 1, or dim odd.

    Example:
        >>> import torch
        >>> layer = TransformerVQLayer(16, num_codes=8, head_dim=8, block=4, causal=True).eval()
        >>> x, cache = torch.randn(1, 10, 16), layer.new_cache()
        >>> parts = [layer(part, cache=cache) for part in x.split(3, dim=1)]
        >>> torch.allclose(torch.cat(parts, 1), layer(x), atol=1e-5), cache.length, cache.folded
        (True, 10, 4)
    """

    def __init__(
        self,
        dim: int,
        num_codes: int = 512,
        heads: int = 1,
        head_dim: int = 128,
        value_dim: int | None = None,
        block: int = 512,
        decay: float = 0.99,
        reseed_below: float = 0.0,
        base: float = 1e5,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"dim must be even and positive (sines and cosines), got {dim}")
        value_dim = 2 * dim // max(heads, 1) if value_dim is None else value_dim
        for name, size in (("heads", heads), ("value_dim", value_dim), ("block", block)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.dim, self.heads, self.head_dim, self.value_dim = dim, heads, head_dim, value_dim
        self.block, self.base, self.causal = block, base, causal
        self.sizes = (heads * head_dim, heads * head_dim, heads * value_dim, heads * value_dim)
        self.quantizer = VectorQuantizer(num_codes, head_dim, heads, decay, reseed_below)
        self.projection = nn.Linear(dim, sum(self.sizes), bias=False)
        self.distance = nn.Linear(dim, heads * head_dim, bias=False)
        self.output = nn.Linear(heads * value_dim, dim, bias=False)
        self.content_bias = nn.Parameter(torch.empty(heads, head_dim))
        self.distance_bias = nn.Parameter(torch.empty(heads, head_dim))
        self.commit_loss: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kernels: normal with variance 1/fan_in, the author's; u and w of (4): zero."""
        for linear in (self.projection, self.distance, self.output):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.content_bias)
        nn.init.zeros_(self.distance_bias)
        self.quantizer.reset_parameters()

    def new_cache(self) -> VQCache:
        """An empty cache of constant size for `forward`, for a causal layer in eval mode."""
        return VQCache()

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        attention_mask: Bool[Tensor, "B L"] | None = None,
        cache: VQCache | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Mix tokens.

        Args:
            x: hidden states; masked tokens may hold anything.
            attention_mask: True = visible; with a cache, of the tokens of this call.
            cache: from `new_cache`; the tokens of this call follow those it has seen.

        Raises:
            ValueError: a cache without causal=True, or while training.
        """
        B, L, _ = x.shape
        check_attention_mask(attention_mask, B, L)
        if cache is not None and not self.causal:
            raise ValueError("a cache needs a layer with causal=True")
        if cache is not None and self.training:
            raise ValueError("a cache is for inference, where the codebook stands: call .eval()")
        if attention_mask is not None:
            x = x.masked_fill(~attention_mask[:, :, None], 0.0)
        q, k, v, g = self.projection(x).split(self.sizes, dim=-1)
        q, k = _unit(_by_head(q, self.heads)), _unit(_by_head(k, self.heads))  # (1)
        v = _by_head(F.silu(v), self.heads)  # (B, H, L, d_v)  # (2)
        k_hat, codes, self.commit_loss = self.quantizer(k, attention_mask)  # (3)
        codebook = self.quantizer.used  # the one of the codes: it has moved while training
        shrink = self.head_dim**-0.25
        content = q + (self.content_bias * shrink)[:, None].to(q.dtype)
        bias = RelativeBias(
            q + (self.distance_bias * shrink)[:, None].to(q.dtype), self._distances(L, cache)
        )
        mixed = vq_attention(
            content, k_hat, codes, codebook, v, self.block, bias, self.causal, attention_mask, cache
        )  # (4)
        y: Tensor = self.output(mixed.transpose(1, 2).flatten(2).to(g.dtype) * F.silu(g))  # (5)
        return y

    def _distances(self, length: int, cache: VQCache | None) -> Tensor:
        """r of (4), (H, W, d_k), for the distances that occur; with a cache, computed once."""
        if cache is not None and cache.distances is not None:
            return cache.distances
        far = self.block if cache is not None else min(self.block, max(length - 1, 0))
        weight = self.distance.weight
        steps = torch.arange(0 if self.causal else -far, far + 1, device=weight.device)
        wide = torch.promote_types(weight.dtype, torch.float32)
        pair = torch.arange(0, self.dim, 2, device=weight.device, dtype=wide)
        angles = steps.to(wide)[:, None] * torch.exp(-math.log(self.base) / self.dim * pair)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).to(weight.dtype)  # (W, D)
        r = self.distance(waves).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # (H, W, d_k)
        scaled: Tensor = r * self.head_dim**-0.25
        if cache is not None:
            cache.distances = scaled.detach()
        return scaled

    def __getstate__(self) -> dict[str, Any]:
        """Without the loss of the last call, whose graph cannot be copied or saved."""
        return self.__dict__ | {"commit_loss": None}

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, heads={self.heads}, head_dim={self.head_dim}, "
            f"value_dim={self.value_dim}, block={self.block}, causal={self.causal}"
        )


def commitment_loss(model: nn.Module) -> Float[Tensor, ""]:
    """Sum of the last commitment losses of all Transformer-VQ layers of a model.

    Raises:
        ValueError: no such layer, or one that was not called yet.

    Example:
        >>> import torch
        >>> model = nn.Sequential(*(TransformerVQLayer(8, 4, head_dim=4, block=4) for _ in "ab"))
        >>> task = model(torch.randn(1, 6, 8)).square().mean()
        >>> loss = task + 1e-4 * commitment_loss(model)
    """
    losses = [m.commit_loss for m in model.modules() if isinstance(m, TransformerVQLayer)]
    found = [loss for loss in losses if loss is not None]
    if not losses or len(found) < len(losses):
        raise ValueError(
            f"{len(losses)} Transformer-VQ layers, {len(found)} of them called: "
            "run the model before asking for their commitment losses"
        )
    total: Tensor = torch.stack(found).sum()
    return total


def _by_head(x: Tensor, heads: int) -> Tensor:
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)  # (B, H, L, d)


def _unit(x: Tensor) -> Tensor:
    """Root mean square 1 without a gain, then τ^{-1/2}; in float32 or better."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
    return wide.mul(scale * x.shape[-1] ** -0.25).to(x.dtype)  # (1)
