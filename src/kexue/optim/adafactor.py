r"""AdaFactor: adaptive steps with sublinear memory — AdaFactor优化器浅析（附开源实现） (S32)

Adam keeps a second moment as large as the weights. For a matrix, its row and column averages are
almost as good, and a thousand times smaller. With gradient G, parameter X and t = 1, 2, …

    β̂_t = 1 − t^{−c},  or with a constant β2 (β2 − β2^t) / (1 − β2^t):  β̂_1 = 0             (1)
    S = G² + ε1
    R ← β̂_t R + (1 − β̂_t) mean_p S            averages along p, the longest axis             (2)
    C ← β̂_t C + (1 − β̂_t) mean_q S            and along q, the second longest               (3)
    V ← β̂_t V + (1 − β̂_t) S                   instead, where q is shorter than a threshold   (4)
    U = G / √V,  with V = R·C / mean_q R  where there are factors                              (5)
    Û = U / max(1, RMS(U)/d)                                                                   (6)
    α_t = ρ_t · max(ε2, RMS(X)),  ρ_t = lr, or min(10⁻², t^{−1/2}) without one                 (7)
    M ← β1 M + (1 − β1) Û                      only if β1 > 0, else M = Û                      (8)
    X ← X − α_t M − ρ_t λ X                                                                    (9)

All other axes are batch axes. R·C / mean R is the matrix of rank one nearest to V in generalised
Kullback-Leibler divergence. (5) to (9) do not change when all gradients are multiplied by a number.

| symbol | here                     | meaning                                                    |
|--------|--------------------------|------------------------------------------------------------|
| R, C   | row, col                 | averages, with a 1 for the axis that is averaged away      |
| V, M   | v, m                     | second moment and momentum, the shape of X                 |
| t      | step                     | count of the steps of this tensor                          |
| ρ, α   | rate                     | step size before and after the scale of X                  |
| ε1, ε2 | eps                      | added to squares; the least scale of X                     |
| β1     | beta1                    | weight of the past in M                                    |
| β2, c  | beta2, beta2_decay       | constant weight of the past in V, or exponent of (1)       |
| d      | clip_threshold           | largest RMS of a step                                      |
| λ      | weight_decay             | decoupled, times ρ_t                                       |

Cost: 0.01 bytes of state per weight of a large matrix, and one temporary of one tensor; none in
the compiled loop, which reads G three times and writes X once.

Source: Shazeer and Stern, arXiv 1804.04235; article 7302. The author's: the two longest axes, the
threshold, the momentum of the unscaled Û. Ours: a constant β2 does not make the first steps too
long; R/mean R is formed before the product, so that no gradient of 1e-14 to 1e17 is too small or
too large for float32 (a larger one counts as `largest(…)`); the state says which axes it averages.
See also `adax`; `torch.optim.Adafactor`, whose clamps depend on the size of the gradients.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from kexue.optim.adafactor_loop import in_one_loop
from kexue.optim.adafactor_state import (
    check_options,
    factor_shapes,
    from_hugging_face,
)
from kexue.optim.own_step import OwnStep, refuse_scheduler
from kexue.optim.per_tensor import PerTensorOptimizer

__all__ = ["AdaFactor", "adafactor_", "fresh_share", "relative_step"]


def fresh_share(
    t: Tensor, beta2: float | None = None, c: float = 0.8, bias_correction: bool = True
) -> Tensor:
    """1 − β̂_t, the weight of the newest square: (1)."""
    if beta2 is None:
        return t**-c
    if not bias_correction:
        return torch.full_like(t, 1 - beta2)
    return (beta2 - 1) / torch.expm1(t * math.log(beta2))


def relative_step(t: Tensor, warmup_init: bool = False) -> Tensor:
    """ρ_t where no learning rate is given: min(1e-2 or, to warm up, 1e-6·t, t^{−1/2})."""
    return torch.minimum(1e-6 * t if warmup_init else torch.full_like(t, 1e-2), t**-0.5)


def adafactor_(
    x: Tensor,
    g: Tensor,
    state: dict[str, Tensor],
    *,
    fresh: float | Tensor,
    rate: float | Tensor,
    beta1: float = 0.0,
    eps: tuple[float, float] = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    scale_parameter: bool = True,
    weight_decay: float = 0.0,
) -> None:
    """One step, in place.

    Args:
        x: the parameter, float32 or better.
        g: its gradient, same shape and dtype.
        state: `row` and `col`, or `v`; and `m`, if there is to be a momentum.
        fresh: 1 − β̂_t of (1).
        rate: ρ_t.
        beta1: β1.
        eps: (ε1, ε2).
        clip_threshold: d.
        scale_parameter: whether (7) has the factor max(ε2, RMS(X)).
        weight_decay: λ.

    Example:
        >>> import torch
        >>> x, v = torch.ones(2), torch.zeros(2)
        >>> adafactor_(x, torch.tensor([3e-5, -2e6]), {"v": v}, fresh=1.0, rate=0.1)
        >>> x
        tensor([0.9000, 1.1000])
    """
    bound, floor = largest(x, state), eps[1] if scale_parameter else -1.0
    numbers = (fresh, eps[0], bound, clip_threshold, rate, floor, rate * weight_decay, 1 - beta1)
    if in_one_loop(x, g, state, numbers):
        return
    alpha = rate * rms(x).clamp_(min=eps[1]) if scale_parameter else rate  # (7)
    u = (by_factors if "row" in state else by_moment)(g, state, fresh, eps[0], bound)
    u.div_((rms(u) / clip_threshold).clamp_(min=1))  # (6)
    if weight_decay:
        x.mul_(1 - rate * weight_decay)
    if "m" in state:
        u.lerp_(state["m"].to(u.dtype), beta1)  # (8)
        state["m"].copy_(u)
    x.sub_(u.mul_(alpha))  # (9)


def by_factors(
    g: Tensor, state: dict[str, Tensor], fresh: float | Tensor, eps: float, bound: float
) -> Tensor:
    """U by (2), (3) and (5)."""
    row, col, tiny = state["row"], state["col"], torch.finfo(g.dtype).tiny
    s = g.clamp(-bound, bound).square_().add_(eps)
    row.lerp_(mean_to(s, row.shape), fresh)  # (2)
    col.lerp_(mean_to(s, col.shape), fresh)  # (3)
    del s
    both = [min(a, b) for a, b in zip(row.shape, col.shape, strict=True)]
    r = row.div(mean_to(row, both).clamp_(min=tiny)).clamp_(min=tiny).rsqrt_()
    return g.clamp(-bound, bound).mul_(col.clamp(min=tiny).rsqrt_()).mul_(r)  # (5)


def by_moment(
    g: Tensor, state: dict[str, Tensor], fresh: float | Tensor, eps: float, bound: float
) -> Tensor:
    """U by (4) and (5)."""
    v, tiny = state["v"], torch.finfo(g.dtype).tiny
    v.lerp_(g.clamp(-bound, bound).square_().add_(eps), fresh)  # (4)
    return g.clamp(-bound, bound).div_(v.clamp(min=tiny).sqrt_())  # (5)


def mean_to(s: Tensor, shape: Iterable[int]) -> Tensor:
    """The mean over the axes that are 1 in `shape`."""
    shape = torch.Size(shape)
    return s.sum_to_size(shape) / (s.numel() / shape.numel())


def rms(x: Tensor) -> Tensor:
    """√ mean x²."""
    norm: Tensor = torch.linalg.vector_norm(x)
    return norm / math.sqrt(x.numel())


def largest(x: Tensor, state: dict[str, Tensor]) -> float:
    """The size beyond which a gradient counts as of this size: sums of squares stay finite."""
    longest = max(x.shape) if "row" in state else 1
    return math.sqrt(torch.finfo(x.dtype).max / (4 * longest))


def schedule(
    t: Tensor, beta2: float | None, c: float, bias_correction: bool, warmup_init: bool
) -> tuple[Tensor, Tensor]:
    """(1 − β̂_t, the ρ_t that needs no learning rate)."""
    return fresh_share(t, beta2, c, bias_correction), relative_step(t, warmup_init)


@lru_cache(maxsize=64)
def schedule_on_host(t: int, *options: Any) -> tuple[float, float]:
    """The same for a whole number, as numbers."""
    fresh, step = schedule(torch.tensor(t, dtype=torch.float64, device="cpu"), *options)
    return fresh.item(), step.item()


class AdaFactor(PerTensorOptimizer):
    """AdaFactor, see the head of this file.

    `paper`, `clue` and `t5_finetune` build it with the settings of their name.

    Args:
        params: parameters, named parameters, or groups of either; a group may have options of its
            own, such as `scale_parameter=False`.
        lr: ρ; 1e-3 as the author advises, also for fine-tuning. None: the step sizes of the paper,
            times 0.05 without `scale_parameter`; no scheduler may then be used.
        beta1: β1; 0 keeps no momentum and saves its memory, 0.9 converges faster.
        beta2: a constant β2; None for the growing one of (1).
        beta2_decay: c in (1), 0.8 as in the paper.
        eps: (ε1, ε2), (1e-30, 1e-3) as in the paper.
        clip_threshold: d, 1.0 as in the paper.
        scale_parameter: steps relative to RMS(X); without it α_t = ρ_t.
        min_dim_size_to_factor: shortest second longest side that is factored; 128 as the author
            has it, 0 factors everything with two axes, `math.inf` nothing.
        factored_axes: "largest" two, as the author has it, or "last" two, as all others.
        weight_decay: λ.
        momentum_dtype: of M, such as torch.bfloat16; None for the parameter's, at least float32.
        warmup_init: begin with ρ_t = 1e-6·t; only with lr=None.
        bias_correction: with a constant β2, divide by 1 − β2^t as in (1); the author's code does
            not, which makes the first steps up to 1/√(1 − β2) times too long before (6).
        maximize: climb instead.
        nonfinite: "skip", "raise" or "ignore" a gradient with NaN or Inf (see `per_tensor`).
        stochastic_rounding: round half-precision parameters at random.
        seed: of that rounding.

    Raises:
        ValueError: an option out of range; `warmup_init` with a learning rate; parameters that
            FSDP has flattened, which have lost their rows and columns.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(256, 512))
        >>> optimizer = AdaFactor([w], lr=0.125)
        >>> w.square().sum().backward()
        >>> optimizer.step()
        >>> round(w[0, 0].item(), 4), sum(s.numel() for s in optimizer.state[w].values())
        (0.875, 769)
    """

    state_names = ("row", "col", "v", "m", "step")
    shaped = ("v", "m")
    options = ("beta2_decay", "clip_threshold", "factored_axes")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor | None = 1e-3,
        beta1: float = 0.0,
        beta2: float | None = None,
        beta2_decay: float = 0.8,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        scale_parameter: bool = True,
        min_dim_size_to_factor: int | float = 128,
        factored_axes: Literal["largest", "last"] = "largest",
        weight_decay: float = 0.0,
        momentum_dtype: torch.dtype | None = None,
        warmup_init: bool = False,
        *,
        bias_correction: bool = True,
        maximize: bool = False,
        nonfinite: str = "skip",
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        chosen: dict[str, Any] = {"lr": lr, "beta1": beta1, "beta2": beta2}
        chosen |= {"beta2_decay": beta2_decay, "eps": eps, "clip_threshold": clip_threshold}
        chosen |= {"scale_parameter": scale_parameter}
        chosen |= {"min_dim_size_to_factor": min_dim_size_to_factor, "factored_axes": factored_axes}
        chosen |= {"weight_decay": weight_decay, "momentum_dtype": momentum_dtype}
        chosen |= {"warmup_init": warmup_init, "bias_correction": bias_correction}
        chosen |= {"maximize": maximize, "nonfinite": nonfinite}
        chosen |= {"stochastic_rounding": stochastic_rounding, "seed": seed}
        super().__init__(params, chosen)

    @classmethod
    def paper(cls, params: Iterable[Any], **changes: Any) -> "AdaFactor":
        """The paper: no learning rate, every matrix factored, no momentum."""
        chosen: dict[str, Any] = {"lr": None, "min_dim_size_to_factor": 0, "factored_axes": "last"}
        return cls(params, **(chosen | changes))

    @classmethod
    def clue(cls, params: Iterable[Any], **changes: Any) -> "AdaFactor":
        """The author's CLUE baselines: lr 5e-4, β1 0.9, nothing factored; no warm-up, no decay."""
        chosen = {"lr": 5e-4, "beta1": 0.9, "min_dim_size_to_factor": math.inf}
        return cls(params, **(chosen | changes))

    @classmethod
    def t5_finetune(cls, params: Iterable[Any], **changes: Any) -> "AdaFactor":
        """Hugging Face's advice for T5: lr 1e-3, steps not relative to the weights."""
        chosen: dict[str, Any] = {"lr": 1e-3, "scale_parameter": False}
        chosen |= {"min_dim_size_to_factor": 0, "factored_axes": "last"}
        return cls(params, **(chosen | changes))

    def check(self, group: dict[str, Any]) -> None:
        check_options(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self.mark_own_step(self.param_groups[-1])

    def mark_own_step(self, group: dict[str, Any]) -> None:
        """Puts the number that refuses schedulers where there is no learning rate."""
        group["own_step"] = group["lr"] is None or isinstance(group["lr"], OwnStep)
        if group["own_step"]:
            group["lr"] = OwnStep()

    def new_state(self, x: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state = {"step": torch.zeros((), dtype=torch.int64, device=x.device)}
        shapes = factor_shapes(x.shape, group["factored_axes"], group["min_dim_size_to_factor"])
        if shapes is None:
            state["v"] = torch.zeros_like(x)
        else:
            state["row"], state["col"] = x.new_zeros(shapes[0]), x.new_zeros(shapes[1])
        if group["beta1"] > 0:
            state["m"] = torch.zeros_like(x, dtype=group["momentum_dtype"])
        return state

    def update(self, x: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not x.numel():
            return
        fresh, own = self.schedule_of(state["step"].add_(1), x, group)
        names = ("beta1", "eps", "clip_threshold", "scale_parameter", "weight_decay")
        rate = self.rate_of(own, group)
        adafactor_(x, g, state, fresh=fresh, rate=rate, **{name: group[name] for name in names})

    def schedule_of(
        self, t: Tensor, x: Tensor, group: dict[str, Any]
    ) -> tuple[float | Tensor, float | Tensor]:
        """`schedule` at step t: numbers on a CPU, else tensors, so that nothing is read back."""
        names = ("beta2", "beta2_decay", "bias_correction", "warmup_init")
        options = [group[name] for name in names]
        if x.is_cpu and not torch.compiler.is_compiling():
            return schedule_on_host(int(t), *options)
        return schedule(t.to(x.dtype), *options)

    def rate_of(self, own: float | Tensor, group: dict[str, Any]) -> float | Tensor:
        """ρ_t of (7)."""
        lr: float | Tensor = group["lr"]
        if not group["own_step"]:
            return lr
        if not isinstance(lr, OwnStep) or "initial_lr" in group:
            refuse_scheduler(None if isinstance(lr, OwnStep) else lr)
        return own if group["scale_parameter"] else 0.05 * own

    def step_sizes(self) -> dict[str, float]:
        """α of the coming step for each parameter, by its name or "group.place"; reads them back.

        Example:
            >>> import torch
            >>> optimizer = AdaFactor.paper([("w", torch.nn.Parameter(torch.full((4,), 2.0)))])
            >>> round(optimizer.step_sizes()["w"], 4)
            0.02
        """
        sizes = {}
        for i, group in enumerate(self.param_groups):
            names = group.get("param_names") or [f"{i}.{j}" for j in range(len(group["params"]))]
            for name, parameter in zip(names, group["params"], strict=True):
                done = self.state[parameter].get("step", 0) if parameter in self.state else 0
                t = torch.tensor(int(done) + 1, dtype=torch.float64, device="cpu")
                rate = float(self.rate_of(float(relative_step(t, group["warmup_init"])), group))
                x = parameter.detach()
                x = x.to(torch.promote_types(x.dtype, torch.float32))
                scale = max(group["eps"][1], float(rms(x)))
                sizes[name] = rate * scale if group["scale_parameter"] else rate
        return sizes

    def state_dict(self) -> dict[str, Any]:
        """As in `torch.optim.Optimizer`; a learning rate of None is saved as None."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            if isinstance(group["lr"], OwnStep):
                group["lr"] = None
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in `torch.optim.Optimizer`; also takes the state of `transformers.Adafactor`.

        Raises:
            ValueError: the state is another optimizer's, or of parameters of other shapes; or it
                is Hugging Face's and cannot be continued here (see `adafactor_state`).
        """
        super().load_state_dict(from_hugging_face(state_dict, self.param_groups))
        for group in self.param_groups:
            self.mark_own_step(group)

    def check_saved(self, name: str, saved: Tensor, parameter: Tensor) -> None:
        super().check_saved(name, saved, parameter)
        if name in ("row", "col"):
            sizes = zip(saved.shape, parameter.shape, strict=False)
            if saved.ndim != parameter.ndim or any(n not in (1, full) for n, full in sizes):
                self.refuse_saved(name, saved, parameter)
