"""Encoders of any depth in four residual designs, for experiments about depth."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.nn.deepnorm import DeepNorm, deepnorm_constants
from kexue.nn.deepnorm_init import deepnorm_init_
from kexue.nn.residual import PostNorm, PreNorm

__all__ = ["Attention", "Design", "Encoder", "FeedForward"]

Design = Literal["post", "pre", "deepnorm", "deepnorm-adam"]


class Attention(nn.Module):
    """Self-attention with four matrices of their own."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D / H)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        output: Tensor = self.out_proj(heads)
        return output


class FeedForward(nn.Module):
    """Two matrices with ReLU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc2(self.fc1(x).relu())
        return output


class Encoder(nn.Module):
    """N blocks of one residual design, with Xavier's gain beta or 1."""

    def __init__(
        self,
        depth: int,
        design: Design,
        *,
        dim: int = 64,
        heads: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        branches = [
            layer for _ in range(depth) for layer in (Attention(dim, heads), FeedForward(dim))
        ]
        self.branches = nn.ModuleList(branches)
        rule: Literal["adam", "paper"] = "adam" if design == "deepnorm-adam" else "paper"
        alpha, beta = deepnorm_constants(depth, rule=rule)["encoder"]
        make = {"post": PostNorm, "pre": PreNorm}.get(design, lambda dim: DeepNorm(dim, alpha))
        self.wrappers = nn.ModuleList(make(dim) for _ in branches)
        self.last = nn.LayerNorm(dim) if design == "pre" else nn.Identity()
        gain = beta if design.startswith("deepnorm") else 1.0
        deepnorm_init_(self, gain, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        for wrapper, branch in zip(self.wrappers, self.branches, strict=True):
            x = wrapper(x, branch)
        normed: Tensor = self.last(x)
        return normed
