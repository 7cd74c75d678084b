r"""浅谈Transformer的初始化、参数化与标准化 — what an activation does to second moments (S04)

The mean and the second moment of any activation on a standard normal input, to all digits, and
the gain an initialiser needs for it.

    E phi(s z) = ∫ phi(s z) p(z) dz,    E phi(s z)^2 likewise,    z ~ N(0, 1), s = 1 by default  (1)
    gain = 1 / sqrt(E phi(z)^2),    Var w = gain^2 / m after phi                               (2)
    phi~(x) = (phi(x) − c) / sqrt(E (phi(z) − c)^2),    c = 0, or c = E phi(z)                 (3)

No variance of the weights brings a bounded activation back to second moment 1 (tanh never exceeds
1): rescale the activation itself, (3). ELU in this form, with alpha chosen so that c = 0 as well,
is SELU.

The integrals are sums of Gauss–Legendre rules of 20 points on pieces of [−38, 38], beyond which the
density is zero in float64; pieces that disagree with their halves are halved, so that kinks and
jumps need not be told.

What we do differently: `torch.nn.init.calculate_gain("tanh")` is 5/3, a rule of thumb; (2) is 1.59.

Symbols: phi the activation, s the deviation of its input (`std`), p the normal density, m fan-in.
Cost: milliseconds, once.
Source: article 8620; He arXiv 1502.01852; SELU arXiv 1706.02515. See also: `kexue.nn.init`.
"""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["UnitMoment", "activation_moments", "gain"]

Activation = Callable[[Tensor], Tensor]

END, TOLERANCE, HALVINGS, MOST_PIECES = 38, 1e-15, 60, 10_000


@torch.no_grad()
def activation_moments(fn: Activation, std: float = 1.0) -> tuple[float, float]:
    """Mean and second moment of fn(std z) for a standard normal z: (1).

    Args:
        fn: an elementwise function of a tensor, or a module such as `nn.GELU()`; it is evaluated
            on float64 tensors, a module on a copy.
        std: standard deviation of the input.

    Returns:
        (E fn(std z), E fn(std z)^2), to about 14 digits.

    Raises:
        ValueError: fn is not elementwise, gives NaN or infinity, or is too rough to integrate; std
            is negative or not finite.

    Example:
        >>> import torch
        >>> mean, second = activation_moments(torch.relu)
        >>> round(mean, 10), round(second, 10)
        (0.3989422804, 0.5)
    """
    if not 0 <= std < math.inf:
        raise ValueError(f"std must be a number of at least 0, got {std}")
    phi = _copied(fn)
    _check_elementwise(phi)
    left, width = torch.arange(-END, END, dtype=torch.float64), 1.0
    total, scale = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for _ in range(HALVINGS):
        whole = _pieces(phi, std, left, width)  # (P, 2)
        halves = _pieces(phi, std, left, width / 2) + _pieces(phi, std, left + width / 2, width / 2)
        scale = scale.maximum(total.abs() + halves.abs().sum(0))  # peaks show late
        rough = ((whole - halves).abs() > TOLERANCE * scale).any(1)
        total += halves[~rough].sum(0)
        left, width = torch.cat((left[rough], left[rough] + width / 2)), width / 2
        if len(left) > MOST_PIECES:
            raise ValueError("the activation is too rough to integrate: it jumps nearly everywhere")
        if not len(left):
            break
    total += _pieces(phi, std, left, width).sum(0)  # what is left of jumps is as narrow as rounding
    mean, second = total.tolist()
    return mean, second


def gain(fn: Activation) -> float:
    """The factor on 1/sqrt(m) that keeps second moments through fn and a linear layer: (2).

    Args:
        fn: as in `activation_moments`. Use it as `variance_scaling_(weight, scale=gain(fn)**2)`.

    Raises:
        ValueError: fn is zero everywhere or overflows; otherwise as in `activation_moments`.

    Example:
        >>> import torch
        >>> round(gain(torch.relu), 6), round(gain(torch.tanh), 6)
        (1.414214, 1.592537)
    """
    second = activation_moments(fn)[1]
    if not 0 < second < math.inf:
        raise ValueError(
            f"the activation is zero for every input, or overflows: a second moment of {second} "
            "has no gain"
        )
    return 1 / math.sqrt(second)  # (2)


class UnitMoment(nn.Module):
    """An activation rescaled to second moment 1 on standard normal input: (3).

    After it, LeCun's initialisation is right whatever the activation.

    Args:
        fn: the activation, a function or a module. A module is kept as a submodule; if it has
            parameters, the constants are those of their values now.
        centred: subtract the mean as well.

    Raises:
        ValueError: fn is zero (or constant, if centred); otherwise as in `activation_moments`.

    Example:
        >>> import torch
        >>> phi = UnitMoment(torch.sigmoid, centred=True)
        >>> mean, second = activation_moments(phi)
        >>> round(mean, 10) == 0, round(second, 10)
        (True, 1.0)
    """

    def __init__(self, fn: Activation, centred: bool = False) -> None:
        super().__init__()
        mean, second = activation_moments(fn)
        self.fn = fn
        self.shift = mean if centred else 0.0
        if centred:
            mean = self.shift
            second = activation_moments(lambda x: _copied(fn)(x) - mean)[1]
        if second < 1e-28 * max(1.0, mean**2):
            raise ValueError("the activation is constant: no scale gives it a second moment of 1")
        self.scale = 1 / math.sqrt(second)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (self.fn(x) - self.shift) * self.scale  # (3)

    def extra_repr(self) -> str:
        return f"shift={self.shift:.6g}, scale={self.scale:.6g}"


def _copied(fn: Activation) -> Activation:
    return copy.deepcopy(fn).cpu().double() if isinstance(fn, nn.Module) else fn


NODES, WEIGHTS = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(20))


def _pieces(phi: Activation, std: float, left: Tensor, width: float) -> Tensor:
    """The integrals (1) over [left, left + width], one row per piece."""
    z = left[:, None] + width / 2 * (NODES + 1)  # (P, 20)
    value = phi(std * z)
    if not value.isfinite().all():
        where = std * z[~value.isfinite()].abs().min()
        raise ValueError(f"the activation must be finite, but is not at |x| = {where:.3g}")
    mass = width / 2 * WEIGHTS * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return torch.stack(((value * mass).sum(1), (value**2 * mass).sum(1)), dim=1)  # (P, 2)  # (1)


def _check_elementwise(phi: Activation) -> None:
    """A part gives the part of the whole, and the whole the same twice."""
    x = torch.linspace(-3, 3, 192, dtype=torch.float64).view(12, 16)
    try:
        whole, again, part = phi(x.clone()), phi(x.clone()), phi(x[:5, 7:].clone())
        same = whole.dtype == x.dtype and whole.shape == x.shape and part.shape == (5, 9)
        same = same and all(
            torch.allclose(a, b, rtol=1e-12, atol=0, equal_nan=True)
            for a, b in ((whole, again), (whole[:5, 7:], part))
        )
    except RuntimeError:  # of torch, about a shape
        same = False
    if not same:
        raise ValueError(
            "the activation must work element by element, without randomness, on float64 tensors: "
            "pass one like torch.tanh or nn.GELU(); softmax and gated units have no single moment"
        )
