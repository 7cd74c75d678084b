"""Lion: the sign of an interpolated momentum (S29).

One number of state per weight, and steps of the same length for every weight:

    u_t = β1·m_{t−1} + (1 − β1)·g_t                                                            (1)
    x_t = x_{t−1} − η·[ sign(u_t) + λ·x_{t−1} ]                                                (2)
    m_t = β2·m_{t−1} + (1 − β2)·g_t                                                            (3)

with m_0 = 0, sign(0) = 0 and no bias correction.

| symbol | here         | meaning                                                     |
|--------|--------------|-------------------------------------------------------------|
| x      | x            | a parameter tensor                                          |
| g      | g            | its gradient                                                |
| m      | exp_avg      | momentum, float32 or better, the shape of x                 |
| η      | lr           | step length                                                 |
| λ      | weight_decay | decoupled decay, multiplied by η                            |
| β1, β2 | betas        | weight of the past in the step, and in the momentum         |

η is 3 to 10 times smaller than AdamW's and λ 3 to 10 times larger, so that ηλ stays (2302.06675).
Cost: 4 bytes of state per weight; one pass that reads x, g, m and writes x, m.

Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675.
See also: `tiger`, which has β1 = β2, step lengths relative to each tensor, and accumulation inside
the momentum.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from kexue.optim.per_tensor import PerTensorOptimizer, pair
from kexue.tensor_loop import Loop

__all__ = ["Lion", "lion_"]

ONE_PASS = Loop(__file__, "lion", "xxxnffff")


def lion_(
    x: Tensor,
    g: Tensor,
    m: Tensor,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """One step, in place.

    Args:
        x: the parameter.
        g: its gradient, same shape.
        m: its momentum, same shape.
        lr: η, a number or a 0-d tensor.
        betas: (β1, β2).
        weight_decay: λ.

    Example:
        >>> import torch
        >>> x, m = torch.tensor([1.0, 1.0]), torch.zeros(2)
        >>> lion_(x, torch.tensor([3.0, -0.1]), m, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
        >>> x
        tensor([0.9000, 1.1000])
    """
    beta1, beta2 = betas
    if ONE_PASS.takes(x, g, m):
        step = float(lr)
        ONE_PASS(x, g, m, x.numel(), step, step * weight_decay, 1 - beta1, 1 - beta2)
        return
    u = m.lerp(g, 1 - beta1)  # (1)
    x.mul_(1 - lr * weight_decay).sub_(u.sign_().mul_(lr))  # (2)
    m.lerp_(g, 1 - beta2)  # (3)


class Lion(PerTensorOptimizer):
    """Lion, see the head of this file.

    Args:
        params: parameters, named parameters, or groups of either.
        lr: η; 1e-4 as in the paper's code.
        betas: (β1, β2); (0.9, 0.99) as in the paper, (0.95, 0.98) for language models.
        weight_decay: λ.
        maximize: climb instead.
        nonfinite: "skip", "raise" or "ignore" a gradient with NaN or Inf (see `per_tensor`).
        stochastic_rounding: round half-precision parameters at random.
        seed: of that rounding.

    Raises:
        ValueError: lr or weight_decay negative, a beta outside [0, 1).

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = Lion([w], lr=0.25)
        >>> w.square().sum().backward()
        >>> optimizer.step()
        >>> w.item()
        0.75
    """

    state_names = shaped = ("exp_avg",)
    options = ("betas",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        nonfinite: str = "skip",
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        chosen: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        chosen |= {"nonfinite": nonfinite, "stochastic_rounding": stochastic_rounding, "seed": seed}
        super().__init__(params, chosen)

    def check(self, group: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name} must not be negative, got {group[name]}")
        for beta in pair(group, "betas"):
            if not 0 <= beta < 1:
                raise ValueError(f"betas must lie in [0, 1), got {tuple(group['betas'])}")

    def new_state(self, x: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(x)}

    def update(self, x: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        chosen = {"lr": group["lr"], "betas": group["betas"], "weight_decay": group["weight_decay"]}
        lion_(x, g, state["exp_avg"], **chosen)
