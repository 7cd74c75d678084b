r"""The penalty that the step size of SGD brings along (S15)

    SGD of rate lr descends about L + (lr/4) ||∇_theta L||²                                     (1)

by backward error analysis of the discrete step. Together with `analysis.inequality` this is the
article's chain of argument: larger steps, flatter minima, smoother functions.

Source: arXiv 2009.11162; article 8796.
"""

from typing import Any

import torch
from torch import Tensor

from kexue.losses.shift import frobenius_norm

__all__ = ["ImplicitRegularisation"]


class ImplicitRegularisation:
    """(lr/4) ||∇_theta L||² at every step of SGD: what its step size penalises, (1).

        watch = ImplicitRegularisation(optimizer)
        ...                      # train as always
        watch.report()           # {"steps": 300, "first": …, "last": …, "mean": …}

    (1) is about plain SGD: with momentum m replace lr by lr / (1 − m); for Adam and others the
    numbers are only the gradient's. Gradients count as the optimizer sees them: after clipping,
    after a GradScaler's `unscale_`, averaged under DDP. Nothing is read back before `report`.

    Args:
        optimizer: any torch optimizer; read by a hook before each step.
        every: record each so many steps.

    Raises:
        ValueError: every < 1.

    Example:
        >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> optimizer = torch.optim.SGD([w], lr=0.4)
        >>> watch = ImplicitRegularisation(optimizer)
        >>> (w.square().sum() / 2).backward()
        >>> optimizer.step()
        >>> watch.report()["last"]  # 0.1 · 25
        2.5
    """

    def __init__(self, optimizer: torch.optim.Optimizer, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every, self.steps = every, 0
        self._values: list[Tensor] = []
        self._hook = optimizer.register_step_pre_hook(self._record)

    @property
    def values(self) -> list[float]:
        """The recorded penalties in order."""
        return torch.stack(self._values).tolist() if self._values else []

    def report(self) -> dict[str, int | float]:
        """Steps seen, and first, last, largest and mean penalty recorded.

        Raises:
            ValueError: nothing was recorded yet.
        """
        values = self.values
        if not values:
            raise ValueError("no step was recorded yet: train first, then report")
        ends = {"first": values[0], "last": values[-1], "largest": max(values)}
        return {"steps": self.steps, **ends, "mean": sum(values) / len(values)}

    def remove(self) -> None:
        """Stop recording."""
        self._hook.remove()

    @torch.no_grad()
    def _record(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.steps += 1
        if (self.steps - 1) % self.every:
            return
        total = None
        for group in optimizer.param_groups:
            norms = [frobenius_norm(_dense(p.grad)) for p in group["params"] if p.grad is not None]
            if norms:
                device = norms[0].device
                square = torch.stack([n.to(device) for n in norms]).square().sum()
                part = torch.as_tensor(group["lr"], device=device) / 4 * square  # (1)
                total = part if total is None else total + part.to(total.device)
        if total is not None:
            self._values.append(total)


def _dense(grad: Tensor) -> Tensor:
    return grad.to_dense() if grad.is_sparse else grad
