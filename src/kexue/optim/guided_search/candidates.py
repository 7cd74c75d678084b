"""How candidates of a sampling optimizer are drawn, remembered as seeds, and scored alike (S26).

A candidate update on parameter tensor t is Δ_t = m + n, n = ± s_t N(0, 1), where m is zero or the
surrogate's step μ. Of a candidate only its seed, its sign and which m it has are kept; its numbers
are drawn again whenever they are needed, so K candidates take the memory of one.

    seed_j = hash(seed, step, j)              same numbers on every rank and after a resume     (1)
    zero_j = ⌊u + (j+1)π⌋ − ⌊u + jπ⌋          systematic: a share π of all, and each j alone    (2)
                                              with probability exactly π, for u ~ U(0, 1)
    none      0                               q itself is the base measure                      (3)
    mixture   log[π_own + π_other exp(−(|Δ − μ_other|² − |n|²)/2s²)]                            (4)
    unit      log[π exp(−|Δ|²/2) + (1 − π) exp(−|Δ − μ|²/2)], as in the authors' code           (5)
    exact     log q(Δ) up to a constant; weights fall to the candidate with the longest noise   (6)

On a CPU a normal number is looked up: 16 random bits choose one of 2^16 quantiles of N(0, 1), which
are scaled to variance 1 (largest 4.3; 1.0·10^-5 from N(0, 1) in distribution). On one idle
core that takes 1.2 ns, `torch.randn` 3.4 to 5.4, numpy's ziggurats 7.5 to 10.6, a copy 0.3. On
other devices torch's own generator draws.

Cost: one normal number per parameter and draw; (4) to (6) one draw more per candidate.
Source: arXiv 2006.03158 and its code; article 7521. See also: `guided_search`, `sampling_view`.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from kexue.optim.guided_search.sampling_view import log_mixture

__all__ = [
    "DECODING",
    "Candidate",
    "Neighbourhood",
    "draw_candidates",
    "fill_normal",
    "hashed",
    "scoring_alike",
]

NOISE, START, DECODING = 1, 2, 3
"""What a hash is for, so that the three never meet."""
LEVELS = 1 << 16
CHUNK = 1 << 16
"""So many numbers at a time, whose bits and places stay in the cache."""


@dataclass(frozen=True)
class Candidate:
    """All that is kept of a candidate: its noise's seed and sign, and where it is centred."""

    seed: int
    sign: float
    at_zero: bool


def hashed(seed: int, step: int, purpose: int, index: int = 0) -> int:
    """A well mixed number of 63 bits, the same on every machine."""
    words = np.random.SeedSequence((purpose, index, step, seed)).generate_state(1, np.uint64)
    return int(words[0]) >> 1


