r"""Multi-task backward — 多任务学习漫谈：以损失之名、行梯度之事、分主次之序 (S16)

The step of a network that several tasks share, with or without a primary one.
`multitask_backward([loss_0, loss_1, …], …)` takes the place of `loss.backward()`:

    g_i = ∂L_i/∂θ,   K_ij = ⟨g_i, g_j⟩,   w = weights(K),   u = Σ w_i g_i                        (1)

θ are the shared parameters and get .grad = u; every other parameter gets its own gradient, as from
an ordinary backward pass. The weights come from `kexue.optim.multitask.gram`:

| method | u | promise to first order for the step −ηu |
| veto | projection of g_0 on {⟨u,g_i⟩ ≥ 0}, i auxiliary | primary falls, no auxiliary rises |
| protect_primary | Σ g_i, corrected | primary falls at least as fast as alone |
| min_norm | shortest vector of the convex hull of all g_i | every task falls |
| sum | Σ g_i | none |
| a function K ↦ w | Σ w_i g_i | yours |

normalise=True first gives all g_i one length; with "sum" this is the article's Σ g_i/‖g_i‖, the one
combination blind to both the unit and the zero of each loss.

With `features` H between encoder and heads, z_i = ∂L_i/∂H stands in for g_i:

    ‖Σ w_i g_i‖ ≤ ‖∂H/∂θ‖ · ‖Σ w_i z_i‖,   K_ij = ⟨z_i, z_j⟩,   one backward from Σ w_i z_i      (2)

for about the cost of a single task. The stationary points are the same, the promises not: for
z_1=(3,−1), z_2=(−1,3) and ∂H/∂θ·(∂H/∂θ)ᵀ = diag(1,10) task 1 rises. And where every sample has
the label of one task only, the z_i are orthogonal by construction: K is blind, which is warned of.

Symbols: θ shared_params, H features, K gram, w weights.
Cost: (1) n backward passes and n gradients in memory (nothing is concatenated); K reads n gradients
once, in float64. One copy of K to the host per step, none for two tasks with nonfinite="pass".
Sources: articles 8870, 8896, 8907; (2) from arXiv 1810.04650, whose claim that (2) keeps the
descent the article refutes. See also TorchJD: more rules for equal tasks, and no primary one.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from kexue.optim.multitask.features import through_features
from kexue.optim.multitask.gradients import (
    Gradient,
    average,
    gram_matrix,
    weighted_sum,
)
from kexue.optim.multitask.losses import separate
from kexue.optim.multitask.weighting import Method, MultiTaskStep, weighting
from kexue.optim.processes import processes

__all__ = ["Method", "MultiTaskGradients", "MultiTaskStep", "multitask_backward"]


class MultiTaskGradients:
    """The gradients of several tasks, added up over micro-batches, then made one step.

    Call `add` once per micro-batch and `resolve` before the optimizer's step.

    Args:
        shared_params: θ, the parameters all tasks use. Heads do not belong here; weights that a
            head shares with the encoder do. Frozen parameters are left out, and one that is listed
            twice counts once.
        task_params: the other parameters. Without them every parameter of the graph gets its
            gradient; they are needed in distributed training, and they are checked: a parameter
            that two tasks reach belongs to `shared_params`.
        method: "veto", "protect_primary", "min_norm", "sum", or a function from K to weights, such
            as `functools.partial(primary_auxiliary_weights, primary=[0, 1])` or one of TorchJD's.
        primary: the primary task of the first two methods, or several for "veto"; default 0.
        normalise: first give the gradients one length, the mean of the primary ones.
        nonfinite: "raise" names the task whose gradient holds NaN or infinity; "pass" makes u NaN,
            which is what a `GradScaler` looks for to skip the step.
        process_group: the processes to average over; all of them if None and there are several.

    Raises:
        TypeError: a list holds something else than parameters.
        ValueError: an unknown method, no shared parameters, or a parameter in both lists.

    Example:
        >>> encoder, heads = torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1) for _ in range(2)]
        >>> gradients = MultiTaskGradients(encoder.parameters(), method="veto")
        >>> for micro_batch in torch.randn(2, 8, 3):
        ...     gradients.add([head(encoder(micro_batch)).mean() / 2 for head in heads])
        >>> step = gradients.resolve()
        >>> bool((step.descent >= -1e-6).all()), encoder.weight.grad.shape
        (True, torch.Size([4, 3]))
    """

    def __init__(
        self,
        shared_params: Iterable[Tensor],
        *,
        task_params: Iterable[Tensor] | None = None,
        method: Method = "veto",
        primary: int | Sequence[int] | None = None,
        normalise: bool = False,
        nonfinite: Literal["raise", "pass"] = "raise",
        process_group: ProcessGroup | None = None,
    ) -> None:
        self.shared = _trained("shared_params", shared_params)
        self.heads = None if task_params is None else _trained("task_params", task_params)
        if not self.shared:
            raise ValueError("shared_params holds no tensor that requires a gradient")
        ours = {id(p) for p in self.shared}
        if self.heads is not None and any(id(p) in ours for p in self.heads):
            raise ValueError("a parameter is in shared_params and in task_params; it is shared")
        self.solve = weighting(method, primary, normalise, nonfinite)
        self.group = process_group
        self._gradients: list[Gradient] = []

    def add(self, losses: Sequence[Tensor | None] | Tensor, *, retain_graph: bool = False) -> None:
        """Add the gradients of one micro-batch; scale the losses as for plain accumulation.

        Args:
            losses: one scalar per task; None for a task without data in this micro-batch.
            retain_graph: keep the graph after the last task too.

        Raises:
            TypeError: `losses` is a single number.
            ValueError: a loss is not scalar, the number of tasks changed, or two tasks reach the
                same one of `task_params`.
        """
        each = _present(losses)
        self._gradients = self._gradients or [[None] * len(self.shared) for _ in each]
        if len(each) != len(self._gradients):
            was = len(self._gradients)
            raise ValueError(f"losses must keep their number: {was} before, now {len(each)}")
        inputs = None if self.heads is None else [*self.shared, *self.heads]
        left = [p.grad for p in self.shared]
        owner: dict[int, int] = {}
        last = max((task for task, loss in enumerate(each) if loss is not None), default=-1)
        try:
            for task, (loss, gradient) in enumerate(zip(each, self._gradients, strict=True)):
                if loss is None:
                    continue
                for p, g in zip(self.shared, gradient, strict=True):
                    p.grad = g  # autograd adds to it in place
                before = _versions(self.heads)
                torch.autograd.backward(
                    loss, inputs=inputs, retain_graph=retain_graph or task < last
                )
                gradient[:] = [p.grad for p in self.shared]
                _claim(task, before, _versions(self.heads), owner)
        finally:
            for p, g in zip(self.shared, left, strict=True):
                p.grad = g

    @torch.no_grad()
    def resolve(self) -> MultiTaskStep:
        """Weigh the gradients and add u to the .grad of the shared parameters; then start anew.

        Raises:
            ValueError: nothing was added, a gradient is not finite (unless nonfinite="pass"), or
                the processes are several and `task_params` are unknown.
        """
        if not self._gradients:
            raise ValueError("resolve() needs gradients: call add(losses) first")
        gradients, self._gradients = self._gradients, []
        if processes(self.group) > 1:
            if self.heads is None:
                raise ValueError("several processes average task_params too: pass task_params")
            for gradient in gradients:
                average(self.shared, gradient, self.group)
            heads: Gradient = [p.grad for p in self.heads]
            average(self.heads, heads, self.group)
            for p, g in zip(self.heads, heads, strict=True):
                p.grad = g
        step = self.solve(gram_matrix(gradients))
        for p, u in zip(self.shared, weighted_sum(gradients, step.weights), strict=True):
            u = torch.zeros_like(p) if u is None else u
            p.grad = u if p.grad is None else p.grad.add_(u)
        return step


def multitask_backward(
    losses: Sequence[Tensor] | Tensor,
    *,
    shared_params: Iterable[Tensor] | None = None,
    features: Tensor | Sequence[Tensor] | None = None,
    task_params: Iterable[Tensor] | None = None,
    method: Method = "veto",
    primary: int | Sequence[int] | None = None,
    normalise: bool = False,
    nonfinite: Literal["raise", "pass"] = "raise",
    process_group: ProcessGroup | None = None,
    retain_graph: bool = False,
) -> MultiTaskStep:
    """Like `sum(losses).backward()`, with u for the shared parameters: (1), or (2) with features.

    Gradients are added to what is in .grad. The other arguments are those of `MultiTaskGradients`.

    Args:
        losses: one scalar per task, before any weighting.
        shared_params: θ. With `features` they are only checked.
        features: H, the tensor or tensors through which every loss reaches the encoder, batch
            first. K then comes from ∂L_i/∂H, and the encoder is passed once.
        retain_graph: keep the graph after the call.

    Returns:
        Weights and Gram matrix of the step.

    Raises:
        TypeError: `losses` is a single number, or neither `shared_params` nor `features` is given.
        ValueError: a loss is not scalar or not differentiable, does not depend on the features or
            reaches a parameter of the encoder around them, a feature was made from another one, or
            a gradient is not finite.

    Example:
        >>> encoder, heads = torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1) for _ in range(2)]
        >>> hidden = encoder(torch.ones(5, 3))
        >>> losses = [(head(hidden) - 1).square().mean() for head in heads]
        >>> step = multitask_backward(losses, features=hidden, method="min_norm")
        >>> round(float(step.weights.sum()), 6), encoder.weight.grad is None
        (1.0, False)
    """
    if features is not None:
        return through_features(
            _differentiable(separate(losses)),
            [features] if isinstance(features, Tensor) else list(features),
            list(shared_params or ()),
            None if task_params is None else list(task_params),
            weighting(method, primary, normalise, nonfinite),
            process_group,
            retain_graph,
        )
    if shared_params is None:
        raise TypeError("give shared_params, the parameters all tasks use, or features")
    gradients = MultiTaskGradients(
        shared_params,
        task_params=task_params,
        method=method,
        primary=primary,
        normalise=normalise,
        nonfinite=nonfinite,
        process_group=process_group,
    )
    gradients.add(losses, retain_graph=retain_graph)
    return gradients.resolve()


def _trained(name: str, parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those that require a gradient, tied ones once."""
    each = list(dict.fromkeys(parameters))
    for p in each:
        if not isinstance(p, Tensor):
            raise TypeError(
                f"{name} must hold parameters, got {type(p).__name__}; give module.parameters()"
            )
    return [p for p in each if p.requires_grad]


