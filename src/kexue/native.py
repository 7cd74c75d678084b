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
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kexue.cache import cache_folder

__all__ = ["Loop", "native_library", "native_status"]

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
    "double": ctypes.c_double,
}
PLAIN = (Tensor, nn.Parameter)


class Loop:
    """A C function over tensors, compiled when it is first asked for.

    Args:
        beside: the `__file__` of the Python module whose folder holds the C file.
        name: of the C function.
        signature: a letter per argument: x tensor, n whole number (int64_t), f float, d double.
        returns: "int", "double" or nothing.
    """

    def __init__(self, beside: str, name: str, signature: str, returns: str | None = None) -> None:
        self.beside, self.name, self.signature, self.returns = beside, name, signature, returns

    @cached_property
    def function(self) -> Any:
        """The C function, or None where there is no compiler."""
        library = native_library(Path(self.beside).parent)
        if library is None:
            return None
        found = getattr(library, self.name)
        found.argtypes = [LETTERS[letter] for letter in self.signature]
        found.restype = LETTERS[self.returns] if self.returns else None
        return found

    def takes(self, *tensors: Tensor) -> bool:
        """Whether the loop is there and these are float32 tensors on a CPU, each in one block.

        They must have equally many elements, since a loop would read beyond the shorter one; and
        no negation that torch has put off (`is_neg`), since it does not stand in the memory.
        """
        if torch.compiler.is_compiling():
            return False
        size = tensors[0].numel()
        for t in tensors:
            if not (
                t.dtype == torch.float32
                and t.is_cpu
                and type(t) in PLAIN
                and t.is_contiguous()
                and not t.is_neg()
                and t.numel() == size
            ):
                return False
        return self.function is not None

    def __call__(self, *arguments: Any) -> Any:
        """Runs it; each argument is a tensor or a number, as the signature says."""
        return self.function(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])


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
