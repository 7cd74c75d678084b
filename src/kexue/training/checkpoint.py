"""Checkpoints that survive a kill at any moment.

A checkpoint is written under a temporary name, flushed, and renamed: what carries a final name is
whole. The newest whole one is kept, older and unfinished ones are removed. Weights, optimizer and
schedule go through Accelerate (so sharded models save and load as well); where training stood is a
small JSON file. Random numbers need no saving: each step seeds itself from (seed, step).
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kexue.data.files import explained

__all__ = ["Checkpoints", "replace_folder", "restore_folder", "sync_folder", "whole_or_nothing"]


class Checkpoints:
    """The checkpoints of one run, `folder/step-00000123`.

    Args:
        folder: made when the first checkpoint is written.
        accelerator: the `accelerate.Accelerator` that prepared model, optimizer and schedule.
    """

    def __init__(self, folder: Path, accelerator: Any) -> None:
        self.folder = folder
        self.accelerator = accelerator
        self.saved = time.perf_counter()  # when the last one was written

    def newest(self) -> Path | None:
        """The newest whole checkpoint, if there is one."""
        whole = sorted(self.folder.glob("step-*/state.json"))
        return whole[-1].parent if whole else None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes a checkpoint and removes all others. Called by every process."""
        partial = self.folder / f".writing-{step:08d}"
        main = self.accelerator.is_main_process
        final = self.folder / f"step-{step:08d}"
        with whole_or_nothing(partial):
            if main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(partial), safe_serialization=True)
            self.accelerator.wait_for_everyone()
            if main:
                (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
                replace_folder(partial, final)
        if main:
            for other in self.folder.iterdir():
                if other.is_dir() and other != final:
                    shutil.rmtree(other)
        self.accelerator.wait_for_everyone()
        self.saved = time.perf_counter()

    def load(self) -> dict[str, Any] | None:
        """Restores the newest checkpoint and returns its state; None if there is none."""
        newest = self.newest()
        if newest is None:
            return None
        self.accelerator.load_state(str(newest))
        state: dict[str, Any] = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        return state


@contextmanager
def whole_or_nothing(partial: Path) -> Iterator[None]:
    """Removes a folder that could not be filled, and says so if the disk is full."""
    try:
        with explained(partial):
            yield
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def replace_folder(partial: Path, final: Path) -> None:
    """Gives a finished folder its final name, replacing what stood there."""
    sync_folder(partial)
    old = final.with_name(f".old-{final.name}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)  # also what an earlier kill left


def restore_folder(final: Path) -> None:
    """Takes a folder back that a kill between the two renames of `replace_folder` put aside."""
    old = final.with_name(f".old-{final.name}")
    if old.exists() and not final.exists():
        old.rename(final)


def sync_folder(folder: Path) -> None:
    """Flushes every file below a folder to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
