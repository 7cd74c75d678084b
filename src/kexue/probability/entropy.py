r"""概率分布的熵归一化（Entropy Normalization） — entropy normalisation of a distribution (S08)

Gives a probability vector the entropy, or the perplexity, that you want; its order stays.

As dividing by a norm fixes the norm of a vector, raising a distribution to a power fixes its
entropy. With p of n entries, logits l = ln p, and H in nats:

    q_i = p_i^g / sum_j p_j^g = softmax(g · l)_i                                               (1)
    H(g) = −sum_i q_i ln q_i = ln Z − g · sum_i q_i x_i,   x = l − max l,  Z = sum_i e^(g x_i) (2)
    dH/dt = −V,   V = Var_q(ln q) = g^2 Var_q(x),   t = ln g                                   (3)

so H falls from ln n_+ (n_+ entries that are not 0) to ln m (m entries tie for the maximum), and
every H* strictly between belongs to exactly one g: the temperature 1/g. No closed form exists.

    article   g ← g · (1 + (H − H*) / V), Newton's method in g                                 (4)
    here      t ← t − (y(H) − y(H*)) / y',   y = ln((ln n_+ − H) / (H − ln m))                 (5)
              y' = V / (ln n_+ − H) + V / (H − ln m)
    gradient  dg = −(g / Var_q x) · sum_i q_i (x_i − E_q x) dx_i − dH* / (g Var_q x)           (6)

Where H − H* < −V the factor of (4) is negative and the order turns round; where V is tiny it
explodes. (5) is Newton's method for a quantity that is almost a straight line in t, within a
bracket (`kexue.probability.entropy_solver`); 4 to 6 rounds on average. (6) is the implicit function
theorem: no round is stored, and double backward goes through the formula.

Symbols: p `p`, l `logits`, g `gamma`, H* `target_entropy`, e^(H*) `perplexity`.
Axes: R rows, n entries.
Cost: per row and round one exp and three sums over n; (x, q) are stored for backward.
Source: article 8829; (5) and (6) are ours. Rows of perplexity 30 with l = −distance² are t-SNE's
affinities (van der Maaten & Hinton 2008), g its beta.
What we do differently: (5), logits, masks, gradients, and a message where H* cannot be reached.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kexue.probability.entropy_solver import PART, PowerOfEntropy, entropy_and_variance

__all__ = ["entropy_normalize", "entropy_normalized_softmax"]

Method = Literal["newton", "article"]
Unreachable = Literal["raise", "clamp"]


@overload
def entropy_normalize(
    p: Tensor | None = None,
    *,
    logits: Tensor | None = None,
    target_entropy: float | Tensor | None = None,
    perplexity: float | Tensor | None = None,
    bits: bool = False,
    dim: int = -1,
    mask: Tensor | None = None,
    tol: float = 1e-6,
    max_iter: int = 32,
    on_unreachable: Unreachable = "raise",
    return_gamma: Literal[False] = False,
    method: Method = "newton",
) -> Tensor: ...


@overload
def entropy_normalize(
    p: Tensor | None = None,
    *,
    logits: Tensor | None = None,
    target_entropy: float | Tensor | None = None,
    perplexity: float | Tensor | None = None,
    bits: bool = False,
    dim: int = -1,
    mask: Tensor | None = None,
    tol: float = 1e-6,
    max_iter: int = 32,
    on_unreachable: Unreachable = "raise",
    return_gamma: Literal[True],
    method: Method = "newton",
) -> tuple[Tensor, Tensor]: ...


def entropy_normalize(
    p: Float[Tensor, "*shape"] | None = None,
    *,
    logits: Float[Tensor, "*shape"] | None = None,
    target_entropy: float | int | Tensor | None = None,
    perplexity: float | int | Tensor | None = None,
    bits: bool = False,
    dim: int = -1,
    mask: Bool[Tensor, "..."] | None = None,
    tol: float = 1e-6,
    max_iter: int = 32,
    on_unreachable: Unreachable = "raise",
    return_gamma: bool = False,
    method: Method = "newton",
) -> Tensor | tuple[Tensor, Tensor]:
    """The power (1) of each distribution that has the entropy asked for.

    Args:
        p: probabilities, or any non-negative weights: a row's sum does not matter unless it is 0.
            Zeros stay 0 and receive gradient 0. Give p or logits.
        logits: their logarithms, up to a constant per row; −inf is a zero. Better than p in half
            precision, which loses small probabilities.
        target_entropy: H* in nats (bits with `bits`), a number or a tensor that broadcasts to the
            rows. Give this or perplexity.
        perplexity: exp(H*), the size of the uniform distribution of that entropy.
        bits: target_entropy is in bits.
        dim: the axis of the distribution.
        mask: True = the entry belongs to the distribution; broadcasts to p. Others become 0.
        tol: a row is done when its entropy is this close, in nats, or when its precision (float32:
            about 1e-6) allows no step; 1e-6 is the article's order of precision after 4 rounds.
        max_iter: most rounds of the solver; 4 to 6 are usual, more than 14 were never seen.
        on_unreachable: "raise", or "clamp" to the limit: uniform on the support (gamma 0) or on the
            entries that tie for the maximum (gamma inf), zeros where nothing is visible.
        return_gamma: also give the power, one number per row; 1 / gamma is the temperature.
        method: "newton" for (5), or "article" for `max_iter` rounds of (4), unsafe and unrolled by
            autograd; its first round is the article's approximate solution.

    Returns:
        The distributions, in float32 or float64, and the powers if asked for.

    Raises:
        TypeError: p or logits are no floating tensor.
        ValueError: not exactly one of each pair; a row with NaN, a negative entry or +inf, by row
            and column; a row whose sum is 0; a target out of reach, with the range; (4) diverged.

    Example:
        >>> import torch
        >>> p = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
        >>> q, gamma = entropy_normalize(p, target_entropy=1.0, return_gamma=True)
        >>> [round(float(x), 4) for x in q], round(float(gamma), 4)
        ([0.6347, 0.2159, 0.0975, 0.0519], 1.5558)
        >>> entropy_normalize(logits=torch.zeros(4), perplexity=4.0)
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    given = _checked(p, logits, target_entropy, perplexity, tol, max_iter, on_unreachable, method)
    wide = given.to(torch.promote_types(given.dtype, torch.float32)).movedim(dim, -1)
    seen = None if mask is None else mask.broadcast_to(given.shape).movedim(dim, -1)
    rows = wide.reshape(-1, wide.shape[-1])  # (R, n)
    target = _target(target_entropy, perplexity, bits, wide).reshape(-1)  # (R,)
    kept = None if seen is None else seen.reshape(rows.shape)
    solve = partial(
        _normalized,
        source="p" if logits is None else "logits",
        options=(float(tol), max_iter, on_unreachable == "clamp"),
        article=method == "article",
    )
    q, gamma = _by_parts(solve, rows, kept, target)
    q = q.reshape(wide.shape).movedim(-1, dim)
    return (q, gamma.reshape(wide.shape[:-1])) if return_gamma else q


