"""The sum and the norm around a residual branch, in float32 whatever the stream's dtype.

    branch_output    G, from the branch itself or from what it returned
    weighted_sum     alpha x + G                                                             (1)
    float32_norm     Norm(s), with the norm's parameters in float32 too                      (2)

(1) and (2) return float32 for half-precision input and keep float64; who calls them returns to the
stream's dtype at the end. A branch that ran under autocast hands over bfloat16 or float16; adding
it to a stream of those dtypes would round the stream once per sub-layer before its norm.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["Branch", "Normalise", "branch_output", "float32_norm", "weighted_sum"]

Branch = Callable[[Tensor], Tensor]
"""A residual branch: a module or function from the stream to a tensor of the same shape."""

Normalise = Callable[[int], nn.Module]
"""What makes a norm from the width of the stream: `nn.LayerNorm`, `nn.RMSNorm` or your own."""


def branch_output(
    x: Float[Tensor, "*shape"], branch: Branch | Float[Tensor, "..."]
) -> Float[Tensor, "*shape"]:
    """G: the branch applied to x, or the output that was given in its place.

    Args:
        x: what the branch reads.
        branch: a module or function, or its output.

    Raises:
        TypeError: the branch returned something that is no tensor, such as attention's tuple.
        ValueError: its shape is not that of x.
    """
    output = branch if isinstance(branch, Tensor) else branch(x)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the branch returned a {type(output).__name__}, not a tensor; wrap it, for example "
            "lambda h: attention(h, h, h)[0]"
        )
    if output.shape != x.shape:
        raise ValueError(
            f"the branch returned shape {tuple(output.shape)} for an input of shape "
            f"{tuple(x.shape)}; a residual sum needs equal shapes"
        )
    return output


def weighted_sum(
    x: Float[Tensor, "*shape"], output: Float[Tensor, "*shape"], alpha: float = 1.0
) -> Float[Tensor, "*shape"]:
    """alpha x + G in float32 or better, in one pass.

    Args:
        x: the stream.
        output: G.
        alpha: weight of the stream.

    Example:
        >>> import torch
        >>> x = torch.full((2,), 256.0, dtype=torch.bfloat16)
        >>> weighted_sum(x, torch.ones(2, dtype=torch.bfloat16))  # bfloat16 itself gives 256
        tensor([257., 257.])
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.add(output, x.to(wide), alpha=alpha)  # (1)


def float32_norm(norm: nn.Module, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """A norm of x in float32 or better; parameters in half precision are widened for it.

    Args:
        norm: any module that keeps the shape.
        x: its input.

    Example:
        >>> import torch
        >>> norm = nn.LayerNorm(4).bfloat16()
        >>> float32_norm(norm, torch.zeros(2, 4, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if all(parameter.dtype == wide.dtype for parameter in norm.parameters()):
        normed: Tensor = norm(wide)  # (2)
    else:
        widened = {name: parameter.to(wide.dtype) for name, parameter in norm.named_parameters()}
        normed = functional_call(norm, widened, (wide,))  # (2)
    return normed
