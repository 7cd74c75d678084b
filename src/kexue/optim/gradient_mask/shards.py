"""A parameter that FSDP2 has cut up, and this process's part of it.

A sharded parameter is a DTensor: a tensor with a mesh of processes and, for each axis of the mesh,
a placement that cuts it up or repeats it. Every other tensor is its own only part.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["local", "placed", "shard", "whole"]


def local(tensor: Any) -> Tensor:
    """This process's part, which shares its memory."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def shard(tensor: Any) -> tuple[int, ...]:
    """Which part this process has: equal where processes hold the same entries."""
    if not hasattr(tensor, "to_local"):
        return ()
    places = zip(tensor.placements, tensor.device_mesh.get_coordinate(), strict=True)
    return tuple(place for placement, place in places if placement.is_shard())


def placed(mask: Tensor, tensor: Any) -> Tensor:
    """A mask for the whole tensor, cut up and stored as the tensor is."""
    if not hasattr(tensor, "to_local"):
        return mask.to(tensor.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(mask.to(torch.uint8), tensor.device_mesh, tensor.placements)


def whole(mask: Any) -> Tensor:
    """The mask for the whole tensor again."""
    full: Tensor = mask.full_tensor().bool() if hasattr(mask, "full_tensor") else mask
    return full
