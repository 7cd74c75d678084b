r"""模型优化漫谈：BERT的初始标准差为什么是0.02？ — the std for a wanted identity path (S06)

The inverse of `identity_path`: the std σ at which the share t of x_0 is left at the end,

    post-norm    prod_j (1 + s_j(σ)²)^(−1/2) = t
    pre-norm     (1 + sum_j s_j(σ)²)^(−1/2) = t                                                 (1)

The left sides fall from 1 to 0, so Brent's method finds log σ in both.

Cost: some sixty evaluations of the formula, a tenth of a second.
Source: article 8747, which calls half of the usual size sound; the inverse is ours.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from scipy.optimize import brentq
from torch import Tensor

from kexue.analysis.path_weight import Attention, identity_path
from kexue.analysis.stack import Stack

__all__ = ["suggest_initializer_range"]


def suggest_initializer_range(
    d_model: int,
    d_ff: int,
    n_layers: int,
    norm: Literal["post", "pre"] = "post",
    target: float = 0.4,
    truncated: bool = True,
    *,
    attention: Attention = "identity",
    seq_len: int | None = None,
    activation: str | Callable[[Tensor], Tensor] = "gelu",
    gated: bool = False,
) -> float:
    """The std at which `target` of the identity path is left; the inverse of `identity_path`.

    Args:
        d_model: width.
        d_ff: inner width of the feed-forward layers.
        n_layers: blocks, of two sub-layers each.
        norm: "post": the weight of x_0; "pre", where that is 1: its share after the final norm.
        target: what is to be left, between 0 and 1. BERT base as published keeps 0.466.
        truncated: the std is meant for a normal that is cut at ±2 std afterwards.
        attention: as in `identity_path`.
        seq_len: as in `identity_path`.
        activation: of the feed-forward layers.
        gated: feed-forward layers with a gate.

    Raises:
        ValueError: a target outside (0, 1), or sizes below 1.

    Example:
        >>> round(suggest_initializer_range(768, 3072, 12, target=0.466409806), 6)
        0.02
    """
    if not 0 < target < 1:
        raise ValueError(f"target must lie between 0 and 1, got {target}")

    def left(log_std: float) -> float:
        stack = Stack(d_model, d_ff, n_layers, math.exp(log_std), norm, activation, gated)
        path = identity_path(stack, attention, seq_len, truncated=truncated)
        grown = -0.5 * math.log(path.stream[-1])  # a product would underflow on the way
        return grown + sum(map(math.log, path.per_sublayer)) - math.log(target)

    low, high = _bracket(left)
    return math.exp(brentq(left, low, high, xtol=1e-15, rtol=1e-15))  # (1)


def _bracket(left: Callable[[float], float]) -> Sequence[float]:
    """An interval of log std with the target inside; the weight falls from 1 to 0."""
    low, high = math.log(1e-3), math.log(1.0)
    while left(low) <= 0:
        low -= 2
    while left(high) >= 0:
        high += 2
    return low, high
