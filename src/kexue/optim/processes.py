"""How many processes train together, and the mean of what each of them has.

One process, or torch without distributed training, counts as one and needs no set-up.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

__all__ = ["average_", "processes"]


def processes(group: ProcessGroup | None = None) -> int:
    """How many processes share the work; 1 outside distributed training.

    Example:
        >>> processes()
        1
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size(group)


def average_(tensors: Sequence[Tensor], group: ProcessGroup | None = None) -> None:
    """Makes each tensor its mean over the processes, in place.

    Args:
        tensors: as many, of the same shapes and in the same order, on every process.
        group: the processes; all of them if None.
    """
    works = [distributed.all_reduce(one, group=group, async_op=True) for one in tensors]
    for work in works:
        if work is not None:
            work.wait()
    if tensors:
        torch._foreach_div_(list(tensors), float(processes(group)))
