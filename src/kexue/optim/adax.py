"""AdaX: a second moment that remembers the past ever better (AdaX优化器浅析, S33).

Adam forgets old squares at a fixed rate, so late in training a fixed share of every new square
still disturbs the step lengths. AdaX weighs the past more as time passes: the step lengths settle
and the method ends as SGD with momentum and one fixed scale per weight.

    m_t = β1·m_{t−1} + (1 − β1)·g_t                                                            (1)
    s_t = β2 / ((1 + β2)^t − 1) = β2 / expm1(t·log1p(β2))                                      (2)
    v_t = (1 − s_t)·v_{t−1} + s_t·g_t²                                                         (3)
    x_t = x_{t−1} − η·[ m_t / √(v_t + ε) + λ·x_{t−1} ]                                         (4)

with m_0 = v_0 = 0 and no bias correction of m, so that the first step has length (1 − β1)·η.
s_1 = 1; s_t ≈ 1/t while t ≪ 1/β2, a plain average of all squares; then s_t ≈ β2·e^{−β2·t}.

| symbol | here             | meaning                                                    |
|--------|------------------|------------------------------------------------------------|
| x, g   | x, g             | a parameter tensor and its gradient                        |
| m      | exp_avg          | momentum, float32 or better, the shape of x                |
| v      | exp_avg_sq_hat   | weighted mean of all squared gradients, likewise           |
| t      | step             | updates of this tensor, this one included                  |
| s      | newest_share     | weight of the newest square in the mean                    |
| η, λ   | lr, weight_decay | step length; decoupled decay, multiplied by η              |
| β1     | betas[0]         | weight of the past in the momentum                         |
| β2     | betas[1]         | growth of the weights from one step back to the next, 1e-4 |
| ε      | eps              | keeps the division finite; where it stands: `eps_mode`     |

The article keeps V_t = (1 + β2)·V_{t−1} + β2·g_t² and divides it by (1 + β2)^t − 1. Both grow past
float32 (the divisor at step 887,273), and in half precision 1 + β2 is 1; (3) is the same mean
without them. Here s_t is computed in double, and once it is below 1e-9, v is no longer written.
A square beyond the range of the dtype counts as the largest number, so that v stays finite.

| eps_mode       | denominator in (4) | who                                                 |
|----------------|--------------------|-----------------------------------------------------|
| "inside"       | √(v_t + ε)         | the article; ε = 1e-6 is ours                       |
| "outside"      | √v_t + ε           | its author's AdaX_V2 for tf.keras, ε = 1e-6         |
| "unnormalised" | √v_t + ε·√(s_t/β2) | its author's AdaX_V1 for Keras, ε = 1e-7            |

Cost: 8 bytes of state per weight; one pass that reads x, g, m, v and writes x, m, v (28 bytes per
weight; 24 once v is frozen).

Sources: Li et al., "AdaX: Adaptive Gradient Descent with Exponential Long Term Memory", arXiv
2004.09740; article 7387 and the code bojone/adax. The decay λ is ours, in the way of AdamW.
See also: `adafactor`, whose s_t = t^−0.8 also begins at 1 and vanishes.
"""

import math
from collections.abc import Iterable
from typing import Any, overload

import torch
from torch import Tensor

from kexue.optim.per_tensor import PerTensorOptimizer, pair
from kexue.tensor_loop import Loop

__all__ = ["PRESETS", "AdaX", "adax_", "newest_share"]

ONE_PASS = Loop(__file__, "adax", "xxxxnffffff")
FROZEN = 1e-9
"""Below this share v stays as it is: a square up to 30 times v would not change a float32, and all
later squares together would have weighed about FROZEN/β2, which is 1e-5."""
PRESETS: dict[str, dict[str, Any]] = {
    "article": {"betas": (0.9, 1e-4), "eps": 1e-6, "eps_mode": "inside"},
    "AdaX_V2": {"betas": (0.9, 1e-4), "eps": 1e-6, "eps_mode": "outside"},
    "AdaX_V1": {"betas": (0.9, 1e-4), "eps": 1e-7, "eps_mode": "unnormalised"},
}
"""Options by source: the article's formula, and the classes of its author's code."""


@overload
def newest_share(t: int, beta2: float) -> float: ...
@overload
def newest_share(t: Tensor, beta2: float) -> Tensor: ...
def newest_share(t: int | Tensor, beta2: float) -> float | Tensor:
    """s_t, the weight of the newest square in the mean of all: (2).

    Args:
        t: the step, from 1; a 0-d tensor stays on its device.
        beta2: β2.

    Example:
        >>> [round(newest_share(t, 1e-4), 6) for t in (1, 2, 10, 1000)]
        [1.0, 0.499975, 0.099955, 0.000951]
    """
    if isinstance(t, Tensor):
        exact = torch.float32 if t.device.type == "mps" else torch.float64
        return beta2 / torch.expm1(t.to(exact) * math.log1p(beta2))  # (2)
    exponent = t * math.log1p(beta2)
    return beta2 / math.expm1(exponent) if exponent < 709 else 0.0  # (2)


