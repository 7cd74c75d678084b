"""What the random numbers of ChildTuning (S12) and MGS (S26) cost on one core, beside others' way.

    python benchmarks/random_numbers.py [--rounds 5] [--out FILE]

S12: a mask with p = 0.3 and its product with a gradient of 2^20 float32 entries, beside torch's
Bernoulli and the way of the authors' code (a `Bernoulli` distribution of a full tensor). Times are
in nanoseconds per entry, the median over rounds in which the contenders take turns.

S26: one step with K = 4 on 10 million parameters whose losses cost nothing, beside the same step
with a copy of the model for every candidate. Time is the best of three steps; memory is the growth
of the process's peak over parameters and gradients, each way in a process of its own.
"""

import argparse
import copy
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results" / "random_numbers.json"
ENTRIES, KEEP = 1 << 20, 0.3


def masks(rounds):
    """Contender → nanoseconds per entry."""
    import torch

    from kexue.optim.gradient_mask import random_mask

    shape, gradient = (ENTRIES,), torch.randn(ENTRIES)
    full = torch.full(shape, KEEP)
    ways = {
        "our mask": lambda: random_mask(shape, KEEP, 0),
        "torch.bernoulli": lambda: torch.bernoulli(full),
        "our mask, multiplied": lambda: gradient.mul_(
            random_mask(shape, KEEP, 0).to(torch.float32)
        ),
        "authors, multiplied": lambda: gradient.mul_(
            torch.distributions.Bernoulli(torch.full(shape, KEEP)).sample() / KEEP
        ),
    }
    found = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            for _ in range(5):
                way()
            found[name].append((time.perf_counter() - start) / 5 / ENTRIES * 1e9)
            gradient.fill_(1.0)
    return {name: round(statistics.median(times[1:]), 2) for name, times in found.items()}


def step(way):
    """Seconds and MB of one step of MGS on 10 million parameters, by seeds or by copies."""
    import torch
    from torch import nn

    from kexue.optim.guided_search import MGS

    model = nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(10)))

    def gradients():
        for p in model.parameters():
            p.grad = torch.full_like(p, 1e-4)

    def by_copies():
        candidates, losses = [], torch.zeros(4)
        for k in range(4):
            candidate = copy.deepcopy(model)
            with torch.no_grad():
                for p, q in zip(candidate.parameters(), model.parameters(), strict=True):
                    p.add_(torch.randn_like(p) * q.grad.abs().mean())
                    if k % 2:
                        p.sub_(q.grad)
            candidates.append(candidate)
        weights = losses.softmax(0)
        for q, *each in zip(*(m.parameters() for m in (model, *candidates)), strict=True):
            q.grad = sum(w * (q.detach() - p.detach()) for w, p in zip(weights, each, strict=True))

    search = MGS(model, lambda model, batch: 0.0, max_grad_norm=None, score_current=False)
    run = by_copies if way == "copies" else lambda: search.rewrite_gradients(None)
    gradients()
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
        gradients()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": round(min(times), 3), "MB": round(grown / 1024)}


def main():
    """Measures, prints and stores the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--step", choices=("seeds", "copies"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    if arguments.step:
        print(json.dumps(step(arguments.step)))
        return
    result = {"S12 ns per entry": masks(arguments.rounds), "S26 step": {}}
    for way in ("seeds", "copies"):
        command = [sys.executable, __file__, "--step", way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result["S26 step"][way] = json.loads(done.stdout)
    result["machine"] = {"torch": torch.__version__, "processor": platform.machine()}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
