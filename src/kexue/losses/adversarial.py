r"""对抗训练与虚拟对抗训练 — adversarial training on embeddings (S15)

Train at the worst point near the embeddings instead of at the embeddings.

    FGM   E + epsilon · g / ||g||,     g = ∇_E L of the whole batch, one Frobenius norm         (1)
    PGD   delta ← P(delta + alpha · g / ||g||),   P into the ball ||delta|| <= epsilon          (2)
    VAT   KL(p(x) || p(x + epsilon d)),  d ← ∇_r KL(p(x) || p(x + xi d)) / ||·||, no labels     (3)

To first order (1) adds epsilon ||∇_E L|| to the loss: a gradient penalty without a second
derivative. Here E is the embedding *table*, so every occurrence of a token moves alike.

Symbols: embedding E, epsilon, alpha, steps, xi.   Axes: B samples, C classes.
Cost in plain steps: FGM 2, PGD 1 + steps, VAT 2 + iterations forward passes (3 for one iteration).
Source: article 8796 (context: 7234, 7466 of the same blog); arXiv 2009.11162. The author's script
trains on the gradient at the shifted point alone; Goodfellow's sum of both losses keeps `.grad`.
What we do differently: the weights come back bit by bit (the script adds and subtracts), VAT
normalises every sample by itself and drops the same units in all passes (the script's direction is
common to the batch, and its dropout differs).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.losses.divergence import kl_divergence, without_rows
from kexue.losses.gradient_penalty import table_of
from kexue.losses.reduction import Reduced, check_reduction, reduced
from kexue.losses.same_noise import SameNoise
from kexue.losses.shift import frobenius_norm, shifted, unit_step

__all__ = ["FGM", "PGD", "virtual_adversarial_loss"]


class FGM:
    """The fast gradient method on an embedding table: (1).

        loss.backward()                          # leaves the gradient of the table
        with fgm.perturbed():
            model(batch).loss.backward()         # added to the first gradient
        optimizer.step()

    Call `optimizer.zero_grad()` before the second backward pass to train on the shifted point
    alone, as the author's script does (with epsilon = 0.5).

    Args:
        embedding: the module with the table as `weight`, or the table.
        epsilon: length of the shift of the whole table, in units of the embeddings.

    Raises:
        ValueError: epsilon negative or not finite; no weight, or a frozen one.

    Example:
        >>> table = nn.Embedding.from_pretrained(torch.zeros(2, 2), freeze=False)
        >>> (table(torch.tensor([1])) * torch.tensor([3.0, 4.0])).sum().backward()
        >>> with FGM(table).perturbed():
        ...     print(table.weight.data)
        tensor([[0.0000, 0.0000],
                [0.6000, 0.8000]])
    """

    def __init__(self, embedding: nn.Module | nn.Parameter, epsilon: float = 1.0) -> None:
        _check_positive(epsilon=epsilon)
        self.weight = table_of(embedding)
        self.epsilon = epsilon

    def perturbed(self) -> AbstractContextManager[None]:
        """Inside, the table is shifted along its `.grad`; afterwards it has its old bits.

        A gradient that is zero or not finite shifts nothing. With a decoder tied to the table, run
        the backward pass inside as well.

        Raises:
            ValueError: the table has no gradient yet.
        """
        if self.weight.grad is None:
            raise ValueError("the embedding table has no gradient: call loss.backward() first")
        step, _ = unit_step([self.weight.grad], self.epsilon)  # (1)
        return shifted([self.weight], step)


class PGD:
    """Projected gradient descent on an embedding table: (2).

        loss.backward()
        with pgd.perturbed(lambda: model(batch).loss):
            model(batch).loss.backward()
        optimizer.step()

    The inner steps differentiate by the table alone and touch no `.grad`. Under DDP let the closure
    call `model.module`; the gradients of the table are then averaged here.

    Args:
        embedding: the module with the table as `weight`, or the table.
        epsilon: radius of the ball.
        alpha: length of one inner step.
        steps: inner steps, each one forward and backward pass.

    Raises:
        ValueError: epsilon or alpha negative or not finite, steps < 1, no weight or a frozen one.

    Example:
        >>> w = nn.Parameter(torch.tensor([1.0, 0.0]))
        >>> with PGD(w, epsilon=1.0, alpha=0.3, steps=2).perturbed(lambda: w.square().sum()):
        ...     print(w.data)
        tensor([1.6000, 0.0000])
    """

    def __init__(
        self,
        embedding: nn.Module | nn.Parameter,
        epsilon: float = 1.0,
        alpha: float = 0.3,
        steps: int = 3,
    ) -> None:
        _check_positive(epsilon=epsilon, alpha=alpha)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.weight = table_of(embedding)
        self.epsilon, self.alpha, self.steps = epsilon, alpha, steps

    def perturbed(self, closure: Callable[[], Tensor]) -> AbstractContextManager[None]:
        """Inside, the table is shifted by (2); afterwards it has its old bits.

        Args:
            closure: computes the loss, a scalar, without calling backward.
        """
        return shifted([self.weight], [self.attack(closure)])

    def attack(self, closure: Callable[[], Tensor]) -> Tensor:
        """The shift of (2), after `steps` calls of the closure."""
        delta = torch.zeros_like(
            self.weight, dtype=torch.promote_types(self.weight.dtype, torch.float32)
        )
        noise = SameNoise(self.weight.device)
        for _ in range(self.steps):
            with noise.replay(), shifted([self.weight], [delta]), torch.enable_grad():
                (grad,) = torch.autograd.grad(closure(), self.weight)
            (step,), _ = unit_step([_averaged(grad)], self.alpha)
            delta = delta if step is None else delta + step
            length = frobenius_norm(delta)
            delta = delta * (self.epsilon / length.clamp(min=self.epsilon))  # (2)
        return delta


def virtual_adversarial_loss(
    forward: Callable[[Tensor], Tensor],
    embeddings: Float[Tensor, "B ..."],
    *,
    logits: Float[Tensor, "B *outputs C"] | None = None,
    epsilon: float = 1.0,
    xi: float = 0.1,
    iterations: int = 1,
    kind: Literal["softmax", "sigmoid"] = "softmax",
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    reduction: Literal["mean", "sum", "none", "sum_and_count"] = "mean",
    weight: Tensor | None = None,
) -> Reduced:
    """How much the prediction moves under the worst small shift of the embeddings: (3).

    Needs no labels. The prediction at the embeddings themselves is a constant target.

    Args:
        forward: maps embeddings to logits of the same samples; sees the same dropout in each pass.
        embeddings: inputs or embeddings; gradients flow into them through the last pass.
        logits: the prediction at the embeddings, if already known; then switch dropout off.
        epsilon: length of the shift of each sample.
        xi: length of the finite step that looks for the direction; below about 1e-3 the
            differences drown in float32.
        iterations: power iterations; one is usual.
        kind: "softmax" over the last axis, or "sigmoid" for independent labels.
        mask: True at the tokens that may move, (B, T); padding should not.
        generator: source of the first direction.
        reduction: over all predictions, "none" for one value each.
        weight: how much each prediction counts, broadcastable to logits without the last axis.

    Returns:
        KL divergence in nats, float32 or better; a sample whose direction is zero or not finite
        is not shifted.

    Raises:
        ValueError: lengths not positive, iterations < 1, an unknown kind.

    Example:
        >>> linear = nn.Linear(4, 3)
        >>> loss = virtual_adversarial_loss(linear, torch.randn(2, 4), epsilon=0.5)
        >>> bool(loss > 0)
        True
    """
    check_reduction(reduction)
    _check_positive(epsilon=epsilon, xi=xi)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    noise = SameNoise(embeddings.device)
    if logits is None:
        with torch.no_grad():
            logits = forward(embeddings)
    target, fixed = logits.detach(), embeddings.detach()
    movable = torch.ones((), device=fixed.device) if mask is None else mask
    movable = movable.reshape(movable.shape + (1,) * (fixed.dim() - movable.dim()))
    source = fixed.device if generator is None else generator.device
    draw = torch.randn(fixed.shape, generator=generator, device=source).to(fixed.device)
    direction = _unit_rows(draw * movable)
    for _ in range(iterations):
        with noise.replay(), torch.enable_grad():
            probe = (xi * direction).to(fixed.dtype).requires_grad_()
            distance = kl_divergence(target, forward(fixed + probe), kind=kind).sum()
            (grad,) = torch.autograd.grad(distance, probe)
        direction = _unit_rows(grad * movable)
    with noise.replay():
        moved = forward(embeddings + (epsilon * direction).to(fixed.dtype))
    if weight is not None:
        target, moved = (without_rows(one, weight == 0) for one in (target, moved))
    return reduced(kl_divergence(target, moved, kind=kind), reduction, weight)  # (3)


def _unit_rows(x: Tensor) -> Tensor:
    length = frobenius_norm(x.flatten(start_dim=1), dim=1)
    usable = torch.isfinite(length) & (length > 0)
    shape = (-1,) + (1,) * (x.dim() - 1)
    unit = torch.where(usable, length, 1.0).view(shape)
    return torch.where(usable.view(shape), x.to(unit.dtype) / unit, 0.0).detach()


def _averaged(grad: Tensor) -> Tensor:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        grad = grad.to_dense() if grad.is_sparse else grad.contiguous()
        distributed.all_reduce(grad)
        grad /= distributed.get_world_size()
    return grad


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value}")
