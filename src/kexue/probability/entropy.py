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
Cost: per row and round one softmax and two sums over n; (x, q) are stored for backward.
Source: article 8829; (5) and (6) are ours. Rows of perplexity 30 with l = −distance² are t-SNE's
affinities (van der Maaten & Hinton 2008), g its beta.
What we do differently: (5), logits, masks, gradients, and a message where H* cannot be reached.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kexue.probability.entropy_options import (
    Method,
    Unreachable,
    checked,
    mask_of_entries,
    target_of_rows,
)
from kexue.probability.entropy_solver import (
    PART,
    PowerOfEntropy,
    entropy_and_variance,
    entropy_gamma,
    powered,
    visible_in,
)

__all__ = ["entropy_normalize", "entropy_normalized_softmax"]


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
        logits: their logarithms, up to a constant per row; −inf is a zero, and so is the lowest
            number of float32 or float64. Better than p in half precision, which loses small ones.
        target_entropy: H* in nats (bits with `bits`), a number or a tensor that broadcasts to the
            rows. Give this or perplexity.
        perplexity: exp(H*), the size of the uniform distribution of that entropy.
        bits: target_entropy is in bits.
        dim: the axis of the distribution.
        mask: True = the entry belongs to the distribution; broadcasts to p. Others become 0.
        tol: a row is done when its entropy is this close, in nats, or when its precision (float32:
            about 1e-6) allows no step; 1e-6 is the article's order of precision after 4 rounds.
        max_iter: most rounds of the solver; 4 to 6 are usual, 9 nearly always enough, unless one
            entry lies extremely far from the others.
        on_unreachable: "raise", or "clamp" to the limit: uniform on the support (gamma 0) or on the
            entries that tie for the maximum (gamma inf), zeros where nothing is visible.
        return_gamma: also give the power, one number per row; 1 / gamma is the temperature.
        method: "newton" for (5), or "article" for `max_iter` rounds of (4), unsafe and unrolled by
            autograd; its first round is the article's approximate solution.

    Returns:
        The distributions, in float32 or float64, and the powers if asked for.

    Raises:
        TypeError: p or logits are no floating tensor, or the mask is not boolean.
        ValueError: not exactly one of each pair; a shape that does not fit; a row with NaN, a
            negative entry or +inf, by row and column; a row whose sum is 0; a target out of reach,
            with the range; (4) diverged.

    Example:
        >>> import torch
        >>> p = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
        >>> q, gamma = entropy_normalize(p, target_entropy=1.0, return_gamma=True)
        >>> [round(float(x), 4) for x in q], round(float(gamma), 4)
        ([0.6347, 0.2159, 0.0975, 0.0519], 1.5558)
        >>> entropy_normalize(logits=torch.zeros(4), perplexity=4.0)
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    given = checked(p, logits, target_entropy, perplexity, tol, max_iter, on_unreachable, method)
    wide = given.to(torch.promote_types(given.dtype, torch.float32)).movedim(dim, -1)
    if wide.shape[-1] == 0:
        raise ValueError(f"a distribution needs at least one entry, got shape {(*given.shape,)}")
    rows = wide.reshape(wide.shape[:-1].numel(), wide.shape[-1])  # (R, n)
    target = target_of_rows(target_entropy, perplexity, bits, wide).reshape(-1)  # (R,)
    kept = (
        None if mask is None else mask_of_entries(mask, given).movedim(dim, -1).reshape(rows.shape)
    )
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
        rows = _log(rows)
    if kept is not None:
        rows = rows.masked_fill(~kept, -torch.inf)
    top = rows.detach().amax(dim=-1, keepdim=True)
    top = torch.where(top.isfinite(), top, 0)  # NaN and +inf stay for the solver to name
    x = (rows - top).clamp(min=torch.finfo(rows.dtype).min)  # not −inf, since 0 · inf is NaN
    if article:
        gamma = _article(x, target, options, source)
    else:
        gamma = PowerOfEntropy.apply(x, target, *options, source)
    return _power(x, gamma), gamma


def _by_parts(
    solve: Callable[..., tuple[Tensor, Tensor]], rows: Tensor, kept: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor]:
    """On a CPU, and without a gradient to keep tensors for: parts that stay in its cache."""
    size = max(1, PART // rows.shape[1])
    learns = torch.is_grad_enabled() and (rows.requires_grad or target.requires_grad)
    if learns or not _plain(rows) or rows.device.type != "cpu" or len(rows) <= size:
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


def _plain(tensor: Tensor) -> bool:
    """Whether its numbers may be looked at: not in a graph, not under `torch.func.vmap`."""
    transformed = torch._C._are_functorch_transforms_active()
    return not (torch.compiler.is_compiling() or transformed) and type(tensor) is Tensor


def _power(x: Tensor, gamma: Tensor) -> Tensor:
    """softmax(gamma · x) over what is visible; gamma inf leaves the maxima alone."""
    z = powered(x, torch.where(gamma.isinf(), 0, gamma))
    if _plain(x) and bool(((gamma > 0) & (gamma < torch.inf)).all()):
        return z.softmax(-1)  # (1)
    kept = torch.where(gamma.isinf().unsqueeze(-1), x == 0, visible_in(x))
    lonely = ~kept.any(dim=-1, keepdim=True)  # an empty row: zeros, and no NaN on the way back
    return z.masked_fill(~(kept | lonely), -torch.inf).softmax(-1).masked_fill(~kept, 0)  # (1)


def _log(p: Tensor) -> Tensor:
    """ln p, −inf for a zero, with gradient 0 there."""
    if _plain(p) and not p.requires_grad:
        return p.log()
    return torch.where(p == 0, 1, p).log().masked_fill(p == 0, -torch.inf)


def _article(x: Tensor, target: Tensor, options: tuple[float, int, bool], source: str) -> Tensor:
    """(4), differentiable round by round."""
    _, rounds, clamp = options
    limit = entropy_gamma(x.detach(), target.detach(), 0.0, 1, clamp, source)  # complains as (5)
    reached = (limit > 0) & (limit < torch.inf)
    gamma = torch.ones_like(target)
    bad = torch.zeros_like(target, dtype=torch.bool)
    for _ in range(rounds):
        entropy, variance = entropy_and_variance(x, gamma)
        step = (entropy - target) / torch.where(variance > 0, variance, 1)
        gamma = gamma * (1 + torch.where(entropy == target, 0, step))  # (4)
        bad = bad | ~((gamma > 0) & (gamma < torch.inf))  # a second turn mends nothing
    bad = bad & reached
    if not torch.compiler.is_compiling() and bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f'row {row}: the iteration of method="article" diverged, gamma = {float(gamma[row])}, '
            f'in {int(bad.sum())} of {len(bad)} rows; take method="newton"'
        )
    return torch.where(reached, gamma, limit)
