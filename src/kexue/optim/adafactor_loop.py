"""AdaFactor's step in C (`adafactor.c`): three passes over G, one over X, and no U in between.

It takes float32 tensors on a CPU: any that keep the whole second moment, and those whose factored
axes are the last two longer than 1, that is matrices and stacks of matrices. All else is left to
the torch operations.
"""

import math
from ctypes import c_double
from functools import lru_cache
from typing import Any

from torch import Tensor

from kexue.tensor_loop import Loop

__all__ = ["as_matrices", "in_one_loop"]

FULL = Loop(__file__, "adafactor_full", "xxxxnx")
FACTORED = Loop(__file__, "adafactor_factored", "xxxxxnnnx", returns="int")


def in_one_loop(
    x: Tensor, g: Tensor, state: dict[str, Tensor], numbers: tuple[float | Tensor, ...]
) -> bool:
    """Takes the step in the compiled loop, if that can; the numbers are its `Options`."""
    whole = [state[name] for name in ("v", "m") if name in state]
    if not FULL.takes(x, g, *whole):
        return False
    m = state.get("m")
    if "v" in state:
        FULL(x, g, state["v"], m, x.numel(), packed(*map(float, numbers)))
        return True
    row, col = state["row"], state["col"]
    if not (FACTORED.takes(row) and FACTORED.takes(col)):
        return False
    matrices = as_matrices(x.shape, row.shape, col.shape)
    if matrices is None:
        return False
    turned, *sizes = matrices
    if turned:
        row, col = col, row
    if FACTORED(x, g, row, col, m, *sizes, packed(*map(float, numbers))):
        raise MemoryError(f"no memory for the column sums of a tensor of shape {tuple(x.shape)}")
    return True


@lru_cache(maxsize=64)
def packed(*numbers: float) -> Any:
    """Doubles in a row; nearly all tensors of a step share them."""
    return (c_double * len(numbers))(*numbers)


@lru_cache(maxsize=1024)
def as_matrices(
    shape: tuple[int, ...], row: tuple[int, ...], col: tuple[int, ...]
) -> tuple[bool, int, int, int] | None:
    """(whether R goes with the columns, number of matrices, their rows, their columns).

    None if the factored axes are not the last two longer than 1.

    Example:
        >>> as_matrices((8, 5, 7), (8, 5, 1), (8, 1, 7)), as_matrices((9, 4), (1, 4), (9, 1))
        ((False, 8, 5, 7), (True, 1, 9, 4))
    """
    last = max(2, *(i + 1 for i, n in enumerate(shape) if n > 1), 2)
    *batch, rows, columns = shape[:last]
    ones = shape[last:]
    tall, wide = (*batch, rows, 1, *ones), (*batch, 1, columns, *ones)
    if (tuple(row), tuple(col)) not in ((tall, wide), (wide, tall)):
        return None
    return tuple(row) == wide and tall != wide, math.prod(batch), rows, columns
