r"""Tiger — 一个“抠”到极致的优化器 (S29)

Sign momentum with one number of state per weight, which also accumulates the gradient, and with
steps relative to each tensor's own scale.

With micro-batches t = 1, 2, … in groups of k (`micro_steps`), χ = 1 where its condition holds:

    m_t = m_{t−1} + (1 − β)·[ g_t/k − χ(k | t−1)·m_{t−1} ]                                     (1)
    x_t = x_{t−1} − χ(k | t)·η_t·[ sign(m_t) + λ·x_{t−1} ]                                     (2)
    η_t = α/2             biases, gains and shifts, with λ = 0
          α·RMS(x_{t−1})  embedding tables by row, all other tensors as a whole               (3)
    RMS(x) = max(√mean x², r)                                                                  (4)
    a gradient with NaN or Inf:   m_t = m_{t−1},   x_t = c + s·(x_{t−1} − c)                   (5)

with m_0 = 0, sign(0) = 0 and no bias correction. With k = 1, (1) and (2) are Lion with equal betas.

| symbol | here          | meaning                                                             |
|--------|---------------|---------------------------------------------------------------------|
| x, g   | x, g          | a parameter tensor and its gradient                                 |
| m      | exp_avg       | momentum and accumulator, the shape of x                            |
| α      | lr            | relative step length                                                |
| β      | beta          | 0.965, the mean of Lion's two values for language; 0.945 for vision |
| λ      | weight_decay  | decay, inside the bracket: per step it is α·RMS·λ                   |
| k      | accum_steps   | micro-batches per update; `step` is called after each               |
| r      | min_rms       | floor of the RMS: with 0 a matrix of zeros never moves              |
| s, c   | shrink        | factor and centre: 1 for gains, else 0                              |
| open   | open          | which tensors or rows took a gradient in this group                 |

What differs from the author's code (`AUTHOR_EXACT` has its behaviour). *Lazy rows*: an embedding
row without a gradient in a whole group keeps its value and its m. There sign(m) never changes
without a gradient, so a rare token drifts at full step to −sign(m)/λ (article 9736). *Floor*: r is
1e-3, not 0. *Deferred decay*: (1) forgets at the first finite gradient of a group; in the author's
code a NaN in the first micro-batch costs the group its decay. Inf counts like NaN, because an Inf
in m stays for ever. `kinds` come from module types, not from names.

Cost: 4 bytes of state per weight. A pass for the RMS, then one that reads x, g, m and writes x, m.

Source: articles 9512, 8634, 9736 and github.com/bojone/tiger; Lion arXiv 2302.06675; signSGD
1802.04434. See also: `lion`, `hidden_accumulation` (the same for Adam and SGD), `runaway`.
"""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from kexue.optim.kinds import KINDS, tiger_param_groups
from kexue.optim.micro_steps import Flag, MicroStepOptimizer
from kexue.optim.per_tensor import HALVES
from kexue.optim.processes import average_, processes
from kexue.optim.tiger_options import check_options, refuse_small_tensors
from kexue.tensor_loop import Loop

__all__ = ["AUTHOR_EXACT", "VISION", "Tiger", "fold_", "move_", "rms", "step_length"]

AUTHOR_EXACT: Mapping[str, Any] = MappingProxyType(
    {"min_rms": 0.0, "lazy_embeddings": False, "nan_decay": "author"}
)
"""`Tiger(model, **AUTHOR_EXACT)` does what the author's code does; Inf is still treated as NaN."""
VISION: Mapping[str, Any] = MappingProxyType({"beta": 0.945})
"""The author's beta for images."""

STEADY = ("bias", "gain", "shift")
ONE_PASS = Loop(__file__, "tiger", "xxxnfff")
FOLD = Loop(__file__, "tiger_fold", "xxnfff")
MOVE = Loop(__file__, "tiger_move", "xxnff")
ROWS = Loop(__file__, "tiger_rows", "xxxnnnfdddd")
FOLD_ROWS = Loop(__file__, "tiger_fold_rows", "xxxnnnff")
MOVE_ROWS = Loop(__file__, "tiger_move_rows", "xxxnndddd")
SUM_OF_SQUARES = Loop(__file__, "sum_of_squares", "xn", returns="double")