def entropy_normalized_softmax(
    scores: Float[Tensor, "*shape"],
    perplexity: float | int | Tensor,
    *,
    dim: int = -1,
    mask: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "*shape"]:
    """A softmax whose rows all have one perplexity, for attention weights.

    Rows that cannot have it get the nearest: one visible key has weight 1, no key weight 0. The
    scale of the scores loses all effect, and its gradient is exactly 0.

    Args:
        scores: logits; −inf where a query must not look.
        perplexity: how many keys a row looks at, in effect; broadcasts to the rows.
        dim: the axis of the keys.
        mask: True = visible.

    Example:
        >>> import torch
        >>> weights = entropy_normalized_softmax(torch.tensor([[3.0, 1.0, 0.0, -1.0]]), 2.0)
        >>> round(float(torch.special.entr(weights).sum().exp()), 4)
        2.0
    """
    return entropy_normalize(
        logits=scores, perplexity=perplexity, dim=dim, mask=mask, on_unreachable="clamp"
    )


def _normalized(
    rows: Tensor,
    kept: Tensor | None,
    target: Tensor,
    *,
    source: str,
    options: tuple[float, int, bool],
    article: bool,
) -> tuple[Tensor, Tensor]:
    """The distributions (R, n) and their powers (R,)."""
    if source == "p":
        rows = torch.where(rows == 0, 1, rows).log().masked_fill(rows == 0, -torch.inf)
    if kept is not None:
        rows = rows.masked_fill(~kept, -torch.inf)
    least = torch.finfo(rows.dtype).min
    top = rows.detach().masked_fill(~rows.isfinite(), least).amax(dim=-1, keepdim=True)
    visible = (x := rows - top) != -torch.inf
    x = x.masked_fill(~visible, 0)  # NaN and +inf stay for the solver to name
    if article:
        gamma = _article(x, visible, target, options[1])
    else:
        gamma = PowerOfEntropy.apply(x, visible, target, *options, source)
    return _power(x, visible, gamma.unsqueeze(-1)), gamma


