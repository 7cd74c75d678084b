r"""Multi-task weights from the gradients of the features instead of the parameters (S16).

With H between the encoder (parameters θ) and the heads, and z_i = ∂L_i/∂H,

    ‖Σ w_i g_i‖ ≤ ‖∂H/∂θ‖ · ‖Σ w_i z_i‖,   K_ij = ⟨z_i, z_j⟩                                     (1)
    θ.grad = (∂H/∂θ)ᵀ Σ w_i z_i: one backward pass through the encoder                           (2)

The heads are passed once per task, by `autograd.grad`, which stops at H. Their gradients and (2)
then go through one ordinary backward call, so the hooks of DDP see what they always see. In
distributed training the samples of all P processes lie side by side in H, and K = Σ_p K_p / P².

Symbols: H features, z_i one entry of seeds per task.   Source: arXiv 1810.04650; article 8896.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from kexue.optim.multitask.gradients import (
    Gradient,
    gram_matrix,
    graph_between,
    leaves_behind,
    weighted_sum,
)
from kexue.optim.multitask.weighting import MultiTaskStep
from kexue.optim.processes import processes

__all__ = ["through_features"]


def through_features(
    losses: Sequence[Tensor],
    features: Sequence[Tensor],
    shared: Sequence[Tensor],
    task_params: Sequence[Tensor] | None,
    solve: Callable[[Tensor], MultiTaskStep],
    group: ProcessGroup | None,
    retain_graph: bool,
) -> MultiTaskStep:
    """Fill the gradients of encoder and heads by (1) and (2); see `multitask_backward`."""
    encoder = _encoder(features) | {id(p) for p in shared}
    seeds: list[Gradient] = []
    own: dict[Tensor, Tensor] = {}  # the heads' parameters and their gradients
    for task, loss in enumerate(losses):
        heads = _heads(task, loss, features, encoder, task_params)
        found = torch.autograd.grad(
            loss,
            [*features, *heads],
            retain_graph=retain_graph or task < len(losses) - 1,
            allow_unused=True,
        )
        # autograd hands out one memory for several z_i, or one number for many entries
        seeds.append([None if z is None else _owned(z) for z in found[: len(features)]])
        for p, g in zip(heads, found[len(features) :], strict=True):
            if g is not None:
                own[p] = own[p] + g if p in own else g
    gram = gram_matrix(seeds)
    if (size := processes(group)) > 1:
        distributed.all_reduce(gram, group=group)
        gram /= size**2
    step = solve(gram)  # (1)
    _warn_if_disjoint(step.gram, seeds)
    total = weighted_sum(seeds, step.weights)
    seed = [torch.zeros_like(h) if z is None else z for h, z in zip(features, total, strict=True)]
    torch.autograd.backward([*features, *own], [*seed, *own.values()], retain_graph)  # (2)
    return step


def _encoder(features: Sequence[Tensor]) -> set[int]:
    """Ids of the parameters behind the features, which must not lie behind one another."""
    for k, h in enumerate(features):
        if not h.requires_grad:
            raise ValueError(
                f"features[{k}] of shape {tuple(h.shape)} does not require a gradient: the encoder "
                "is frozen, or ran under torch.no_grad()"
            )
        if any(h is other for other in features[:k]):
            raise ValueError(f"features[{k}] is in features twice: its gradients would count twice")
    inner, leaves = leaves_behind(features)
    if inner:
        k = min(inner)
        raise ValueError(
            f"features[{k}] of shape {tuple(features[k].shape)} is what another feature was made "
            "from, so gradients would count twice: give the heads' inputs alone, or leave features "
            "out for the exact gradients"
        )
    return {id(p) for p in leaves}


def _heads(
    task: int,
    loss: Tensor,
    features: Sequence[Tensor],
    encoder: set[int],
    task_params: Sequence[Tensor] | None,
) -> list[Tensor]:
    reached, heads = graph_between(loss, features)
    if not reached:
        raise ValueError(
            f"the loss of task {task} does not depend on the features: pass the very tensors "
            "that the heads were called with"
        )
    for p in heads:
        if id(p) in encoder:  # its gradient through the features would count twice
            raise ValueError(
                f"the loss of task {task} reaches a shared parameter of shape {tuple(p.shape)} "
                "around the features (tied weights?): leave features out for the exact gradients"
            )
    wanted = {id(p) for p in (heads if task_params is None else task_params)}
    return [p for p in heads if id(p) in wanted]


def _owned(z: Tensor) -> Tensor:
    return z.clone(memory_format=torch.contiguous_format)


def _warn_if_disjoint(gram: Tensor, seeds: list[Gradient]) -> None:
    """Samples with one label each make every pair of z_i orthogonal, whatever the tasks are."""
    if gram.device.type != "cpu":
        return
    suspects = ((gram == 0) & (gram.diagonal() > 0) & (gram.diagonal()[:, None] > 0)).nonzero()
    for i, j in suspects.tolist():
        pairs = [(a, b) for a, b in zip(seeds[i], seeds[j], strict=True)]
        if i < j and not any(_common_sample(a, b) for a, b in pairs):
            warnings.warn(
                f"tasks {i} and {j} have no sample in common, so their gradients with respect to "
                "the features are orthogonal by construction and say nothing about conflicts: "
                "leave features out, or give every sample all labels",
                stacklevel=4,
            )
            return


def _common_sample(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return False
    used = [(z != 0).reshape(len(z) if z.ndim else 1, -1).any(1) for z in (a, b)]
    return bool((used[0] & used[1]).any())
