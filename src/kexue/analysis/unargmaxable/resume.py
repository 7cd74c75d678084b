"""What has been decided, in a safetensors file, so that a killed run can go on."""

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kexue.analysis.unargmaxable.ledger import Ledger
from kexue.analysis.unargmaxable.likelihood import Found

__all__ = ["Saved"]

EVERY = 60.0
"""Seconds between two writings."""
ARRAYS = ("verdict", "margin", "radius", "bound", "spread", "seconds", "twin")


class Saved:
    """Restores a ledger from a file when there is one, and writes it there as it fills up.

    Args:
        path: of the file; None: nothing is kept.
        ledger: the run.
        method: of the run.

    Raises:
        ValueError: the file is of another layer, of other classes or settings, or no such file.
    """

    def __init__(self, path: str | Path | None, ledger: Ledger, method: str) -> None:
        self.path = None if path is None else Path(path)
        self.ledger, self.last = ledger, time.monotonic()
        if self.path is None:
            return
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder; name a file to resume from")
        self.path.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after an hour
        self.key = fingerprint(ledger, method)
        if self.path.exists():
            self._restore()

    def now_and_then(self) -> None:
        """Writes if the last time was a minute ago."""
        if time.monotonic() - self.last > EVERY:
            self.write()

    def write(self) -> None:
        """Writes under a temporary name, syncs, then renames."""
        if self.path is None:
            return
        from safetensors.torch import save_file

        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            save_file(self._tensors(), partial, metadata={"kexue": self.key})
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
        self.last = time.monotonic()

    def _tensors(self) -> dict[str, Tensor]:
        report, proofs = self.ledger.report, self.ledger.report.proofs
        made = {name: torch.as_tensor(getattr(report, name)) for name in ARRAYS}
        made["method"] = torch.as_tensor(np.frombuffer(report.method.tobytes(), np.uint8).copy())
        made["scale.of"], made["scale"] = _numbers(proofs.scale), _values(proofs.scale)
        made["point.of"], made["point"] = _numbers(proofs.point), _stacked(proofs.point.values())
        made["tilt.of"] = _numbers(proofs.tilt)
        made["tilt.point"] = _stacked(found.point for found in proofs.tilt.values())
        made["tilt.temperature"] = _values({k: f.temperature for k, f in proofs.tilt.items()})
        for k, found in proofs.tilt.items():
            if found.support is not None:
                made[f"tilt.support.{k}"] = found.support.cpu().contiguous()
        for k, (among, weights) in proofs.mix.items():
            made[f"mix.{k}.of"], made[f"mix.{k}"] = among.cpu(), weights.cpu()
        return made

    def _restore(self) -> None:
        from safetensors import SafetensorError, safe_open

        report, proofs = self.ledger.report, self.ledger.report.proofs
        device = str(self.ledger.layer.weight.device)
        try:
            with safe_open(str(self.path), framework="pt", device=device) as file:
                key = (file.metadata() or {}).get("kexue")
                if key != self.key:
                    raise ValueError(
                        f"{self.path} holds the results of another layer, other classes or other "
                        "settings; name another file, or delete it to begin anew"
                    )
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{self.path} is no file of a former run: {error}") from error
        for name in ARRAYS:
            getattr(report, name)[:] = found[name].cpu().numpy()
        report.method[:] = np.frombuffer(
            found["method"].cpu().numpy().tobytes(), report.method.dtype
        )
        proofs.scale.update(zip(found["scale.of"].tolist(), found["scale"].tolist(), strict=True))
        proofs.point.update(zip(found["point.of"].tolist(), found["point"], strict=True))
        rows = zip(
            found["tilt.of"].tolist(),
            found["tilt.point"],
            found["tilt.temperature"].tolist(),
            strict=True,
        )
        for k, point, temperature in rows:
            support = found.get(f"tilt.support.{k}")
            proofs.tilt[k] = Found(k, False, point, temperature, support)
        for name in found:
            if name.startswith("mix.") and not name.endswith(".of"):
                proofs.mix[int(name[4:])] = (found[f"{name}.of"], found[name])


def fingerprint(ledger: Ledger, method: str) -> str:
    """Of the layer, the classes and the settings."""
    layer, box = ledger.report.layer, ledger.box
    digest = hashlib.sha256(f"{tuple(layer.weight.shape)} {method} {ledger.tol}".encode())
    sides = () if box is None else (box.lower, box.upper)
    for part in (layer.weight, layer.bias, torch.as_tensor(ledger.report.index), *sides):
        digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _numbers(found: Iterable[int]) -> Tensor:
    return torch.tensor(list(found), dtype=torch.int64)


def _values(found: dict[int, float]) -> Tensor:
    return torch.tensor(list(found.values()), dtype=torch.float64)


def _stacked(rows: Iterable[Tensor]) -> Tensor:
    listed = [row.cpu() for row in rows]
    return torch.stack(listed) if listed else torch.zeros(0, 0, dtype=torch.float64)
