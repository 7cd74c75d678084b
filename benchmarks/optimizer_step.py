"""Time, state and temporary memory of one optimizer step, side by side in one run.

    python benchmarks/optimizer_step.py [--rounds 5] [--device cpu|cuda] [--out FILE]

Two models, float32: *large* has 95 matrices of 1024² and 200 vectors of 1024 (99.8 M parameters),
*small* has 2,000 tensors of 256 to 1,024 numbers. One thread. Every contender updates the same
parameters with the same gradients; rounds are interleaved, a round is the median of several steps
after two to warm up, the table gives the median over rounds. Times of the large model are per 100 M
parameters. Temporary memory is the growth of the process's peak during a step, in a process of its
own whose large blocks come from the kernel and go back there.

The limit of a contender is the bytes it must move (reads and writes of parameters, gradients and
state, each once; parameters twice where a step needs their size first) over the bandwidth of a pass
in place over 400 MB, measured right before each timing: machines share their memory with others, so
only such a ratio can be compared. Targets are 1.3 times the limit, and for AdaFactor 80 ms where
60 GB/s move.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LARGE = [(1024, 1024)] * 95 + [(1024,)] * 200
SMALL = [(256,), (16, 32), (1024,), (8, 96)] * 500


def contenders():
    """Name → (bytes moved per parameter, target as a multiple of the limit, factory)."""
    import pytorch_optimizer
    import torch
    from transformers import Adafactor

    from kexue.optim import AdaFactor, AdaX, Lion, Tiger

    fixed = {"lr": 1e-6}
    relative = {"relative_step": False, "scale_parameter": True, "warmup_init": False}
    unfactored = {"beta1": 0.9, "min_dim_size_to_factor": 1_000_000}

    def tiger(ps):
        groups = [
            {"params": [p for p in ps if p.ndim > 1], "kind": "matrix"},
            {"params": [p for p in ps if p.ndim == 1], "kind": "bias"},
        ]
        return Tiger(groups, **fixed)

    return {
        "kexue Tiger": (24, 1.3, tiger),
        "kexue Lion": (20, 1.3, lambda ps: Lion(ps, **fixed)),
        "kexue AdaX": (28, 1.3, lambda ps: AdaX(ps, **fixed)),
        "kexue AdaFactor, factored": (16, 3.0, lambda ps: AdaFactor(ps, **fixed)),
        "kexue AdaFactor, CLUE recipe": (28, None, lambda ps: AdaFactor(ps, **fixed, **unfactored)),
        "torch SGD momentum, fused": (
            20,
            None,
            lambda ps: torch.optim.SGD(ps, momentum=0.9, fused=True, **fixed),
        ),
        "torch AdamW, fused": (28, None, lambda ps: torch.optim.AdamW(ps, fused=True, **fixed)),
        "torch AdamW, foreach": (28, None, lambda ps: torch.optim.AdamW(ps, foreach=True, **fixed)),
        "torch AdamW, loop": (28, None, lambda ps: torch.optim.AdamW(ps, foreach=False, **fixed)),
        "torch Adafactor, loop": (
            16,
            None,
            lambda ps: torch.optim.Adafactor(ps, foreach=False, **fixed),
        ),
        "torch Adafactor, foreach": (
            16,
            None,
            lambda ps: torch.optim.Adafactor(ps, foreach=True, **fixed),
        ),
        "transformers Adafactor": (16, None, lambda ps: Adafactor(ps, **fixed, **relative)),
        "pytorch_optimizer Tiger": (20, None, lambda ps: pytorch_optimizer.Tiger(ps, **fixed)),
        "pytorch_optimizer Lion": (20, None, lambda ps: pytorch_optimizer.Lion(ps, **fixed)),
        "pytorch_optimizer AdaFactor": (
            16,
            None,
            lambda ps: pytorch_optimizer.AdaFactor(ps, **fixed),
        ),
    }


def parameters(shapes, device):
    import torch

    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in shapes:
        p = torch.nn.Parameter((torch.randn(shape, generator=generator) * 0.02).to(device))
        p.grad = torch.randn(shape, generator=generator).to(device)
        made.append(p)
    return made


def milliseconds(run, device, steps):
    """Median time of a call."""
    import torch

    times = []
    for number in range(steps + 2):
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def state_bytes(optimizer):
    """Bytes of all tensors in the state."""
    found = 0
    for kept in optimizer.state.values():
        found += sum(t.numel() * t.element_size() for t in kept.values() if hasattr(t, "numel"))
    return found


def temporary_bytes(name):
    """In this process: by how much the peak grows during a step of the large model."""
    import torch

    torch.set_num_threads(1)
    ps = parameters(LARGE[:4] + LARGE[-4:], "cpu")
    optimizer = contenders()[name][2](ps)
    optimizer.step()
    optimizer.step()
    gc.collect()

    def field(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = field("VmRSS")
    optimizer.step()
    return max(0, field("VmHWM") - before)


def temporaries(name):
    """`temporary_bytes` in a process of its own; None where the kernel does not tell."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, __file__, "--temporaries", name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def in_place(spare, device):
    """Bytes per second of a pass in place, now."""
    return 8 * spare.numel() / milliseconds(lambda: spare.mul_(1.0000001), device, 3) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", help="a part of the names of the contenders")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--temporaries", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.temporaries:
        print(temporary_bytes(given.temporaries))
        return

    import torch

    from kexue.report.environment import environment

    torch.set_num_threads(1)
    device = given.device
    chosen = {n: c for n, c in contenders().items() if not given.only or given.only in n}
    spare = torch.ones(100_000_000, device=device)
    times = {model: {name: [] for name in chosen} for model in ("large", "small")}
    ratios, kept, bandwidths = {name: [] for name in chosen}, {}, []
    for model, shapes in (("large", LARGE), ("small", SMALL)):
        ps = parameters(shapes, device)
        size = sum(p.numel() for p in ps)
        for number in range(given.rounds):
            for name, (moved, _, make) in chosen.items():
                optimizer = make(ps)
                bandwidth = in_place(spare, device)
                spent = milliseconds(optimizer.step, device, given.steps)
                times[model][name].append(spent * (1e8 / size if model == "large" else 1))
                if model == "large":
                    bandwidths.append(bandwidth)
                    ratios[name].append(times[model][name][-1] / (moved * 1e11 / bandwidth))
                    kept[name] = state_bytes(optimizer) / size
                del optimizer
                gc.collect()
                print(f"{model} {number + 1}  {name:<32}{times[model][name][-1]:9.1f} ms")
        del ps
        gc.collect()

    table = []
    for name, (moved, target, _) in chosen.items():
        large = statistics.median(times["large"][name])
        row = {"contender": name, "large_ms": round(large, 1), "bytes_moved": moved}
        row |= {"over_limit": round(statistics.median(ratios[name]), 2)}
        row |= {"over_limit_range": [round(f(ratios[name]), 2) for f in (min, max)]}
        row["target"] = target
        spread = [round(f(times["large"][name]), 1) for f in (min, max)]
        row |= {
            "large_range": spread,
            "small_ms": round(statistics.median(times["small"][name]), 1),
        }
        row["state_bytes"] = round(kept[name], 4)
        extra = temporaries(name) if device == "cpu" else None
        row["temporary_mb"] = None if extra is None else round(extra / 2**20, 1)
        table.append(row)

    found = environment()
    result = {
        "task": "one step, float32, one thread; large: ms per 100 M parameters; small: ms",
        "rounds": given.rounds,
        "bandwidth_in_place_gb": round(statistics.median(bandwidths) / 1e9, 1),
        "bandwidth_range_gb": [round(f(bandwidths) / 1e9, 1) for f in (min, max)],
        "largest_tensor_mb": 4.0,
        "hardware": {k: v for k, v in found.items() if k in ("cpu", "cores", "memory_gb", "gpu")},
        "python": platform.python_version(),
        "versions": {
            n: version(n) for n in ("torch", "transformers", "pytorch_optimizer", "kexue")
        },
        "table": table,
        "cuda": "not measured" if device == "cpu" else "measured",
    }
    name = "optimizer_step.json" if device == "cpu" else f"optimizer_step_{device}.json"
    path = given.out or RESULTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    low, high = result["bandwidth_range_gb"]
    print(f"\nin place {result['bandwidth_in_place_gb']} GB/s ({low} to {high})")
    header = ("contender", "large ms", "× limit", "target", "small ms", "B/param", "temp MB")
    print("{:<32}{:>9}{:>9}{:>8}{:>10}{:>9}{:>9}".format(*header))
    for row in table:
        print(
            f"{row['contender']:<32}{row['large_ms']:>9}{row['over_limit']:>9}"
            f"{row['target'] or '':>8}{row['small_ms']:>10}{row['state_bytes']:>9}"
            f"{row['temporary_mb']!s:>9}"
        )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