def draw_candidates(
    n_candidates: int, mixture: float | int, seed: int, step: int, *, antithetic: bool = False
) -> list[Candidate]:
    """The candidates of one step; antithetic ones come in pairs with opposite noise.

    Example:
        >>> [c.at_zero for c in draw_candidates(6, 0.5, seed=0, step=0)].count(True)
        3
    """
    signs = (1.0, -1.0) if antithetic else (1.0,)
    u = (hashed(seed, step, START) >> 31) / 2**32  # 32 bits: u + jπ stays exact for π = 1/2
    found = []
    for j in range(n_candidates // len(signs)):
        at_zero = math.floor(u + (j + 1) * mixture) > math.floor(u + j * mixture)  # (2)
        noise = hashed(seed, step, NOISE, j)  # (1)
        found += [Candidate(noise, sign, at_zero) for sign in signs]
    return found


@cache
def normal_levels(dtype: torch.dtype) -> Tensor:
    """The 2^16 values of the noise: midpoint quantiles of N(0, 1), scaled to variance 1."""
    middle = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    quantiles = torch.special.ndtri(middle)
    scaled: Tensor = quantiles / quantiles.square().mean().sqrt()
    return scaled.to(dtype)


def fill_normal(flat: Tensor, bits: np.random.SFC64) -> Tensor:
    """Fills a contiguous CPU vector with normal numbers, 16 bits each.

    Example:
        >>> x = fill_normal(torch.empty(100_000), np.random.SFC64(0))
        >>> bool(abs(x.mean()) < 0.01), bool(abs(x.std() - 1) < 0.01)
        (True, True)
    """
    levels = normal_levels(flat.dtype)
    for part in flat.split(CHUNK):
        words = bits.random_raw(-(-len(part) // 4)).view(np.uint16)[: len(part)]
        torch.index_select(levels, 0, torch.from_numpy(words).to(torch.int32), out=part)
    return flat


class Neighbourhood:
    """The parameters θ, the surrogate's step μ, and any candidate around θ, one at a time.

    Args:
        params: θ, moved in place.
        means: μ, tensor by tensor.
        scales: s_t, tensor by tensor.
    """

    def __init__(
        self, params: Sequence[Tensor], means: Sequence[Tensor], scales: Sequence[float]
    ) -> None:
        self.params, self.means, self.scales = [p.detach() for p in params], means, scales
        self.backup = [p.clone() for p in self.params]
        sizes: dict[tuple[torch.device, torch.dtype], int] = {}
        for p in params:
            sizes[p.device, p.dtype] = max(sizes.get((p.device, p.dtype), 0), p.numel())
        self.memory = {k: torch.empty(n, device=k[0], dtype=k[1]) for k, n in sizes.items()}

    def noise(self, seed: int) -> Iterator[Tensor]:
        """n of each tensor in turn, with sign +; the next one overwrites it."""
        others = {device for device, _ in self.memory if device.type != "cpu"}
        generators = {d: torch.Generator(device=d).manual_seed(seed) for d in others}
        bits = np.random.SFC64(seed)
        for p, scale in zip(self.params, self.scales, strict=True):
            flat = self.memory[p.device, p.dtype][: p.numel()]
            if p.device.type == "cpu":
                fill_normal(flat, bits).mul_(scale)
            else:
                flat.normal_(0.0, scale, generator=generators[p.device])
            yield flat.view(p.shape)

    def move_to(self, candidate: Candidate) -> None:
        """θ + Δ_k."""
        draws = zip(self.params, self.backup, self.means, self.noise(candidate.seed), strict=True)
        for p, start, mean, n in draws:
            torch.add(start, n, alpha=candidate.sign, out=p)
            if not candidate.at_zero:
                p.add_(mean)

    def restore(self) -> None:
        """θ, to the last bit."""
        for p, start in zip(self.params, self.backup, strict=True):
            p.copy_(start)

    def average(self, candidates: Sequence[Candidate], weights: Sequence[float]) -> None:
        """Puts −Σ_k W_k Δ_k, what an optimizer takes for a gradient, in the place of μ."""
        pairs = list(zip(candidates, weights, strict=True))
        toward = sum(w for c, w in pairs if not c.at_zero)
        shares: dict[int, float] = {}  # antithetic candidates have their noise in common
        for c, w in pairs:
            shares[c.seed] = shares.get(c.seed, 0.0) + c.sign * w
        for mean in self.means:
            mean.mul_(-toward)
        for seed, share in shares.items():
            if share:
                for mean, n in zip(self.means, self.noise(seed), strict=True):
                    mean.sub_(n, alpha=share)

    def log_density(
        self, density: str, candidates: Sequence[Candidate], mixture: float | int
    ) -> Tensor | None:
        """What the candidates' weights are divided by, on the CPU in float64: (3) to (6).

        Args:
            density: "none", "mixture", "unit" or "exact".
            candidates: as drawn.
            mixture: π.
        """
        if density == "none":
            return None  # (3)
        # |n|², n·μ, |μ|² in units of s_t, or plainly for (5); where s_t = 0, n and μ are 0 as well
        units = [1.0 if density == "unit" else (scale or 1.0) for scale in self.scales]
        found: list[Tensor] = []
        for candidate in candidates:
            sums = []
            for n, mean, unit in zip(self.noise(candidate.seed), self.means, units, strict=True):
                z, m = n.flatten() / unit, mean.flatten() / unit
                sums.append(torch.stack((z.dot(z), z.dot(m), m.dot(m))).to(self.means[0].device))
            own, cross, shift = torch.stack(sums).cpu().double().sum(0)  # one wait per candidate
            sign = -candidate.sign if candidate.at_zero else candidate.sign
            other = own + 2 * sign * cross + shift  # |Δ − μ_other|²
            ground = own if density == "mixture" else torch.zeros_like(own)
            pi_own = mixture if candidate.at_zero else 1 - mixture
            found.append(log_mixture(own - ground, other - ground, pi_own))  # (4), (5), (6)
        return torch.stack(found)


@contextmanager
def scoring_alike(model: nn.Module, seed: int) -> Iterator[Callable[[], None]]:
    """Evaluation mode, no gradients, and a function to call before each candidate is scored.

    It starts torch's, numpy's and Python's global random numbers afresh and makes autocast forget
    the weights it has cast, which are the previous candidate's. On leaving, the generators and the
    mode of every module are as before.
    """
    modes = [(module, module.training) for module in model.modules()]
    cuda = sorted({p.get_device() for p in model.parameters() if p.is_cuda})
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002

    def restart() -> None:
        torch.clear_autocast_cache()
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would queue work for CUDA
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002

    model.eval()
    try:
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            yield restart
    finally:
        torch.clear_autocast_cache()
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        for module, training in modes:
            module.training = training
