r"""Transformer 升级之路：2、博采众长的旋转式位置编码 — rotary position embedding, RoPE (S17, S38)

Write the position into the direction of queries and keys, so that their inner product sees only
the distance.

For a vector x of even size d at position p, every neighbouring pair is turned by its own angle:

    angle_i(p) = p · base^(−2i/d),   i = 0 … d/2 − 1                                           (1)
    (x_2i, x_2i+1) → (x_2i cos − x_2i+1 sin,  x_2i sin + x_2i+1 cos)  at angle_i(p)            (2)

R_p is orthogonal and R_m^T R_n = R_(n−m), hence <R_m q, R_n k> depends on n − m only.

Pairs are interleaved, (0, 1), (2, 3), …, as in the paper and in bert4keras, RoFormer and GAU-α.
LLaMA-style checkpoints pair i with i + d/2 instead: permute the weights before loading those.

Symbols: x, positions p, base.   Axes: L positions, d size of one head.
Cost: O(L d); angles, cosines and sines in float32 or better, whatever the dtype of x.
Source: arXiv 2104.09864; article 8265.
"""

import torch
from jaxtyping import Float, Num
from torch import Tensor

__all__ = ["apply_rotary", "rotary_angles"]


def rotary_angles(
    positions: Num[Tensor, "*batch L"],
    size: int,
    base: float = 10000.0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*batch L half"]:
    """The angle of every pair at every position, in radians.

    Args:
        positions: where each vector stands; integers or reals, negative ones too.
        size: d, the size of the vectors to be turned; the result has d/2 angles per position.
        base: slowest wavelength is about 2π·base; 10000 in the paper.
        dtype: of the angles; half precisions are raised to float32, which they need.

    Raises:
        ValueError: the size is odd or not positive, or the base is not above 1.

    Example:
        >>> import torch
        >>> rotary_angles(torch.tensor([0, 1, 2]), size=4)
        tensor([[0.0000, 0.0000],
                [1.0000, 0.0100],
                [2.0000, 0.0200]])
    """
    if size <= 0 or size % 2:
        raise ValueError(f"rotary needs an even, positive vector size (it turns pairs), got {size}")
    if not base > 1:
        raise ValueError(f"rotary base must be above 1, got {base}")
    dtype = torch.promote_types(dtype, torch.float32)
    pair = torch.arange(0, size, 2, dtype=dtype, device=positions.device)  # (d/2)
    return positions.to(dtype).unsqueeze(-1) * torch.pow(base, -pair / size)  # (1)


def apply_rotary(
    x: Float[Tensor, "*batch L d"],
    positions: Num[Tensor, "*#batch L"] | None = None,
    base: float = 10000.0,
) -> Float[Tensor, "*batch L d"]:
    """Turn queries or keys by their positions; the second last axis counts positions.

    Args:
        x: queries or keys, any leading axes.
        positions: where each vector stands, broadcast against x without its last axis;
            default 0, 1, …, L − 1.
        base: see `rotary_angles`.

    Returns:
        The turned vectors, in the dtype of x.

    Raises:
        ValueError: d is odd, or the base is not above 1.

    Example:
        >>> import torch
        >>> q, k = torch.randn(2, 1, 8, dtype=torch.float64)
        >>> at = lambda p: torch.tensor([p])
        >>> near = (apply_rotary(q, at(3)) * apply_rotary(k, at(5))).sum()
        >>> far = (apply_rotary(q, at(1003)) * apply_rotary(k, at(1005))).sum()
        >>> torch.allclose(near, far)
        True
    """
    if positions is None:
        positions = torch.arange(x.shape[-2], device=x.device)
    dtype = torch.promote_types(x.dtype, torch.float32)
    angles = rotary_angles(positions, x.shape[-1], base, dtype=dtype)  # (..., L, d/2)
    if not torch.compiler.is_compiling():  # a pair is a complex number: a third of the time
        pairs = torch.view_as_complex(x.to(dtype).unflatten(-1, (-1, 2)).contiguous())
        turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles))  # (2)
        return turned.flatten(-2).to(x.dtype)
    cos, sin = angles.cos(), angles.sin()
    even, odd = x[..., 0::2].to(dtype), x[..., 1::2].to(dtype)  # (..., L, d/2)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)  # (2)
    return turned.flatten(-2).to(x.dtype)  # (..., L, d)
