r"""The likeliest input of a class, or the mix of others that forbids it: smooth and convex.

What a class needs is a z that makes it likely. In whitened coordinates, at temperature τ,

    F(v) = τ log Σ_{i≠k} exp((l_i(v) − l_k(v)) / τ)                                            (1)
    α_i = softmax over i≠k of l_i(v) / τ,     ∇F = Σ α_i v_i − v_k                              (2)
    ∇²F = (Σ α_i v_i v_iᵀ − ∇m ∇mᵀ) / τ,      ∇m = Σ α_i (v_i − v_k)                           (3)

F is convex, and at every v one of three things is true:

- all l_i < l_k: v is a point where k wins, the search is over;
- ∇F = 0: then Σ α_i v_i = v_k, and α is a mix. If its δ ≥ 0, class k can never win, and

      sup over z of p_k(z) = 1 / (1 + e^F)        (at τ = 1, over all classes)                  (4)

- else go on downhill; and if ∇F = 0 with δ < 0, lower τ: as τ → 0 the mix becomes the one with the
  largest δ, which decides.

So a mix needs no list of weights: v and τ say it all. `climb` takes gradient steps for a block of
classes at once (two products per step; whitening makes I the Hessian at the start, so that the
first step is the whitened probe). `newton` is for the few that are left: on the classes that matter
at v, found by cutting planes: Newton's method there, then the classes that it overlooked.

Cost: climb 4 C r per class and step; newton m r² per step with m ≈ 4 r classes. A linear program
per class instead (C × r, dense) takes minutes at the size of a vocabulary.
Source: the dual mix with bias and the use of the likelihood are ours; arXiv 2203.06462 and article
9046 pose the question; steps: Barzilai and Borwein 1988.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kexue.analysis.unargmaxable.whitening import Whitened

__all__ = ["Found", "climb", "newton", "tilted"]

BLOCK = 1 << 20
"""Numbers of a block of logits of `climb`: 8 MB, which a cache holds."""
STEPS = 80
"""Of `climb`; who needs more is better served by `newton`."""
SURE = 50.0
"""A δ with which the bound, e^−50, need not be made any better."""
WHOLE = 1 << 26
"""Numbers of a Hessian over all classes, C r²: up to here a mix of a few becomes one of all."""
FAR = 30.0
NEARLY = 1e-4
"""A fall of F by less than this many τ is promised: near enough to the minimum to lower τ."""
SMALL = 1e-10
"""A gradient this small, against the row's length plus 1, is no longer moved."""


@dataclass(frozen=True)
class Found:
    """What a search says about one class; a proof only once it has been checked.

    Attributes:
        index: k.
        wins: v is a point where k wins; otherwise α at v and τ is a mix.
        point: v.
        temperature: τ.
        support: the classes that α is spread over; None: all others.
    """

    index: int
    wins: bool
    point: Float[Tensor, " r"]
    temperature: float = 1.0
    support: Int[Tensor, " s"] | None = None


def tilted(white: Whitened, found: Found) -> Float[Tensor, " c"]:
    """α of (2) at a point and temperature; the weight of the class itself is 0."""
    logits = white.logits(found.point[None])[0]
    allowed = torch.full_like(logits, -math.inf)
    allowed[slice(None) if found.support is None else found.support] = 0.0
    allowed[found.index] = -math.inf
    return torch.softmax((logits + allowed) / found.temperature, dim=0)  # (2)


