r"""我们真的需要把训练集的损失降低到零吗？ (S35)

Flooding: keep the training loss at a level b > 0 instead of driving it to zero.

With L the mean loss of a batch and l_i the loss of sample i:

    batch     L̃ = |L − b| + b             down above the level, up below it                    (1)
    sample    L̃ = mean_i (|l_i − b_i| + b_i)     iFlood; AdaFlood: a level for each sample     (2)
    hinge     L̃ = max(L, b)               no gradient at or below the level                    (3)

(1) = L where R > b, 2b − L where R < b, b (gradient 0) where R = b, with R = L. Only the side of b
that R is on decides. R may therefore come from elsewhere, and the gradient of many parts is that of
the whole batch if all parts share the R of the whole: R = Σ w_r L_r / Σ w_r over processes (`sync`)
or over the micro-batches of one step.                                                           (4)

Near the level a step down and a step up alternate. With SGD of rate ε, g = ∇L and H = ∇²L,

    θ' = θ − ε g(θ),  θ'' = θ' + ε g(θ')  ⇒  θ'' ≈ θ − ε² H g = θ − (ε²/2) ∇|g|²               (5)

so flooding descends on the squared gradient norm at rate ε²/2: exactly if L is quadratic, else up
to O(ε³). On two different batches A, B a noise ε (g_B − g_A) of zero mean comes on top.

Symbols: loss L, level b, reference R, weight w (how many terms L is a mean of).
Cost: a comparison. (5) is slow, ε²/2 per pair of steps; `gradient_penalty` adds the norm directly.
Sources: arXiv 2002.08709 (1); iFlood, ICLR 2022, and AdaFlood, TMLR 2024 (2); article 7643 (5).
Unlike the line people paste: values above the level are unchanged to the last bit, NaN stays NaN,
and parts of a batch turn together. See also: `kexue.optim.backstitch`, unequal steps in turn.
"""

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from kexue.losses.reduction import Reduced, check_reduction, reduced

__all__ = ["FloodingLoss", "flood_gradients_", "flooding"]

MODES = ("batch", "sample", "hinge")
Level = int | float | Tensor


def flooding(
    loss: Float[Tensor, "*terms"],
    level: Level,
    *,
    mode: str = "batch",
    reduction: str = "mean",
    weight: Shaped[Tensor, "*other"] | int | float | None = None,
    reference: Float[Tensor, ""] | None = None,
    sync: bool = False,
    group: ProcessGroup | None = None,
) -> Reduced:
    """A loss that does not sink below a level.

    Args:
        loss: for "batch" the mean loss of the batch (0-d); for "sample" one loss per term; for
            "hinge" either.
        level: b, in the unit of the loss; for terms also a tensor that broadcasts to them. The
            paper searches 0 to 0.2 for classification. No gradient flows into it.
        mode: "batch" (1), "sample" (2) or "hinge" (3).
        reduction: "mean", "sum", "none" or "sum_and_count", as in every loss of this folder.
        weight: how much each term counts, such as `targets != -100`; of a mean loss, how many
            terms it is a mean of.
        reference: R of (4) for a 0-d loss, such as the mean over all micro-batches of a step from
            a first pass without gradients; the loss itself if None.
        sync: R is the mean over all processes, so that all turn together; one all-reduce of two
            numbers. Without distributed training it changes nothing.
        group: the processes; all of them if None.

    Returns:
        The loss in float32 or float64, for "sum_and_count" with its count. NaN stays NaN.

    Raises:
        ValueError: an unknown mode or reduction, a loss of the wrong shape for the mode, a level
            that is NaN or does not broadcast, `reference` or `sync` where every term decides alone.
        TypeError: the loss is no floating tensor.

    Example:
        >>> import torch
        >>> losses = torch.tensor([0.02, 0.4, 0.09, 0.11, 1.5], dtype=torch.float64)
        >>> round(flooding(losses.mean(), 0.1).item(), 4)
        0.424
        >>> round(flooding(losses, 0.1, mode="sample").item(), 4)
        0.46
    """
    check_reduction(reduction)
    _check(loss, level, mode)
    whole = loss.dim() == 0
    if not whole and (sync or reference is not None):
        raise ValueError(
            f"sync and reference turn a mean loss; with losses of shape {tuple(loss.shape)} every "
            "term decides alone: leave them out, or pass the mean loss"
        )
    loss = loss.to(torch.promote_types(loss.dtype, torch.float32))
    counts = None if weight is None else torch.as_tensor(weight, device=loss.device)
    if whole:
        reference = loss.detach() if reference is None else reference
        reference = _over_processes(reference, counts, group) if sync else reference
    return reduced(_flooded(loss, level, reference, mode), reduction, counts)


