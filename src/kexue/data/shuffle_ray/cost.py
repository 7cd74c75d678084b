r"""What a shuffle costs on a cluster: bytes that a node reads, writes and moves, and time (S09).

S bytes in N records; every node does 1/n of the work. A record in a piece has its number beside
it, so pieces have S' = S + 8 N bytes. Per node, times n:

                 disk                   network in            network out
    count        S                      S                     –                                 (1)
    scatter      S + S'                 S                     S'            shared
                 S + σS'                S                     –             objects             (2)
    merge        S' + S                 S'                    S             shared
                 σS' + S                S' (1 − 1/n)          S + S' (1 − 1/n)   objects        (3)
    time = Σ over stages  max(disk / d, in / w, out / w, S / (c · cores)) / n                   (4)

"shared": input, pieces and output lie on storage that every node sees, so each byte crosses the
network. "objects": pieces stay in Ray's object store and move once, from node to node; σ = 1 if
the store is smaller than they are, so that Ray writes them to local disks and reads them again,
else 0. d is a node's part of what the disks read and write together, w what its network carries
each way, c what one core does. Stages follow one another; tasks inside a stage overlap.

A task holds M bytes, of which F = M − 220 MB are for data. Tasks scatter ranges of 0.4 F and merge
buckets of F / 1.25, so a range has S / bucket pieces of

    piece = 0.4 F · 0.8 F / S                                                                   (5)

bytes. Disks and networks want no less than about 64 KB of a piece: 100 TB need tasks of some GB.
"""

import math
from dataclasses import dataclass

__all__ = ["BASE", "RayCost", "cost_model"]

BASE = 200_000_000
"""Bytes of a Ray worker before it holds data."""
SLACK = 20_000_000
"""For threads and small things, as on one machine."""
RANGE, BUCKET = 0.4, 0.8
"""Of the data memory of a task: bytes of a range, bytes of a bucket with its entries."""
LEAST_PIECE = 1 << 16


@dataclass(frozen=True)
class RayCost:
    """Bytes and time of a shuffle on a cluster.

    Args:
        bytes: of the input, uncompressed.
        nodes: that work.
        read: bytes that a node reads, from shared storage and local disk.
        written: bytes that a node writes.
        moved: bytes that a node receives and sends.
        temporary: bytes of all pieces together, on shared storage or in object stores.
        storage: bytes of input, pieces and output, the most that exists at once.
        ranges: scatter tasks.
        buckets: that are sorted one by one.
        piece: bytes that one merge task reads at once from what one scatter task wrote.
        hours: by (4).
        limit: what takes the most time: "disk", "network" or "cores".
        remark: what to change, or nothing.
    """

    bytes: int
    nodes: int
    read: int
    written: int
    moved: int
    temporary: int
    storage: int
    ranges: int
    buckets: int
    piece: int
    hours: float
    limit: str
    remark: str = ""


def cost_model(
    bytes: int,
    nodes: int,
    disk_mb_s: float = 1000.0,
    network_mb_s: float = 1250.0,
    *,
    exchange: str = "shared",
    memory: int = 2_000_000_000,
    record_bytes: float = 500.0,
    cores: int = 16,
    core_mb_s: float = 300.0,
    store_bytes: int = 0,
) -> RayCost:
    """Bytes and time of a shuffle on a cluster: (1)–(5).

    Args:
        bytes: of the input, uncompressed.
        nodes: that work.
        disk_mb_s: a node's part of what the storage reads and writes, in 10⁶ bytes per second.
        network_mb_s: of a node, each way; 1250 is 10 Gbit/s.
        exchange: "shared" or "objects", as `shuffle_lines_ray` has it.
        memory: of a task.
        record_bytes: mean length of a record.
        cores: of a node.
        core_mb_s: what one core counts, scatters or merges.
        store_bytes: of a node's object store; pieces beyond it go to local disks.

    Raises:
        ValueError: a number that must be positive is not, or an unknown exchange.

    Example:
        >>> cost = cost_model(10**12, nodes=4)
        >>> cost.read, round(cost.hours, 2), cost.limit
        (754000000000, 0.35, 'disk')
    """
    for name, value, least in (
        ("bytes", bytes, 0),
        ("nodes", nodes, 1),
        ("disk_mb_s", disk_mb_s, 1e-9),
        ("network_mb_s", network_mb_s, 1e-9),
        ("record_bytes", record_bytes, 1),
        ("cores", cores, 1),
        ("core_mb_s", core_mb_s, 1e-9),
        ("memory", memory, BASE + SLACK + 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if exchange not in ("shared", "objects"):
        raise ValueError(f"exchange must be 'shared' or 'objects', got {exchange!r}")
    S, P = bytes / nodes, bytes * (1 + 8 / record_bytes) / nodes  # S / n and S' / n
    away = P * (1 - 1 / nodes)
    if exchange == "shared":
        reads, writes = (S, S, P), (0.0, P, S)
        into, out = (S, S, P), (0.0, P, S)  # (1), (2), (3)
    else:
        spilled = P * (store_bytes < P)
        reads, writes = (S, S, spilled), (0.0, spilled, S)
        into, out = (S, S, away), (0.0, 0.0, S + away)
    seconds, most = 0.0, {"disk": 0.0, "network": 0.0, "cores": 0.0}
    for read, written, arrives, leaves in zip(reads, writes, into, out, strict=True):
        each = {
            "disk": (read + written) / disk_mb_s / 1e6,
            "network": max(arrives, leaves) / network_mb_s / 1e6,
            "cores": S / core_mb_s / cores / 1e6,
        }
        seconds += max(each.values())  # (4)
        slowest = max(each, key=lambda name: each[name])
        most[slowest] += each[slowest]
    free = memory - BASE - SLACK
    piece = RANGE * free * min(1.0, BUCKET * free / max(bytes, 1))  # (5)
    remark = ""
    if piece < LEAST_PIECE and bytes > LEAST_PIECE:
        wanted = BASE + SLACK + math.sqrt(LEAST_PIECE * bytes / RANGE / BUCKET)
        remark = f"pieces are small; give --memory {math.ceil(wanted / 1e9)}GB per task"
    return RayCost(
        bytes=bytes,
        nodes=nodes,
        read=round(sum(reads)),
        written=round(sum(writes)),
        moved=round(sum(into) + sum(out)),
        temporary=round(P * nodes),
        storage=2 * bytes + round(P * nodes),
        ranges=math.ceil(bytes / (RANGE * free)),
        buckets=math.ceil(bytes / (BUCKET * free)),
        piece=round(piece),
        hours=seconds / 3600,
        limit=max(most, key=lambda name: most[name]),
        remark=remark,
    )
