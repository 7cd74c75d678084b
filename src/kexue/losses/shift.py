"""Moving weights along a gradient by a given length, and back, bit by bit.

    step = epsilon · g / ||g||,  one Frobenius norm over all tensors                            (1)

Where ||g|| is zero or not finite, (1) is no step at all: the weights keep every bit. Nothing is
read back to the host. Norms are taken relative to the largest entry, so that neither float16
gradients overflow nor tiny ones vanish when squared.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["frobenius_norm", "shifted", "unit_step"]


def frobenius_norm(x: Tensor, dim: int | None = None) -> Tensor:
    """The length of a tensor, or of its slices along `dim`, in float32 or better.

    Example:
        >>> frobenius_norm(torch.tensor([3e-30, 4e-30]))
        tensor(5.0000e-30)
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if dim is None:
        x, dim = x.flatten(), 0
    if x.shape[dim] == 0:
        return x.sum(dim=dim)
    largest = x.abs().amax(dim=dim, keepdim=True)
    unit = torch.where(largest > 0, largest, 1.0)
    return (x / unit).square().sum(dim=dim).sqrt() * unit.squeeze(dim)


def unit_step(grads: Sequence[Tensor | None], epsilon: float) -> tuple[list[Tensor | None], Tensor]:
    """(1), and the norm of the gradient; None stands for a gradient of zero.

    Raises:
        ValueError: no gradient at all.
    """
    dense = [None if g is None else g.detach() for g in grads]
    dense = [g.to_dense() if g is not None and g.is_sparse else g for g in dense]
    known = [frobenius_norm(g) for g in dense if g is not None]
    if not known:
        raise ValueError("no gradient to step along: call loss.backward() first")
    length = frobenius_norm(torch.stack(known))
    usable = torch.isfinite(length) & (length > 0)
    unit = torch.where(usable, length, 1.0)
    return [
        None if g is None else torch.where(usable, g.to(unit.dtype) / unit * epsilon, 0.0)
        for g in dense
    ], length  # (1)


@contextmanager
def shifted(tensors: Sequence[Tensor], steps: Sequence[Tensor | None]) -> Iterator[None]:
    """Adds a step to each tensor in place, and puts the old bits back at the end.

    Torch counts both changes, so a backward pass that needs the shifted values after the end is
    refused instead of being wrong.
    """
    moved = [(t, step) for t, step in zip(tensors, steps, strict=True) if step is not None]
    old = [t.detach().clone() for t, _ in moved]
    try:
        with torch.no_grad():
            for tensor, step in moved:
                tensor.copy_(torch.where(step == 0, tensor, tensor + step.to(tensor.dtype)))
        yield
    finally:
        with torch.no_grad():
            for (tensor, _), before in zip(moved, old, strict=True):
                tensor.copy_(before)
