r"""浅谈Transformer的初始化、参数化与标准化 — weights of the variance a layer needs (S04)

Initialise a weight so that its layer keeps second moments, whatever its layout in memory.

    y_j = b_j + sum_i x_i w_ij, E w = 0, b = 0:    E y^2 = m E x^2 Var w                       (1)

No assumption on the mean of x: the quantity that travels through a network is the raw second
moment. With a mean of fan-in m and fan-out n from `kexue.nn.fan_average` (S05),

    Var w = scale / mean(m, n)                                                                 (2)

    LeCun   scale 1, fan-in        He   scale 2, fan-in: undoes relu       Xavier   scale 1, (m+n)/2

and in general scale = gain^2 = 1 / E phi(z)^2 for the activation phi before the layer; see
`kexue.nn.moments`. What is drawn, with the deviation sigma = sqrt(Var w):

    normal             N(0, sigma^2)
    truncated_normal   cut at two deviations and widened: `trunc_normal_`
    uniform            on [−sqrt(3) sigma, sqrt(3) sigma]                                      (3)
    orthogonal         c Q with orthonormal rows or columns, c = sigma sqrt(max(m, n))         (4)

A tensor of two axes is (out, in). Everything else declares its layout: convolutions, transposed
ones, (in, out) matrices, packed query, key and value; see `kexue.nn.fans`.

What we do differently: torch's own layers start elsewhere. `nn.Linear` takes U(±1/sqrt(m)), a third
of LeCun's variance; `nn.MultiheadAttention` takes Xavier over the packed matrix, 2/(4d), not 1/d.

Cost: sampling, one pass over the tensor; orthogonal a QR, O(m n min(m, n)).
Source: article 8620; LeCun 1998; Glorot and Bengio 2010; He arXiv 1502.01852. See also:
`kexue.nn.init_rules`, which walks a whole model.
"""

import math
import warnings
from typing import Unpack

import torch
from torch import Tensor

from kexue.nn.fan_average import fan_average, fan_kind, gains
from kexue.nn.fans import Axes, fan_in_out
from kexue.nn.truncated_normal import draw_blocks_, trunc_normal_

__all__ = [
    "DISTRIBUTIONS",
    "fan_in_out",
    "he_normal_",
    "lecun_normal_",
    "trunc_normal_",
    "variance_scaling_",
    "xavier_normal_",
]

DISTRIBUTIONS = ("normal", "truncated_normal", "uniform", "orthogonal")

SKEWED = 16
"""From this ratio of the fans on, the means differ so much that both gains are worth a warning."""


@torch.no_grad()
def variance_scaling_(
    t: Tensor,
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
    *,
    generator: torch.Generator | None = None,
    **axes: Unpack[Axes],
) -> Tensor:
    """Fill a weight in place with entries of mean 0 and variance scale / mean(m, n): (2).

    Args:
        t: the weight, any float dtype; a meta tensor stays as it is.
        scale: 1 keeps second moments through a linear layer; gain(phi)^2 through phi and the layer.
        mode: a mean of `fan_average`: "fan_in", "fan_out", "arithmetic" ("fan_avg"), "geometric"
            ("fan_geo"), "contraharmonic" ("quadratic", "fan_quad"), "harmonic".
        distribution: what to draw from; the default is Keras' and JAX's.
        generator: source of the randomness; torch's own if None.
        axes: layout, groups, stride and parts of `fan_in_out`.

    Returns:
        t itself.

    Raises:
        ValueError: a negative scale, an unknown mode or distribution; otherwise as in `fan_in_out`.
        TypeError: t is not a floating tensor, or an orthogonal DTensor is asked for.

    Example:
        >>> import torch
        >>> weight = torch.nn.Linear(768, 3072).weight
        >>> _ = variance_scaling_(weight, mode="geometric", generator=torch.manual_seed(0))
        >>> round(weight.std().item(), 4)
        0.0255
    """
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale must be a number of at least 0, got {scale}")
    if distribution not in DISTRIBUTIONS:
        known = ", ".join(DISTRIBUTIONS)
        raise ValueError(f"distribution must be one of {known}; got {distribution!r}")
    if not t.dtype.is_floating_point:
        raise TypeError(f"an initialiser fills floating tensors, got {t.dtype}: pass a weight")
    m, n = fan_in_out(t.shape, **axes)
    _warn_if_skewed(m, n, mode)
    sigma = math.sqrt(scale / fan_average(m, n, mode))  # (2)
    if distribution == "truncated_normal":
        return trunc_normal_(t, std=sigma, generator=generator)
    if distribution == "normal":
        return draw_blocks_(t, lambda block: block.normal_(0.0, sigma, generator=generator))
    if distribution == "uniform":
        end = math.sqrt(3) * sigma  # (3)
        return draw_blocks_(t, lambda block: block.uniform_(-end, end, generator=generator))
    if hasattr(t, "to_local"):
        raise TypeError("orthogonal needs the whole matrix, got a DTensor: initialise, then shard")
    outputs = 1 if (axes.get("layout") or "").endswith("transposed") else 0
    for group in t.chunk(axes.get("groups", 1), dim=0):
        for matrix in group.chunk(axes.get("parts", 1), dim=outputs):
            _orthogonal_(matrix, sigma, generator)
    return t


def lecun_normal_(
    t: Tensor,
    *,
    generator: torch.Generator | None = None,
    **axes: Unpack[Axes],
) -> Tensor:
    """N(0, 1/m): a linear layer keeps the second moment of its input. See `variance_scaling_`."""
    return variance_scaling_(t, 1.0, "fan_in", "normal", generator=generator, **axes)


def he_normal_(
    t: Tensor,
    *,
    generator: torch.Generator | None = None,
    **axes: Unpack[Axes],
) -> Tensor:
    """N(0, 2/m): relu and the layer keep the second moment. See `variance_scaling_`."""
    return variance_scaling_(t, 2.0, "fan_in", "normal", generator=generator, **axes)


def xavier_normal_(
    t: Tensor,
    *,
    generator: torch.Generator | None = None,
    **axes: Unpack[Axes],
) -> Tensor:
    """N(0, 2/(m + n)): between forwards and backwards. See `variance_scaling_`."""
    return variance_scaling_(t, 1.0, "arithmetic", "normal", generator=generator, **axes)


def _orthogonal_(matrix: Tensor, sigma: float, generator: torch.Generator | None) -> None:
    """A random matrix with equal singular values: (4)."""
    if matrix.is_meta:
        return
    rows, columns = matrix.shape[0], math.prod(matrix.shape[1:])
    long, short = max(rows, columns), min(rows, columns)
    wide = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    drawn = torch.empty(long, short, dtype=wide, device=matrix.device).normal_(generator=generator)
    q, r = torch.linalg.qr(drawn)
    q *= torch.where(r.diagonal() < 0, -1.0, 1.0)  # uniform over the orthogonal matrices
    q = q if rows >= columns else q.T
    matrix.copy_((math.sqrt(long) * sigma * q).reshape(matrix.shape))  # (4)


def _warn_if_skewed(m: float, n: float, mode: str) -> None:
    if fan_kind(mode) in ("fan_in", "fan_out") or max(m, n) <= SKEWED * min(m, n):
        return
    forward, backward = gains(m, n, mode)
    warnings.warn(
        f"fan-in {m:g} and fan-out {n:g} are far apart: mode {mode!r} multiplies second moments by "
        f"{forward:.3g} forwards and {backward:.3g} backwards; use 'fan_in' unless you mean it "
        "(a lookup table has a fan-in of 1)",
        stacklevel=3,
    )