def _differentiable(losses: list[Tensor]) -> list[Tensor]:
    for task, loss in enumerate(losses):
        if not loss.requires_grad:
            raise ValueError(
                f"the loss of task {task} does not require a gradient: it was detached, or "
                "computed under torch.no_grad()"
            )
    return losses


def _present(losses: Sequence[Tensor | None] | Tensor) -> list[Tensor | None]:
    """The losses of a micro-batch, checked, with None for absent tasks."""
    if isinstance(losses, Tensor) or not isinstance(losses, Sequence):
        return list(_differentiable(separate(losses)))
    stand_in = torch.zeros((), requires_grad=True)
    _differentiable(separate([stand_in if loss is None else loss for loss in losses]))
    return list(losses)


def _versions(heads: list[Tensor] | None) -> list[tuple[int, int] | None]:
    return [p.grad if p.grad is None else (id(p.grad), p.grad._version) for p in heads or ()]


def _claim(
    task: int,
    before: list[tuple[int, int] | None],
    after: list[tuple[int, int] | None],
    owner: dict[int, int],
) -> None:
    """Note whose head a parameter is; two owners make it a shared one."""
    for k, changed in enumerate(a != b for a, b in zip(after, before, strict=True)):
        if changed and owner.setdefault(k, task) != task:
            raise ValueError(
                f"task_params[{k}] is reached by tasks {owner[k]} and {task}: it belongs to "
                "shared_params"
            )
