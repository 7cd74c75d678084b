"""From a method's name to the weights of a step, and what the step says about the tasks (S16).

    w = rule(K),   K_ij = ⟨g_i, g_j⟩,   descent = K w = ⟨u, g_i⟩ for u = Σ w_i g_i               (1)

K is small and solved on the host: one copy of n² numbers per step. Two tasks have closed forms and
stay on their device if nobody asks for an error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kexue.optim.multitask.gram import (
    checked_gram,
    equal_lengths,
    min_norm_weights,
    primary_auxiliary_weights,
)

__all__ = ["Method", "MultiTaskStep", "weighting"]

Method = Literal["veto", "protect_primary", "min_norm", "sum"] | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MultiTaskStep:
    """What a step found: K, the weights, and what they promise.

    Args:
        weights: w in u = Σ w_i g_i.
        gram: K; with `features` of the z_i.
    """

    weights: Float[Tensor, " n"]
    gram: Float[Tensor, "n n"]

    @property
    def conflicts(self) -> Bool[Tensor, "n n"]:
        """True where two tasks pull against each other: ⟨g_i, g_j⟩ < 0."""
        return self.gram < 0

    @property
    def descent(self) -> Float[Tensor, " n"]:
        """⟨u, g_i⟩: how fast task i falls for a step −ηu, to first order in η."""
        return self.gram @ self.weights


def weighting(
    method: Method,
    primary: int | Sequence[int] | None,
    normalise: bool,
    nonfinite: str,
) -> Callable[[Tensor], MultiTaskStep]:
    """From the Gram matrix, on its device, to the step; on the host unless two tasks need none."""
    if nonfinite not in ("raise", "pass"):
        raise ValueError(f"nonfinite must be 'raise' or 'pass', got {nonfinite!r}")
    rule, own = _rule(method, primary, normalise), not callable(method)

    def solve(gram: Tensor) -> MultiTaskStep:
        stays = own and len(gram) == 2 and nonfinite == "pass"
        K = gram if stays else gram.cpu()
        if K.device.type == "cpu" and nonfinite == "pass" and not bool(K.isfinite().all()):
            return MultiTaskStep(torch.full_like(K[0], torch.nan), K)
        weights = rule(K).detach().to(K)
        if weights.shape != K.shape[:1]:
            need = f"{len(K)} weights for {len(K)} tasks"
            raise ValueError(f"method must return {need}, got shape {tuple(weights.shape)}")
        return MultiTaskStep(weights, K)

    return solve


def _rule(
    method: Method, primary: int | Sequence[int] | None, normalise: bool
) -> Callable[[Tensor], Tensor]:
    if method == "veto" or method == "protect_primary":
        first = 0 if primary is None else primary
        return partial(primary_auxiliary_weights, primary=first, mode=method, normalise=normalise)
    if primary is not None:
        raise ValueError(f"primary belongs to 'veto' and 'protect_primary', got method={method!r}")
    if callable(method):
        if normalise:
            raise ValueError("normalise belongs to the built-in methods; do it in your function")
        return lambda K: method(checked_gram(K))
    if method == "min_norm":
        return partial(min_norm_weights, normalise=normalise)
    if method == "sum":
        return partial(_sum_weights, normalise=normalise)
    known = "'veto', 'protect_primary', 'min_norm', 'sum' or a function of the Gram matrix"
    raise ValueError(f"method must be {known}, got {method!r}")


def _sum_weights(K: Tensor, normalise: bool) -> Tensor:
    K = checked_gram(K)
    return equal_lengths(K, list(range(len(K)))) if normalise else torch.ones_like(K[0])
