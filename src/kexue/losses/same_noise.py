"""The same dropout twice: random states kept and played again.

A finite difference between two passes of a network means something only if both passes drop the
same units. `SameNoise` keeps the states of the CPU generator and of a device; every `replay` starts
from them and puts back afterwards what it found.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["SameNoise"]


class SameNoise:
    """The random states of this moment, for the CPU and one device.

    Args:
        device: where the network lives.

    Example:
        >>> noise = SameNoise(torch.device("cpu"))
        >>> first = torch.rand(3)
        >>> with noise.replay():
        ...     again = torch.rand(3)
        >>> torch.equal(first, again), torch.equal(first, torch.rand(3))
        (True, False)
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.states = self._read()

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Draws inside are those drawn after this object was made; draws outside are untouched."""
        outside = self._read()
        self._write(self.states)
        try:
            yield
        finally:
            self._write(outside)

    def _read(self) -> list[Tensor]:
        cpu = torch.get_rng_state()
        return (
            [cpu] if self.device.type == "cpu" else [cpu, self._own().get_rng_state(*self._where)]
        )

    def _write(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for state in states[1:]:
            self._own().set_rng_state(state, *self._where)

    def _own(self) -> Any:
        return torch.get_device_module(self.device)

    @property
    def _where(self) -> tuple[torch.device, ...]:
        return () if self.device.type == "mps" else (self.device,)  # Apple's module has one device
