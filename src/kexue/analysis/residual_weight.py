r"""Why residuals? A view from update size — 为什么需要残差？一个来自DeepNet的视角 (S20)

How small the weight of a residual branch has to be in a stack of N layers.

One step of SGD moves the loss by η|g|², so N layers with gradients of O(1) move it by O(N). Wanted
are gradients of O(N^(−1/2)) together with a stable forward and a stable backward pass. A plain
layer φ(x W + b), W in R^(n×m), has no room for that: stability forwards fixes Var W = 1/n (2/n for
ReLU), and then the factor backwards is m/n, a matter of widths. A residual layer has room:

    y = x + ε f(x; θ),    dy/dx = I + ε df/dx,    dL/dθ = ε dL/dy df/dθ                         (1)
    ε = N^(−1/2) for SGD, whose dL ∝ |g|²;    ε = 1/N for Adam and LAMB, whose dL ∝ |g|₁      (2)

How far are the signals from stable then? Through N layers they are multiplied by

    (1 + ε)^N       in one dimension with df/dx = 1: at most e for ε = 1/N                      (3)
    (1 + ε²)^N     in many: E|v Π(I + ε W_l)|² / |v|² for independent W_l whose entries are
                    independent, with mean 0 and variance 1/d: at most e for ε = N^(−1/2)       (4)

A wide layer at initialisation is like (4): v and v df/dx are nearly orthogonal. In training they
need not stay so.

Symbols: layers N, branch f with parameters θ and weight ε (`eps`), loss L, gradient g, width d.
Cost: none.
Source: article 8994; DeepNet, arXiv 2203.00555; ResNet, 1512.03385; Admin, 2004.08249.
What we do differently: the rules for Adam and LAMB in (2) and (4) as an exact expectation are ours.
See also: `kexue.nn.residual.ScaledResidual` (1), `kexue.analysis.update_size` to measure dL.
"""

import math
from typing import Literal

__all__ = ["amplification", "residual_scale"]


def residual_scale(num_layers: int, optimizer: Literal["sgd", "adam", "lamb"] = "sgd") -> float:
    """The weight ε of every branch in a stack of N: (2).

    Args:
        num_layers: N, residual branches (two per Transformer block).
        optimizer: "sgd" for steps in proportion to the gradient; "adam" for steps of its sign, as
            Adam, Lion and Tiger; "lamb" for those times the size of the weight, as LAMB, AdaFactor.

    Example:
        >>> residual_scale(100), residual_scale(100, "adam")
        (0.1, 0.01)
    """
    if optimizer not in ("sgd", "adam", "lamb"):
        raise ValueError(f'optimizer must be "sgd", "adam" or "lamb", got {optimizer!r}')
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    return 1 / math.sqrt(num_layers) if optimizer == "sgd" else 1 / num_layers  # (2)


def amplification(eps: float, N: int, model: Literal["scalar", "random"] = "scalar") -> float:
    """What N residual layers multiply a signal by, going forwards or backwards.

    Args:
        eps: branch weight ε, at least 0.
        N: number of layers, at least 0.
        model: "scalar", where df/dx = 1 in every layer, the worst case: (3); "random", the squared
            length of a vector when df/dx is a random matrix, as in a wide layer at the start: (4).

    Returns:
        The factor; inf beyond the range of a float.

    Example:
        >>> round(amplification(0.1, 100), 2), round(amplification(0.1, 100, "random"), 4)
        (13780.61, 2.7048)
    """
    if model not in ("scalar", "random"):
        raise ValueError(f'model must be "scalar" or "random", got {model!r}')
    if not 0 <= eps < math.inf or N < 0:
        raise ValueError(f"eps must be finite and eps, N at least 0, got eps={eps}, N={N}")
    growth = eps if model == "scalar" else eps * eps
    try:
        return math.exp(N * math.log1p(growth))  # (3), (4); log1p keeps a small ε exact
    except OverflowError:
        return math.inf
