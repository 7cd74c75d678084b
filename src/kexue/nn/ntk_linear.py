r"""浅谈Transformer的初始化、参数化与标准化 — a linear layer in NTK parametrisation (S04)

Keep every parameter of order 1 and put the scale into the formula, so that one learning rate means
the same relative change in every matrix.

    y = b + x W^T / sqrt(m),    W ~ N(0, 1)                                                    (1)
    W_standard = W / sqrt(m)                                                                   (2)

(1) has the distribution of a LeCun layer. What differs is training: for the weight (not the bias)

    SGD    rate m lr here = rate lr on W_standard                                              (3)
    Adam   rate eta here = rate eta / sqrt(m) on W_standard, but for epsilon                   (4)

With an optimizer whose steps have the size of the rate, 1e-2 is a change of 1 % in every matrix;
the standard form needs a rate that shrinks with the width.

What we do differently: x is scaled, not W: the same number with less memory, and half precision
does not overflow on the way.

Symbols: m inputs, W weight, b bias.   Axes: any number of leading axes, then inputs or outputs.
Cost: that of nn.Linear and one pass over x.
Source: article 8620; Jacot et al. 2018 (the neural tangent kernel). See also: `kexue.nn.init`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.nn.truncated_normal import draw_blocks_

__all__ = ["NTKLinear"]


class NTKLinear(nn.Module):
    """A linear layer whose weight starts as N(0, 1): (1).

    Args:
        in_features: m.
        out_features: the number of outputs.
        bias: whether there is a b; it starts at zero and learns at the optimizer's own rate.
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        ValueError: a number of features that is not positive.

    Example:
        >>> import torch
        >>> layer = NTKLinear(256, 64)
        >>> x = torch.randn(8, 256)
        >>> torch.allclose(layer(x), layer.to_linear()(x), atol=1e-5)
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        self.in_features, self.out_features = in_features, out_features
        self.scale = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features, device=device, dtype=dtype)
        )
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weight: N(0, 1); bias: zero."""
        draw_blocks_(self.weight, lambda block: block.normal_(generator=generator))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch outputs"]:
        return F.linear(x * self.scale, self.weight, self.bias)  # (1)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """The same function as an `nn.Linear`, for export: (2)."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        linear = linear.to(self.weight)
        linear.weight.copy_(self.weight * self.scale)  # (2)
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
