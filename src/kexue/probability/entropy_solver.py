r"""Which power of a distribution has a given entropy: the solver behind (S08).

For rows x = l − max l and g > 0, with z = g x, Z = sum e^z and q = e^z / Z:

    H = ln Z − E_q z,   V = E_q z^2 − (E_q z)^2,   dH/d ln g = −V                              (1)

The place of H between its limits, on a logistic scale,

    y = ln((ln n_+ − H) / (H − ln m)),   dy/dt = V / (ln n_+ − H) + V / (H − ln m),  t = ln g  (2)

is nearly straight in t: for small g, ln n_+ − H is proportional to g^2. Newton's method for y(t),
halving the bracket where a step would leave it. A step is at most 2; where one after the other is
cut off, as on the plateau beside an outlier, the limit doubles. The start is g = 1, moved into
[g0, e^3 g0], where g0 would be the answer for normally distributed logits of the same variance:

    g0 = sqrt(2 (ln n_+ − H*) / Var x)                                                         (3)

so that logits of any scale need the same few rounds. Newton's method for H(t) needs up to 22. Only
z is squared, never x, and g is multiplied, never ln g added to: no scale of x overflows or rounds.

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

__all__ = [
    "PART",
    "PowerOfEntropy",
    "entropy_and_variance",
    "entropy_gamma",
    "powered",
    "visible_in",
]

PART = 1 << 18
"""Entries that are solved together on a CPU: 1 MB in float32."""
STEP, REACH = 2.0, 3.0
"""The largest first step of ln g, and how far above ln g0 the start may lie."""


def visible_in(x: Tensor) -> Tensor:
    """True where an entry belongs to the support: not at the lowest number, which stands for −inf.

    So that 0 · x is 0 there, and not NaN.
    """
    return x > torch.finfo(x.dtype).min


def powered(x: Tensor, gamma: Tensor, out: Tensor | None = None) -> Tensor:
    """z = g x, (R, n), at least −10^4: e^z is 0 there in every precision, and 0 · z too."""
    z = torch.mul(x, gamma.unsqueeze(-1), out=out)
    return torch.clamp(z, min=-1e4, out=out)


def entropy_and_variance(
    x: Tensor, gamma: Tensor, room: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """H and V of softmax(gamma · x), row by row: (1).

    Args:
        x: logits minus their maximum, (R, n); the lowest number stands for −inf.
        gamma: (R,).
        room: two tensors like x to work in, where no gradient is wanted.
    """
    one, two = room or (None, None)
    z = powered(x, gamma, one)
    q = torch.softmax(z, -1, out=two)  # (R, n)
    log_total = z.amax(-1) - q.amax(-1).log()  # ln Z, at the largest entry
    qz = torch.mul(q, z, out=two)
    mean = qz.sum(-1)
    variance = torch.mul(qz, z, out=two).sum(-1) - mean.square()
    return log_total - mean, variance.clamp(min=0)  # (1)


@torch.library.custom_op(
    "kexue::entropy_gamma",
    mutates_args=(),
    schema="(Tensor x, Tensor target, float tol, int max_iter, bool clamp, str source) -> Tensor",
)
def entropy_gamma(
    x: Tensor, target: Tensor, tol: float, max_iter: int, clamp: bool, source: str
) -> Tensor:
    """The power g of each row with H(g) = target.

    Args:
        x: logits minus their maximum, (R, n); the lowest number where an entry is outside the
            support.
        target: H* in nats, (R,).
        tol: difference of the entropy at which a row is done.
        max_iter: most rounds.
        clamp: out of reach means 0 or inf instead of an error.
        source: what the caller gave, "p" or "logits", for messages.

    Returns:
        (R,): positive numbers; 1 for uniform rows that have their target, 0 for empty ones.

    Raises:
        ValueError: NaN, negative entries, +inf, empty rows, targets out of reach.
    """
    size = max(1, PART // x.shape[1]) if x.device.type == "cpu" else max(1, len(x))
    gamma = torch.empty_like(target, memory_format=torch.contiguous_format)
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        part, wanted = x[rows], target[rows]
        support, top = _support(part)
        high, low = support.log(), top.log()  # ln n_+, ln m
        flat = (support == top) & ((wanted - high).abs() <= max(tol, 1e-6))
        empty = support == 0
        inside = (low < wanted) & (wanted < high)
        broken = ~(part.amax(-1).isfinite() & wanted.isfinite())
        refused = broken if clamp else broken | empty | ~(inside | flat)
        if bool(refused.any()):
            _complain(x, target, clamp, source)
        found = _solve(part, wanted, support, low, high, inside, tol, max_iter)
        limit = torch.where(wanted >= high, 0.0, torch.inf).to(x.dtype).masked_fill(empty, 0)
        gamma[rows] = torch.where(inside, found, limit.masked_fill(flat & ~empty, 1))
    return gamma


def _support(x: Tensor) -> tuple[Tensor, Tensor]:
    """n_+ and m of each row, as floating numbers."""
    top = x.clone().eq_(0).sum(-1)  # (R,): in place, which needs no booleans
    if bool((x.amin(-1) > torch.finfo(x.dtype).min).all()):
        return torch.full_like(top, x.shape[1]), top
    return visible_in(x).sum(-1).to(x.dtype), top


def _solve(
    x: Tensor,
    target: Tensor,
    support: Tensor,
    low: Tensor,
    high: Tensor,
    inside: Tensor,
    tol: float,
    max_iter: int,
) -> Tensor:
    """Newton's method for (2) within a bracket; rows that are not `inside` are left alone."""
    number = torch.finfo(x.dtype)
    start = (2 * (high - target)).sqrt() / _deviation(x, support)  # (3)
    start = torch.where(start.isfinite() & (start > 0), start, 1)
    g = torch.ones_like(target).clamp(start, (math.exp(REACH) * start).clamp(max=number.max))
    left = torch.full_like(g, number.smallest_normal * number.eps)
    right = torch.full_like(g, number.max)
    limit = torch.full_like(g, STEP)
    goal = ((high - target) / (target - low)).log()  # y(H*)
    done, room = ~inside, (torch.empty_like(x), torch.empty_like(x))
    for _ in range(max_iter):
        entropy, variance = entropy_and_variance(x, g, room)  # (1)
        above = entropy > target
        left, right = torch.where(above, g, left), torch.where(above, right, g)
        y = ((high - entropy) / (entropy - low)).log()
        slope = variance / (high - entropy) + variance / (entropy - low)  # (2)
        step = (goal - y) / slope
        step = torch.where(step.isnan(), torch.where(above, torch.inf, -torch.inf), step)
        done = done | ((entropy - target).abs() <= tol) | (step.abs() <= 2 * number.eps)
        cut = step.abs() > limit
        moved = g * step.clamp(-limit, limit).exp()
        middle = left.sqrt() * right.sqrt()
        moved = torch.where((moved > left) & (moved < right), moved, middle)
        done = done | (moved == g)
        limit = torch.where(cut, 2 * limit, STEP)
        g = torch.where(done, g, moved)
        if bool(done.all()):
            break
    return g