def fold_(m: Tensor, g: Tensor, *, beta: float, accum_steps: int = 1, first: Flag = True) -> None:
    """(1), in place.

    Args:
        m: momentum.
        g: gradient of a micro-batch, same shape.
        beta: β.
        accum_steps: k.
        first: whether the momentum forgets, for this is the group's first gradient; or a tensor
            that says it row by row.

    Example:
        >>> import torch
        >>> m = torch.tensor([1.0])
        >>> fold_(m, torch.tensor([3.0]), beta=0.5, accum_steps=2)
        >>> fold_(m, torch.tensor([5.0]), beta=0.5, accum_steps=2, first=False)
        >>> m.item()  # 0.5 · 1 + 0.5 · (3 + 5)/2
        2.5
    """
    fade, share = 1 - beta, 1 / accum_steps
    if isinstance(first, Tensor):
        m.add_(g * share - m * first, alpha=fade)
    elif FOLD.takes(g, m):
        FOLD(g, m, m.numel(), fade, share, first)
    elif first:
        m.lerp_(g if accum_steps == 1 else g * share, fade)  # (1)
    else:
        m.add_(g, alpha=fade * share)


def move_(
    x: Tensor, m: Tensor, *, step: float | Tensor, weight_decay: float, at: Flag = True
) -> None:
    """(2), in place, where `at`.

    Args:
        x: the parameter.
        m: its momentum.
        step: η, a number, or a tensor that broadcasts over x.
        weight_decay: λ.
        at: where to move: everywhere, or a tensor that says it row by row.
    """
    if isinstance(at, Tensor):
        step = step * at.to(x.dtype)
    if isinstance(step, Tensor):
        x.mul_(1 - step * weight_decay).sub_(m.sign().to(x.dtype).mul_(step))  # (2)
    elif MOVE.takes(x, m):
        MOVE(x, m, x.numel(), step, step * weight_decay)
    else:
        x.mul_(1 - step * weight_decay).add_(m.sign(), alpha=-step)


def rms(x: Tensor, *, rows: bool = False, floor: float = 0.0) -> float | Tensor:
    """(4): of a tensor, or of each row with its axis kept.

    Of a whole tensor on a CPU it is a number, elsewhere a tensor that nothing waits for.

    Example:
        >>> import torch
        >>> rms(torch.tensor([[3.0, -3.0], [1.0, 1.0]]), rows=True)
        tensor([[3.],
                [1.]])
    """
    if rows and x.ndim:
        return (row_sums(x.square()) / (x.shape[-1] or 1)).sqrt().clamp(min=floor)
    if SUM_OF_SQUARES.takes(x):
        return max(math.sqrt(SUM_OF_SQUARES(x, x.numel()) / (x.numel() or 1)), floor)
    whole: Tensor = (torch.linalg.vector_norm(x) / math.sqrt(x.numel() or 1)).clamp(min=floor)
    return float(whole) if x.device.type == "cpu" and not torch.compiler.is_compiling() else whole


def row_sums(x: Tensor) -> Tensor:
    """The sum of each row, its axis kept.

    As a product where torch compiles for a CPU: Inductor (torch 2.13) ends in a KeyError where the
    sum of a row and loops over its entries meet in one kernel.
    """
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        return x @ x.new_ones(x.shape[-1], 1)
    return x.sum(-1, keepdim=True)


def step_length(
    x: Tensor,
    *,
    kind: str,
    lr: float | Tensor,
    min_rms: float = 0.0,
    scale: float | None = None,
) -> float | Tensor:
    """(3): η.

    Args:
        x: the parameter.
        kind: one of `kinds.KINDS`.
        lr: α.
        min_rms: r.
        scale: takes the place of the RMS, such as 1/√hidden size.
    """
    if kind in STEADY:
        return lr / 2
    if scale is not None:
        return lr * scale
    return lr * rms(x, rows=kind == "embedding", floor=min_rms)  # (3)


