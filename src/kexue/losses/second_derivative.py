"""Gradients that can be differentiated again, and a clear word where they cannot.

Fused attention kernels, once-differentiable extensions and compiled modules have a backward pass
but no second one. Torch says so only in the second backward pass, or not at all; here the graph of
the first gradient is looked through at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["twice_differentiable_grad"]

DEAD_ENDS = ("NotImplemented", "CompiledFunctionBackwardBackward", "FlashAttn")
"""Parts of the names of graph nodes that end a second backward pass, or falsify it."""

REFUSALS = ("not implemented", "double backward", "donated buffers", "once_differentiable")
"""What torch says where the first gradient already cannot keep its graph."""

ADVICE = (
    "has no second derivative. For attention use attn_implementation='eager' (Hugging Face), or "
    "compute it inside `with torch.nn.attention.sdpa_kernel(SDPBackend.MATH):`; call a compiled "
    "model uncompiled; or use finite_difference_backward, which needs no second derivative"
)


def twice_differentiable_grad(value: Tensor, wrt: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad` with create_graph and None for tensors that `value` does not use.

    Raises:
        RuntimeError: an operation on the way has no second derivative; the message names it.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> (g,) = twice_differentiable_grad(x**3, [x])
        >>> torch.autograd.grad(g, x)
        (tensor(18.),)
    """
    if not value.requires_grad:
        raise ValueError("value has no graph: compute it with gradients enabled")
    try:
        grads = torch.autograd.grad(value, wrt, create_graph=True, allow_unused=True)
    except RuntimeError as error:
        words = str(error)
        if not any(part in words for part in REFUSALS):
            raise
        raise RuntimeError(f"an operation {ADVICE} ({words})") from error
    if not torch.compiler.is_compiling():
        _check_graph(grads)
    return tuple(None if g is None else g.to_dense() if g.is_sparse else g for g in grads)


def _check_graph(grads: Sequence[Tensor | None]) -> None:
    waiting = [g.grad_fn for g in grads if g is not None]
    seen, names = set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names.add(node.name())
        waiting += [parent for parent, _ in node.next_functions]
    if ends := sorted(n for n in names if any(part in n for part in DEAD_ENDS)):
        fused = sorted(n for n in names if "ScaledDotProduct" in n)
        raise RuntimeError(f"{', '.join(fused or ends)} {ADVICE}")
