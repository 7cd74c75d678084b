"""A script run by one process and by two, and what each of them saved."""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

__all__ = ["alone_and_together", "launched"]

ONE_OF_TWO = """
import os, pathlib, runpy, sys
import torch
torch.distributed.destroy_process_group = lambda: None
runpy.run_path(str(pathlib.Path(__file__).with_name("run.py")))
sys.stdout.flush()
os._exit(0)
"""
"""The script, and then the end at once, without taking process group and interpreter apart."""
ABORTED = "terminate called without an active exception"
"""Said now and then by a process whose group of threads torch ends in the wrong order."""


def launched(text: str, folder: Path, *arguments: str) -> None:
    """Runs a script in two processes, in `folder`; once more if torch's own threads abort it.

    Args:
        text: the script; RANK is in its environment.
        folder: where it is written and run.
        arguments: of the script.
    """
    (folder / "run.py").write_text(text)
    one = folder / "one_of_two.py"
    one.write_text(ONE_OF_TWO)
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        where = ["--master_addr", "127.0.0.1", "--master_port", str(port)]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *where]
        done = subprocess.run(
            [*launcher, str(one), *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if ABORTED not in done.stderr:
            break
    assert done.returncode == 0, done.stderr


def alone_and_together(text: str, folder: Path) -> dict[str, dict[str, Any]]:
    """What the script saves as `OUT.alone` in this process, and as `OUT.0`, `OUT.1` in two.

    Args:
        text: the script; OUT is its first argument, and RANK is in the environment of the two.
        folder: an empty one.
    """
    out = folder / "found"
    launched(text, folder, str(out))
    script = folder / "run.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), str(out)])
        runpy.run_path(str(script))
    return {name: torch.load(f"{out}.{name}", weights_only=True) for name in ("alone", "0", "1")}
