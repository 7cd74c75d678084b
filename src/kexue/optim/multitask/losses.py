r"""Multi-task losses combined by value — 多任务学习漫谈（一）：以损失之名 (S16)

n losses L_i, in different units, become one; the gradient of the result is Σ c_i ∇L_i.

| method | value | factor c_i |
| sum | Σ w_i L_i | w_i | (1)
| initial | Σ w_i L_i / L_i^init, the loss before training | w_i / L_i^init | (2)
| prior | Σ w_i L_i / L_i^prior, the loss of the label frequencies alone | w_i / L_i^prior | (2)
| dynamic | Σ w_i L_i / sg(L_i) = Σ w_i, always | w_i / L_i | (3)
| geometric | (Π L_i)^{1/n} | the direction of (3) | (4)
| power_mean | M_γ = ((1/n) Σ L_i^γ)^{1/γ} | (1/n) M_γ^{1−γ} L_i^{γ−1} | (5)
| uncertainty | Σ [L_i / (2σ_i²) + log σ_i], σ learned | 1 / (2σ_i²) | (6)

Dividing a loss by a constant changes nothing in (2), (3), (4): they know no units. The article
prefers prior to initial, and calls (3) a good baseline. γ in (5) replaces n weights by one number:
larger γ counts the worst task more (1 arithmetic, 0 geometric, ±∞ maximum and minimum). (6) has its
minimum at σ_i² = L_i, where it is n/2 + ½ Σ log L_i: the direction of (3) once more. No scheme of
losses is blind to a constant added to a loss; dividing gradients by their lengths is
(`kexue.optim.multitask`, method="sum" with normalise=True).

Symbols: w weights, γ gamma, L^init and L^prior reference, log σ log_sigma, sg stop-gradient.
Cost: n numbers. Sources: article 8870; (6) from arXiv 1705.07115, not in the article; weights in
(4) and (5) and the limits of γ are ours.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Method", "combine_losses", "prior_loss", "separate"]

Method = Literal["sum", "geometric", "power_mean", "initial", "prior", "dynamic", "uncertainty"]
OPTION = {"power_mean": "gamma", "initial": "reference", "prior": "reference"}
OPTION |= {"uncertainty": "log_sigma"}
MEANING = {
    "gamma": "the exponent, such as 0.0",
    "reference": "one positive loss per task, such as [prior_loss(labels), 0.5]",
    "log_sigma": "a learned tensor with one number per task, such as Parameter(torch.zeros(n))",
}


def combine_losses(
    losses: Sequence[Tensor] | Tensor,
    method: Method = "sum",
    weights: Sequence[float] | None = None,
    gamma: float | None = None,
    *,
    reference: Sequence[float] | None = None,
    log_sigma: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """One loss from n losses of different scale, to call `.backward()` on.

    Args:
        losses: one scalar per task, as a list or a vector.
        method: how, see the table at the head of this file.
        weights: one number ≥ 0 per task, default all 1; relative ones in "geometric" and
            "power_mean".
        gamma: exponent of "power_mean"; ±inf are allowed.
        reference: the constant losses of "initial" or "prior", in the units of `losses`: measured
            on a few batches before training, or from `prior_loss`.
        log_sigma: log σ of "uncertainty"; give it to the optimizer.

    Returns:
        A scalar in float32 or better whatever autocast says. Off the CPU, where reading values
        costs time, a loss ≤ 0 under a method that needs positive ones makes it NaN.

    Raises:
        TypeError: `losses` is a single number or a mapping, or an option is missing or foreign.
        ValueError: a loss is not scalar, a loss or reference is not positive where its logarithm
            or inverse is taken, or the number of weights is wrong; the message names the task.

    Example:
        >>> losses = [torch.tensor(0.5), torch.tensor(2.0), torch.tensor(8.0)]
        >>> round(combine_losses(losses, "geometric").item(), 4)
        2.0
        >>> round(combine_losses(losses, "power_mean", gamma=2.0).item(), 4)
        4.7697
    """
    L = _stacked(losses)
    given = {"gamma": gamma, "reference": reference, "log_sigma": log_sigma}
    _check_options(method, [name for name, value in given.items() if value is not None])
    w = _vector("weights", [1.0] * len(L) if weights is None else weights, L, zero=True)
    if method == "sum":
        return w @ L  # (1)
    if method in ("initial", "prior"):
        return w @ (L / _vector("reference", [] if reference is None else reference, L))  # (2)
    if log_sigma is not None:
        if not isinstance(log_sigma, Tensor):
            raise TypeError(f"log_sigma must be {MEANING['log_sigma']}, got {log_sigma!r}")
        if log_sigma.shape != L.shape:
            shape = tuple(log_sigma.shape)
            raise ValueError(f"log_sigma must have shape ({len(L)},), got {shape}")
        return w @ (L * (-2 * log_sigma).exp() / 2 + log_sigma)  # (6)
    if method == "power_mean" and gamma == 1:
        return w @ L / w.sum()  # (5): the arithmetic mean takes any sign
    L = _positive(L, method)
    if method == "dynamic":
        return w @ (L / L.detach())  # (3)
    if not gamma:
        return (w @ L.log() / w.sum()).exp()  # (4)
    if math.isinf(gamma):
        return L[w > 0].max() if gamma > 0 else L[w > 0].min()
    # Through logarithms, so that no power overflows.
    return ((w.log() + gamma * L.log()).logsumexp(0) / gamma - w.sum().log() / gamma).exp()  # (5)


def prior_loss(
    labels: Tensor,
    kind: Literal["classification", "regression"] = "classification",
    *,
    reduction: Literal["sum", "mean"] = "sum",
    ignore_index: int = -100,
) -> float:
    """The loss of knowing nothing but the distribution of the labels, the yardstick of (2).

    Args:
        labels: all labels of the training set. For classification integers of any shape, or one
            row of class probabilities per example; for regression one row per example.
        kind: "classification": the entropy −Σ p_k log p_k of the frequencies, in nats;
            "regression": E‖y − E y‖².
        reduction: of regression over the components of y: "sum" as in the article, or "mean" as
            `torch.nn.functional.mse_loss` does. Use that of your loss.
        ignore_index: an integer label that does not count.

    Returns:
        A float; 0 if all labels are equal, and then no yardstick.

    Raises:
        ValueError: no labels, labels of the wrong type, or an unknown kind or reduction.

    Example:
        >>> round(prior_loss(torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])), 6)
        1.213008
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    if kind == "regression":
        if labels.numel() == 0 or labels.is_complex():
            raise ValueError(f"labels must be real numbers, got {labels.dtype} of {labels.numel()}")
        y = labels.detach().double().reshape(len(labels) if labels.ndim else 1, -1)
        square = (y - y.mean(0)).square()
        return float(square.sum(1).mean() if reduction == "sum" else square.mean())
    if kind != "classification":
        raise ValueError(f"kind must be 'classification' or 'regression', got {kind!r}")
    if labels.is_floating_point():
        if labels.ndim != 2 or len(labels) == 0:
            shape = tuple(labels.shape)
            raise ValueError(
                "floating labels of a classification must be rows of class probabilities, shape "
                f"(examples, classes), got {shape}; for kind='regression' say so"
            )
        p = labels.detach().double().mean(0)
    else:
        kept = labels[labels != ignore_index]
        if len(kept) == 0:
            raise ValueError(f"labels hold nothing but ignore_index={ignore_index}")
        counts = kept.unique(return_counts=True)[1].double()
        p = counts / counts.sum()
    return float(torch.special.entr(p).sum())


