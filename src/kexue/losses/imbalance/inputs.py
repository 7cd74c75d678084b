"""What the losses against class imbalance do before their formulas (S37).

Inputs are checked, widened to float32 or better whatever autocast says, and where a term does not
count (`ignore_index`, `mask`) its logits become 0, so that NaN in padding reaches neither the loss
nor the gradients.

Softmax losses take one label per row, sigmoid losses one target per element:

    softmax   logits (*batch, K), labels (*batch)      p = softmax(z), classes exclude each other
    sigmoid   logits (*shape),    targets (*shape)     p = sigmoid(z), every element by itself
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from kexue.losses.reduction import Reduced, check_reduction, reduced

__all__ = [
    "MeanOver",
    "Numbers",
    "as_numbers",
    "class_inputs",
    "class_vector",
    "element_inputs",
    "reduced_by_class",
    "target_log_odds",
    "two_sided",
]

Numbers = Tensor | Sequence[float | int]
"""One number per class."""
MeanOver = Literal["weights", "samples"]
"""What the mean of weighted terms is divided by: their weights, as in torch, or their count."""


def class_inputs(
    logits: Float[Tensor, "*batch K"],
    labels: Int[Tensor, "*batch"],
    ignore_index: int,
    mask: Bool[Tensor, "*batch"] | None,
) -> tuple[Float[Tensor, "*batch K"], Int[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """Wide logits, labels, and which rows count.

    Raises:
        ValueError: shapes that do not match, fewer than two classes, a label out of range or on a
            class whose logit is −inf; the row is named.
    """
    if logits.dim() == 0 or logits.shape[-1] < 2:
        raise ValueError(
            "softmax losses need a last axis of at least 2 classes, got logits of shape "
            f"{tuple(logits.shape)}; for one logit per element take a sigmoid loss"
        )
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels {tuple(labels.shape)} must have the shape of logits {tuple(logits.shape)} "
            "without its last axis, the classes"
        )
    kept = labels != ignore_index
    if mask is not None:
        kept = kept & _same_shape(mask, labels.shape)
    labels = labels.long().masked_fill(~kept, 0)
    if not torch.compiler.is_compiling():
        _check_labels(logits, labels, kept)
    logits = _wide(logits).masked_fill(~kept.unsqueeze(-1), 0.0)  # (*batch, K)
    return logits, labels, kept


def element_inputs(
    logits: Float[Tensor, "*shape"],
    targets: Shaped[Tensor, "*shape"],
    ignore_index: int,
    mask: Bool[Tensor, "..."] | None,
) -> tuple[Float[Tensor, "*shape"], Shaped[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
    """Wide logits, targets (boolean for hard ones), and which elements count.

    Raises:
        ValueError: shapes that do not match, or a target outside [0, 1]; its place is named.
    """
    if targets.shape != logits.shape:
        raise ValueError(
            f"targets {tuple(targets.shape)} must have the shape of logits {tuple(logits.shape)}; "
            "sigmoid losses take one target per logit, so squeeze or one-hot first"
        )
    kept = targets != ignore_index
    if mask is not None:
        kept = kept & _same_shape(mask, logits.shape, logits.shape[:-1])
    targets = targets.detach().masked_fill(~kept, 0)
    if not torch.compiler.is_compiling():
        _check_elements(targets)
    logits = _wide(logits).masked_fill(~kept, 0.0)
    soft = targets.is_floating_point()
    return logits, targets.to(logits.dtype) if soft else targets.bool(), kept


def two_sided(
    loss_of: Callable[[Tensor], Tensor],
    logits: Tensor,
    targets: Tensor,
    positive: Tensor | float = 1.0,
    negative: Tensor | float = 1.0,
) -> Tensor:
    """y·positive·f(z) + (1 − y)·negative·f(−z): one function of the logit of being right.

    Hard targets take one evaluation, soft ones both.
    """
    sides = positive, negative
    if targets.dtype == torch.bool:
        a, b = (torch.as_tensor(x, dtype=logits.dtype, device=logits.device) for x in sides)
        return torch.where(targets, a, b) * loss_of(torch.where(targets, logits, -logits))
    return targets * positive * loss_of(logits) + (1 - targets) * negative * loss_of(-logits)


def target_log_odds(
    logits: Float[Tensor, "*batch K"], labels: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """log p_y / (1 − p_y) of the labelled class: softmax seen as a sigmoid, p_y = sigmoid(this)."""
    labels = labels.unsqueeze(-1)
    others = logits.scatter(-1, labels, -torch.inf)  # (*batch, K)
    alone = others.isneginf().all(dim=-1)  # all other classes masked: nothing left to learn
    others = others.masked_fill(alone.unsqueeze(-1), 0.0).logsumexp(dim=-1)  # (*batch)
    odds: Tensor = logits.gather(-1, labels).squeeze(-1) - others
    return odds.masked_fill(alone, torch.inf)


def as_numbers(values: Numbers) -> Tensor:
    """A tensor as it is, a list in float64."""
    if isinstance(values, Tensor):
        return values.detach()
    return torch.tensor(values, dtype=torch.float64)


def class_vector(values: Numbers, classes: int, name: str, like: Tensor) -> Float[Tensor, " K"]:
    """One finite number >= 0 per class, in the logits' dtype and on their device.

    Raises:
        ValueError: another shape, or a negative or infinite number; it is named.
    """
    vector = as_numbers(values).to(like)
    if vector.shape != (classes,):
        raise ValueError(
            f"{name} needs one number per class, shape ({classes},), got {tuple(vector.shape)}"
        )
    if not torch.compiler.is_compiling():
        bad = ~(vector.isfinite() & (vector >= 0))
        if bad.any():
            k = int(bad.nonzero()[0])
            raise ValueError(f"{name} must be finite and >= 0, got {vector[k].item()} of class {k}")
    return vector


def reduced_by_class(
    values: Tensor, reduction: str, kept: Tensor, weight: Tensor | None, mean_over: str
) -> Reduced:
    """`reduced` of terms that already carry their class weight, which the mean may divide by."""
    check_reduction(reduction)
    if mean_over not in ("weights", "samples"):
        raise ValueError(f'mean_over must be "weights" or "samples", got {mean_over!r}')
    if weight is None or mean_over == "samples" or reduction in ("none", "sum"):
        return reduced(values, reduction, kept)
    total, count = values.masked_fill(~kept, 0.0).sum(), weight.masked_fill(~kept, 0.0).sum()
    if reduction == "mean":
        return total / torch.where(count == 0, 1.0, count)
    return total, count


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _same_shape(mask: Tensor, *shapes: torch.Size) -> Tensor:
    if mask.shape not in shapes:
        wanted = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"mask must have shape {wanted}, got {tuple(mask.shape)}")
    return mask if mask.shape == shapes[0] else mask.unsqueeze(-1)


def _check_labels(logits: Tensor, labels: Tensor, kept: Tensor) -> None:
    classes = logits.shape[-1]
    outside = kept & ((labels < 0) | (labels >= classes))
    where = labels.masked_fill(outside, 0).unsqueeze(-1)
    masked = kept & ~outside & logits.detach().gather(-1, where).squeeze(-1).isneginf()
    if (outside | masked).any():
        row = tuple((outside | masked).nonzero()[0].tolist())
        why = (
            f"is outside 0 … {classes - 1}; mark rows that do not count with ignore_index"
            if outside[row]
            else "is a masked class (logit −inf)"
        )
        raise ValueError(f"row {row}: label {int(labels[row])} {why}")


def _check_elements(targets: Tensor) -> None:
    outside = ~((targets >= 0) & (targets <= 1))  # NaN is outside too
    if outside.any():
        where = tuple(outside.nonzero()[0].tolist())
        raise ValueError(
            f"element {where}: target {targets[where].item()} is outside [0, 1]; mark elements "
            "that do not count with ignore_index"
        )
