"""The tricks that `--trick name=value` knows: losses of `kexue.losses` around any objective L.

| name             | what is minimised, v = value                                  | for     |
|------------------|---------------------------------------------------------------|---------|
| flooding         | abs(L − v) + v                                                | all     |
| r_drop           | mean of L over two passes p, q + v/4 · (KL(p‖q) + KL(q‖p))    | softmax |
| fgm              | L + L(E + v·g/‖g‖),  E the embedding table, g = ∂L/∂E         | all     |
| pgd              | L + L(E + δ),  δ by three steps of v/2 in a ball of radius v  | all     |
| vat              | L + KL(p‖p(e + δ)),  δ of length v where it changes p most    | softmax |
| gradient_penalty | L + v·‖∂L/∂E‖²                                                | all     |
| weissi           | L + v·Σ log‖W‖,  W the matrices that no normalisation follows | all     |
| logit_adjustment | cross-entropy of z + v·log π,  π the classes' shares          | softmax |
| focal            | −(1 − p)^v log p                                              | softmax |

Those for softmax need the scores of classes: the single-text, pair and choice tasks. The last two
take the place of the task's own loss, so they come first; all others stack in any order. A trick
works on each micro-batch by itself, so a batch that is cut up for memory is not quite the same.

`trainer_loss` brings losses of outputs and labels to Hugging Face's Trainer.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kexue.data.batching import Batch
from kexue.losses.adversarial import FGM, PGD, virtual_adversarial_loss
from kexue.losses.flooding import flooding
from kexue.losses.gradient_penalty import EmbeddingGradientPenalty
from kexue.losses.imbalance import logit_adjusted_loss, prior_from_counts, softmax_focal_loss
from kexue.losses.r_drop import r_drop_loss
from kexue.losses.weissi import weissi_penalty
from kexue.training.objective import Objective, TaskFacts, Tricked, register_trick

__all__ = ["Seen", "embedding_of", "trainer_loss"]


@register_trick("flooding")
def flooded(objective: Objective, level: float, facts: TaskFacts) -> Objective:
    """The loss turns round at the level (S35)."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return one(flooding(objective(model, batch), level))

    return loss


@register_trick("r_drop")
def r_drop(objective: Objective, alpha: float, facts: TaskFacts) -> Objective:
    """Two passes with different dropout agree."""
    needs_classes("r_drop", facts)
    needs_positive("r_drop", alpha)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        p, q = Seen(model), Seen(model)
        mean = (objective(p, batch) + objective(q, batch)) / 2
        return mean + one(r_drop_loss(p.output, q.output, alpha=alpha))

    return loss


@register_trick("fgm")
def fgm(objective: Objective, epsilon: float, facts: TaskFacts) -> Objective:
    """Also at the embeddings a step uphill."""
    needs_positive("fgm", epsilon)
    return Adversarial(objective, lambda table, loss: FGM(table, epsilon).perturbed())


@register_trick("pgd")
def pgd(objective: Objective, epsilon: float, facts: TaskFacts) -> Objective:
    """Also at the embeddings three steps uphill."""
    needs_positive("pgd", epsilon)
    return Adversarial(
        objective, lambda table, loss: PGD(table, epsilon, alpha=epsilon / 2).perturbed(loss)
    )


@register_trick("vat")
def virtual_adversarial(objective: Objective, epsilon: float, facts: TaskFacts) -> Objective:
    """The prediction stays where it is under the worst small shift of the embeddings."""
    needs_classes("vat", facts)
    needs_positive("vat", epsilon)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        lookup = Lookup(embedding_of(model))
        with lookup:
            plain = objective(model, batch)

            def forward(embeddings: Tensor) -> Tensor:
                lookup.replacement, seen = embeddings, Seen(model)
                objective(seen, batch)
                scores: Tensor = seen.output
                return scores.float()

            visible = batch.inputs.get("attention_mask")
            moved = virtual_adversarial_loss(forward, lookup.output, epsilon=epsilon, mask=visible)
        return plain + one(moved)

    return loss


@register_trick("gradient_penalty")
def gradient_penalised(objective: Objective, coef: float, facts: TaskFacts) -> Objective:
    """A small gradient at the embedding table (S15); attention in plain products."""
    needs_positive("gradient_penalty", coef)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            plain = objective(model, batch)
            return plain + EmbeddingGradientPenalty(embedding_of(model), coef)(plain)

    return loss


@register_trick("weissi")
def weissi(objective: Objective, coef: float, facts: TaskFacts) -> Objective:
    """A pull on the logarithm of every norm (S36)."""
    needs_positive("weissi", coef)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return objective(model, batch) + weissi_penalty(model, lambda1=coef)

    return loss


@register_trick("logit_adjustment")
def logit_adjusted(objective: Objective, tau: float, facts: TaskFacts) -> Objective:
    """Margins for rare classes from the training labels (S37)."""
    needs_classes("logit_adjustment", facts)
    if facts.label_counts is None:
        raise ValueError(f"logit_adjustment needs classes to count; {facts.name} has none")
    prior = prior_from_counts(facts.label_counts())
    return Instead(
        objective,
        "logit_adjustment",
        lambda scores, label: logit_adjusted_loss(scores, label, prior.to(scores.device), tau),
    )


@register_trick("focal")
def focal(objective: Objective, gamma: float, facts: TaskFacts) -> Objective:
    """Less of what is right already (S37)."""
    needs_classes("focal", facts)
    if gamma < 0:
        raise ValueError(f"--trick focal must not be negative, got {gamma:g}")
    return Instead(
        objective, "focal", lambda scores, label: softmax_focal_loss(scores, label, gamma)
    )


# What they are made of


