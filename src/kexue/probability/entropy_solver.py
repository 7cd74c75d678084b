r"""Which power of a distribution has a given entropy: the solver behind (S08).

For rows x = l − max l and g > 0, with w = e^(g x) and Z = sum w:

    H = ln Z − g E,   E = sum(w x) / Z,   V = g^2 (sum(w x^2) / Z − E^2),   dH/d ln g = −V     (1)

The place of H between its limits, on a logistic scale,

    y = ln((ln n_+ − H) / (H − ln m)),   dy/dt = V / (ln n_+ − H) + V / (H − ln m),  t = ln g  (2)

is nearly straight in t: for small g, ln n_+ − H is proportional to g^2. Newton's method for y(t),
each step at most 2, halving the bracket where a step would leave it or V is lost in rounding. The
start is g = 1, moved into [g0, e^3 g0], where g0 would be the answer for normally distributed
logits of the same variance:

    g0 = sqrt(2 (ln n_+ − H*) / Var x)                                                         (3)

so that logits of any scale need the same few rounds. Newton's method for H(t) needs up to 22.

The loop stops by its numbers, which a compiled graph cannot do; hence an operator of its own,
`kexue::entropy_gamma`, with its gradient and its rule for `vmap`. Its complaints are raised in
compiled graphs too.

Axes: R rows, n entries. Cost: rows of a CPU are solved in parts that fit in the processor's cache;
on accelerators one number is read per round.
"""

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["PART", "PowerOfEntropy", "entropy_and_variance", "entropy_gamma"]

PART = 1 << 18
"""Entries that are solved together on a CPU: 1 MB in float32."""
STEP, REACH = 2.0, 3.0
"""The largest step of t, and how far above ln g0 the start may lie."""


