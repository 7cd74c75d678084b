"""隐藏在动量中的梯度累积：少更新几步，效果反而更好？ (S29)

Gradient accumulation without a buffer, for Adam, AdamW and SGD with momentum.

With micro-batches t = 1, 2, … in groups of k (`micro_steps`), χ = 1 where its condition holds:

    m_t = [ 1 − (1 − β1)·χ(k | t−1) ]·m_{t−1} + (1 − β1)·g_t/k                                 (1)
    v_t = [ 1 − (1 − β2)·χ(k | t−1) ]·v_{t−1} + (1 − β2)·g_t²/k                                (2)
    x_t = x_{t−1} − χ(k | t)·α·[ m̂ / (√v̂ + ε) + λ·x_{t−1} ]                                   (3)
    with m̂ = m_t/(1 − β1^n), v̂ = v_t/(1 − β2^n), n = t/k

and for SGD

    b_t = [ 1 − (1 − μ)·χ(k | t−1) ]·b_{t−1} + (1 − d)·g_t/k                                   (4)
    x_t = x_{t−1} − χ(k | t)·α·b_t                                                             (5)

which is exactly a step on the mean gradient of the k micro-batches. Adam's m is exact as well; its
v holds the mean of the squares where true accumulation has the square of the mean. Between equal
gradients (factor 1) and pure noise (factor k) v is too large, so steps are up to √k shorter: raise
α if training is slow.

| symbol | here                | meaning                                                         |
|--------|---------------------|-----------------------------------------------------------------|
| m, v   | exp_avg, exp_avg_sq | the moments of Adam                                             |
| b      | momentum_buffer     | of SGD; μ is momentum, d dampening                              |
| α      | lr                  | learning rate                                                   |
| λ      | weight_decay        | AdamW's as in (3); for Adam and SGD λx is added to g            |
| k      | accum_steps         | micro-batches per update                                        |
| n      | step                | updates of this tensor so far                                   |

What differs from the article: ε stands outside the root, as in torch's Adam, so that k = 1 is that
optimizer; χ(k | t−1) is read as "the first gradient of the group" per tensor. In PyTorch `.grad` is
an accumulator already, so memory is won only together with `step_in_backward`.

The approximate recipe for any optimizer with moving averages, which needs no code: replace every β
by β' = 1 − (1 − β)/k (`stretched_beta`), and update every k-th micro-batch.                   (6)

Cost: nothing beyond the moments. Source: article 8634. See also: `tiger`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from kexue.optim.micro_steps import Flag, MicroStepOptimizer

__all__ = ["HiddenAccumulation", "check_accumulation", "stretched_beta"]


def stretched_beta(beta: float, accum_steps: int) -> float:
    """(6): the β' that forgets in k micro-steps about what β forgets in one step.

    Example:
        >>> beta = stretched_beta(0.9, 4)
        >>> round(beta, 4), round(beta**4, 4)
        (0.975, 0.9037)
    """
    if not 0 <= beta < 1 or accum_steps < 1:
        raise ValueError(f"needs beta in [0, 1) and accum_steps >= 1, got {beta}, {accum_steps}")
    return 1 - (1 - beta) / accum_steps  # (6)


def fold_average_(m: Tensor, g: Tensor, *, beta: float, share: float | Tensor, first: Flag) -> None:
    """(1), (2), (4) in place: forget where `first`, then take the share of g."""
    forget = first.to(m.dtype) if isinstance(first, Tensor) else first
    m.mul_(1 - (1 - beta) * forget).add_(g * share)


def grown(beta: float, n: Tensor) -> Tensor:
    """1 − β^n to the last bits, also where β^n is near 1."""
    return -torch.expm1(n * math.log(beta)) if beta else torch.ones_like(n)


class HiddenAccumulation(MicroStepOptimizer):
    """Adam, AdamW or SGD, with the accumulation in their moments; see the head of this file.

    Call `step()` after the backward pass of *every* micro-batch and `zero_grad()` after it; do not
    divide the loss by k, and let nothing else accumulate. Learning-rate schedulers may be attached
    to either optimizer, as both have the same param_groups; they count micro-batches. The
    optimizer given is not stepped any more.

    Args:
        optimizer: a fresh `torch.optim.Adam`, `AdamW` or `SGD`; its options are kept, except those
            that say how to compute (`fused`, `foreach`, `capturable`).
        accum_steps: k.
        nonfinite: what a gradient with NaN or Inf does: "skip" (as if the tensor had had no
            gradient in this micro-batch), "raise" or "ignore".
        stochastic_rounding: round half-precision parameters at random.
        seed: of that rounding.

    Raises:
        TypeError: another optimizer.
        ValueError: one that accumulates already, is trained already, or uses amsgrad or Nesterov's
            momentum, which are not linear in the gradient; accum_steps not a whole number from 1.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = HiddenAccumulation(torch.optim.Adam([w], lr=0.25, eps=0.0), accum_steps=2)
        >>> for slope in (1.0, 1.0):
        ...     (slope * w).sum().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> w.item()
        0.75
    """

    state_names = ("exp_avg", "exp_avg_sq", "momentum_buffer", "step", "open")
    shaped = ("exp_avg", "exp_avg_sq", "momentum_buffer")
    options = ("rule", "accum_steps")

    def __init__(
        self,
        optimizer: Optimizer,
        accum_steps: int,
        *,
        nonfinite: str = "skip",
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        rule = rule_of(optimizer)
        chosen = {"accum_steps": accum_steps, "position": 0, "nonfinite": nonfinite, "seed": seed}
        chosen |= {"stochastic_rounding": stochastic_rounding, "rule": rule}
        groups = [dict(group) for group in optimizer.param_groups]
        super().__init__(groups, optimizer.defaults | chosen)
        for own, theirs in zip(self.param_groups, optimizer.param_groups, strict=True):
            theirs.update(own)
        self.param_groups = optimizer.param_groups
        optimizer._opt_called = True  # type: ignore[attr-defined]  # else its schedulers warn

    def check(self, group: dict[str, Any]) -> None:
        if not (isinstance(group["accum_steps"], int) and group["accum_steps"] >= 1):
            raise ValueError(
                f"accum_steps must be a whole number from 1, got {group['accum_steps']!r}; it "
                "counts the micro-batches of one update"
            )
        for name, instead in (("amsgrad", "Adam without it"), ("nesterov", "plain momentum")):
            if group.get(name):
                raise ValueError(
                    f"{name} needs the mean gradient itself, which hidden accumulation does not "
                    f"keep; use {instead}"
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in `torch.optim.Optimizer`; the optimizer given keeps sharing the param_groups."""
        shared = self.param_groups
        super().load_state_dict(state_dict)
        shared[:] = self.param_groups
        self.param_groups = shared

    def moments(self, x: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        names = ("momentum_buffer",) if group["rule"] == "SGD" else ("exp_avg", "exp_avg_sq")
        count = torch.zeros((), dtype=torch.float32, device=x.device)
        return {name: torch.zeros_like(x) for name in names} | {"step": count}

    def fold(
        self, x: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any], first: Flag
    ) -> None:
        k, decay = group["accum_steps"], group["weight_decay"]
        if decay and group["rule"] != "AdamW":
            g = g + decay * x
        if group["rule"] == "SGD":
            momentum = float(group["momentum"])
            damped = group["dampening"] if momentum else 0.0
            share = (1 - damped * (state["step"] > 0).to(g.dtype)) / k  # torch starts undamped
            b = state["momentum_buffer"]
            fold_average_(b, g, beta=momentum, share=share, first=first)  # (4)
            return
        beta1, beta2 = group["betas"]
        m, v = state["exp_avg"], state["exp_avg_sq"]
        fold_average_(m, g, beta=beta1, share=(1 - beta1) / k, first=first)  # (1)
        fold_average_(v, g * g, beta=beta2, share=(1 - beta2) / k, first=first)  # (2)

    def move(self, x: Tensor, state: dict[str, Tensor], group: dict[str, Any], at: Flag) -> None:
        state["step"].add_(at)
        lr = group["lr"] * (at.to(x.dtype) if isinstance(at, Tensor) else at)
        if group["rule"] == "SGD":
            x.sub_(state["momentum_buffer"] * lr)  # (5)
            return
        (beta1, beta2), n = group["betas"], state["step"].to(x.dtype).clamp(min=1)
        if group["rule"] == "AdamW":
            x.mul_(1 - lr * group["weight_decay"])
        root = (state["exp_avg_sq"] / grown(beta2, n)).sqrt_().add_(group["eps"])
        x.sub_((state["exp_avg"] / root).mul_(lr / grown(beta1, n)))  # (3)


