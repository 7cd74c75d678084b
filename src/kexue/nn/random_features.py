r"""Random features whose inner products estimate exp(<q, k>): FAVOR+ (S30)

    exp(<q, k>) = E_w[exp(<w, q> − |q|²/2) exp(<w, k> − |k|²/2)],   w ~ N(0, I)                (1)
    φ_f(x) = m^(−1/2) exp(<w_f, x> − |x|²/2)        kind "positive", f = 1 … m                 (2)
    φ_f(x) = (2m)^(−1/2) exp(±<w_f, x> − |x|²/2)    kind "hyperbolic", 2m features             (3)
    φ_f(x) = max(<w_f, x>, 0) + ε                   kind "relu", a kernel of its own           (4)

E[<φ(q), φ(k)>] = exp(<q, k>) for (2) and (3), and every feature is positive. One feature of (2) has
variance exp(2<q, k>) (exp(|q + k|²) − 1): the error explodes with |q + k|. *Orthogonal* directions,
blocks of d rows at right angles, have less of it at moderate norms; their lengths are those of
Gaussian vectors ("chi", unbiased) or all √d ("sqrt_d").

Symbols: directions omega, ε eps.   Axes: L tokens, m directions, m2 features, d size of a head.
Cost: O(L m d).   Source: arXiv 2009.14794; article 9862. Public code adds ε = 1e-4 to (2), which
does not cancel in attention and draws it towards uniform weights, and takes the shift of the keys
over the whole batch, so that rows see each other; here ε is 0 and shifts stay within a head.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Kind", "Norm", "check_kind", "directions", "favor_features", "orthogonal_gaussian"]

Kind = Literal["positive", "hyperbolic", "relu"]
Norm = Literal["chi", "sqrt_d"]


def orthogonal_gaussian(
    m: int,
    d: int,
    norm: Norm = "chi",
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "m d"]:
    """Directions: blocks of d orthogonal rows, each row Gaussian by itself where norm is "chi".

    Args:
        m: number of directions; more than d take several independent blocks.
        d: size of a head.
        norm: length of a row; "chi" that of a fresh Gaussian vector, "sqrt_d" the constant √d.
        generator: source of the draws, on the CPU; default torch's own.
        dtype: of the result; drawn and orthogonalised in float64.

    Raises:
        ValueError: m or d below 1, or an unknown norm.

    Example:
        >>> import torch
        >>> omega = orthogonal_gaussian(4, 4, "sqrt_d", torch.Generator().manual_seed(0))
        >>> torch.allclose(omega @ omega.T, 4 * torch.eye(4), atol=1e-5)
        True
    """
    if m < 1 or d < 1:
        raise ValueError(f"the number of features and their size must be at least 1, got {m}, {d}")
    if norm not in ("chi", "sqrt_d"):
        raise ValueError(f'norm must be "chi" or "sqrt_d", got {norm!r}')

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")

    q, r = torch.linalg.qr(gaussian(-(-m // d), d, d))  # blocks of d columns
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    rows = (q * signs.unsqueeze(-2)).mT.flatten(0, 1)[:m]  # uniform over all rotations
    lengths = gaussian(m, d).norm(dim=-1, keepdim=True) if norm == "chi" else math.sqrt(d)
    omega: Tensor = rows * lengths
    return omega.to(dtype)


def favor_features(
    x: Float[Tensor, "*batch L d"],
    omega: Float[Tensor, "m d"],
    kind: Kind = "positive",
    stabilizer: Literal["per_head", "per_token"] | None = "per_head",
    eps: float = 0.0,
    *,
    mask: Bool[Tensor, "*#batch L"] | None = None,
) -> Float[Tensor, "*batch L m2"]:
    """Features whose inner products estimate a kernel: (2), (3) or (4).

    The stabiliser divides the exponentials by their maximum. That cancels in attention where all
    keys of a softmax share it ("per_head": over tokens and features) and for every query alone
    ("per_token"); in causal attention "per_head" of the keys lets a late large key round early ones
    to zero, and `favor_attention` is the way without that. The estimate of exp(<q, k>) itself needs
    None.

    Args:
        x: queries or keys, multiplied by d^(−1/4) for scaled attention.
        omega: directions.
        kind: which features.
        stabilizer: what the maximum is taken over; not used by "relu".
        eps: added to every feature before the factor m^(−1/2). For "relu" 1e-3 in the paper's code;
            for the others it biases the output towards the mean of all values.
        mask: True = visible; others are left out of the maximum.

    Returns:
        m features, 2m for "hyperbolic", in float32 or better.

    Raises:
        ValueError: an unknown name, omega of another size, or a negative eps.

    Example:
        >>> import torch
        >>> omega = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
        >>> favor_features(torch.tensor([[0.5, 0.0]]), omega, stabilizer=None)
        tensor([[0.8400, 0.3090, 0.8400]])
    """
    check_kind(kind)
    if omega.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"omega must have the size of x in its last axis, {x.shape[-1]}, got "
            f"{tuple(omega.shape)}"
        )
    if stabilizer not in ("per_head", "per_token", None):
        raise ValueError(f'stabilizer must be "per_head", "per_token" or None, got {stabilizer!r}')
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        x, omega = x.to(dtype), directions(omega.to(dtype), kind)
        scores = x @ omega.mT  # (..., L, m)
        if kind == "relu":
            return scores.relu() + eps  # (4)
        logs = scores - x.square().sum(-1, keepdim=True) / 2  # (1)
        if stabilizer is not None:
            seen = logs.detach()
            if mask is not None:
                seen = seen.masked_fill(~mask.unsqueeze(-1), -torch.inf)
            most = seen.amax(dim=-1 if stabilizer == "per_token" else (-2, -1), keepdim=True)
            logs = logs - most.masked_fill(most == -torch.inf, 0.0)
        return (logs.exp() + eps) / math.sqrt(omega.shape[0])  # (2), (3)


def directions(omega: Tensor, kind: Kind) -> Tensor:
    """The directions of a kind: with their opposites for "hyperbolic"."""
    return torch.cat([omega, -omega]) if kind == "hyperbolic" else omega


def check_kind(kind: str) -> None:
    """Refuse unknown kinds."""
    if kind not in ("positive", "hyperbolic", "relu"):
        raise ValueError(f'kind must be "positive", "hyperbolic" or "relu", got {kind!r}')