def flood_gradients_(
    parameters: Iterable[Tensor],
    loss: Float[Tensor, ""] | float,
    level: float,
    *,
    mode: str = "batch",
) -> None:
    """Turns accumulated gradients of the plain loss into those of the flooded one, in place.

    ∇L̃ = ∇L, −∇L or 0 as the mean loss of the whole step is above, below or at the level, so
    accumulation needs no second pass: add up gradients of L as ever, and call this before
    clipping and `optimizer.step()`. Whatever else is in the gradients turns with them.

    Args:
        parameters: those whose `grad` is turned.
        loss: the mean over the whole step, and over all processes if there are several.
        level: b.
        mode: "batch" (1) or "hinge" (3).

    Raises:
        ValueError: "sample" or an unknown mode; a loss that is not 0-d; a NaN level.

    Example:
        >>> import torch
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> for part in (0.02, 0.06):
        ...     (part * x.sum() / 2).backward()
        >>> flood_gradients_([x], 0.12, level=0.2)
        >>> x.grad
        tensor([-0.0400])
    """
    if mode == "sample":
        raise ValueError('flood_gradients_ knows one mean loss: mode must be "batch" or "hinge"')
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    dtype = loss.dtype if isinstance(loss, Tensor) else torch.float64
    probe = torch.zeros((), dtype=dtype, device=gradients[0].device, requires_grad=True)
    reference = torch.as_tensor(loss, dtype=dtype).detach().to(probe.device)
    _check(reference, level, mode)
    with torch.enable_grad():
        flooded = _flooded(probe, level, reference, mode)
    (factor,) = torch.autograd.grad(flooded, probe, allow_unused=True)
    with torch.no_grad():
        torch._foreach_mul_(gradients, factor)


def _flooded(loss: Tensor, level: Level, reference: Tensor | None, mode: str) -> Tensor:
    """(1), (2) and (3), term by term."""
    b = torch.as_tensor(level, dtype=loss.dtype, device=loss.device).detach()
    r = (loss.detach() if reference is None else reference).to(loss.dtype)
    if mode == "hinge":
        return torch.where(r <= b, b, loss)  # (3); a comparison with NaN is false
    flooded = torch.where(r < b, 2 * b - loss, loss)  # (1), (2)
    return torch.where(r == b, b, flooded)


