"""What tests of the shuffle share: its loops by name, its command line, and a watched process."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kexue.data.shuffle import loops as module
from kexue.data.shuffle.arrow_loops import ArrowLoops
from kexue.data.shuffle.loops import CompiledLoops
from kexue.native import native_function

COMMAND = [sys.executable, "-m", "kexue", "shuffle"]


def the_loops(name):
    """The compiled loops or those of numpy and Arrow."""
    if name == "arrow":
        return ArrowLoops()
    if native_function(module.__file__, "scan", "") is None:
        pytest.skip("no C compiler")
    return CompiledLoops()


def kexue_shuffle(*arguments, **options):
    """The command in a process of its own; its output and errors are bytes."""
    options = {"capture_output": True, "timeout": 300} | options
    return subprocess.run([*COMMAND, *map(str, arguments)], check=False, **options)


WATCH = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print("peak", usage.ru_maxrss * 1024, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak_of(*arguments, stdin=None, environment=None):
    """Exit code, errors and the most memory that the command held, as the system counts it.

    A small process starts it: a process begins with the peak of the one it is a copy of.
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", WATCH, *COMMAND, *map(str, arguments)],
        stdin=stdin,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        check=False,
        text=True,
    )
    said, _, peak = done.stderr.rpartition("peak ")
    return done.returncode, said, int(peak)


def wait_for(process, condition, seconds=60):
    """Until something is so, or the process has ended; whether it is so."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if process.poll() is not None:
            return bool(condition())
        time.sleep(0.002)
    raise TimeoutError("it did not happen")


def below(folder):
    """Names of all that is in a folder, hidden files too."""
    return sorted(one.name for one in Path(folder).iterdir()) if Path(folder).is_dir() else []


def limited(kind, most):
    """For `preexec_fn`: a resource limit of the child alone."""
    return lambda: resource.setrlimit(kind, (most, most))
