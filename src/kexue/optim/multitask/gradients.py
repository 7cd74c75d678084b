"""Gradients of several tasks as lists of tensors: inner products, weighted sums, averages (S16).

The gradient of a task is a list with one tensor per parameter, None where the task does not use
it. Nothing is flattened or concatenated, so n tasks cost n gradients and a small buffer.

    K_ij = Σ_params ⟨g_i, g_j⟩ in float64                                                      (1)
    u = Σ w_i g_i, in the memory of the first gradient                                         (2)

(1) turns at most 2^17 numbers per task to float64 at a time: no overflow in half precision, no loss
at any scale, and each gradient is read once. `graph_between` finds what lies between a loss and
features in the autograd graph, `leaves_behind` what lies behind them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed import ProcessGroup

from kexue.optim.processes import average_

__all__ = ["Gradient", "average", "gram_matrix", "graph_between", "leaves_behind", "weighted_sum"]

Gradient = list[Tensor | None]
CHUNK = 1 << 17


def gram_matrix(gradients: Sequence[Sequence[Tensor | None]]) -> Float[Tensor, "n n"]:
    """K, the inner products of the tasks' gradients: (1).

    Args:
        gradients: per task one tensor per parameter, or None for zero.

    Raises:
        ValueError: a gradient is sparse or complex.

    Example:
        >>> gram_matrix([[torch.tensor([3.0, 1.0])], [torch.tensor([-1.0, 1.0])]]).tolist()
        [[10.0, -2.0], [-2.0, 2.0]]
    """
    n = len(gradients)
    some = next((g for gradient in gradients for g in gradient if g is not None), torch.zeros(0))
    device = torch.device("cpu") if some.device.type == "mps" else some.device  # mps: no float64
    gram = torch.zeros(n, n, dtype=torch.float64, device=device)
    buffer = torch.empty(n, 0, dtype=torch.float64, device=device)
    for column in zip(*gradients, strict=True):
        flat = [None if g is None else _dense(g).reshape(-1) for g in column]
        size = max((len(g) for g in flat if g is not None), default=0)
        if buffer.shape[1] < min(size, CHUNK):
            buffer = buffer.new_empty(n, min(size, CHUNK))
        for start in range(0, size, CHUNK):
            rows = buffer[:, : min(CHUNK, size - start)]  # (n, chunk)
            for row, g in zip(rows, flat, strict=True):
                row.zero_() if g is None else row.copy_(g[start : start + CHUNK])
            gram.addmm_(rows, rows.T)  # (1)
    return gram


def weighted_sum(gradients: Sequence[Gradient], weights: Float[Tensor, " n"]) -> Gradient:
    """u = Σ w_i g_i, (2). It takes over the memory of `gradients`, which are lost."""
    on_host = weights.device.type == "cpu"
    total: Gradient = [None] * len(gradients[0])
    for gradient, weight in zip(gradients, weights.tolist() if on_host else weights, strict=True):
        if on_host and weight == 0:
            continue
        present = [(k, g) for k, g in enumerate(gradient) if g is not None]
        new = [(k, g) for k, g in present if total[k] is None]
        if new and not (on_host and weight == 1):
            _scale([g for _, g in new], weight)
        more = [(t, g) for k, g in present if (t := total[k]) is not None]
        if more and on_host:
            torch._foreach_add_([t for t, _ in more], [g for _, g in more], alpha=weight)  # (2)
        elif more:
            _scale([g for _, g in more], weight)
            torch._foreach_add_([t for t, _ in more], [g for _, g in more])  # (2)
        for k, g in new:
            total[k] = g
    return total


def average(parameters: Sequence[Tensor], gradient: Gradient, group: ProcessGroup | None) -> None:
    """Make a gradient the mean over the processes, in place; None becomes zeros on all of them."""
    dense = [
        torch.zeros_like(p) if g is None else _dense(g)
        for p, g in zip(parameters, gradient, strict=True)
    ]
    average_(dense, group)
    gradient[:] = dense


def graph_between(loss: Tensor, features: Sequence[Tensor]) -> tuple[set[int], list[Tensor]]:
    """What lies between a loss and the features: which of them it reaches, and the leaves passed.

    The walk does not go behind the features; the leaves are the parameters of the heads, and
    whatever reaches the loss around the features.
    """
    return _walk([(loss.grad_fn, loss.output_nr)], features)


def leaves_behind(features: Sequence[Tensor]) -> tuple[set[int], list[Tensor]]:
    """What lies behind the features: which of them another one is made from, and the leaves."""
    nodes = [h.grad_fn for h in features if h.grad_fn is not None]
    return _walk([edge for node in nodes for edge in node.next_functions], features)


def _walk(edges: list[Any], features: Sequence[Tensor]) -> tuple[set[int], list[Tensor]]:
    """The features and the leaves that edges of the graph lead to, not going behind a feature."""
    stops = {(h.grad_fn, h.output_nr): k for k, h in enumerate(features) if h.grad_fn is not None}
    leaves = {id(h): k for k, h in enumerate(features) if h.grad_fn is None}
    reached: set[int] = set()
    found: dict[int, Tensor] = {}
    seen = set()
    while edges:
        node, output = edges.pop()
        if node is None:
            continue
        if (node, output) in stops:
            reached.add(stops[node, output])
        elif node not in seen:
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) in leaves:
                reached.add(leaves[id(leaf)])
            elif leaf is not None:
                found[id(leaf)] = leaf
            edges.extend(node.next_functions)
    return reached, list(found.values())


def _scale(tensors: list[Tensor], weight: float | Tensor) -> None:
    if isinstance(weight, Tensor):
        for g in tensors:
            g.mul_(weight.to(torch.promote_types(g.dtype, torch.float32)))
    else:
        torch._foreach_mul_(tensors, weight)


def _dense(g: Tensor) -> Tensor:
    if g.layout != torch.strided or g.is_complex():
        raise ValueError(
            f"gradients must be dense and real, got {g.layout} of {g.dtype}, shape "
            f"{tuple(g.shape)}; for an embedding use sparse=False"
        )
    return g
