"""What runs on the nodes, each the same however often it is run (S09).

    count     borders of a share of the input; its records, cut into runs that fit into memory  (1)
    scatter   a run in the order of buckets: a part of a file, or an object per group           (2)
    merge     the pieces of a bucket from all runs, sorted by (k, t), to their place            (3)

A task that dies is run again by Ray. It writes under a name of its own and renames, or writes the
same bytes to the same place, so what an earlier attempt left does no harm. Plain functions that
need no Ray; the engine hands them out.
"""

import os
from pathlib import Path

from kexue.data.shuffle_ray.counting import count
from kexue.data.shuffle_ray.merging import concatenate, merge_group
from kexue.data.shuffle_ray.pieces import scatter_to_file, scatter_to_objects

__all__ = [
    "concatenate",
    "count",
    "merge_group",
    "scatter_to_file",
    "scatter_to_objects",
    "unseen",
]


def unseen(files: list[tuple[str, int]], folders: list[str]) -> str:
    """What a node does not see of the inputs and folders that all must see; "" if nothing."""
    node = os.uname().nodename
    for path, size in files:
        if not Path(path).exists():
            return f"node {node} does not see the input {path}; put it on storage all nodes share"
        if Path(path).stat().st_size != size:
            return f"node {node} sees another {path}; put it on storage all nodes share"
        if not os.access(path, os.R_OK):
            return f"node {node} may not read {path}; give Ray's user there the right to"
    for path in folders:
        if not Path(path).exists():
            return f"node {node} does not see {path}; choose a folder that all nodes share"
        if not os.access(path, os.W_OK):
            return f"node {node} may not write to {path}; give Ray's user there the right to"
    return ""
