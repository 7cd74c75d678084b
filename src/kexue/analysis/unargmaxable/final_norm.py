r"""Where the features of a model can lie: what its last normalisation lets through.

    LayerNorm    z = γ x̂ + β,   mean(x̂) = 0,  mean(x̂²) ≤ 1    ⇒    |x̂_j| ≤ √(d − 1)          (1)
    RMSNorm      z = γ x̂,       mean(x̂²) ≤ 1                  ⇒    |x̂_j| ≤ √d               (2)

with equality where one component stands against all others alike, and ε = 0. So each z_j lies in

    β_j ± s |γ_j| √(d − 1)      or      ± s |γ_j| √d                                            (3)

where s > 0 is what the model multiplies its features by afterwards (T5 with tied embeddings: d^−½,
1 elsewhere). The box holds all features, and more: the components cannot be extreme all at once.

Over all directions of x̂ the mean of |z|² is s² Σ (γ_j² + β_j²), the size of a typical feature. (4)

Axes: d features.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["FinalNorm", "norm_box"]

KINDS = {"layer": "LayerNorm", "rms": "RMSNorm"}


def norm_box(
    gamma: Float[Tensor, " d"], beta: Float[Tensor, " e"] | None = None, kind: str = "layer"
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """The least and the largest value of every feature, for `check_argmaxable(…, box=…)`.

    Args:
        gamma: γ.
        beta: β, of the same shape; 0 when None.
        kind: "layer" or "rms".

    Raises:
        ValueError: another kind, or shapes that differ.

    Example:
        >>> lower, upper = norm_box(torch.ones(5), torch.full((5,), 0.5))
        >>> lower.tolist(), upper.tolist()
        ([-1.5, -1.5, -1.5, -1.5, -1.5], [2.5, 2.5, 2.5, 2.5, 2.5])
        >>> norm_box(torch.tensor([1.0, -2.0, 0.0, 3.0]), kind="rms")[1].tolist()
        [2.0, 4.0, 0.0, 6.0]
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if beta is not None and beta.shape != gamma.shape:
        raise ValueError(
            f"beta must have the shape of gamma, {tuple(gamma.shape)}, got {tuple(beta.shape)}"
        )
    scale = gamma.double()
    middle = torch.zeros_like(scale) if beta is None else beta.double()
    width = len(scale)
    reach = scale.abs() * math.sqrt(width - 1 if kind == "layer" else width)  # (1), (2)
    return middle - reach, middle + reach  # (3)


@dataclass(frozen=True)
class FinalNorm:
    """The last normalisation before an output layer.

    Attributes:
        kind: "layer" or "rms".
        gamma: γ.
        beta: β, of the same shape; None where there is none.
        scale: s.
    """

    kind: str
    gamma: Float[Tensor, " d"]
    beta: Float[Tensor, " e"] | None = None
    scale: float = 1.0

    @property
    def name(self) -> str:
        """LayerNorm or RMSNorm."""
        return KINDS[self.kind]

    @property
    def box(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """(3)."""
        lower, upper = norm_box(self.gamma, self.beta, self.kind)
        return self.scale * lower, self.scale * upper

    @property
    def typical(self) -> float:
        """√ of (4)."""
        squares = self.gamma.double().square().sum()
        if self.beta is not None:
            squares = squares + self.beta.double().square().sum()
        return self.scale * math.sqrt(float(squares))
