r"""Transformer-VQ：键的矢量量化与指数滑动平均码本 — vector quantiser with an EMA codebook (S30)

Replace every key by the nearest of c codewords, and let the codewords follow their keys.

    z_j = argmin_s |K_j − C_s|² = argmin_s (|C_s|²/2 − K_j · C_s),   lowest s on ties           (1)
    K^_j = K_j + stop_gradient(C_{z_j} − K_j)            value C_{z_j}, gradient to K_j         (2)
    commit = mean over tokens of |K_j − stop_gradient(C_{z_j})|²                               (3)
    sum_s ← γ sum_s + (1 − γ) sum_{j: z_j = s} K_j,   count_s likewise with 1                   (4)
    C_s = sum_s / max(count_s, 0.01)                                                           (5)

The codebook gets no gradient: it learns by (4), in training mode only, from visible tokens only and
from the tokens of all processes. A codeword that no key chooses keeps its place and loses its
count; with `reseed_below` it moves to the key of the batch that is quantised worst.

Symbols: keys K, codebook C, codes z, decay γ.   Axes: B batch, H heads, N tokens, c codes, k size.
Cost: one product of keys and codes, in slices of rows; no (N, c, k) tensor. Statistics are float32
or better whatever the dtype of the module.
Source: arXiv 2309.16354 and its code (γ = 0.99, floor 0.01, weight of (3) 1e-4); article 9844.
Ours: seeding from data, reseeding, k-means++. See also: `vq_attention.py`.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from kexue.nn.attention_mask import check_attention_mask
from kexue.nn.code_search import code_statistics, kmeans_codebook, nearest_code

__all__ = ["VectorQuantizer"]

FLOOR = 0.01


class VectorQuantizer(nn.Module):
    """Nearest codeword with a straight-through gradient and a codebook that follows its keys.

    The first training batch places the codewords on keys of that batch, evenly spaced; call
    `seed_codebook_` before it for a better start, with keys of a pretrained model for instance.

    Args:
        num_codes: c, codewords per head; 512 in all runs of the paper.
        dim: size k of a key of one head.
        heads: H, each with a codebook of its own; for grouped queries, one per key head.
        decay: γ of (4); 0.99 in the author's Enwik8 run.
        reseed_below: a codeword whose EMA count falls below this moves to the worst quantised key;
            0 leaves dead codewords alone, as the paper does.

    Attributes:
        codebook: (H, c, k), (5); kept in float32 (or float64) and saved, like its sums and counts.
        used: the codebook that the codes of the last call belong to.

    Raises:
        ValueError: a size below 1, decay outside [0, 1), negative reseed_below.

    Example:
        >>> import torch
        >>> quantizer = VectorQuantizer(num_codes=8, dim=4, heads=2)
        >>> k_hat, codes, commit_loss = quantizer(torch.randn(3, 2, 10, 4))
        >>> k_hat.shape, codes.shape, commit_loss.shape
        (torch.Size([3, 2, 10, 4]), torch.Size([3, 2, 10]), torch.Size([]))
    """

    codebook: Tensor
    code_sums: Tensor
    code_counts: Tensor
    seeded: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        heads: int = 1,
        decay: float = 0.99,
        reseed_below: float = 0.0,
    ) -> None:
        super().__init__()
        for name, size in (("num_codes", num_codes), ("dim", dim), ("heads", heads)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        if reseed_below < 0:
            raise ValueError(f"reseed_below must not be negative, got {reseed_below}")
        self.num_codes, self.dim, self.heads = num_codes, dim, heads
        self.decay, self.reseed_below = decay, reseed_below
        self.register_buffer("codebook", torch.empty(heads, num_codes, dim))
        self.register_buffer("code_sums", torch.empty(heads, num_codes, dim))
        self.register_buffer("code_counts", torch.empty(heads, num_codes))
        self.register_buffer("seeded", torch.empty((), dtype=torch.bool))
        self.used = self.codebook
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal codewords of unit expected length with count 1, until the first training batch."""
        nn.init.normal_(self.code_sums, std=self.dim**-0.5)
        self.code_counts.fill_(1.0)
        self.codebook.copy_(self.code_sums)
        self.seeded.fill_(False)

    def forward(
        self, keys: Float[Tensor, "B H N k"], mask: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B H N k"], Int[Tensor, "B H N"], Float[Tensor, ""]]:
        """Quantise: (1), (2), (3); in training mode the codebook then takes step (4), (5).

        The codes belong to the codebook as it was before the step: `used`. A forward pass that is
        computed again in the backward pass (`torch.utils.checkpoint`) takes that codebook and no
        step.

        Args:
            keys: of every head.
            mask: True = counted in the loss and in the codebook; None: all are.

        Returns:
            k_hat in the dtype of the keys, codes, and the loss (summed over heads).
        """
        check_attention_mask(mask, keys.shape[0], keys.shape[2], "mask")
        wide = keys.to(self.codebook.dtype)
        if mask is not None:
            wide = wide.masked_fill(~mask[:, None, :, None], 0.0)
        known = wide.detach()
        learns = self.training and not _recomputes()
        if learns:
            self._seed_once(known, mask)
        if learns or not self.training:
            kept = learns or torch.is_grad_enabled()  # for a backward pass
            self.used = self.codebook.clone() if kept else self.codebook
        codes = nearest_code(known, self.used)
        chosen = _pick(self.used, codes)  # (B, H, N, k)
        error = (wide - chosen).square().sum((1, 3))  # (B, N)
        if mask is None:
            commit_loss = error.sum() / max(error.numel(), 1)
        else:
            commit_loss = (error * mask).sum() / mask.sum().clamp(min=1)  # (3)
        k_hat = chosen + (wide - known)  # (2), in the order that gives the codeword exactly
        if learns:
            self._follow(known, codes, mask, (known - chosen).square().sum(-1))
        return k_hat.to(keys.dtype), codes, commit_loss

    @torch.no_grad()
    def seed_codebook_(
        self,
        keys: Float[Tensor, "B H N k"],
        mask: Bool[Tensor, "B N"] | None = None,
        iterations: int = 10,
        generator: torch.Generator | None = None,
    ) -> "VectorQuantizer":
        """Place the codewords by k-means on these keys (`kmeans_codebook`).

        Under data parallelism give every process the same keys and generator seed.

        Raises:
            ValueError: no visible key, or keys of another shape than this codebook's.
        """
        B, H, N, d = keys.shape
        if (H, d) != (self.heads, self.dim):
            raise ValueError(
                f"keys must have shape (batch, {self.heads}, tokens, {self.dim}), "
                f"got {tuple(keys.shape)}"
            )
        check_attention_mask(mask, B, N, "mask")
        flat = keys.to(self.codebook).transpose(0, 1).flatten(1, 2)  # (H, B·N, k)
        if mask is not None:
            flat = flat[:, mask.flatten()]
        self._place(kmeans_codebook(flat, self.num_codes, iterations, generator))
        return self

    def _place(self, codebook: Tensor) -> None:
        self.codebook.copy_(codebook)
        self.code_sums.copy_(codebook)
        self.code_counts.fill_(1.0)
        self.seeded.fill_(True)

    @torch.no_grad()
    def _seed_once(self, keys: Tensor, mask: Tensor | None) -> None:
        """Codewords on evenly spaced visible keys, if none were placed; no look at the device."""
        flat = keys.transpose(0, 1).flatten(1, 2)  # (H, B·N, k)
        count = flat.shape[1]
        if not count:  # nothing to choose from; other processes may have more
            flat, mask = keys.new_zeros(self.heads, 1, self.dim), None
        order = torch.arange(max(count, 1), device=keys.device)
        if mask is not None:  # visible tokens first, in their order
            order = (~mask).flatten().to(torch.int8).sort(stable=True).indices
            seen = mask.sum()
        else:
            seen = torch.full((), count, device=keys.device)
        step = torch.arange(self.num_codes, device=keys.device) * seen // self.num_codes
        spread = flat[:, order[step]]  # (H, c, k)
        if _processes() > 1:
            distributed.broadcast(spread, 0)
        new = ~self.seeded & (seen > 0)
        self.codebook.copy_(torch.where(new, spread, self.codebook))
        self.code_sums.copy_(torch.where(new, spread, self.code_sums))
        self.code_counts.copy_(torch.where(new, 1.0, self.code_counts))
        self.seeded.copy_(self.seeded | new)

    @torch.no_grad()
    def _follow(self, keys: Tensor, codes: Tensor, mask: Tensor | None, error: Tensor) -> None:
        """One step of (4) and (5), over all processes."""
        sums, counts = code_statistics(keys, codes, mask, self.num_codes)
        if _processes() > 1:
            both = torch.cat([sums, counts[..., None]], dim=-1)
            distributed.all_reduce(both)
            sums, counts = both[..., :-1], both[..., -1]
        self.code_sums.lerp_(sums, 1 - self.decay)  # (4)
        self.code_counts.lerp_(counts, 1 - self.decay)
        if self.reseed_below > 0:
            self._reseed(keys, mask, error)
        self.codebook.copy_(self.code_sums / self.code_counts.clamp(min=FLOOR)[..., None])  # (5)

    def _reseed(self, keys: Tensor, mask: Tensor | None, error: Tensor) -> None:
        """The i-th dead codeword of a head moves to the i-th worst quantised key."""
        if mask is not None:
            error = error.masked_fill(~mask[:, None], -1.0)
        flat = keys.transpose(0, 1).flatten(1, 2)  # (H, B·N, k)
        most = min(self.num_codes, flat.shape[1])
        worst, at = error.transpose(0, 1).flatten(1).topk(most, dim=1)  # (H, m)
        found = flat.gather(1, at[..., None].expand(-1, -1, self.dim))
        missing = self.num_codes - most  # fewer keys than codewords: fill up with useless ones
        found, worst = F.pad(found, (0, 0, 0, missing)), F.pad(worst, (0, missing), value=-1.0)
        if _processes() > 1:
            parts = torch.cat([found, worst[..., None]], dim=-1)
            everywhere = [torch.empty_like(parts) for _ in range(_processes())]
            distributed.all_gather(everywhere, parts)
            parts = torch.cat(everywhere, dim=1)
            worst, at = parts[..., -1].topk(self.num_codes, dim=1)
            found = parts[..., :-1].gather(1, at[..., None].expand(-1, -1, self.dim))
        dead = self.code_counts < self.reseed_below  # (H, c)
        rank = (dead.cumsum(1) - 1).clamp(min=0)
        dead = dead & (worst.gather(1, rank) > 0)  # hidden, or a codeword already: not worth it
        moved = found.gather(1, rank[..., None].expand(-1, -1, self.dim))
        self.code_sums.copy_(torch.where(dead[..., None], moved, self.code_sums))
        self.code_counts.copy_(torch.where(dead, 1.0, self.code_counts))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move with the module, but never below float32."""
        names = ("codebook", "code_sums", "code_counts")
        kept = {name: getattr(self, name) for name in names}
        super()._apply(fn, recurse)
        for name, old in kept.items():
            now = getattr(self, name)
            if now.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, old.to(now.device))
        return self

    def extra_repr(self) -> str:
        return f"num_codes={self.num_codes}, dim={self.dim}, heads={self.heads}, decay={self.decay}"


def _pick(codebook: Tensor, codes: Tensor) -> Tensor:
    """Codewords by index: (H, c, k) and (B, H, N) -> (B, H, N, k)."""
    H, c, d = codebook.shape
    first = torch.arange(H, device=codes.device)[:, None] * c
    return F.embedding(codes + first, codebook.reshape(H * c, d))


def _recomputes() -> bool:
    """Whether a backward pass is running: then this forward pass was done before."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _processes() -> int:
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1
