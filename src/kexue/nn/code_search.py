r"""最近的码与k-means码本 — nearest codeword, sums per codeword, and codebooks by k-means (S30)

    z_j = argmin_s |K_j − C_s|² = argmin_s (|C_s|²/2 − K_j · C_s),   lowest s on ties           (1)
    k-means++: each next codeword is a key, drawn with probability ∝ min_s |K_j − C_s|²         (2)
    Lloyd: C_s ← mean of the keys with z_j = s                                                 (3)

Symbols: keys K, codebook C.   Axes: B batch, H heads, N tokens, c codes, k size of a key.
Cost: (1) one product, in slices of rows; no (N, c, k) tensor. (2) c passes over the keys.
Source: arXiv 2309.16354 for (1); Arthur and Vassilvitskii 2007 for (2).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kexue.nn.vq_cache import sums_by_code

__all__ = ["code_statistics", "kmeans_codebook", "nearest_code"]

ROWS = 1024
"""Rows of scores held at a time."""


@torch.no_grad()
def nearest_code(
    keys: Float[Tensor, "B H N k"], codebook: Float[Tensor, "H c k"]
) -> Int[Tensor, "B H N"]:
    """Index of the nearest codeword, the lowest on ties: (1).

    Raises:
        ValueError: the codebook has other heads or another width than the keys.

    Example:
        >>> import torch
        >>> keys = torch.tensor([[[[0.9, 0.2], [0.1, 0.7], [0.6, 0.5], [0.5, 0.5]]]])
        >>> nearest_code(keys, torch.eye(2)[None]).flatten().tolist()
        [0, 1, 0, 0]
    """
    _, H, _, d = keys.shape
    if codebook.shape[0] != H or codebook.shape[2] != d:
        raise ValueError(
            f"codebook must have shape (heads, codes, head_dim) = ({H}, c, {d}) to match the "
            f"keys, got {tuple(codebook.shape)}"
        )
    wide = torch.promote_types(torch.promote_types(keys.dtype, codebook.dtype), torch.float32)
    codebook = codebook.to(wide)
    half = codebook.square().sum(-1).div(2).unsqueeze(1)  # (H, 1, c)
    with torch.autocast(keys.device.type, enabled=False):
        return torch.cat(
            [(half - part.to(wide) @ codebook.mT).argmin(-1) for part in keys.split(ROWS, dim=2)],
            dim=2,
        )  # (1)


@torch.no_grad()
def kmeans_codebook(
    keys: Float[Tensor, "H N k"],
    num_codes: int,
    iterations: int = 10,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "H c k"]:
    """Codewords from data: k-means++ and Lloyd's iterations, for every head.

    Args:
        keys: a sample; a few tokens per code are enough. Fewer keys than codes leave codes equal.
        num_codes: c.
        iterations: Lloyd steps; an empty cluster keeps its place.
        generator: source of the draws of k-means++.

    Example:
        >>> import torch
        >>> keys = torch.tensor([[[0.0], [0.1], [5.0], [5.1]]])
        >>> kmeans_codebook(keys, 2, generator=torch.Generator().manual_seed(0)).sort(1).values
        tensor([[[0.0500],
                 [5.0500]]])
    """
    H, N, d = keys.shape
    if N == 0:
        raise ValueError("keys are empty: there is nothing to seed the codebook with")
    keys = keys.to(torch.promote_types(keys.dtype, torch.float32))
    heads = torch.arange(H, device=keys.device)
    codebook = keys.new_empty(H, num_codes, d)
    away = keys.new_ones(H, N)  # squared distance to the nearest codeword so far
    for s in range(num_codes):
        weights = away + (away.sum(1, keepdim=True) == 0)  # all keys taken: any of them
        drawn = torch.multinomial(weights, 1, generator=generator).squeeze(1)  # (H,)
        codebook[:, s] = keys[heads, drawn]  # (2)
        apart = (keys - codebook[:, s : s + 1]).square().sum(-1)
        away = apart if s == 0 else torch.minimum(away, apart)
    for _ in range(iterations):
        codes = nearest_code(keys[None], codebook)
        sums, counts = code_statistics(keys[None], codes, None, num_codes)
        means = sums / counts.clamp(min=1)[..., None]  # (3)
        codebook = torch.where(counts[..., None] > 0, means, codebook)
    return codebook


def code_statistics(
    keys: Tensor, codes: Tensor, mask: Tensor | None, num_codes: int
) -> tuple[Tensor, Tensor]:
    """Sum (H, c, k) and count (H, c) of the keys of every code, in a fixed order of additions."""
    B, H, N, d = keys.shape
    if B * N == 0:
        return keys.new_zeros(H, num_codes, d), keys.new_zeros(H, num_codes)
    one_row = keys.transpose(0, 1).reshape(1, H, B * N, d)
    flat = codes.transpose(0, 1).reshape(1, H, B * N)
    seen = None if mask is None else mask.reshape(1, B * N)
    counts, sums = sums_by_code(flat, one_row, seen, num_codes, B * N)
    return sums[0, :, 0], counts[0, :, 0]
