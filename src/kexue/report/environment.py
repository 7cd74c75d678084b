"""The machine a result was made on: versions, processor, memory, devices.

Run folders keep it as `environment.json`; `kexue doctor` prints it.
"""

import os
import platform
from importlib import metadata
from pathlib import Path

import kexue
from kexue.hardware import bf16_in_hardware

__all__ = ["cpu_model", "environment", "memory_gb", "usable_cores", "versions"]

CORE = ("torch", "numpy", "scipy", "jaxtyping", "safetensors", "typer", "rich")
NLP = ("transformers", "tokenizers", "datasets", "accelerate")


def environment() -> dict[str, object]:
    """What this process runs on, as plain values that JSON can hold.

    Example:
        >>> sorted(environment())[:4]
        ['bf16', 'cores', 'cpu', 'cuda']
    """
    import torch

    from kexue.native import native_status

    cuda = torch.cuda.is_available()
    return {
        "kexue": kexue.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": memory_gb(),
        "torch": str(torch.__version__),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if cuda
        else [],
        "mps": torch.backends.mps.is_available(),
        "bf16": bf16_in_hardware("cuda" if cuda else "cpu"),
        "native_loops": native_status(Path(kexue.__file__).parent / "optim"),
        "packages": versions((*CORE[1:], *NLP)),
    }


def versions(names: tuple[str, ...]) -> dict[str, str | None]:
    """The installed version of each distribution, None where it is missing; imports none."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def cpu_model() -> str:
    """The processor's name as the system gives it, else its architecture."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").split("\n"):
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def usable_cores() -> int:
    """Cores this process may use: fewer than the machine has under taskset or a job scheduler."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gb() -> float | None:
    """Physical memory in GB (10⁹ bytes), or the container's limit if smaller; None if unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(limit)
        if path.is_file() and (value := path.read_text(encoding="ascii").strip()).isdigit():
            total = min(total, int(value))
    return round(total / 1e9, 1)