def entropy_and_variance(x: Tensor, visible: Tensor | None, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """H and V of softmax(gamma · x), row by row: (1)."""
    w = torch.exp(x * gamma.unsqueeze(-1))  # (R, n)
    if visible is not None:
        w = w * visible
    total, wx = w.sum(-1), w * x
    mean = wx.sum(-1) / total
    variance = gamma.square() * (torch.linalg.vecdot(wx, x) / total - mean.square()).clamp(min=0)
    return total.log() - gamma * mean, variance  # (1)


@torch.library.custom_op(
    "kexue::entropy_gamma",
    mutates_args=(),
    schema="(Tensor x, Tensor visible, Tensor target, float tol, int max_iter, bool clamp, "
    "str source) -> Tensor",
)
def entropy_gamma(
    x: Tensor,
    visible: Tensor,
    target: Tensor,
    tol: float,
    max_iter: int,
    clamp: bool,
    source: str,
) -> Tensor:
    """The power g of each row with H(g) = target.

    Args:
        x: logits minus their maximum, (R, n); anything finite where not visible.
        visible: True where an entry belongs to the support, (R, n).
        target: H* in nats, (R,).
        tol: difference of the entropy at which a row is done.
        max_iter: most rounds.
        clamp: out of reach means 0 or inf instead of an error.
        source: what the caller gave, "p" or "logits", for messages.

    Returns:
        (R,): positive numbers; 1 for uniform rows that have their target, and for empty ones.

    Raises:
        ValueError: NaN, negative entries, +inf, empty rows, targets out of reach.
    """
    size = max(1, PART // x.shape[1]) if x.device.type == "cpu" else max(1, len(x))
    gamma = torch.empty_like(target, memory_format=torch.contiguous_format)
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        part, seen, wanted = x[rows], visible[rows], target[rows]
        support = seen.sum(-1)
        top = ((part == 0) & seen).sum(-1)
        high, low = support.to(x.dtype).log(), top.to(x.dtype).log()  # ln n_+, ln m
        flat = (support == top) & ((wanted - high).abs() <= max(tol, 1e-6))
        empty = support == 0
        inside = (low < wanted) & (wanted < high)
        broken = ~(part.amax(-1).isfinite() & wanted.isfinite())
        refused = broken if clamp else broken | empty | ~(inside | flat)
        if bool(refused.any()):
            _complain(x, visible, target, clamp, source)
        whole = None if bool((support == x.shape[1]).all()) else seen
        found = _solve(part, whole, wanted, low, high, inside, tol, max_iter)
        limit = torch.where(wanted >= high, 0.0, torch.inf).to(x.dtype)
        gamma[rows] = torch.where(inside, found, torch.where(flat | empty, 1, limit))
    return gamma


def _solve(
    x: Tensor,
    visible: Tensor | None,
    target: Tensor,
    low: Tensor,
    high: Tensor,
    inside: Tensor,
    tol: float,
    max_iter: int,
) -> Tensor:
    """Newton's method for (2) within a bracket; rows that are not `inside` are left alone."""
    eps = torch.finfo(x.dtype).eps
    spread = _variance(x, visible)
    start = 0.5 * (2 * (high - target) / spread).log()  # (3)
    start = torch.where(start.isfinite(), start, 0)
    t = torch.zeros_like(target).clamp(start, start + REACH)
    left, right = t - 60, t + 60
    goal = ((high - target) / (target - low)).log()  # y(H*)
    done = ~inside
    for _ in range(max_iter):
        entropy, variance = entropy_and_variance(x, visible, t.exp())  # (1)
        above = entropy > target
        left, right = torch.where(above, t, left), torch.where(above, right, t)
        y = ((high - entropy) / (entropy - low)).log()
        slope = variance / (high - entropy) + variance / (entropy - low)  # (2)
        step = (goal - y) / slope
        blind = torch.where(above, STEP, -STEP)  # y or its slope is lost in rounding
        step = torch.where(step.isnan(), blind, step).clamp(-STEP, STEP)
        moved = t + step
        moved = torch.where((moved > left) & (moved < right), moved, (left + right) / 2)
        done = done | ((entropy - target).abs() <= tol) | ((moved - t).abs() <= 2 * eps)
        t = torch.where(done, t, moved)
        if bool(done.all()):
            break
    return t.exp()


def _variance(x: Tensor, visible: Tensor | None) -> Tensor:
    """Var x over the support, roughly; x is 0 outside it."""
    count = x.shape[-1] if visible is None else visible.sum(-1)
    rough: Tensor = torch.linalg.vecdot(x, x) / count - (x.sum(-1) / count).square()
    return rough


def _complain(x: Tensor, visible: Tensor, target: Tensor, clamp: bool, source: str) -> None:
    """Say what is wrong with the first row that is."""
    wrong = (x.isnan() | x.isposinf()) & visible
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        need = "is negative, NaN or infinite" if source == "p" else "is NaN or +inf"
        hint = "" if source == "p" else "; −inf is the logit of a zero"
        raise ValueError(f"{source} {need} in row {row}, column {column}{hint}")
    if bool((bad := ~target.isfinite()).any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"the target entropy of row {row} is {float(target[row])} nats")
    support, top = visible.sum(-1), ((x == 0) & visible).sum(-1)
    if bool((empty := support == 0).any()):
        row = int(empty.nonzero()[0])
        why = "sums to 0" if source == "p" else "has no finite logit"
        raise ValueError(f"row {row} of {source} {why}; a distribution needs a visible entry > 0")
    high, low = support.to(x.dtype).log(), top.to(x.dtype).log()
    out = ~((low < target) & (target < high))
    row = int(out.nonzero()[0])
    nats, m, n = float(target[row]), int(top[row]), int(support[row])
    raise ValueError(
        f"row {row}: entropy {nats:.6g} nats ({nats / math.log(2):.6g} bits, perplexity "
        f"{math.exp(min(nats, 700)):.6g}) is out of reach: powers of this row lie strictly between "
        f"ln {m} = {math.log(m):.6g} ({m} maximal) and ln {n} = {math.log(n):.6g} nats ({n} not 0),"
        f' in {int(out.sum())} of {len(out)} rows; change the target or set on_unreachable="clamp"'
    )


class PowerOfEntropy(torch.autograd.Function):
    """`entropy_gamma` with the gradient of the implicit function theorem.

    dg = −(g / Var x) sum q (x − E) dx − dH* / (g Var x), in operations that differentiate further.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        visible: Tensor,
        target: Tensor,
        tol: float,
        max_iter: int,
        clamp: bool,
        source: str,
    ) -> Tensor:
        gamma: Tensor = entropy_gamma(x, visible, target, tol, max_iter, clamp, source)
        return gamma

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, visible, *_ = inputs
        ctx.save_for_backward(x, visible, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, visible, gamma) = grads, ctx.saved_tensors
        solved = (gamma > 0) & (gamma < torch.inf) & (x.detach() < 0).any(-1)
        power = torch.where(solved, gamma, 1).unsqueeze(-1)
        w = torch.exp(power * x) * visible
        q = w / w.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        centred = x - (q * x).sum(-1, keepdim=True)
        variance = (q * centred.square()).sum(-1)
        rate = torch.where(solved, grad / torch.where(solved, variance, 1), 0)
        to_x = -rate.unsqueeze(-1) * power * q * centred
        return to_x, None, -rate / power.squeeze(-1), None, None, None, None


def _vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    x: Tensor,
    visible: Tensor,
    target: Tensor,
    *rest: Any,
) -> tuple[Tensor, int]:
    """The rows of all samples are rows."""
    size = info.batch_size
    moved = [
        one.expand(size, *one.shape) if dim is None else one.movedim(dim, 0)
        for one, dim in zip((x, visible, target), in_dims[:3], strict=True)
    ]
    gamma = entropy_gamma(*(one.flatten(0, 1) for one in moved), *rest)
    return gamma.unflatten(0, (size, -1)), 0


entropy_gamma.register_fake(lambda x, visible, target, *rest: torch.empty_like(target))
entropy_gamma.register_vmap(_vmap)