def _by_parts(
    solve: Callable[..., tuple[Tensor, Tensor]], rows: Tensor, kept: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor]:
    """On a CPU, and without a gradient to keep tensors for: parts that stay in its cache."""
    size = max(1, PART // rows.shape[1])
    learns = torch.is_grad_enabled() and (rows.requires_grad or target.requires_grad)
    whole = torch.compiler.is_compiling() or rows.device.type != "cpu" or type(rows) is not Tensor
    if learns or whole or len(rows) <= size:
        return solve(rows, kept, target)
    q, gamma = torch.empty_like(rows), torch.empty_like(target)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        try:
            q[part], gamma[part] = solve(
                rows[part], None if kept is None else kept[part], target[part]
            )
        except ValueError:  # the same complaint with the number of the row among all
            return solve(rows, kept, target)
    return q, gamma


def _power(x: Tensor, visible: Tensor, gamma: Tensor) -> Tensor:
    """softmax(gamma · x) over what is visible; gamma inf leaves the maxima alone."""
    sharp = torch.isinf(gamma)
    powered = torch.where(sharp, 0, gamma) * x
    kept = torch.where(sharp, visible & (x == 0), visible)
    lonely = ~kept.any(dim=-1, keepdim=True)  # an empty row: zeros, and no NaN on the way back
    return (
        powered.masked_fill(~(kept | lonely), -torch.inf).softmax(-1).masked_fill(~kept, 0)
    )  # (1)


def _article(x: Tensor, visible: Tensor, target: Tensor, rounds: int) -> Tensor:
    """(4), differentiable round by round."""
    gamma = torch.ones_like(target)
    for _ in range(rounds):
        entropy, variance = entropy_and_variance(x, visible, gamma)
        step = (entropy - target) / torch.where(variance > 0, variance, 1)
        gamma = gamma * (1 + torch.where(entropy == target, 0, step))  # (4)
    if not torch.compiler.is_compiling() and bool((bad := ~(gamma > 0) | gamma.isinf()).any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f'row {row}: the iteration of method="article" diverged, gamma = {float(gamma[row])}, '
            f'in {int(bad.sum())} of {len(bad)} rows; take method="newton"'
        )
    return gamma


def _target(
    entropy: float | int | Tensor | None,
    perplexity: float | int | Tensor | None,
    bits: bool,
    x: Tensor,
) -> Tensor:
    """H* in nats, one number per row."""
    wanted = torch.as_tensor(
        entropy if perplexity is None else perplexity, dtype=x.dtype, device=x.device
    )
    if perplexity is not None:
        wanted = wanted.log()
    elif bits:
        wanted = wanted * math.log(2)
    return wanted.broadcast_to(x.shape[:-1])


def _checked(
    p: Tensor | None,
    logits: Tensor | None,
    target_entropy: float | int | Tensor | None,
    perplexity: float | int | Tensor | None,
    tol: float,
    max_iter: int,
    on_unreachable: str,
    method: str,
) -> Tensor:
    """The one of p and logits that was given, once all options are good."""
    given = p if logits is None else logits
    if given is None or (p is not None and logits is not None):
        raise ValueError("give exactly one of p and logits")
    if (target_entropy is None) == (perplexity is None):
        raise ValueError("give exactly one of target_entropy and perplexity")
    if not given.is_floating_point():
        raise TypeError(f"p or logits must be a floating tensor, got {given.dtype}")
    if given.ndim == 0 or given.numel() == 0:
        raise ValueError(f"a distribution needs at least one entry, got shape {(*given.shape,)}")
    if isinstance(perplexity, float | int) and not 1 <= perplexity < math.inf:
        raise ValueError(f"perplexity is exp(entropy), at least 1, got {perplexity}")
    if tol < 0 or max_iter < 1:
        raise ValueError(f"tol must be ≥ 0 and max_iter ≥ 1, got {tol} and {max_iter}")
    if on_unreachable not in get_args(Unreachable):
        raise ValueError(f'on_unreachable must be "raise" or "clamp", got {on_unreachable!r}')
    if method not in get_args(Method):
        raise ValueError(f'method must be "newton" or "article", got {method!r}')
    return given
