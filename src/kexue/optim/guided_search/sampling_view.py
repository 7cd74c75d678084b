r"""The sampling view of optimisation — 从采样看优化：可导优化与不可导优化的统一视角 (S26)

One formula from which gradient descent, normalised gradient descent, Newton's method, evolution
strategies and MGS follow, as functions of plain tensors.

    p(Δ) ∝ exp(−[l(θ + Δ) − l(θ)]/α) ρ(Δ),    update Δ* = E_p[Δ]                              (1)

α → 0 goes to the best Δ there is, α → ∞ to the mean of the base measure ρ. What (1) becomes:

    l linear, ρ uniform in a ball      −(g/‖g‖) ε I_{d/2+1}(κ)/I_{d/2}(κ),   κ = ε‖g‖/α        (2)
    l linear, ρ = N(0, σ²I)            −(σ²/α) g                                               (3)
    l quadratic, ρ = N(0, σ²I)         −(H + (α/σ²) I)⁻¹ g;  flat ρ: −H⁻¹ g                    (4)
    α large, ρ = N(0, σ²I), sampled    −(1/αK) Σ_k [l(θ + Δ_k) − l̄] Δ_k                        (5)
    any l, Δ_k ~ q, self-normalised    Σ_k W_k Δ_k,  W = softmax(−l(θ + Δ_k)/α − log q(Δ_k))   (6)
    how many samples (6) rests on      ESS = 1 / Σ_k W_k²,  between 1 and K                    (7)
    the proposal of MGS                q = π N(0, σ²I) + (1 − π) N(−g, σ²I)                    (8)

(2) goes from gradient descent −ε²g/((d+2)α) for small κ to a step of length ε for large κ.
I_ν are modified Bessel functions; their ratio R_ν = I_{ν+1}/I_ν comes from the recursion
R_ν = 1/(2(ν+1)/κ + R_{ν+1}), started high up at Amos' bound, where no I_ν overflows.

Symbols: grad g, hessian H, radius ε, sigma σ, temperature α, losses l, log_q log q, pi π.
Axes: K samples, d coordinates.
Source: article 7521, arXiv 2006.03158. Differently from the article: (2) is worked out; the exact
update is −α∇_g log Z and the covariance of (4) is αH⁻¹, both with the factor α that is left out
there; H must be positive definite, or (1) cannot be normalised. See also: `guided_search.MGS`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "ball_update",
    "bessel_ratio",
    "effective_sample_size",
    "evolution_update",
    "gaussian_update",
    "mgs_weights",
    "mixture_log_density",
    "newton_update",
    "optimise_by_sampling",
]


def bessel_ratio(order: float | int, kappa: float | int) -> float:
    """I_{order+1}(kappa) / I_order(kappa), between 0 and 1.

    Example:
        >>> round(bessel_ratio(0.5, 2.0), 12) == round(1 / math.tanh(2) - 1 / 2, 12)
        True
    """
    if order < 0 or kappa < 0 or not math.isfinite(order + kappa):
        raise ValueError(f"order and kappa must be finite and >= 0, got {order} and {kappa}")
    if kappa == 0:
        return 0.0
    top = order + min(16 + math.ceil(6 * math.sqrt(kappa)), 60_000)
    ratio = kappa / (top + 0.5 + math.hypot(top + 1, kappa))  # between Amos' two bounds
    while top > order:
        top -= 1
        ratio = 1 / (2 * (top + 1) / kappa + ratio)
    return ratio


def ball_update(
    grad: Float[Tensor, " d"], radius: float | int, temperature: float | int
) -> Float[Tensor, " d"]:
    """The mean update of a linear loss in a ball: (2).

    Args:
        grad: g.
        radius: ε, the longest update allowed.
        temperature: α, in the unit of the loss.

    Raises:
        ValueError: radius or temperature is not positive.

    Example:
        >>> [round(x, 6) for x in ball_update(torch.tensor([0.3, -0.4]), 0.5, 0.1).tolist()]
        [-0.152159, 0.202878]
    """
    check_positive("radius", radius)
    check_positive("temperature", temperature)
    length = torch.linalg.vector_norm(grad).item()
    if length == 0:
        return torch.zeros_like(grad)
    ratio = bessel_ratio(len(grad) / 2, radius * length / temperature)
    step: Tensor = grad * (-radius * ratio / length)  # (2)
    return step


def gaussian_update(
    grad: Float[Tensor, " d"], sigma: float | int, temperature: float | int
) -> Float[Tensor, " d"]:
    """The mean update of a linear loss around N(0, σ²I), plain gradient descent: (3).

    Example:
        >>> gaussian_update(torch.tensor([1.0]), sigma=0.5, temperature=0.5).item()
        -0.5
    """
    check_positive("sigma", sigma)
    check_positive("temperature", temperature)
    return -(sigma**2 / temperature) * grad  # (3)


def newton_update(
    grad: Float[Tensor, " d"],
    hessian: Float[Tensor, "d d"],
    *,
    sigma: float | int | None = None,
    temperature: float | int = 0.0,
) -> Float[Tensor, " d"]:
    """The mean update of a quadratic loss, Newton's step, damped by a base measure: (4).

    Args:
        grad: g.
        hessian: H, symmetric.
        sigma: of the base measure N(0, σ²I); None for a flat one, where α does not matter.
        temperature: α.

    Raises:
        ValueError: H + (α/σ²) I is not positive definite.

    Example:
        >>> newton_update(torch.tensor([1.0, 1.0]), torch.diag(torch.tensor([2.0, 4.0]))).tolist()
        [-0.5, -0.25]
    """
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    damping = 0.0
    if sigma is not None:
        check_positive("sigma", sigma)
        damping = temperature / sigma**2
    curvature = hessian + damping * torch.eye(len(grad), dtype=hessian.dtype, device=hessian.device)
    root, failed = torch.linalg.cholesky_ex(curvature)
    if failed:
        lowest = torch.linalg.eigvalsh(hessian)[0].item()
        raise ValueError(
            f"H + {damping:g} I is not positive definite (smallest eigenvalue of H: {lowest:g}), "
            f"so no mean exists; give sigma and temperature with temperature/sigma² > {-lowest:g}"
        )
    return -torch.cholesky_solve(grad[:, None], root).squeeze(1)  # (4)


def evolution_update(
    losses: Float[Tensor, " K"], delta: Float[Tensor, "K d"], temperature: float | int
) -> Float[Tensor, " d"]:
    """The high-temperature update, σ²/α times the gradient estimate of evolution strategies: (5).

    Args:
        losses: l(θ + Δ_k).
        delta: Δ_k, drawn from N(0, σ²I).
        temperature: α.

    Example:
        >>> losses, delta = torch.tensor([1.0, -1.0]), torch.tensor([[1.0], [-1.0]])
        >>> evolution_update(losses, delta, temperature=10.0).item()
        -0.10000000149011612
    """
    check_positive("temperature", temperature)
    return -((losses - losses.mean()) @ delta) / (len(losses) * temperature)  # (5)


def mgs_weights(
    losses: Float[Tensor, " K"],
    log_q: Float[Tensor, " K"] | None = None,
    temperature: float | int | str = "adaptive",
) -> Float[Tensor, " K"]:
    """The samples' shares W of the update: (6).

    Args:
        losses: one per sample; NaN and ±inf get the weight 0.
        log_q: log density each was drawn with, up to a constant; None where q is the base measure.
        temperature: α, in the unit of the losses; "adaptive" takes their standard deviation, which
            keeps about half of K samples effective (58 % of 4, 49 % of 16 normal losses).

    Raises:
        ValueError: no loss is finite, log_q is not finite or not one per loss, or the temperature
            is not positive.

    Example:
        >>> losses = torch.tensor([0.9, 0.7, 0.8], dtype=torch.float64)
        >>> [round(w, 3) for w in mgs_weights(losses, temperature=0.25).tolist()]
        [0.212, 0.472, 0.316]
    """
    check_temperature(temperature)
    losses = losses.to(torch.promote_types(losses.dtype, torch.float32))
    finite = losses.isfinite()
    if not torch.compiler.is_compiling() and not finite.any():
        raise ValueError(
            f"none of the {len(losses)} candidate losses is finite: {losses.tolist()}. The "
            "parameters are as before; make sigma or step_size smaller, or let loss_fn return a "
            "large finite number where a model fails"
        )
    if log_q is not None:
        _check_log_q(log_q, losses)
    excess = losses - losses.where(finite, torch.inf).min()  # l(θ) cancels, and so does the best
    smallest = torch.finfo(losses.dtype).tiny
    alpha = _spread(excess, finite) if isinstance(temperature, str) else max(temperature, smallest)
    log_w = (-excess / alpha).where(finite, -torch.inf)
    return (log_w if log_q is None else log_w - log_q).softmax(0)  # (6)


def _check_log_q(log_q: Tensor, losses: Tensor) -> None:
    if log_q.shape != losses.shape:
        need = f"one number per loss, shape {tuple(losses.shape)}"
        raise ValueError(f"log_q must be {need}, got shape {tuple(log_q.shape)}")
    if not torch.compiler.is_compiling() and not log_q.isfinite().all():
        raise ValueError(
            f"log_q must be finite, got {log_q.tolist()}: the log of the density that each "
            "sample was drawn with"
        )


def _spread(excess: Tensor, finite: Tensor) -> Tensor:
    """Standard deviation of the finite losses; 1 where they are equal and no α matters."""
    count, widest = finite.sum(), excess.where(finite, 0.0).max()
    share = (excess / widest).where(finite & (widest > 0), 0.0)  # squares stay in range
    mean = share.sum() / count
    std = widest * ((share - mean).square().where(finite, 0.0).sum() / count).sqrt()
    return std.where(std > 0, 1.0)


def effective_sample_size(weights: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """How many samples the update rests on: (7).

    Example:
        >>> effective_sample_size(torch.tensor([0.5, 0.5, 0.0])).item()
        2.0
    """
    return weights.square().sum().reciprocal()  # (7)


def mixture_log_density(
    delta: Float[Tensor, "K d"],
    grad: Float[Tensor, " d"],
    sigma: float | int,
    pi: float | int = 0.5,
) -> Float[Tensor, " K"]:
    """log q(Δ) of the proposal (8), normalised, by log-sum-exp.

    Args:
        delta: the samples.
        grad: g, the surrogate's gradient times its step size.
        sigma: σ of both components.
        pi: weight of the component around zero.

    Raises:
        ValueError: sigma is not positive, or pi is outside [0, 1].

    Example:
        >>> q = mixture_log_density(torch.zeros(1, 2), torch.zeros(2), sigma=1.0)
        >>> round(q.item(), 4)  # −log 2π
        -1.8379
    """
    check_positive("sigma", sigma)
    check_share("pi", pi)
    wide = torch.promote_types(delta.dtype, torch.float32)
    delta, grad = delta.to(wide) / sigma, grad.to(wide) / sigma
    constant = delta.shape[1] * math.log(math.sqrt(2 * math.pi) * sigma)
    return log_mixture(delta.square().sum(1), (delta + grad).square().sum(1), pi) - constant  # (8)


def log_mixture(own: Tensor, other: Tensor, pi_own: float | int) -> Tensor:
    """log[π_own e^(−own/2) + (1 − π_own) e^(−other/2)] of squared distances."""
    log_own, log_other = (math.log(p) if p > 0 else -math.inf for p in (pi_own, 1 - pi_own))
    return torch.logaddexp(log_own - own / 2, log_other - other / 2)


def optimise_by_sampling(
    loss: Callable[[Any], float | int],
    start: Tensor | np.ndarray,
    *,
    steps: int,
    sigma: float | int,
    temperature: float | int | str = "adaptive",
    gradient: Callable[[Any], Any] | None = None,
    n_candidates: int = 16,
    generator: torch.Generator | None = None,
) -> tuple[Any, list[float]]:
    """Minimises a function of a vector by (6), with or without a gradient to guide it.

    Args:
        loss: vector → number; called with the kind of array that `start` is, a copy.
        start: where to begin, a vector; whole numbers become float64.
        steps: how many updates.
        sigma: σ of (8).
        temperature: α, or "adaptive"; see `mgs_weights`.
        gradient: vector → g of (8), its step size included; half the samples are centred at −g.
            None centres all at zero.
        n_candidates: K.
        generator: source of the noise.

    Returns:
        The last vector, and the loss at every step including the first and the last.

    Raises:
        ValueError: start is not a vector, a number is out of range, or no loss is finite.

    Example:
        >>> random = torch.Generator().manual_seed(0)
        >>> steps_of = lambda x: abs(x).round().sum()  # flat almost everywhere
        >>> x, losses = optimise_by_sampling(
        ...     steps_of, np.array([3.0, -4.0]), steps=40, sigma=0.5, generator=random
        ... )
        >>> losses[0], losses[-1]
        (7.0, 0.0)
    """
    check_positive("sigma", sigma)
    if start.ndim != 1 or steps < 1 or n_candidates < 1:
        raise ValueError(
            "start must be a vector, steps and n_candidates at least 1; "
            f"got shape {tuple(start.shape)}, {steps} and {n_candidates}"
        )
    x = torch.as_tensor(start).detach().double().clone()

    def like(v: Tensor) -> Any:
        """A copy, which `loss` may change, of the kind that `start` is."""
        if not isinstance(start, Tensor):
            return v.numpy().copy()
        dtype = start.dtype if start.is_floating_point() else v.dtype
        return v.to(start.device, dtype, copy=True)

    losses = [float(loss(like(x)))]
    for _ in range(steps):
        delta = sigma * torch.randn(n_candidates, len(x), generator=generator, dtype=x.dtype)
        if gradient is not None:
            delta[::2] -= torch.as_tensor(gradient(like(x)))  # (8)
        scores = torch.tensor([float(loss(like(x + d))) for d in delta], dtype=x.dtype)
        x += mgs_weights(scores, temperature=temperature) @ delta  # (6)
        losses.append(float(loss(like(x))))
    return like(x), losses


def check_positive(name: str, value: float | int) -> None:
    """Refuses what is not a positive finite number."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_share(name: str, value: float | int) -> None:
    """Refuses what is not between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")


def check_temperature(value: float | int | str) -> None:
    """Refuses what is neither a positive number nor the word "adaptive"."""
    if isinstance(value, str):
        if value != "adaptive":
            raise ValueError(f'temperature must be a positive number or "adaptive", got {value!r}')
    else:
        check_positive("temperature", value)