class Seen(nn.Module):
    """A model that remembers what it returned last.

    Args:
        model: called in its place.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.output: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.output = self.model(*args, **kwargs)
        return self.output


class Instead:
    """A loss of scores and labels in the place of the task's own, which is computed for the log.

    Args:
        objective: the task's own.
        name: of the trick.
        loss: of scores (B, C) and labels (B,).

    Raises:
        ValueError: another trick stands before it and would be lost.
    """

    def __init__(
        self, objective: Objective, name: str, loss: Callable[[Tensor, Tensor], Any]
    ) -> None:
        if not isinstance(getattr(objective, "__self__", None), Tricked):
            raise ValueError(
                f"--trick {name} takes the place of the task's own loss, and of every trick "
                "before it: name it first"
            )
        self.objective, self.loss = objective, loss

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        seen = Seen(model)
        self.objective(seen, batch)
        return one(self.loss(seen.output.float(), batch.targets["label"]))


class Adversarial:
    """L + L where the embedding table is moved to raise L; costs the two steps it is made of.

    Both gradients are computed within the call, while the table is moved and before it is put back
    bit for bit, so the backward pass that follows only hands them out.

    Args:
        objective: L.
        attack: (table, function that computes L) → a context in which the table is moved.
    """

    def __init__(
        self,
        objective: Objective,
        attack: Callable[[nn.Embedding, Callable[[], Tensor]], AbstractContextManager[None]],
    ) -> None:
        self.objective, self.attack = objective, attack

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        if not torch.is_grad_enabled():
            return self.objective(model, batch)
        weight = (table := embedding_of(model)).weight
        trained = [p for p in model.parameters() if p.requires_grad]
        loss = self.objective(model, batch)
        first = torch.autograd.grad(loss, trained, allow_unused=True)
        kept, weight.grad = weight.grad, None
        for parameter, gradient in zip(trained, first, strict=True):
            if parameter is weight:
                weight.grad = gradient  # where attacks look for it
        try:
            with self.attack(table, lambda: self.objective(model, batch)):
                moved = self.objective(model, batch)
                second = torch.autograd.grad(moved, trained, allow_unused=True)
        finally:
            weight.grad = kept
        both = [total(pair) for pair in zip(first, second, strict=True)]
        used = [(p, g) for p, g in zip(trained, both, strict=True) if g is not None]
        value = (loss + moved).detach()
        known: Tensor = KnownGradient.apply(value, *(g for _, g in used), *(p for p, _ in used))
        return known


def total(pair: tuple[Tensor | None, Tensor | None]) -> Tensor | None:
    """The sum of two gradients, None for none."""
    a, b = pair
    return b if a is None else a if b is None else a + b


class KnownGradient(torch.autograd.Function):
    """A scalar whose gradients are known already: (value, g_1 … g_n, p_1 … p_n)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *tensors: Tensor) -> Tensor:
        ctx.gradients = tensors[: len(tensors) // 2]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, outside: Tensor) -> Any:
        return None, *(None for _ in ctx.gradients), *(g * outside for g in ctx.gradients)


class Lookup:
    """In a `with` block: what an embedding module returned, and what it shall return instead."""

    def __init__(self, embedding: nn.Embedding) -> None:
        self.embedding = embedding
        self.output: Any = None
        self.replacement: Tensor | None = None

    def __enter__(self) -> "Lookup":
        self.hook = self.embedding.register_forward_hook(self.seen)
        return self

    def seen(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """The hook."""
        if self.replacement is None:
            self.output = output
        return self.replacement

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def embedding_of(model: nn.Module) -> nn.Embedding:
    """The table of token embeddings of a model, whatever it is wrapped in.

    Raises:
        ValueError: it has none.
    """
    for module in model.modules():
        get = getattr(module, "get_input_embeddings", None)
        if get is not None and isinstance(found := get(), nn.Embedding):
            return found
    raise ValueError(f"{type(model).__name__} has no token embeddings for a trick to work on")


def needs_classes(name: str, facts: TaskFacts) -> None:
    """Refuses tasks without scores of classes."""
    if facts.distribution != "softmax":
        raise ValueError(
            f"--trick {name} needs a softmax over classes, which {facts.name} does not have"
        )


def needs_positive(name: str, value: float) -> None:
    """Refuses what is not above 0."""
    if not value > 0:
        raise ValueError(f"--trick {name} must be positive, got {value:g}")


def one(loss: Any) -> Tensor:
    """A loss that is a tensor and no pair."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"expected one loss, got {type(loss).__name__}")
    return loss


# Hugging Face's Trainer


def trainer_loss(
    loss: Callable[..., Any], logits: str = "logits"
) -> Callable[[Any, Tensor, Any], Tensor]:
    """A loss of (logits, labels, reduction=…) as the Trainer's `compute_loss_func`.

    The Trainer divides the sum over a step's micro-batches by the number of items in all of them;
    so the loss is asked for its sum and its count.

    Args:
        loss: such as `softmax_focal_loss`; further options by `functools.partial`.
        logits: the name of the scores among the model's outputs.

    Example:
        >>> from functools import partial
        >>> function = trainer_loss(partial(softmax_focal_loss, gamma=2.0))
        >>> outputs = {"logits": torch.zeros(2, 3)}
        >>> round(function(outputs, torch.tensor([0, 1]), 2).item(), 4)
        0.4883
    """

    def compute(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        scores = outputs[logits] if isinstance(outputs, dict) else getattr(outputs, logits)
        total, count = loss(scores, labels, reduction="sum_and_count")
        items = count if num_items_in_batch is None else num_items_in_batch
        value: Tensor = total / items
        return value

    return compute
