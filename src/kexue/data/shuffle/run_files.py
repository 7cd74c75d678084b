"""The folder of a run: what a killed run leaves, so that it is recognised and can go on.

`manifest.json` says whose run it is (process, seed, arguments, inputs) and, once all records are in
buckets, how many, how many bytes and which hash each bucket has. `journal.jsonl` gets a line when a
bucket is in the output. The file `lock` is locked while a process is at work.
"""

import fcntl
import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from kexue.data.files import append_line
from kexue.data.shuffle.buckets import Bucket
from kexue.data.shuffle.outputs import Mark, told

__all__ = ["NOTHING", "Progressed", "RunFiles"]

Progressed = tuple[int, int, int, Mark]
"""Buckets that are in the output, records and bytes written in all, and the mark behind them."""
NOTHING: Progressed = (0, 0, 0, Mark())


class RunFiles:
    """The folder of one run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: dict[str, Any] = {}
        self.lock: Any = None

    @property
    def manifest(self) -> Path:
        """Whose run this is."""
        return self.path / "manifest.json"

    def claim(self) -> dict[str, Any]:
        """Makes the folder ours; returns the manifest that a killed run left, or nothing.

        Raises:
            ValueError: another process is at work there.
        """
        while self.lock is None:
            with told(str(self.path)):
                self.path.mkdir(exist_ok=True)
            try:
                self.lock = (self.path / "lock").open("a")
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(self.lock.fileno()), Path(self.lock.name).stat()):
                    self.release()
            except BlockingIOError:
                self.release()
                pid = self.read().get("pid", "unknown")
                raise ValueError(
                    f"{self.path}: process {pid} is at work on the same shuffle"
                ) from None
            except FileNotFoundError:  # removed by the process before us, which is done
                self.release()
            except OSError:
                break  # this file system has no locks
        return self.read()

    def empty(self) -> None:
        """Removes all but the lock."""
        for kept in self.path.iterdir():
            if kept.is_dir():
                shutil.rmtree(kept, ignore_errors=True)
            elif kept.name != "lock":
                kept.unlink(missing_ok=True)

    def release(self) -> None:
        """Lets others have the folder."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def read(self) -> dict[str, Any]:
        """The manifest; empty where there is none that can be read."""
        try:
            found = json.loads(self.manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def begin(self, seed: int, engine: str, memory: int, arguments: dict[str, Any]) -> None:
        """Writes whose run this is."""
        self.state = {
            "version": 1,
            "pid": os.getpid(),
            "boot": boot(),
            "seed": seed,
            "engine": engine,
            "memory": memory,
            "arguments": arguments,
            "stage": "scatter",
        }
        self.write()

    def write(self) -> None:
        """The manifest, whole or not at all."""
        with told(str(self.manifest)):
            fresh = self.manifest.with_suffix(".new")
            fresh.write_text(json.dumps(self.state, indent=1), encoding="utf-8")
            fresh.replace(self.manifest)

    def scattered(self, buckets: list[Bucket], header: bytes) -> None:
        """All records are in buckets: from here a killed run can go on."""
        self.state |= {
            "stage": "write",
            "header": header.hex(),
            "buckets": [astuple(bucket) for bucket in buckets],
        }
        self.write()

    def published(self) -> None:
        """All records are in the outputs, which get their names next."""
        self.state["stage"] = "publish"
        self.write()

    def take_over(self) -> list[Bucket]:
        """Goes on with the run of a killed process: its buckets."""
        self.state = self.read() | {"pid": os.getpid(), "boot": boot()}
        self.write()
        return [Bucket(*values) for values in self.state["buckets"]]

    def done(self, bucket: int, lines: int, size: int, mark: Mark) -> None:
        """A bucket is in the output: records and bytes written in all, and the mark behind them."""
        line = {"bucket": bucket, "lines": lines, "bytes": size, "mark": asdict(mark)}
        append_line(self.path / "journal.jsonl", json.dumps(line))

    def progressed(self) -> Progressed:
        """How far a killed run came."""
        journal = self.path / "journal.jsonl"
        lines = journal.read_text(encoding="utf-8").split("\n")[:-1] if journal.exists() else []
        if not lines:
            return NOTHING
        last = json.loads(lines[-1])
        return last["bucket"] + 1, last["lines"], last["bytes"], Mark(**last["mark"])

    def remove(self) -> None:
        """The folder and all in it; other runs may have the name again."""
        if self.path.is_dir():
            self.empty()
            (self.path / "lock").unlink(missing_ok=True)  # last: nobody else comes in before
            with suppress(OSError):
                self.path.rmdir()
        self.release()


def boot() -> str:
    """Which start of the machine this is: what was not synced is lost with it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