class Tiger(MicroStepOptimizer):
    """Tiger, see the head of this file.

    With `accum_steps` = k, call `step()` after the backward pass of *every* micro-batch and
    `zero_grad()` after it; do not divide the loss by k, and let nothing else accumulate
    (`gradient_accumulation_steps` of a Trainer stays 1). Schedules count micro-batches.

    Args:
        params: a module, whose parameters are then grouped by `tiger_param_groups`; or groups with
            a "kind". Bare tensors, and groups that name no kind, are matrices.
        lr: α; 1e-3 as in the author's code. For short runs about 5 divided by the number of steps.
        beta: β.
        weight_decay: λ, for matrices and embeddings; 0 for the other kinds unless their group sets
            its own.
        accum_steps: k.
        lazy_embeddings: leave alone the rows that had no gradient in the whole group.
        shrink: s.
        nonfinite: what a gradient with NaN or Inf does: "shrink" (5), "skip" (as if the tensor had
            had no gradient in this micro-batch), "raise", or "ignore" (not looked at).
        nan_decay: "deferred" or "author", see above; they differ for k > 1 only.
        min_rms: r.
        scale: a constant in place of the RMS, such as 1/√hidden size.
        momentum_dtype: torch.float32 or torch.bfloat16; None is float32, or the parameter's if
            that is wider. In bfloat16 increments below 2^-9 of m are lost unless rounded at random.
        average_momentum: average m over the processes once per update instead of every gradient:
            keep the model out of DDP, or under `no_sync()`. Needs another `nonfinite`.
        maximize: climb instead.
        stochastic_rounding: round half-precision parameters and momenta at random.
        seed: of that rounding.

    Raises:
        ValueError: an option out of range; a group without a kind in which a name looks like a
            bias's or a norm's.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = Tiger(model, lr=0.01, accum_steps=2)
        >>> before = model.bias.item()
        >>> for batch in (torch.randn(8, 4), torch.randn(8, 4)):
        ...     model(batch).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> round(abs(model.bias.item() - before), 6)
        0.005
    """

    state_names = ("exp_avg", "open")
    shaped = ("exp_avg",)
    options = ("beta", "accum_steps", "shrink", "nan_decay")
    policies = ("shrink", "skip", "raise", "ignore")

    def __init__(
        self,
        params: Iterable[Any] | nn.Module,
        lr: float | Tensor = 1e-3,
        beta: float = 0.965,
        weight_decay: float = 0.01,
        accum_steps: int = 1,
        lazy_embeddings: bool = True,
        shrink: float = 0.99,
        nonfinite: str = "shrink",
        nan_decay: str = "deferred",
        min_rms: float = 1e-3,
        *,
        scale: float | None = None,
        momentum_dtype: torch.dtype | None = None,
        average_momentum: bool = False,
        maximize: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        chosen: dict[str, Any] = {"lr": lr, "beta": beta, "weight_decay": weight_decay}
        chosen |= {"lazy_embeddings": lazy_embeddings, "shrink": shrink, "nonfinite": nonfinite}
        chosen |= {"nan_decay": nan_decay, "min_rms": min_rms, "scale": scale, "seed": seed}
        chosen |= {"momentum_dtype": momentum_dtype, "average_momentum": average_momentum}
        chosen |= {"maximize": maximize, "stochastic_rounding": stochastic_rounding}
        chosen |= {"accum_steps": accum_steps, "kind": None, "position": 0}
        groups = tiger_param_groups(params) if isinstance(params, nn.Module) else params
        super().__init__(groups, chosen)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; biases, gains and shifts do not decay unless the group says so."""
        if param_group.get("kind") in STEADY:
            param_group.setdefault("weight_decay", 0.0)
        super().add_param_group(param_group)

    def check(self, group: dict[str, Any]) -> None:
        if group["kind"] is None:
            refuse_small_tensors(group)
            group["kind"] = "matrix"
        check_options(group, KINDS)

    # what it keeps

    def moments(self, x: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(x, dtype=group["momentum_dtype"] or x.dtype)}

    def flags(self, x: Tensor, group: dict[str, Any]) -> Tensor:
        if group["kind"] == "embedding" and x.ndim:
            return x.new_zeros((*x.shape[:-1], 1), dtype=torch.bool)
        return super().flags(x, group)

    def touched(self, g: Tensor, group: dict[str, Any]) -> Flag:
        if group["kind"] != "embedding" or not group["lazy_embeddings"]:
            return True
        return row_sums((g != 0).to(g.dtype)) > 0 if g.ndim else g != 0

    # (1) and (2)

    def fold(
        self, x: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any], first: Flag
    ) -> None:
        kept = state["exp_avg"]
        m = kept.float() if kept.dtype in HALVES else kept
        fold_(m, g.to(m.dtype), beta=group["beta"], accum_steps=group["accum_steps"], first=first)
        if kept.dtype in HALVES:
            self.write_half(kept, m, group)

    def move(self, x: Tensor, state: dict[str, Tensor], group: dict[str, Any], at: Flag) -> None:
        m, decay = state["exp_avg"], group["weight_decay"]
        if group["kind"] == "embedding" and MOVE_ROWS.takes(x, m):
            here = at.contiguous() if isinstance(at, Tensor) else torch.ones_like(state["open"])
            wide, lr = x.numel() // (here.numel() or 1), float(group["lr"])
            MOVE_ROWS(x, m, here, here.numel(), wide, lr, decay, *self.floor(group))
            return
        chosen = {name: group[name] for name in ("kind", "lr", "min_rms", "scale")}
        move_(x, m, step=step_length(x, **chosen), weight_decay=decay, at=at)

    def update(self, x: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not ONE_PASS.takes(x, g, state["exp_avg"]):
            super().update(x, g, state, group)
        elif group["kind"] == "embedding":
            self.update_rows(x, g, state, group)
        elif group["accum_steps"] > 1 or group["average_momentum"]:
            super().update(x, g, state, group)
        else:
            chosen = {name: group[name] for name in ("kind", "min_rms", "scale")}
            step = step_length(x, lr=float(group["lr"]), **chosen)
            fade, decay = 1 - group["beta"], group["weight_decay"]
            ONE_PASS(x, g, state["exp_avg"], x.numel(), fade, step, step * decay)

    def update_rows(
        self, x: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        """The same for an embedding table, compiled."""
        m, k, fade = state["exp_avg"], group["accum_steps"], 1 - group["beta"]
        rows, lazy = state["open"].numel(), group["lazy_embeddings"]
        wide = x.numel() // (rows or 1)
        if k > 1 or group["average_momentum"]:
            FOLD_ROWS(g, m, state["open"], rows, wide, lazy, fade, 1 / k)
        else:
            lr, decay = float(group["lr"]), group["weight_decay"]
            ROWS(x, g, m, rows, wide, lazy, fade, lr, decay, *self.floor(group))

    @staticmethod
    def floor(group: dict[str, Any]) -> tuple[float, float]:
        """(4) for the compiled loops: the floor, and the constant in place of the RMS or 0."""
        return group["min_rms"], group["scale"] or 0.0

    # (5)

    def refused(self, x: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if group["nonfinite"] != "shrink":
            return
        centre = 1.0 if group["kind"] == "gain" else 0.0
        x.sub_(centre).mul_(group["shrink"]).add_(centre)  # (5)
        if group["accum_steps"] == 1:
            return
        if self.last(group):
            state["open"].zero_()  # the group's update is lost
        elif group["nan_decay"] == "author":
            state["open"].fill_(True)  # its decay by β is lost

    # several processes

    def averages(self, group: dict[str, Any]) -> bool:
        return bool(group["average_momentum"])

    def needs_averaged_gradients(self) -> bool:
        """Not if the momenta are averaged instead."""
        own = all(group["average_momentum"] for group in self.param_groups)
        return processes() > 1 and not own

    def average(self, group: dict[str, Any]) -> None:
        """The mean of m over the processes; each row forgets on all of them if it does on one."""
        trained = [p for p in group["params"] if p.requires_grad]
        for parameter in trained:
            if not self.state[parameter]:
                x = parameter.float() if parameter.dtype in HALVES else parameter
                self.state[parameter].update(self.new_state(x, group))
        states = [self.state[parameter] for parameter in trained]
        if not states:
            return
        opened = torch.cat([state["open"].flatten() for state in states]).to(torch.int32)
        torch.distributed.all_reduce(opened, torch.distributed.ReduceOp.MAX)
        places = opened.bool().split([state["open"].numel() for state in states])
        for state, anywhere in zip(states, places, strict=True):
            m, anywhere = state["exp_avg"], anywhere.view_as(state["open"])
            late = (anywhere & ~state["open"]).to(torch.promote_types(m.dtype, torch.float32))
            m.mul_(1 - late * (1 - group["beta"]))
            state["open"].copy_(anywhere)
        average_([state["exp_avg"] for state in states])