def separate(losses: object) -> list[Tensor]:
    """The losses as a list of scalar tensors, or an error that says what was given instead."""
    if isinstance(losses, Mapping):
        raise TypeError("losses must be a list, got a mapping: pass list(losses.values())")
    if not isinstance(losses, (Sequence, Tensor)) or (
        isinstance(losses, Tensor) and losses.ndim != 1
    ):
        what = f"tensor of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else losses
        raise TypeError(
            f"losses must be a list with one scalar per task, got a single {what}: "
            "pass the losses themselves, [loss_0, loss_1], not their sum or mean"
        )
    each = list(losses)
    if not each:
        raise ValueError("losses must not be empty: give one scalar tensor per task")
    for task, loss in enumerate(each):
        if not isinstance(loss, Tensor):
            raise TypeError(f"the loss of task {task} must be a tensor, got {type(loss).__name__}")
        if loss.numel() != 1 or loss.is_complex():
            shape = tuple(loss.shape)
            raise ValueError(
                f"the loss of task {task} must be one real number, got shape {shape} of "
                f"{loss.dtype}; reduce it first, for example with .mean()"
            )
    return each


def _stacked(losses: object) -> Tensor:
    each = [loss.reshape(()) for loss in separate(losses)]
    dtype = torch.float32
    for loss in each:
        dtype = torch.promote_types(dtype, loss.dtype)
    return torch.stack([loss.to(dtype) for loss in each])  # (n,)


def _check_options(method: str, given: list[str]) -> None:
    if method not in Method.__args__:  # type: ignore[attr-defined]
        known = ", ".join(Method.__args__)  # type: ignore[attr-defined]
        raise ValueError(f"method must be one of {known}, got {method!r}")
    needed = OPTION.get(method)
    if needed and needed not in given:
        raise TypeError(f"method={method!r} needs {needed}: {MEANING[needed]}")
    for name in given:
        if name != needed:
            users = [key for key, option in OPTION.items() if option == name]
            raise TypeError(f"{name} belongs to method={users}, got method={method!r}")


def _vector(name: str, numbers: Sequence[float], like: Tensor, *, zero: bool = False) -> Tensor:
    values = [float(number) for number in numbers]
    if len(values) != len(like):
        raise ValueError(f"{name} must hold {len(like)} numbers, one per task, got {values}")
    for task, value in enumerate(values):
        if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
            least = ">= 0" if zero else "> 0"
            raise ValueError(f"{name} must be finite and {least}, got {value} for task {task}")
    if not any(values):
        raise ValueError(f"{name} must not all be zero, got {values}")
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def _positive(L: Tensor, method: str) -> Tensor:
    fine = L > 0
    if L.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(fine.all()):
        task = int((~fine).nonzero()[0])
        if not bool(L[task].isnan()):
            raise ValueError(
                f"method={method!r} needs positive losses, got {float(L[task])} for task {task}; "
                "log densities may be negative: use method='sum', or combine gradients with "
                "kexue.optim.multitask"
            )
    return torch.where(fine, L, torch.nan)
