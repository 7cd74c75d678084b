r"""从熵不变性看Attention的Scale操作 — how the number of visible keys becomes a factor (S07)

The factor f that attention multiplies into the logits of a row with n visible keys, as a module:

    log n    f = ln n / ln base                                                                 (1)
    SSMax    f_h = s_h ln n + b_h,   s and b learnt per head h                                  (2)

SSMax starts here as log n does, s = 1 / ln base and b = 0, so both agree before training; heads
that want a flat average can learn s = 0, which (1) does not let them.

Symbols: n counts, slope s, bias b.   Axes: B batch, L rows, H heads.
Cost: O(B L H), in float32 or better: counts given in float64 make a factor in float64.
Source: article 8823; SSMax arXiv 2501.19399, whose factor is s ln n, with b in a variant.
"""

import math

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from kexue.nn.attention_scale import log_n_scale

__all__ = ["LogNScale", "SSMaxScale"]


class LogNScale(nn.Module):
    """The factor log_base(n) of (1), the same for all heads; nothing to learn.

    Args:
        base: the n at which the factor is 1.
        min_len: floor of n; 16 in the author's code.
        clip: never below 1, for weights trained without log n.

    Raises:
        ValueError: base is not above 1, or min_len is not positive.

    Example:
        >>> LogNScale(base=4)(torch.tensor([[2, 4, 16]])).flatten()
        tensor([0.5000, 1.0000, 2.0000])
    """

    def __init__(self, base: float | int = 512, min_len: int = 1, clip: bool = False) -> None:
        super().__init__()
        log_n_scale(1, 1, base, min_len)  # checks
        self.base, self.min_len, self.clip = base, min_len, clip

    def forward(self, n: Num[Tensor, "B L"]) -> Float[Tensor, "B L 1"]:
        dtype = torch.promote_types(n.dtype, torch.float32)
        return log_n_scale(n, 1, self.base, self.min_len, self.clip, dtype).unsqueeze(-1)  # (1)

    def extra_repr(self) -> str:
        return f"base={self.base}, min_len={self.min_len}, clip={self.clip}"


class SSMaxScale(nn.Module):
    """The factor s_h ln n + b_h of (2), learnt per head.

    Args:
        num_heads: H.
        base: s starts at 1 / ln base, which is log n attention.
        bias: learn b as well; it starts at 0.

    Raises:
        ValueError: base is not above 1, or num_heads is not positive.

    Example:
        >>> SSMaxScale(num_heads=8)(torch.tensor([[1, 512]])).shape
        torch.Size([1, 2, 8])
    """

    def __init__(self, num_heads: int, base: float | int = 512, bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"num_heads must be positive, got {num_heads}")
        log_n_scale(1, 1, base)  # checks
        self.base = base
        self.slope = nn.Parameter(torch.empty(num_heads))
        self.bias = nn.Parameter(torch.empty(num_heads)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as log n attention."""
        nn.init.constant_(self.slope, 1 / math.log(self.base))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, n: Num[Tensor, "B L"]) -> Float[Tensor, "B L H"]:
        dtype = torch.promote_types(n.dtype, torch.float32)
        factor = self.slope * n.clamp(min=1).to(dtype).log().unsqueeze(-1)  # (B, L, H)
        return factor if self.bias is None else factor + self.bias  # (2)

    def extra_repr(self) -> str:
        return f"num_heads={len(self.slope)}, base={self.base}, bias={self.bias is not None}"
