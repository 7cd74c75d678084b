r"""初始化方法中非方阵的维度平均策略思考 — which mean of fan-in and fan-out (S05)

An m → n matrix wants variance 1/m to keep the activations and 1/n to keep the gradients. A mean of
the two widths is a compromise; each mean keeps something else.

With entries that are independent, of mean 0 and variance t, the second moments are multiplied by

    f = m t forwards,    g = n t backwards,    t = 1 / mean(m, n)                              (1)

    kind            mean(m, n)               what its t does
    fan_in          m                        f = 1, g = n/m
    fan_out         n                        g = 1, f = m/n
    harmonic        2mn / (m+n)              averages the two wanted variances
    geometric       sqrt(mn)                 f g = 1; minimises (ln f)^2 + (ln g)^2            (2)
    arithmetic      (m+n) / 2                f + g = 2; Xavier
    contraharmonic  (m^2+n^2) / (m+n)        minimises (f−1)^2 + (g−1)^2                       (3)

    min ≤ harmonic ≤ geometric ≤ arithmetic ≤ contraharmonic ≤ max, equal iff m = n            (4)

Along a linear chain of widths d_0 … d_L both products follow from the widths alone:

    prod f = prod d_i / prod mean(d_i, d_{i+1})                                                (5)

For m → n → m (5) is mn / mean^2 in both directions: 1 for the geometric mean, below 1 for the two
above it. Over any chain the geometric product is sqrt(d_0 / d_L). So the geometric mean keeps
moments end to end, the contraharmonic keeps one step closest to 1, and Xavier is between them.

A large random matrix is nearly orthogonal: its singular values fill the interval

    sqrt(t) (sqrt(max) − sqrt(min)) … sqrt(t) (sqrt(max) + sqrt(min)),                         (6)

for geometric t the interval r^(1/4) ∓ r^(−1/4), r = max/min, the same for m → n and n → m.

What we do differently: the article calls (3) the quadratic mean, which usually names
sqrt((m^2+n^2)/2); here it is contraharmonic, with `quadratic` as an alias. The harmonic mean, the
logarithmic reading of (2) and (6) are additions. With a residual and a normalisation around every
matrix the argument from end to end is weaker, and the choice matters less.

Symbols: m fan-in, n fan-out, t variance, f forward gain, g backward gain.   Cost: scalars only.
Source: article 8725; Glorot and Bengio, AISTATS 2010. See also: `kexue.nn.init`, which samples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = [
    "FAN_KINDS",
    "ChainReport",
    "chain_report",
    "fan_average",
    "fan_kind",
    "gains",
    "singular_range",
]

Size = int | float

FAN_KINDS: dict[str, Callable[[float, float], float]] = {
    "fan_in": lambda m, n: m,
    "fan_out": lambda m, n: n,
    "harmonic": lambda m, n: 2 * m * n / (m + n),
    "geometric": lambda m, n: math.sqrt(m * n),  # (2)
    "arithmetic": lambda m, n: (m + n) / 2,
    "contraharmonic": lambda m, n: (m * m + n * n) / (m + n),  # (3)
}
"""The means by name, ascending after the first two."""

ALIASES = {
    "quadratic": "contraharmonic",
    "fan_avg": "arithmetic",
    "fan_geo": "geometric",
    "fan_quad": "contraharmonic",
}


def fan_kind(kind: str) -> str:
    """The name of a mean without aliases.

    Raises:
        ValueError: there is no such mean.

    Example:
        >>> fan_kind("quadratic"), fan_kind("fan_avg")
        ('contraharmonic', 'arithmetic')
    """
    name = ALIASES.get(kind, kind)
    if name not in FAN_KINDS:
        known = ", ".join((*FAN_KINDS, *ALIASES))
        raise ValueError(f"the mean must be one of {known}; got {kind!r}")
    return name


def fan_average(m: Size, n: Size, kind: str = "arithmetic") -> float:
    """The effective number of inputs of an m → n matrix; the variance of its entries is 1 / this.

    Args:
        m: fan-in, `weight.size(1)` of an `nn.Linear`.
        n: fan-out, `weight.size(0)` of an `nn.Linear`.
        kind: a name from the table above; "arithmetic" is Xavier's.

    Raises:
        ValueError: a width that is not positive; an unknown mean.

    Example:
        >>> [fan_average(768, 3072, kind) for kind in ("geometric", "arithmetic", "quadratic")]
        [1536.0, 1920.0, 2611.2]
    """
    for name, size in (("m", m), ("n", n)):
        if not 0 < size < math.inf:
            raise ValueError(f"{name} must be a positive number of connections, got {size}")
    return FAN_KINDS[fan_kind(kind)](float(m), float(n))


def gains(m: Size, n: Size, kind: str = "arithmetic") -> tuple[float, float]:
    """By how much an m → n matrix multiplies second moments, forwards and backwards: (1).

    Args:
        m: fan-in.
        n: fan-out.
        kind: the mean.

    Raises:
        ValueError: as in `fan_average`.

    Example:
        >>> gains(768, 3072, "geometric"), gains(768, 3072, "fan_in")
        ((0.5, 2.0), (1.0, 4.0))
    """
    mean = fan_average(m, n, kind)
    return m / mean, n / mean  # (1)


def singular_range(m: Size, n: Size, kind: str = "arithmetic") -> tuple[float, float]:
    """Smallest and largest singular value of a large random m → n matrix: (6).

    Args:
        m: fan-in.
        n: fan-out.
        kind: the mean.

    Raises:
        ValueError: as in `fan_average`.

    Example:
        >>> singular_range(512, 512, "geometric")
        (0.0, 2.0)
    """
    wide, narrow = math.sqrt(max(m, n)), math.sqrt(min(m, n))
    deviation = 1 / math.sqrt(fan_average(m, n, kind))
    return deviation * (wide - narrow), deviation * (wide + narrow)  # (6)


@dataclass(frozen=True)
class ChainReport:
    """What a mean does to second moments along a linear chain of widths.

    Printed, it is a table with one row per matrix and the products in the last row.

    Args:
        kind: the mean.
        widths: d_0 … d_L.
        steps: (forward, backward) gain of each matrix.
    """

    kind: str
    widths: tuple[Size, ...]
    steps: tuple[tuple[float, float], ...]

    @property
    def forward(self) -> float:
        """Second moment of the output over that of the input: (5)."""
        return math.prod(f for f, _ in self.steps)  # (5)

    @property
    def backward(self) -> float:
        """Second moment of the gradient at the input over that at the output."""
        return math.prod(g for _, g in self.steps)

    def __str__(self) -> str:
        lines = [f"{self.kind:>16}{'std':>12}{'forward':>12}{'backward':>12}"]
        for (m, n), (f, g) in zip(pairwise(self.widths), self.steps, strict=True):
            lines.append(f"{f'{m:g} → {n:g}':>16}{math.sqrt(f / m):>12.5f}{f:>12.4g}{g:>12.4g}")
        end = f"{self.widths[0]:g} → … → {self.widths[-1]:g}"
        return "\n".join([*lines, f"{end:>16}{'':>12}{self.forward:>12.4g}{self.backward:>12.4g}"])


def chain_report(widths: Sequence[Size], kind: str = "arithmetic") -> ChainReport:
    """The gains of every matrix along a list of widths, and their products.

    Args:
        widths: d_0 … d_L, two at least. An activation between two matrices is left out: its
            factor belongs into the scale of the initialiser (`kexue.nn.moments.gain`).
        kind: the mean.

    Raises:
        ValueError: fewer than two widths; otherwise as in `fan_average`.

    Example:
        >>> report = chain_report([768, 3072, 768], "arithmetic")
        >>> round(report.forward, 6), round(report.backward, 6)
        (0.64, 0.64)
        >>> print(report)
              arithmetic         std     forward    backward
              768 → 3072     0.02282         0.4         1.6
              3072 → 768     0.02282         1.6         0.4
           768 → … → 768                    0.64        0.64
    """
    widths = tuple(widths)
    if len(widths) < 2:
        raise ValueError(f"a chain needs two widths at least, got {list(widths)}")
    steps = tuple(gains(m, n, kind) for m, n in pairwise(widths))
    return ChainReport(fan_kind(kind), widths, steps)
