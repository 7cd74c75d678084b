r"""我们真的需要把训练集的损失降低到零吗？ (S35): unequal steps down and up

Backstitch: a step up and a longer step down on the same batch, which adds a gradient penalty.

Steps down by ε₁ and up by ε₂, with g = ∇L and H = ∇²L, lead in either order to

    θ'' ≈ θ − (ε₁ − ε₂) g − (ε₁ε₂/2) ∇|g|²                                                     (1)

for ε₁ > ε₂ one step of rate ε₁ − ε₂ on the loss L + λ|g|²,  λ = ε₁ε₂ / (2 (ε₁ − ε₂))          (2)

exactly if L is quadratic, else up to O(ε³). Backstitch writes ε₁ = (1 + α)ν and ε₂ = αν: the rate
is ν and

    λ = α(1 + α)ν/2                                                                            (3)

Symbols: learning rate ν of the optimizer, alpha α, penalty λ.
Cost: two forward and backward passes per step, no second derivatives, no memory.
Sources: article 7643, section on 1 step down and 1 up; Povey et al., Interspeech 2017 (Backstitch).
Unlike both: the penalty it stands for is told, and only where (1) holds, that is for plain SGD.
See also: `kexue.losses.flooding`; `kexue.losses.gradient_penalty`, the penalty itself, which the
article found better.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue.optim.wrapped import unwrapped

__all__ = ["Backstitch"]


class Backstitch:
    """Two steps of an optimizer on one batch: up by α times its rate, down by 1 + α times.

    Learning-rate schedules, hooks and state_dicts belong to the optimizer inside; schedules are
    stepped once per call of `step` here. With momentum or Adam both steps go through the same
    moments, and (1) does not hold.

    Args:
        optimizer: any `torch.optim.Optimizer`, or what Accelerate or Lightning wrap around one.
        alpha: α ≥ 0; the paper uses 0.3. 0 is the optimizer itself, with one pass more.
        descend_first: the longer step down before the step up.

    Raises:
        ValueError: a negative alpha.
        TypeError: the optimizer is none.

    Example:
        >>> x = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        >>> backstitch = Backstitch(torch.optim.SGD([x], lr=0.1), alpha=0.3)
        >>> def closure():
        ...     backstitch.zero_grad()
        ...     loss = x.square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> backstitch.step(closure).item(), round(x.item(), 6)  # (1 + 0.03) (1 − 0.13)
        (0.5, 0.8961)
        >>> [round(value, 6) for value in backstitch.equivalent_penalty()]
        [0.0195]
    """

    def __init__(self, optimizer: Any, alpha: float = 0.3, *, descend_first: bool = False) -> None:
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha must be a number of at least 0, got {alpha}")
        self.optimizer: Optimizer = unwrapped(optimizer)
        self.alpha, self.descend_first = alpha, descend_first

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimizer."""
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the optimizer's."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """As the optimizer's: nothing is kept between calls of `step`."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As the optimizer's."""
        self.optimizer.load_state_dict(state)

    def step(self, closure: Callable[[], Tensor | float]) -> Tensor | float:
        """Both steps: (1).

        Args:
            closure: clears the gradients, computes the loss of one and the same batch, calls
                `backward` and returns the loss. It runs twice; random layers (dropout) should draw
                the same numbers both times.

        Returns:
            The loss before the first step.

        Raises:
            TypeError: no closure.
        """
        if not callable(closure):
            raise TypeError(
                "step needs a closure that computes the loss and its gradients, since it takes two "
                f"steps on the same batch; got {closure!r}"
            )
        factors = (-self.alpha, 1 + self.alpha)
        first, second = reversed(factors) if self.descend_first else factors
        loss = self._scaled_step(closure, first)
        self._scaled_step(closure, second)
        return loss

    def equivalent_penalty(self) -> list[float]:
        """λ of (3), one per parameter group: a step is one of rate ν on L + λ|∇L|².

        Raises:
            ValueError: the optimizer is not plain SGD, for which alone the formula holds.
        """
        for group in self.optimizer.param_groups:
            if not isinstance(self.optimizer, torch.optim.SGD) or group["momentum"] != 0:
                name = type(self.optimizer).__name__
                raise ValueError(
                    f"the equivalent penalty holds for torch.optim.SGD without momentum, not for "
                    f"{name}: its two steps share moments; use gradient_penalty for a penalty of "
                    "known size"
                )
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        return [self.alpha * (1 + self.alpha) * rate / 2 for rate in rates]  # (3)

    def _scaled_step(self, closure: Callable[[], Tensor | float], factor: float) -> Tensor | float:
        """A step of the optimizer at `factor` times its rates, on fresh gradients."""
        with torch.enable_grad():
            loss = closure()
        rates = [group["lr"] for group in self.optimizer.param_groups]
        try:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            self.optimizer.step()
        finally:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        return loss
