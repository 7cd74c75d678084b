"""Loops in C for the processor at hand, compiled when they are first needed. A lowest layer.

A folder may hold `*.c` files beside its Python: short loops that torch can only express as several
passes over memory. `native_library(folder)` compiles them into one shared library (under a second,
with the machine's own C compiler and its own instruction set) and keeps it in the cache folder
under a name that follows from the sources, the flags, the compiler and the processor. Without a
compiler the answer is None and the callers use torch alone: the same numbers to the last few bits,
in more time.

`KEXUE_NATIVE=0` switches the loops off. The cache is `$KEXUE_CACHE`, or ~/.cache/kexue.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from kexue.cache import cache_folder

__all__ = ["native_function", "native_library", "native_status"]

FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno")
ROUNDING = "-ffp-contract=off"
"""a·b + c is rounded twice, in vectors and in what is left over after them: so the bits depend
neither on the number of threads nor on the processor."""
OPENMP = "-fopenmp"
LETTERS = {
    "x": ctypes.c_void_p,
    "n": ctypes.c_int64,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
    "int": ctypes.c_int,
    "long": ctypes.c_int64,
    "double": ctypes.c_double,
}


def native_function(beside: str, name: str, signature: str, returns: str | None = None) -> Any:
    """A C function of the library, or None where there is no compiler.

    Args:
        beside: the `__file__` of the Python module whose folder holds the C file.
        name: of the C function.
        signature: a letter per argument: x pointer, n whole number (int64_t), f float, d double.
        returns: "int", "long" (int64_t), "double" or nothing.
    """
    library = native_library(Path(beside).parent)
    if library is None:
        return None
    found = library[name]  # a function object of its own, whose types nobody else sets
    kinds: list[Any] = [LETTERS[letter] for letter in signature]
    found.argtypes = kinds
    found.restype = LETTERS[returns] if returns else None
    return found


@cache
def native_library(folder: Path) -> ctypes.CDLL | None:
    """The compiled `*.c` files of a folder; None where they cannot be had."""
    return _load(folder)[0]


def native_status(folder: Path) -> str:
    """One line for people: whether the loops of this folder are in use, and if not, why."""
    return _load(folder)[1]


@cache
def _load(folder: Path) -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("KEXUE_NATIVE", "1") == "0":
        return None, "switched off by KEXUE_NATIVE=0"
    if platform.system() == "Windows":
        return None, "not built on Windows; torch's own operations are used"
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        return None, "no C compiler was found; torch's own operations are used"
    sources = sorted(folder.glob("*.c"))
    try:
        target = _cache() / f"native-{_fingerprint(sources, compiler)}.so"
        if not target.exists():
            _compile(compiler, sources, target)
        return _open(compiler, sources, target), f"compiled by {compiler}"
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"could not be compiled ({error}); torch's own operations are used"


def _open(compiler: str, sources: list[Path], target: Path) -> ctypes.CDLL:
    """The library; made again if the file is broken, as after a crash of the machine."""
    try:
        return ctypes.CDLL(str(target))
    except OSError:
        _compile(compiler, sources, target)
        return ctypes.CDLL(str(target))


def _cache() -> Path:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder.stat()  # no library that somebody else could have put there
    if kept.st_uid != os.getuid():
        raise OSError(f"{folder} belongs to another user")
    if kept.st_mode & stat.S_IWOTH:
        raise OSError(f"{folder} may be written by others")
    return folder


def _fingerprint(sources: list[Path], compiler: str) -> str:
    """Of all that decides what the library holds; unlike machines may share a home folder."""
    text = [source.read_text(encoding="utf-8") for source in sources]
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, errors="replace", timeout=30
    )
    text += [version.stdout, " ".join((*FLAGS, ROUNDING)), platform.machine(), _instruction_set()]
    return hashlib.sha256("\0".join(text).encode()).hexdigest()[:24]


def _instruction_set() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def _compile(compiler: str, sources: list[Path], target: Path) -> None:
    """Into a file of its own, then renamed: two processes may do this at once."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        for openmp in ([OPENMP], []):  # some compilers come without OpenMP: one thread then
            command = [compiler, *FLAGS, ROUNDING, *openmp, *map(str, sources)]
            command += ["-o", str(made), "-lm"]
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=120
            )
            if done.returncode == 0:
                made.replace(target)
                return
    raise OSError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message")
