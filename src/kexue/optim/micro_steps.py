"""Gradient accumulation hidden in the moments: k calls of `step` are one update.

A moment that is linear in the gradient can take k micro-gradients one by one instead of their mean:

    m_t = m_{t−1} + (1 − β)·[ g_t/k − χ(k | t−1)·m_{t−1} ]                                     (1)
    x_t = x_{t−1} − χ(k | t)·(update from m_t)                                                 (2)

with t = 1, 2, … and χ = 1 where the condition holds, else 0. After each group of k micro-batches m
is what one step on the mean of their gradients gives, so no accumulator is needed beside it.

This file says when (1) and (2) happen; a subclass says what they are (`fold`, `move`). Each tensor
(each row of an embedding table) has a flag, `open`: whether it took a gradient in this group.

- χ(k | t−1) of (1) is read as "the first gradient that this tensor takes in the group". A tensor
  whose first micro-batches had no gradient, or none that was finite, decays m exactly once all the
  same, and one without any gradient in the whole group keeps m and x.
- With k > 1 the parameters move when the group closes, so a tensor gets its update also when its
  last gradient came earlier in the group. Until then they do not change in a single bit.

The place in the group is kept in the param_groups (`position`) and saved with them.
"""

from typing import Any

import torch
from torch import Tensor

from kexue.optim.per_tensor import HALVES, PerTensorOptimizer
from kexue.optim.processes import processes

__all__ = ["Flag", "MicroStepOptimizer"]

Flag = bool | Tensor
"""Yes or no: known to Python, or in a tensor that is 0-d or has one entry per row."""


def known(flag: Flag) -> Flag:
    """The flag as a bool where reading it is free: a 0-d tensor on a CPU, not being compiled."""
    if isinstance(flag, Tensor) and flag.ndim == 0 and flag.device.type == "cpu":
        return flag if torch.compiler.is_compiling() else bool(flag)
    return flag


def shut(flag: Flag) -> bool:
    """Whether the flag is known to be False, everywhere."""
    if isinstance(flag, Tensor):
        free = flag.device.type == "cpu" and not torch.compiler.is_compiling()
        return free and not bool(flag.any())
    return not flag


class MicroStepOptimizer(PerTensorOptimizer):
    """An optimizer whose moments hold the accumulated gradient.

    A subclass gives `moments`, `fold` and `move`; the group has `accum_steps` and `position`.
    """

    def fold(
        self, x: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any], first: Flag
    ) -> None:
        """(1), in place: the share 1/k of `g` goes into the moments, which decay where `first`."""
        raise NotImplementedError

    def move(self, x: Tensor, state: dict[str, Tensor], group: dict[str, Any], at: Flag) -> None:
        """(2), in place, where `at`."""
        raise NotImplementedError

    def moments(self, x: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The moments before the first update."""
        raise NotImplementedError

    def touched(self, g: Tensor, group: dict[str, Any]) -> Flag:
        """Where `g` says anything: everywhere, unless a subclass knows rows."""
        return True

    def flags(self, x: Tensor, group: dict[str, Any]) -> Tensor:
        """Where a gradient was taken in the present group: nowhere yet."""
        return x.new_zeros((), dtype=torch.bool)

    def averages(self, group: dict[str, Any]) -> bool:
        """Whether the group's moments are averaged over the processes before they are used."""
        return False

    # when

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; in the middle of a group of micro-batches it joins in there."""
        if self.param_groups:
            param_group.setdefault("position", self.param_groups[0]["position"])
        super().add_param_group(param_group)

    def last(self, group: dict[str, Any]) -> bool:
        """Whether the present micro-batch closes the group."""
        return bool(group["position"] + 1 >= group["accum_steps"])

    def new_state(self, x: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return self.moments(x, group) | {"open": self.flags(x, group)}

    def update(self, x: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        here = self.touched(g, group)
        if group["accum_steps"] == 1 and not self.averages(group):
            self.fold(x, g, state, group, here)
            self.move(x, state, group, here)
            return
        opened = known(state["open"])
        first = not opened if isinstance(opened, bool) and here is True else here & ~state["open"]
        self.fold(x, g, state, group, first)
        if isinstance(here, Tensor):
            state["open"].logical_or_(here)
        else:
            state["open"].fill_(True)

    def close(self, group: dict[str, Any]) -> None:
        if group["accum_steps"] == 1 and not self.averages(group):
            return
        if not self.last(group):
            group["position"] += 1
            return
        group["position"] = 0
        if self.averages(group) and processes() > 1:
            self.average(group)
        for parameter in group["params"]:
            state = self.state.get(parameter, {})
            if not state or shut(state["open"]):
                continue
            half = parameter.dtype in HALVES
            x = parameter.float() if half else parameter
            self.move(x, state, group, known(state["open"]))
            if half:
                self.write_half(parameter, x, group)
            self.tell_autograd(parameter)
            state["open"].zero_()

    def average(self, group: dict[str, Any]) -> None:
        """The moments' mean over the processes, as if each had seen the mean of the gradients."""
        raise NotImplementedError
