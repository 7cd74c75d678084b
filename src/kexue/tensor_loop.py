"""A C function over tensors, and when it may be used in place of torch's operations.

Loops are compiled by `kexue.native` from the `*.c` files beside the Python that calls them.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kexue.native import native_function

__all__ = ["Loop"]

PLAIN = (Tensor, nn.Parameter)


class Loop:
    """A C function over tensors, compiled when it is first asked for.

    Args:
        beside: the `__file__` of the Python module whose folder holds the C file.
        name: of the C function.
        signature: a letter per argument: x tensor, n whole number (int64_t), f float, d double.
        returns: "int", "double" or nothing.
    """

    def __init__(self, beside: str, name: str, signature: str, returns: str | None = None) -> None:
        self.beside, self.name, self.signature, self.returns = beside, name, signature, returns

    @cached_property
    def function(self) -> Any:
        """The C function, or None where there is no compiler."""
        return native_function(self.beside, self.name, self.signature, self.returns)

    def takes(self, *tensors: Tensor) -> bool:
        """Whether the loop is there and these are float32 tensors on a CPU, each in one block.

        They must have equally many elements, since a loop would read beyond the shorter one; and
        no negation that torch has put off (`is_neg`), since it does not stand in the memory.
        """
        if torch.compiler.is_compiling():
            return False
        size = tensors[0].numel()
        for t in tensors:
            if not (
                t.dtype == torch.float32
                and t.is_cpu
                and type(t) in PLAIN
                and t.is_contiguous()
                and not t.is_neg()
                and t.numel() == size
            ):
                return False
        return self.function is not None

    def __call__(self, *arguments: Any) -> Any:
        """Runs it; each argument is a tensor or a number, as the signature says."""
        return self.function(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])
