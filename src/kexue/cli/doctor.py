"""`kexue doctor`: what is installed, what this machine offers, what can be used."""

import dataclasses
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from kexue.cli.console import console, print_json

__all__ = ["Cache", "Examination", "doctor", "examination", "model_cache"]

# Which extra brings which packages: pip install "kexue[…]".
EXTRAS: dict[str, tuple[str, ...]] = {
    "nlp": ("transformers", "tokenizers", "datasets", "accelerate", "filelock"),
    "lab": ("matplotlib", "jinja2", "scikit-learn"),
    "shuffle": ("pyarrow", "zstandard"),
    "ray": ("ray",),
    "web": ("gradio",),
}
# What the verdict speaks of; the other extras only add to it.
PURPOSE = {"nlp": "training and pretrained models", "lab": "experiments, pictures and reports"}
CORE = ("torch", "numpy", "scipy", "jaxtyping", "safetensors", "typer", "rich")
VARIABLES = ("HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE")
ROOMY_GB = 5.0  # less free disk than this is worth a word


@dataclass(frozen=True)
class Cache:
    """The folder that downloaded models go to."""

    folder: str
    writable: bool
    free_gb: float


@dataclass(frozen=True)
class Examination:
    """What `kexue doctor` found; every field is made of plain values.

    Args:
        usable: whether the core works.
        environment: versions and devices of this machine; empty if torch cannot be imported.
        core: version of each package the core needs, None where it is missing.
        extras: the same for each optional group of packages.
        settings: the environment variables that steer downloads, None where not set.
        cache: where models are kept.
        verdict: plain sentences.
    """

    usable: bool
    environment: dict[str, object]
    core: dict[str, str | None]
    extras: dict[str, dict[str, str | None]]
    settings: dict[str, str | None]
    cache: Cache
    verdict: list[str]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Print versions, device, settings and what is usable; exit code 0 if the core works.

    Example: kexue doctor
    """
    found = examination()
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        _print(found)
    if not found.usable:
        raise typer.Exit(code=1)


def examination() -> Examination:
    """Look at packages, machine, settings and cache, and say what can be used."""
    from kexue.report.environment import environment, versions

    core = versions(CORE)
    broken = [f"{name} is missing" for name, version in core.items() if version is None]
    machine: dict[str, object] = {}
    if not broken:
        try:
            machine = environment()
        except (ImportError, OSError) as error:  # a half-installed torch, a missing system library
            broken.append(f"torch cannot be imported: {error}")
    extras = {extra: versions(packages) for extra, packages in EXTRAS.items()}
    cache = model_cache()
    return Examination(
        usable=not broken,
        environment=machine,
        core=core,
        extras=extras,
        settings={name: os.environ.get(name) for name in VARIABLES},
        cache=cache,
        verdict=_verdict(broken, machine, extras, cache),
    )


def model_cache() -> Cache:
    """Where downloaded models go, whether one can write there, and how much room is left."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    folder = Path(os.environ.get("HF_HOME") or default).expanduser()
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        with tempfile.TemporaryFile(dir=nearest):
            writable = True
    except OSError:
        writable = False
    return Cache(str(folder), writable, round(shutil.disk_usage(nearest).free / 1e9, 1))


def _verdict(
    broken: list[str],
    machine: dict[str, object],
    extras: dict[str, dict[str, str | None]],
    cache: Cache,
) -> list[str]:
    """Plain sentences: what works, what does not, and the command that mends it."""
    if broken:
        return [*broken, "the core does not work; mend it with: pip install --upgrade kexue"]
    lines = ["the core works"]
    for extra, purpose in PURPOSE.items():
        state = "ready" if all(extras[extra].values()) else f"needs {_install(extra)}"
        lines.append(f"{purpose}: {state}")
    if machine["cuda"]:
        lines.append("training runs on the GPU")
    elif machine["mps"]:
        lines.append("training runs on Apple's GPU (mps)")
    else:
        speed = "bf16 in hardware" if machine["bf16"] else "fp32; bf16 would be slower"
        lines.append(f"no GPU seen: training runs on the CPU ({speed}); try --model tiny first")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        lines.append("offline: models and data must lie in local folders or in the cache")
    elif endpoint := os.environ.get("HF_ENDPOINT"):
        lines.append(f"models and data come from {endpoint}")
    if not cache.writable:
        lines.append(f"cannot write to {cache.folder}: point HF_HOME to a folder of yours")
    elif cache.free_gb < ROOMY_GB:
        lines.append(f"{cache.free_gb} GB free for models: a base encoder needs about 0.5 GB")
    return lines


def _install(extra: str) -> str:
    return f'pip install "kexue[{extra}]"'


def _print(found: Examination) -> None:
    out = console()

    def row(name: str, value: object) -> None:
        out.print(f"  {escape(name):<14} {escape(str(value))}", soft_wrap=True)

    out.print("[bold]machine[/bold]")
    for name, value in found.environment.items():
        if name not in ("packages", "torch"):  # below, with the others
            row(name, _readable(value))
    out.print("[bold]packages[/bold]")
    for name, version in found.core.items():
        row(name, version or "missing")
    for extra, packages in found.extras.items():
        for name, version in packages.items():
            row(name, version or f"missing: {_install(extra)}")
    out.print("[bold]settings[/bold]")
    for name, setting in found.settings.items():
        row(name, "not set" if setting is None else setting)
    row("cache", f"{found.cache.folder} ({'' if found.cache.writable else 'not '}writable)")
    row("free disk", f"{found.cache.free_gb} GB")
    out.print("[bold]verdict[/bold]")
    for line in found.verdict:
        out.print(f"  {escape(line)}", soft_wrap=True)


def _readable(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
