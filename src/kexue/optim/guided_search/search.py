r"""MGS, optimisation by sampling — 从采样看优化：可导优化与不可导优化的统一视角 (S26)

Moves a model towards sampled updates, each weighted by the loss one really cares about, which need
not have a gradient (accuracy, F1, BLEU, repetition).

    Δ = Σ_k W_k Δ_k,   W = softmax(−l(θ + Δ_k)/α − log q(Δ_k))                                 (1)
    q = π N(0, S²) + (1 − π) N(μ, S²),   μ = −η ĝ                                              (2)
    s = σ  ("absolute")   or   s_t = σ · mean|μ_t|  for parameter tensor t  ("relative")       (3)
    α = standard deviation of l(θ + Δ_k) over the candidates  ("adaptive")                     (4)

The proposal (2) searches around "stay" and around the step of a differentiable surrogate, whose
gradient, clipped to norm 1, is ĝ. Half the candidates come from each side, in turn. With the
component means folded, (1) is Δ = (Σ_{k ∈ gradient} W_k) μ + Σ_k W_k n_k, n_k the noise.

In many dimensions dividing by the true density q lets only the candidate with the longest noise
count, however bad its loss; so q is the base measure by default, and W = softmax(−l/α). The other
choices are in `candidates`, with the seeds that stand for the candidates.

Symbols: loss_fn l, temperature α (the authors' 1/β), mixture π, sigma σ, step_size η, means μ.
Cost per step: one surrogate forward and backward, K (+ 1) scorings, 2K normal numbers per
parameter. Memory: parameters, gradients, one copy of the parameters, a buffer as large as the
largest tensor; K does not matter.
Source: arXiv 2006.03158 and its code; article 7521. Differently from the authors: candidates are
seeds, not models; weights in log-sum-exp; S is in the density where there is one; all candidates
see the same random numbers. See also: `sampling_view` for the closed forms of (1).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict
from warnings import warn
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from kexue.optim.guided_search.candidates import (
    DECODING,
    Candidate,
    Neighbourhood,
    draw_candidates,
    hashed,
    scoring_alike,
)
from kexue.optim.guided_search.sampling_view import (
    check_positive,
    check_share,
    check_temperature,
    effective_sample_size,
    mgs_weights,
    mixture_log_density,
)
from kexue.optim.processes import average_, processes
from kexue.optim.wrapped import unwrapped

__all__ = [
    "MGS",
    "StepReport",
    "effective_sample_size",
    "mgs_weights",
    "mixture_log_density",
]

PATIENCE = 20
"""So many steps in a row with an effective sample size below 1.5 are worth a warning."""
STATE = ("seed", "steps", "low_steps", "rejected")
ATTACHED: WeakKeyDictionary[Optimizer, RemovableHandle] = WeakKeyDictionary()
"""The hook on each optimizer that `attach` was called with."""


class StepReport(TypedDict):
    """What a step did; `losses` and `weights` are (K,), float64, on the CPU."""

    loss: float | None
    losses: Tensor
    weights: Tensor
    ess: float
    update_norm: float
    rejected: int


class MGS:
    """Optimises a model by a loss without gradients, guided by a surrogate that has one.

    `step(batch)` does everything. For loops that do forward, backward and optimizer step themselves
    there are `attach(optimizer)` and `rewrite_gradients(batch)`: they put −Δ in the place of the
    gradients.

    Args:
        model: its parameters that require a gradient now are searched; float32 or float64. May be
            wrapped in DistributedDataParallel.
        loss_fn: (model, batch) → number, lower is better; called without gradients, in evaluation
            mode, with the same random numbers for every candidate, and with the unwrapped model.
        surrogate_fn: (model, batch) → differentiable loss that guides the search. May be left out
            with mixture = 1 and noise = "absolute", and where the gradients come from outside.
        n_candidates: K; 4 in the paper.
        sigma: σ of (3), the authors' 1 for "relative"; for "absolute" a length per coordinate.
        noise: "relative" (the authors') or "absolute", (3).
        mixture: π of (2), the share of candidates around zero; 1/2 in the paper.
        temperature: α of (1), in the unit of the loss, or "adaptive", (4); 0.01 in the authors'
            code.
        density: "none", "mixture", "unit" (the authors') or "exact"; see `candidates`.
        step_size: η of (2); 1 in the authors' code.
        max_grad_norm: the surrogate's gradient is clipped to this norm, the authors' 1; None never.
        antithetic: candidates in pairs with opposite noise; K must be even.
        split_candidates: with several processes, each scores its share of the candidates on the
            same batch. Otherwise each scores all on a batch of its own, and losses are averaged.
        score_current: score θ as well, for the report's `loss`; one scoring more.
        inner_optimizer: gets −Δ as gradients, as in the authors' code; None adds Δ as it is.
        seed: of all noise, or a generator to draw it from. Processes take that of rank 0.

    Raises:
        ValueError: an argument is out of range, a parameter cannot be searched, or the inner
            optimizer lacks one that is.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [-1.0]])
        >>> errors = lambda model, batch: ((model(x) * y) <= 0).float().mean()  # no gradient
        >>> likelihood = lambda model, batch: nn.functional.softplus(-model(x) * y).mean()
        >>> search = MGS(model, errors, likelihood)
        >>> reports = [search.step(batch=None) for _ in range(20)]
        >>> reports[-1]["loss"], len(reports[-1]["weights"])
        (0.0, 4)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Any],
        surrogate_fn: Callable[[Any, Any], Tensor] | None = None,
        *,
        n_candidates: int = 4,
        sigma: float | int = 1.0,
        noise: str = "relative",
        mixture: float | int = 0.5,
        temperature: float | int | str = "adaptive",
        density: str = "none",
        step_size: float | int = 1.0,
        max_grad_norm: float | int | None = 1.0,
        antithetic: bool = False,
        split_candidates: bool = False,
        score_current: bool = True,
        inner_optimizer: torch.optim.Optimizer | None = None,
        seed: int | torch.Generator = 0,
    ) -> None:
        pair = 2 if antithetic else 1
        if n_candidates < pair or n_candidates % pair:
            need = "an even number >= 2 with antithetic=True" if antithetic else "at least 1"
            raise ValueError(f"n_candidates must be {need}, got {n_candidates}")
        check_positive("sigma", sigma)
        check_positive("step_size", step_size)
        if max_grad_norm is not None:
            check_positive("max_grad_norm", max_grad_norm)
        check_share("mixture", mixture)
        check_temperature(temperature)
        _check_choice("noise", noise, ("relative", "absolute"))
        _check_choice("density", density, ("none", "mixture", "unit", "exact"))
        if isinstance(seed, torch.Generator):
            seed = int(torch.randint(2**32, (), generator=seed, device=seed.device))
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.model, self.loss_fn, self.surrogate_fn = model, loss_fn, surrogate_fn
        self.n_candidates, self.sigma, self.noise = n_candidates, sigma, noise
        self.mixture, self.temperature, self.density = mixture, temperature, density
        self.step_size, self.max_grad_norm, self.antithetic = step_size, max_grad_norm, antithetic
        self.split_candidates, self.score_current = split_candidates, score_current
        self.inner_optimizer, self.seed = inner_optimizer, seed
        self.steps = self.low_steps = self.rejected = 0
        self.batch: Any = None
        self.report: StepReport | None = None
        self._agreed = False
        self.plain = model.module if isinstance(model, DistributedDataParallel) else model
        self.params = _searchable(self.plain)
        if inner_optimizer is not None:
            self._check_holds(inner_optimizer)

    def step(self, batch: Any) -> StepReport:
        """Surrogate gradient, candidates, scores, update.

        Args:
            batch: handed to surrogate_fn and loss_fn.

        Raises:
            ValueError: the surrogate's gradient, or every candidate's loss, is not finite; the
                parameters are as before.
            TypeError: loss_fn did not return one number.
        """
        for p in self.params.values():
            p.grad = None
        if self.surrogate_fn is not None:
            with torch.enable_grad():
                self.surrogate_fn(self.model, batch).backward()
            if processes() > 1 and self.plain is self.model:  # DDP averages by itself
                average_([p.grad for p in self.params.values() if p.grad is not None])
        report = self.rewrite_gradients(batch)
        if self.inner_optimizer is not None:
            self.inner_optimizer.step()
        with torch.no_grad():
            for p in self.params.values():
                if self.inner_optimizer is None and p.grad is not None:
                    p.sub_(p.grad)
                p.grad = None
        return report

    def attach(self, optimizer: Any) -> RemovableHandle:
        """Lets every `optimizer.step()` follow −Δ, scored on `self.batch`, not its gradients.

        Set `self.batch` before each step; the report of the last one is in `self.report`.
        Gradients are taken as they are then: averaged over ranks, unscaled, clipped or not.

        Args:
            optimizer: a `torch.optim.Optimizer`, or what Accelerate wraps around one.

        Returns:
            A handle; `remove()` ends it.

        Raises:
            TypeError: the optimizer is none.
            ValueError: it lacks a parameter that is searched, or an MGS is attached to it already.
        """
        optimizer = unwrapped(optimizer)
        self._check_holds(optimizer)
        other = ATTACHED.get(optimizer)
        if other is not None and other.id in (other.hooks_dict_ref() or ()):
            raise ValueError(
                "an MGS is attached to this optimizer already, and a second one would take its −Δ "
                "for the gradient; call remove() on the handle that attach returned"
            )

        def before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
            if any(callable(one) for one in (*args[1:], *kwargs.values())):
                raise ValueError(
                    "optimizer.step was given a closure, whose backward comes after this hook; "
                    "call rewrite_gradients(batch) between backward and step (in Lightning: in "
                    "on_before_optimizer_step) instead of attach"
                )
            if getattr(optimizer, "grad_scale", None) is not None:
                raise ValueError(
                    "the gradients still carry the loss scale of a fused optimizer; call "
                    "scaler.unscale_(optimizer) before scaler.step(optimizer)"
                )
            if self.batch is None:
                raise ValueError("no batch to score candidates on; set the attribute batch first")
            self.rewrite_gradients(self.batch)

        handle: RemovableHandle = optimizer.register_step_pre_hook(before_step)
        ATTACHED[optimizer] = handle
        return handle

    def _check_holds(self, optimizer: Any) -> None:
        """Candidates move every parameter searched, so the optimizer must move them all as well."""
        held = {p for group in optimizer.param_groups for p in group["params"]}
        for name, p in self.params.items():
            if p not in held:
                raise ValueError(
                    f"the optimizer does not hold {name}, which is searched; give it all trained "
                    "parameters, or freeze the others with requires_grad_(False) before MGS is made"
                )

    def rewrite_gradients(self, batch: Any) -> StepReport:
        """Replaces the surrogate's gradient in `p.grad` by −Δ; the parameters stay as they are."""
        self._agree_on_seed()
        self.steps += 1
        candidates = draw_candidates(
            self.n_candidates, self.mixture, self.seed, self.steps, antithetic=self.antithetic
        )
        try:
            around = self._neighbourhood()
            losses, current = self._score(batch, candidates, around)
            log_q = around.log_density(self.density, candidates, self.mixture)
            weights = mgs_weights(losses, log_q, self.temperature)  # (1), (4)
        except BaseException:
            for p in self.params.values():
                p.grad = None
            raise
        around.average(candidates, weights.tolist())  # (1)
        self.report = StepReport(
            loss=current,
            losses=losses,
            weights=weights,
            ess=effective_sample_size(weights).item(),
            update_norm=nn.utils.get_total_norm(around.means).item(),
            rejected=int((~losses.isfinite()).sum()),
        )
        self._watch(self.report)
        return self.report

    def _neighbourhood(self) -> Neighbourhood:
        """θ with μ of (2), in the memory of the gradients, and s_t of (3)."""
        given = {name: p.grad for name, p in self.params.items() if p.grad is not None}
        if not given and (self.mixture < 1 or self.noise == "relative"):
            raise ValueError(
                "no parameter has a gradient; give surrogate_fn, or run backward before, or search "
                'without one: mixture=1, noise="absolute"'
            )
        for name, grad in given.items():
            if grad.layout != torch.strided:
                raise ValueError(f"the gradient of {name} is sparse; use Embedding(sparse=False)")
        norm = nn.utils.get_total_norm(given.values()).item() if given else 0.0
        if not math.isfinite(norm):
            bad = [name for name, grad in given.items() if not grad.isfinite().all()]
            raise ValueError(
                f"the surrogate's gradient has norm {norm} (first in {bad[0] if bad else 'sum'}); "
                "the parameters are as before: skip this batch, or lower the loss scale"
            )
        clip = 1.0 if not norm or self.max_grad_norm is None else min(1, self.max_grad_norm / norm)
        if self.noise == "absolute":
            for name, p in self.params.items():
                if p.grad is None:
                    p.grad = given[name] = torch.zeros_like(p)
        params = [self.params[name] for name in given]
        means = [grad.mul_(-self.step_size * clip) for grad in given.values()]  # (2)
        scales = [float(self.sigma)] * len(means)
        if self.noise == "relative":
            sizes = [mean.abs().mean().to(means[0].device) for mean in means]
            scales = [self.sigma * size for size in torch.stack(sizes).tolist()]  # (3)
        return Neighbourhood(params, means, scales)

    def _score(
        self, batch: Any, candidates: Sequence[Candidate], around: Neighbourhood
    ) -> tuple[Tensor, float | None]:
        """l(θ + Δ_k), on the CPU, and l(θ); averaged over processes."""
        world = processes()
        mine = distributed.get_rank() if world > 1 and self.split_candidates else None
        jobs = [*candidates, *([None] if self.score_current else [])]
        found: list[Any] = [0.0] * len(jobs)
        own = [(p, p.grad) for p in self.params.values()]  # hold μ; loss_fn may run a backward
        for p, _ in own:
            p.grad = None
        with scoring_alike(self.plain, hashed(self.seed, self.steps, DECODING)) as restart:
            try:
                for index, job in enumerate(jobs):
                    if mine is not None and index % world != mine:
                        continue
                    if job is None:
                        around.restore()
                    else:
                        around.move_to(job)
                    restart()
                    found[index] = _one_number(self.loss_fn(self.plain, batch))
            finally:
                around.restore()
                for p, grad in own:
                    p.grad = grad
        device = around.params[0].device
        wide = torch.float32 if device.type == "mps" else torch.float64
        losses = torch.stack([torch.as_tensor(x, dtype=wide, device=device) for x in found])
        if world > 1:
            distributed.all_reduce(losses)
            losses /= 1 if self.split_candidates else world
        losses = losses.cpu().double()
        return losses[: len(candidates)], losses[-1].item() if self.score_current else None

    def _agree_on_seed(self) -> None:
        if self._agreed or processes() == 1:
            return
        seed = torch.tensor([self.seed], device=next(iter(self.params.values())).device)
        distributed.broadcast(seed, 0)
        self.seed, self._agreed = int(seed), True

    def _watch(self, report: StepReport) -> None:
        if report["rejected"] and not self.rejected:
            warn(
                f"{report['rejected']} of {self.n_candidates} candidate losses are not finite and "
                "get weight 0; the report counts them, this warning comes once",
                stacklevel=2,
            )
        self.rejected += report["rejected"]
        low = report["ess"] < 1.5 and self.n_candidates > 1
        self.low_steps = self.low_steps + 1 if low else 0
        if self.low_steps == PATIENCE:
            warn(
                f"each of the last {PATIENCE} steps rested on fewer than 1.5 of "
                f"{self.n_candidates} candidates; raise temperature (now {self.temperature}), "
                f'lower sigma, or use density="none" (now {self.density!r})',
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, int]:
        """Seed and counters: all that the next step's noise depends on."""
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on where `state_dict` was taken."""
        if missing := set(STATE) - state.keys():
            raise ValueError(f"the state lacks {sorted(missing)}; it has {sorted(state)}")
        for name in STATE:
            setattr(self, name, int(state[name]))


def _searchable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters to search by name, tied ones once."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError("the model has no parameter that requires a gradient; unfreeze some")
    for name, p in found.items():
        if hasattr(p, "full_tensor"):
            raise ValueError(f"{name} is sharded over processes; use DDP, where every one has all")
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} is {p.dtype}, in which small updates round to nothing and all candidates "
                "score the same; keep parameters in float32 and compute under torch.autocast"
            )
    return found


def _one_number(loss: Any) -> Any:
    """What loss_fn returned, as a number or a tensor without axes."""
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.detach().reshape(())
    if isinstance(loss, (int, float, np.number)):
        return float(loss)
    what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{loss!r}"
    raise TypeError(f"loss_fn must return one number, got {what}; return its mean, for example")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
