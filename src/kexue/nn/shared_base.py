r"""门控注意力单元的共享基 — queries and keys of a gated attention unit, from one base (S18)

A GAU has no separate matrices for queries and keys. One narrow base, scaled and shifted dimension
by dimension, gives them all: two maps in a quadratic unit, four with mixed chunks.

    Z = silu(X W_z + b)                                                                         (1)
    M_r = rotate(gamma_r ⊙ Z + beta_r),   r = 1 … maps                                          (2)

Symbols: base Z, gamma, beta.   Axes: B batch, L tokens, D model, M maps, s key size.
Cost: O(L (D s + M s)).
Source: arXiv 2202.10447. gamma starts at 1 as in bert4keras: with the paper's normal of sd 0.02
queries and keys are so small that attention is 0 for a long time.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.nn.rotary import apply_rotary

__all__ = ["GatedLayer", "SharedBase", "gated_width", "lecun_normal_"]


def gated_width(d_model: int, expansion: float | int, dropout: float) -> int:
    """e = expansion · d_model, after a check of what the gated layers have in common.

    Raises:
        ValueError: d_model or e is not positive, e is no whole number, dropout outside [0, 1).
    """
    if d_model < 1:
        raise ValueError(f"d_model must be positive, got {d_model}")
    width = round(expansion * d_model)
    if width < 1 or abs(width - expansion * d_model) > 1e-6:
        raise ValueError(
            "expansion * d_model must be a positive whole number, got "
            f"{expansion} * {d_model} = {expansion * d_model}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    return width


def lecun_normal_(layer: nn.Linear) -> None:
    """Weights from N(0, 1/inputs), bias 0."""
    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class SharedBase(nn.Module):
    """Queries and keys from one base: (1), (2).

    Args:
        d_model: D.
        key_size: s.
        maps: 2 for a GAU, queries and keys; 4 for mixed chunks.
        rope: rotate every map by the positions.
        bias: of the projection, and beta.

    Raises:
        ValueError: a key_size that is not positive, or odd with rope.

    Example:
        >>> base = SharedBase(d_model=8, key_size=4, maps=2)
        >>> q, k = base(torch.randn(3, 5, 8), torch.arange(5)[None]).unbind(1)
        >>> q.shape
        torch.Size([3, 5, 4])
    """

    def __init__(
        self, d_model: int, key_size: int, maps: int, rope: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        if key_size < 1:
            raise ValueError(f"key_size must be positive, got {key_size}")
        if rope and key_size % 2:
            raise ValueError(f"key_size must be even with rope (it turns pairs), got {key_size}")
        self.rope = rope
        self.projection = nn.Linear(d_model, key_size, bias=bias)
        self.gamma = nn.Parameter(torch.empty(maps, key_size))
        self.beta = nn.Parameter(torch.empty(maps, key_size)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal, gamma 1, biases and beta 0."""
        lecun_normal_(self.projection)
        nn.init.ones_(self.gamma)
        if self.beta is not None:
            nn.init.zeros_(self.beta)

    def forward(
        self, x: Float[Tensor, "B L D"], positions: Int[Tensor, "#B L"]
    ) -> Float[Tensor, "B M L s"]:
        z = F.silu(self.projection(x)).unsqueeze(1)  # (B, 1, L, s)  (1)
        gamma = self.gamma.unsqueeze(1).to(z.dtype)  # (M, 1, s)
        if self.beta is None:
            maps = z * gamma  # (B, M, L, s)
        else:
            maps = torch.addcmul(self.beta.unsqueeze(1).to(z.dtype), z, gamma)
        return apply_rotary(maps, positions.unsqueeze(1)) if self.rope else maps  # (2)

    def extra_repr(self) -> str:
        return f"maps={len(self.gamma)}, rope={self.rope}"


class GatedLayer(nn.Module):
    """What gated attention units are made of: gate and value, shared base, output projection.

    Args:
        d_model: D.
        expansion: e / D.
        key_size: s.
        maps: of the base.
        rope: rotate every map by the positions.
        bias: of the projections, and beta.
        dropout: of the attention weights.

    Raises:
        ValueError: as `gated_width`.
    """

    def __init__(
        self,
        d_model: int,
        expansion: float | int,
        key_size: int,
        maps: int,
        rope: bool,
        bias: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        width = gated_width(d_model, expansion, dropout)
        self.dropout = dropout
        self.gate_value = nn.Linear(d_model, 2 * width, bias=bias)
        self.base = SharedBase(d_model, key_size, maps=maps, rope=rope, bias=bias)
        self.output = nn.Linear(width, d_model, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal projections, biases 0, gamma 1, beta 0."""
        self.base.reset_parameters()
        lecun_normal_(self.gate_value)
        lecun_normal_(self.output)