def _deviation(x: Tensor, support: Tensor) -> Tensor:
    """The standard deviation of x over its support, roughly; its squares cannot overflow."""
    if bool((support < x.shape[1]).any()):
        x = torch.where(visible_in(x), x, 0)
    width = -x.amin(-1)
    z = x / width.unsqueeze(-1)
    count = support.clamp(min=1)
    variance = z.square().sum(-1) / count - (z.sum(-1) / count).square()
    return width * variance.clamp(min=0).sqrt()


def _complain(x: Tensor, target: Tensor, clamp: bool, source: str) -> None:
    """Say what is wrong with the first row that is."""
    visible = visible_in(x)
    wrong = x.isnan() | x.isposinf()
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        need = "is negative, NaN or infinite" if source == "p" else "is NaN or +inf"
        hint = "" if source == "p" else "; −inf is the logit of a zero"
        raise ValueError(f"{source} {need} in row {row}, column {column}{hint}")
    if bool((bad := ~target.isfinite()).any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"the target entropy of row {row} is {float(target[row])} nats")
    support, top = visible.sum(-1), (x == 0).sum(-1)
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

    d ln g = −(1 / V) (sum q (z − E z) g dx + dH*), in operations that differentiate further.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, target: Tensor, tol: float, max_iter: int, clamp: bool, source: str
    ) -> Tensor:
        gamma: Tensor = entropy_gamma(x, target, tol, max_iter, clamp, source)
        return gamma

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, gamma) = grads, ctx.saved_tensors
        varied = (visible_in(x.detach()) & (x.detach() < 0)).any(-1)
        solved = (gamma > 0) & (gamma < torch.inf) & varied
        power = torch.where(solved, gamma, 1)
        z = powered(x, power)
        q = z.softmax(-1)
        centred = z - (q * z).sum(-1, keepdim=True)
        variance = (q * centred.square()).sum(-1)
        rate = torch.where(solved, grad * power / torch.where(solved, variance, 1), 0)
        to_x = -(rate * power).unsqueeze(-1) * q * centred
        return to_x, -rate, None, None, None, None


def _vmap(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, target: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    """The rows of all samples are rows."""
    size = info.batch_size
    moved = [
        one.expand(size, *one.shape) if dim is None else one.movedim(dim, 0)
        for one, dim in zip((x, target), in_dims[:2], strict=True)
    ]
    gamma = entropy_gamma(*(one.flatten(0, 1) for one in moved), *rest)
    return gamma.unflatten(0, (size, -1)), 0


entropy_gamma.register_fake(lambda x, target, *rest: torch.empty_like(target))
entropy_gamma.register_vmap(_vmap)
