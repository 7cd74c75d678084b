"""Random numbers by place: a token gets the same ones whatever the padding around it (S31).

A generator hands out numbers in order, so a wider batch would change what every token draws, and
on a GPU so would the launch grid. Here a number is a hash of where it is used. With the finaliser
of SplitMix64, h, the constant g = 2^64 / golden ratio, and arithmetic modulo 2^64:

    k_b    = h(key + (b + 1) g)                        one key per row b                        (1)
    r_bis  = h(k_b + (4 i + s + 1) g) / 2^33           token i of the row, stream s = 0 … 3     (2)
    r_bis < round(2^31 p)                              an event of probability p                (3)

i counts the target tokens of the row, so neither padding (left or right) nor the prompt shifts it.
CPU and GPU agree to the bit, and nothing is read back to the host.

Symbols: key one number per call, rows b, tokens i, streams s.   Axes: B rows, L tokens.
Source: SplitMix64, Steele, Lea and Flood, OOPSLA 2014; the constants are Stafford's variant 13.
"""

import torch
from jaxtyping import Int
from torch import Tensor, nn

__all__ = ["KeyStream", "mixed", "numbers", "row_keys", "threshold"]

BITS = 31
"""Bits of a number: small enough that number · pool size stays below 2^63."""
STREAMS = 4


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


GOLDEN = _signed(0x9E3779B97F4A7C15)
FIRST = _signed(0xBF58476D1CE4E5B9)
SECOND = _signed(0x94D049BB133111EB)


def _down(x: Tensor, by: int) -> Tensor:
    """Shift right, filled with zeros: torch's own repeats the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def mixed(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """h: a bijection of 64-bit words after which neighbours have nothing in common."""
    x = (x ^ _down(x, 30)) * FIRST
    x = (x ^ _down(x, 27)) * SECOND
    return x ^ _down(x, 31)


def row_keys(key: Int[Tensor, ""], rows: int, device: torch.device) -> Int[Tensor, " B"]:
    """One key per row of a batch."""
    return mixed(torch.arange(1, rows + 1, device=device) * GOLDEN + key)  # (1)


def numbers(
    keys: Int[Tensor, " B"], index: Int[Tensor, "B L"], stream: int, bits: int = BITS
) -> Int[Tensor, "B L"]:
    """Uniform on 0 … 2^bits − 1, one per token.

    Args:
        keys: of `row_keys`.
        index: which token of its row each one is.
        stream: 0 … 3; different questions about a token take different streams.
        bits: how many; 53 at most.
    """
    place = (index.long() * STREAMS + (stream + 1)) * GOLDEN
    return _down(mixed(place + keys[:, None]), 64 - bits)  # (2)


def threshold(p: float | Tensor) -> int | Tensor:
    """The bound below which a number of 31 bits falls with probability p, to 2^-32."""
    if isinstance(p, Tensor):
        return (p.double() * (1 << BITS)).round().long()
    return round(p * (1 << BITS))  # (3)


class KeyStream(nn.Module):
    """One key per call: different in every call, process and data-loading worker.

    With a seed, the state is a buffer (seed, calls), equal on all processes, so that checkpoints
    and DDP carry it; the rank enters only when a key is made. Without one, keys come from a
    generator, or from torch's default one as dropout's bits do.

    Args:
        seed: a whole number; None for keys of a generator.
        generator: where keys come from without a seed; None for torch's default one.
        rank: tells the streams of processes apart; None for the rank of this process. Processes
            that share a batch (tensor or sequence parallel) need the same number.

    Raises:
        ValueError: both a seed and a generator, or a rank below 0.

    Example:
        >>> stream = KeyStream(seed=3)
        >>> a, b = stream(torch.device("cpu")), stream(torch.device("cpu"))
        >>> bool(a == b), bool(KeyStream(seed=3)(torch.device("cpu")) == a)
        (False, True)
    """

    def __init__(
        self,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        if seed is not None and generator is not None:
            raise ValueError("give a seed or a generator, got both")
        if rank is not None and rank < 0:
            raise ValueError(f"rank must be 0 or more, got {rank}")
        self.generator, self.rank = generator, rank
        self.state: Tensor | None
        self.register_buffer("state", None if seed is None else torch.tensor([seed, 0]))

    def forward(self, device: torch.device) -> Int[Tensor, ""]:
        if self.state is not None:
            key = mixed(mixed(self.state[0]) + self.state[1] * GOLDEN)
            self.state[1].add_(1)
        elif self.generator is not None:
            at = self.generator.device
            key = torch.randint(2**62, (), generator=self.generator, device=at)
        else:
            key = torch.randint(2**62, (), device=device)
        key = mixed(key + _signed(self._place() * GOLDEN % (1 << 64)))
        return key if key.device.type == "cpu" else key.to(device)

    def _place(self) -> int:
        """The rank, and in a worker of a DataLoader the seed torch gave it for this epoch."""
        rank = self.rank
        if rank is None:
            here = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank = torch.distributed.get_rank() if here else 0
        if torch.compiler.is_compiling():
            return rank
        worker = torch.utils.data.get_worker_info()
        return rank if worker is None else rank + (worker.seed % 2**31 << 20)