def climb(white: Whitened, todo: Int[Tensor, " m"]) -> Iterator[Found]:
    """Gradient steps for all classes of `todo`, a block at a time; yields those that it settles."""
    for index in todo.split(max(1, BLOCK // len(white.rows))):
        yield from _climb_block(white, index)


def _climb_block(white: Whitened, index: Tensor) -> Iterator[Found]:
    own = white.rows[index]
    small = SMALL * (1 + own.norm(dim=1))
    level = white.offsets.max() - white.offsets[index]
    point, tau = torch.zeros_like(own), first_temperature(level)
    before, moved, rate = torch.zeros_like(own), torch.zeros_like(own), 0.5 * tau
    for _ in range(STEPS):
        logits = white.logits(point)
        lead = logits.gather(1, index[:, None])[:, 0]
        logits.scatter_(1, index[:, None], -math.inf)
        wins = logits.amax(dim=1) < lead
        mix = torch.softmax(logits / tau[:, None], dim=1)  # (2)
        slope = mix @ white.rows - own
        flat = slope.norm(dim=1) <= small
        gap = mix @ white.offsets - white.offsets[index]
        loses = flat & (gap >= -SMALL * (mix @ white.offsets.abs() + white.offsets[index].abs()))
        for n in (wins | loses).nonzero()[:, 0].tolist():
            yield Found(int(index[n]), bool(wins[n]), point[n].clone(), float(tau[n]))
        done = wins | (loses & ((tau <= 1) | (gap > SURE)))  # a hot mix is not the best bound
        cold = flat & ~done
        down, shrink = colder(tau, level)
        rate = barzilai_borwein(moved, slope - before, rate)
        rate = torch.where(cold, rate * down / tau, rate)
        tau, shrink = torch.where(cold, down, tau), torch.where(cold, shrink, 1.0)
        step = -rate[:, None] * slope
        keep = ~done
        if not bool(keep.any()):
            return
        index, own, small, level = (x[keep] for x in (index, own, small, level))
        tau, rate = tau[keep], rate[keep]
        before, moved = slope[keep], step[keep]
        point = point[keep] * shrink[keep, None] + moved


def first_temperature(level: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """1, or more where biases are hundreds: steps of some τ have to get there."""
    return torch.where(level > 100, level / FAR, 1.0)


def colder(tau: Float[Tensor, "*n"], level: Float[Tensor, "*n"]) -> tuple[Tensor, Tensor]:
    """The next temperature, and by how much the point shrinks with it.

    A quarter, but 1 on the way. While τ exceeds all biases, the best point is in proportion to τ.
    """
    down = torch.where(tau > 1, (tau / 4).clamp_min(1.0), tau / 4)
    small = (level > 0) & (level < down) & (tau <= 1)
    down = torch.where(small, level, down)
    return down, torch.where(small, down / tau, 1.0)


def barzilai_borwein(
    step: Float[Tensor, "n r"], change: Float[Tensor, "n r"], rate: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """|s|² / s · y, the rate that the last step's change of slope suggests; at most 4 times it."""
    bend = (step * change).sum(dim=1)
    wanted = step.square().sum(dim=1) / bend.clamp_min(1e-300)
    return torch.where(bend > 0, torch.minimum(wanted, 4 * rate), 2 * rate)


def newton(
    white: Whitened, index: int, point: Float[Tensor, " r"] | None = None, most: int = 100
) -> Found | None:
    """Newton's method on the classes that matter; None where it does not decide.

    Args:
        white: the layer.
        index: k.
        point: where to begin; default the origin.
        most: steps.
    """
    rows, offsets = white.rows, white.offsets
    width, own = rows.shape[1], rows[index]
    v = last = torch.zeros_like(own) if point is None else point
    small, level = SMALL * (1 + float(own.norm())), offsets.max() - offsets[index]
    tau, found = float(first_temperature(level)), None
    near = torch.addmv(offsets, rows, own)
    near[index] = -math.inf
    active = near.topk(min(4 * width, len(rows) - 1)).indices
    here, bias = rows[active] - own, offsets[active] - offsets[index]
    for _ in range(most):
        ahead = torch.addmv(bias, here, v)
        if float(ahead.max()) < 0:  # k wins among these: and among all?
            every = torch.addmv(offsets, rows, v) - (own @ v + offsets[index])
            every[index] = -math.inf
            if float(every.max()) < 0:
                return Found(index, True, v, tau)
            active, v = _with_violators(active, every, width), last
            here, bias = rows[active] - own, offsets[active] - offsets[index]
            worst = float(torch.addmv(bias, here, v).max())
            tau = max(tau, worst / 8)  # or one overlooked class would be all of α
            continue
        mix = torch.softmax(ahead / tau, dim=0)  # (2)
        slope, gap = mix @ here, float(mix @ bias)
        if float(slope.norm()) <= small and gap >= -SMALL * float(mix @ bias.abs()):
            found = Found(index, False, v, tau, active)
            if tau > 1 and gap <= SURE:
                tau, v = _cooled(tau, level, v)
            elif tau != 1 or len(active) >= len(rows) - 1 or len(rows) * width**2 > WHOLE:
                return found
            else:  # the bound is exact with all classes
                active = torch.arange(len(rows), device=rows.device)
                active = active[active != index]
                here, bias = rows[active] - own, offsets[active] - offsets[index]
            continue
        step = _downhill(_hessian(here, mix, slope), slope) * -tau  # (3)
        descent = float(slope @ step)
        if -descent < NEARLY * tau and gap < 0:
            if found is not None:  # a proof, though not with all classes
                return found
            tau, v = _cooled(tau, level, v)
        else:
            last, v = v, _line_search(here, bias, v, step, tau, descent)
    return found


def _cooled(tau: float, level: Tensor, v: Tensor) -> tuple[float, Tensor]:
    down, shrink = colder(level.new_tensor(tau), level)
    return float(down), v * shrink


def _hessian(here: Tensor, mix: Tensor, slope: Tensor) -> Tensor:
    """(3), times τ, over the rows whose weight is felt."""
    felt = mix > 1e-12
    if int(felt.sum()) < 0.7 * len(mix):
        here, mix = here[felt], mix[felt]
    return (here * mix[:, None]).mT @ here - torch.outer(slope, slope)


def _downhill(hessian: Tensor, slope: Tensor) -> Tensor:
    """H⁻¹ slope, with as little of I added to H as makes it positive definite."""
    size = hessian.diagonal().mean()
    if float(size) <= 0:  # one class has all the weight
        return slope
    for power in range(-13, 3):
        lifted = hessian.clone()
        lifted.diagonal().add_(10.0**power * size)
        factor, failed = torch.linalg.cholesky_ex(lifted)
        if not int(failed):
            break
    solved: Tensor = torch.cholesky_solve(slope[:, None], factor)[:, 0]
    return solved


def _line_search(
    here: Tensor, bias: Tensor, v: Tensor, step: Tensor, tau: float, descent: float
) -> Tensor:
    """Halves the step until F falls by a fair part of what its slope promises.

    No step changes a logit by more than `FAR` τ: where the classes at hand do not resist, those
    that were left out do. Near the end, where rounding would hide the fall, the step stays whole.
    """
    if -descent <= 1e-9 * tau:
        return v + step
    ahead, change = here @ v + bias, here @ step
    now = tau * torch.logsumexp(ahead / tau, dim=0)
    size = min(1.0, FAR * tau / float(change.abs().max()))
    for _ in range(40):
        then = tau * torch.logsumexp((ahead + size * change) / tau, dim=0)
        if float(then - now) <= 1e-4 * size * descent:
            break
        size /= 2
    return v + size * step


def _with_violators(active: Tensor, ahead: Tensor, width: int) -> Tensor:
    worst = ahead.topk(min(max(128, width), int((ahead >= 0).sum()))).indices
    together: Tensor = torch.unique(torch.cat((active, worst)))
    return together