def adax_(
    x: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    t: int | Tensor,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    eps_mode: str = "inside",
    weight_decay: float = 0.0,
) -> None:
    """One step, in place.

    Args:
        x: the parameter.
        g: its gradient, same shape.
        m: its momentum, same shape.
        v: its mean of squares, same shape.
        t: the number of this step, from 1; a 0-d tensor where the host shall not wait for it.
        lr: η, a number or a 0-d tensor.
        betas: (β1, β2).
        eps: ε.
        eps_mode: "inside", "outside" or "unnormalised", see the head of this file.
        weight_decay: λ.

    Example:
        >>> import torch
        >>> x, m, v = torch.tensor([1.0, -1.0]), torch.zeros(2), torch.zeros(2)
        >>> g = torch.tensor([0.5, -2.0])
        >>> adax_(x, g, m, v, 1, lr=0.1, betas=(0.9, 1e-4), eps=1e-6)
        >>> x, v
        (tensor([ 0.9900, -0.9900]), tensor([0.2500, 4.0000]))
    """
    beta1, beta2 = betas
    s = newest_share(t, beta2)
    inside = eps if eps_mode == "inside" else 0.0
    outside = {"inside": 0.0, "outside": eps, "unnormalised": eps * (s / beta2) ** 0.5}[eps_mode]
    if not isinstance(s, Tensor) and ONE_PASS.takes(x, g, m, v):
        step, kept = float(lr), s if s >= FROZEN else 0.0
        ONE_PASS(x, g, m, v, x.numel(), step, step * weight_decay, 1 - beta1, kept, inside, outside)
        return
    m.lerp_(g, 1 - beta1)  # (1)
    square = (g * g).clamp_(max=torch.finfo(g.dtype).max)
    if isinstance(s, Tensor):
        v.lerp_(square, torch.where(s < FROZEN, 0.0, s).to(v.dtype))  # (3)
    elif s >= FROZEN:
        v.lerp_(square, s)  # (3)
    scale = (v + inside).sqrt_().add_(outside)
    u = m / scale
    if inside == 0:
        u.masked_fill_(scale == 0, 0)  # 0/0, a weight that never had a gradient
    x.mul_(1 - lr * weight_decay).sub_(u.mul_(lr))  # (4)


class AdaX(PerTensorOptimizer):
    """AdaX, see the head of this file.

    Every tensor counts its own steps: one that joins late, or had no gradient so far, starts at
    t = 1.

    Args:
        params: parameters, named parameters, or groups of either.
        lr: η; 1e-3 as in the article's code.
        betas: (β1, β2); (0.9, 1e-4) as in paper and article. β2 is a small rate of growth.
        eps: ε; 1e-6. `PRESETS` holds the options of each source.
        eps_mode: "inside", "outside" or "unnormalised": where ε stands.
        weight_decay: λ.
        maximize: climb instead.
        nonfinite: "skip", "raise" or "ignore" a gradient with NaN or Inf (see `per_tensor`).
        stochastic_rounding: round half-precision parameters at random.
        seed: of that rounding.

    Raises:
        ValueError: lr, eps or weight_decay negative; a beta out of range, such as Adam's β2; an
            eps_mode that is none of the three.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = AdaX([w], lr=0.1)
        >>> w.square().sum().backward()
        >>> optimizer.step()
        >>> round(w.item(), 4)
        0.99
    """

    state_names = ("exp_avg", "exp_avg_sq_hat", "step")
    shaped = ("exp_avg", "exp_avg_sq_hat")
    options = ("betas", "eps", "eps_mode")
    places = ("inside", "outside", "unnormalised")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 1e-4),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        eps_mode: str = "inside",
        maximize: bool = False,
        nonfinite: str = "skip",
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        chosen = {"lr": lr, "betas": betas, "eps": eps, "eps_mode": eps_mode}
        chosen |= {"weight_decay": weight_decay, "maximize": maximize, "nonfinite": nonfinite}
        chosen |= {"stochastic_rounding": stochastic_rounding, "seed": seed}
        super().__init__(params, chosen)

    def check(self, group: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name} must not be negative, got {group[name]}")
        beta1, beta2 = pair(group, "betas")
        if not 0 <= beta1 < 1:
            raise ValueError(f"betas[0] must lie in [0, 1), got {beta1}")
        if not 0 < beta2 <= 0.5:
            raise ValueError(
                f"betas[1] must lie in (0, 0.5], got {beta2}; in AdaX it is not Adam's share of "
                "the past such as 0.999, but the small rate at which older squares gain weight: "
                "1e-4 is usual"
            )
        if group["eps_mode"] not in self.places:
            raise ValueError(
                f"eps_mode must be one of {', '.join(self.places)}, got {group['eps_mode']!r}"
            )

    def new_state(self, x: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        step = torch.zeros((), dtype=torch.int64, device=x.device)
        return {"exp_avg": torch.zeros_like(x), "exp_avg_sq_hat": torch.zeros_like(x), "step": step}

    def update(self, x: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        t: int | Tensor = state["step"].add_(1)
        if x.is_cpu and not torch.compiler.is_compiling():
            t = int(t)
        names = ("lr", "betas", "eps", "eps_mode", "weight_decay")
        chosen = {name: group[name] for name in names}
        adax_(x, g, state["exp_avg"], state["exp_avg_sq_hat"], t, **chosen)

    def reset_second_moment(self, params: Iterable[Tensor] | Tensor | None = None) -> None:
        """Lets tensors start over at t = 1, as after unfreezing or a change of data or loss.

        A settled v never adapts to another scale of gradients. The momentum starts over as well:
        an old m divided by the square root of one new square could be any number.

        Args:
            params: the parameters to reset; all when None.

        Raises:
            ValueError: none of them is in this optimizer.
        """
        mine = {p for group in self.param_groups for p in group["params"]}
        given = [params] if isinstance(params, Tensor) else params
        chosen = mine if given is None else mine.intersection(given)
        if not chosen:
            raise ValueError(
                "none of these is a parameter of this optimizer; give parameters, such as "
                "model.head.parameters()"
            )
        for parameter in chosen:
            for kept in self.state.get(parameter, {}).values():
                kept.zero_()