def rule_of(optimizer: Optimizer) -> str:
    """Which of the three forms an optimizer takes, or why none."""
    if isinstance(optimizer, MicroStepOptimizer):
        k = optimizer.param_groups[0]["accum_steps"]
        raise ValueError(
            f"this {type(optimizer).__name__} accumulates by itself (accum_steps={k}); set its own "
            "accum_steps instead of wrapping it, or the gradient is divided twice"
        )
    if not isinstance(optimizer, Adam | AdamW | SGD):
        raise TypeError(
            f"hidden accumulation is known for Adam, AdamW and SGD of torch.optim, not for "
            f"{type(optimizer).__name__}; for Tiger use its accum_steps"
        )
    if optimizer.state:
        raise ValueError(
            f"this {type(optimizer).__name__} has been stepped already and its state is not taken "
            "over; wrap a fresh one"
        )
    if isinstance(optimizer, SGD):
        return "SGD"
    decoupled = optimizer.defaults.get("decoupled_weight_decay", False)
    return "AdamW" if isinstance(optimizer, AdamW) or decoupled else "Adam"


def check_accumulation(optimizer: Optimizer, runner: Any) -> None:
    """Refuses to accumulate twice: in the moments and in the training loop.

    An optimizer cannot see that its gradient was accumulated and divided already; this looks at the
    setting of the loop instead.

    Args:
        optimizer: any; only one with `accum_steps` above 1 can be wrong.
        runner: a `transformers.Trainer` or `TrainingArguments`, an `accelerate.Accelerator`, a
            Lightning `Trainer`: anything with `gradient_accumulation_steps` or
            `accumulate_grad_batches`, of its own or in its `args`.

    Raises:
        ValueError: both accumulate.
        TypeError: the runner has no such setting.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace as Arguments
        >>> hidden = HiddenAccumulation(torch.optim.SGD([torch.zeros(1)], lr=0.1), 4)
        >>> check_accumulation(hidden, Arguments(gradient_accumulation_steps=1))
    """
    names = ("gradient_accumulation_steps", "accumulate_grad_batches")
    places = (runner, getattr(runner, "args", None))
    found = [(n, getattr(place, n)) for place in places for n in names if hasattr(place, n)]
    if not found:
        raise TypeError(f"a {type(runner).__name__} has neither {names[0]} nor {names[1]}")
    own = max(group.get("accum_steps", 1) for group in optimizer.param_groups)
    for name, steps in found:
        if own > 1 and steps > 1:
            raise ValueError(
                f"{name}={steps} and the optimizer's accum_steps={own} both accumulate, so the "
                f"gradient would be divided twice and {own * steps} micro-batches make one update; "
                f"set {name}=1"
            )