def _over_processes(mean: Tensor, weight: Tensor | None, group: ProcessGroup | None) -> Tensor:
    """The weighted mean over the processes: (4)."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return mean
    count = torch.ones_like(mean) if weight is None else weight.to(mean.dtype)
    pair = torch.stack([torch.where(count == 0, 0.0, mean * count), count])
    distributed.all_reduce(pair, group=group)
    return pair[0] / pair[1]  # (4)


def _check(loss: Tensor, level: Level, mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")
    if not loss.is_floating_point():
        raise TypeError(f"loss must be a floating tensor, got {loss.dtype}")
    shape = tuple(loss.shape)
    if mode == "batch" and loss.dim():
        raise ValueError(
            f'mode="batch" takes the mean loss of the batch, got losses of shape {shape}: pass '
            'loss.mean(), or mode="sample" to hold each of them at the level'
        )
    if mode == "sample" and not loss.dim():
        raise ValueError(
            'mode="sample" takes one loss per sample, got a 0-d loss: compute it with '
            'reduction="none", or choose mode="batch"'
        )
    if isinstance(level, Tensor) and not _fits(level, loss):
        raise ValueError(
            f"level of shape {tuple(level.shape)} does not broadcast to the losses of shape {shape}"
        )
    _check_level(level)


def _fits(level: Tensor, loss: Tensor) -> bool:
    ends = zip(reversed(level.shape), reversed(loss.shape), strict=False)
    return level.dim() <= loss.dim() and all(a in (1, b) for a, b in ends)


def _check_level(level: Level) -> None:
    """NaN is refused and a negative level remarked; values on an accelerator are not read."""
    if torch.compiler.is_compiling():
        return
    if isinstance(level, Tensor) and level.device.type != "cpu":
        return
    values = torch.as_tensor(level)
    if values.isnan().any():
        raise ValueError("level holds NaN; give the loss at which training shall stay")
    if (values < 0).any():
        warnings.warn(
            f"a flooding level below 0 (the lowest: {values.min().item():g}) has no effect on a "
            "loss that cannot be negative, such as a cross-entropy",
            stacklevel=3,
        )


class FloodingLoss(nn.Module):
    """`flooding` around a loss, with a start, for accumulated steps and several processes.

    In `eval()` it gives the plain loss. `raw` is the plain mean loss of the last call, to be
    logged. What it remembers (calls, the last step's mean) is in its `state_dict()`.

    Args:
        base_loss: any function or module; its arguments are passed on. For "batch" it returns the
            mean over the batch, for "sample" one loss per term. Put no regulariser into it: that
            shifts the lowest loss that can be reached.
        level: b, see `flooding`; a tensor becomes a buffer.
        mode: "batch", "sample" or "hinge".
        reduction: as in `flooding`.
        start: optimizer steps before flooding begins, or "below": it begins with the call after
            the first one whose mean loss was below the (mean) level. Matters for "sample", where
            otherwise easy samples are pushed up from the first step on.
        accumulation_steps: calls per optimizer step. Above 1 a mean loss is compared by the mean
            of the previous step's calls, since the present one is known too late; the first step
            is not flooded. For the exact sign use `flood_gradients_`, or two passes and
            `flooding(reference=…)`.
        sync: all processes turn together, by their common mean; set it under DDP.
        patience: optimizer steps after which a warning says that the loss was never above the
            level, which then only keeps the model from learning. 0: no warning.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> import torch
        >>> loss = FloodingLoss(nn.CrossEntropyLoss(), level=0.1)
        >>> logits = torch.tensor([[4.0, 0.0]], requires_grad=True)
        >>> value = loss(logits, torch.tensor([0]))
        >>> round(loss.raw.item(), 4), round(value.item(), 4)
        (0.0181, 0.1819)
    """

    level: float | Tensor
    raw: Tensor
    calls: Tensor
    below: Tensor
    above: Tensor
    total: Tensor
    count: Tensor
    previous: Tensor

    def __init__(
        self,
        base_loss: Callable[..., Tensor],
        level: Level,
        *,
        mode: str = "batch",
        reduction: str = "mean",
        start: int | Literal["below"] = 0,
        accumulation_steps: int = 1,
        sync: bool = False,
        patience: int = 100,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")
        if start != "below" and (isinstance(start, str) or start < 0):
            raise ValueError(f'start must be a number of steps or "below", got {start!r}')
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be at least 1, got {accumulation_steps}")
        _check_level(level)
        self.base_loss, self.mode, self.reduction = base_loss, mode, reduction
        self.start, self.accumulation_steps = start, accumulation_steps
        self.sync, self.patience = sync, patience
        if isinstance(level, Tensor):
            self.register_buffer("level", level.detach().clone())
        else:
            self.level = float(level)
        self.register_buffer("raw", torch.tensor(torch.nan), persistent=False)
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("below", torch.tensor(False))
        self.register_buffer("above", torch.tensor(False))
        self.register_buffer("total", torch.tensor(0.0))
        self.register_buffer("count", torch.tensor(0.0))
        self.register_buffer("previous", torch.tensor(torch.inf))  # above any level: no flooding

    def forward(
        self, *arguments: Any, weight: Tensor | int | float | None = None, **named: Any
    ) -> Reduced:
        """The flooded loss of `base_loss(*arguments, **named)`; `weight` as in `flooding`."""
        loss = self.base_loss(*arguments, **named)
        counts = None if weight is None else torch.as_tensor(weight, device=loss.device)
        loss = loss.to(torch.promote_types(loss.dtype, torch.float32))
        if not self.training:
            return reduced(loss, self.reduction, counts)
        _check(loss, torch.zeros(()) if isinstance(self.level, float) else self.level, self.mode)
        if self.calls.device != loss.device:
            self.to(loss.device)
        mean, count = self._mean(loss.detach(), counts)
        reference = None
        if loss.dim() == 0:
            reference = mean if self.accumulation_steps == 1 else self.previous
        level = torch.as_tensor(self.level, device=loss.device, dtype=loss.dtype)
        level = torch.where(self._started(), level, -torch.inf)
        flooded = _flooded(loss, level, reference, self.mode)
        self._remember(mean, count)
        return reduced(flooded, self.reduction, counts)

    def extra_repr(self) -> str:
        level = self.level if isinstance(self.level, float) else tuple(self.level.shape)
        return f"level={level}, mode={self.mode!r}, reduction={self.reduction!r}"

    def _mean(self, loss: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """The plain mean of this call, over the processes if they are synchronised."""
        pair = reduced(loss, "sum_and_count", weight)
        total, count = pair[0], pair[1]
        mean = total / torch.where(count == 0, 1.0, count)
        return (_over_processes(mean, count, None) if self.sync else mean), count

    def _started(self) -> Tensor:
        if self.start == "below":
            return self.below
        return self.calls // self.accumulation_steps >= self.start

    def _remember(self, mean: Tensor, count: Tensor) -> None:
        level = torch.as_tensor(self.level, device=mean.device, dtype=mean.dtype).mean()
        self.raw = mean
        self.below = self.below | (mean < level)
        self.above = self.above | (mean > level)
        total = self.total + torch.where(count == 0, 0.0, mean * count)
        counted = self.count + count
        self.calls = self.calls + 1
        closed = self.calls % self.accumulation_steps == 0
        self.previous = torch.where(closed & (counted > 0), total / counted, self.previous)
        self.total = torch.where(closed, 0.0, total)
        self.count = torch.where(closed, 0.0, counted)
        if not torch.compiler.is_compiling():
            self._warn()

    def _warn(self) -> None:
        """Once, after `patience` steps; the only look at a value, and none before."""
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == self.patience * self.accumulation_steps and not self.above:
            warnings.warn(
                f"in {self.patience} steps the loss was never above the flooding level "
                f"{self.level}; the model can only get worse: lower the level",
                stacklevel=4,
            )
