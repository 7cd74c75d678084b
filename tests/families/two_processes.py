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

__all__ = ["alone_and_together"]

ONE_OF_TWO = """
import os, pathlib, runpy, sys
runpy.run_path(str(pathlib.Path(__file__).with_name("run.py")))
sys.stdout.flush()
os._exit(0)
"""
"""The script, and then the end at once: now and then the threads of two processes that have left
their group abort while the interpreter takes itself apart ("terminate called without an active
exception"), long after all was saved."""


def alone_and_together(text: str, folder: Path) -> dict[str, dict[str, Any]]:
    """What the script saves as `OUT.alone` in this process, and as `OUT.0`, `OUT.1` in two.

    Args:
        text: the script; OUT is its first argument, and RANK is in the environment of the two.
        folder: an empty one.
    """
    script, out = folder / "run.py", folder / "found"
    script.write_text(text)
    one = folder / "one_of_two.py"
    one.write_text(ONE_OF_TWO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = "-m torch.distributed.run --nproc_per_node 2 --master_addr 127.0.0.1 --master_port"
    done = subprocess.run(
        [sys.executable, *launch.split(), str(port), str(one), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), str(out)])
        runpy.run_path(str(script))
    return {name: torch.load(f"{out}.{name}", weights_only=True) for name in ("alone", "0", "1")}
