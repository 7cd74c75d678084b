"""Time and memory of attention layers, forward and backward, beside their peers, in one process.

    python benchmarks/attention.py [--rounds 3] [--lengths 512 1024 …] [--out FILE]

One row of `length` tokens goes through each contender forward and backward, in float32:

- "block": 12 heads of 64 with SDPA and a feed-forward layer, d = 768, against two FLASH layers
  (mixed chunk) of together the same number of parameters, two quadratic GAU, two of Transformer-VQ,
  and two layers of FLASH-pytorch where that is installed.
- "heads": 4 heads of 64, d = 256, causal: SDPA attention, the same with the log n scale, Performer
  with 256 features, and performer-pytorch where that is installed.
- "decoding": milliseconds per token with a cache that holds 1,000 … 100,000 tokens.

Contenders take turns on one thread; times are CPU time, which other work on the machine disturbs
least. The table gives medians, the median ratio within a round to the first contender, and the
growth from one length to the next. Peak memory is that of a process of its own per
contender and length: what one forward and backward pass adds to the loaded model.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "attention.json"
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
WIDTHS = {"block": 768, "heads": 256}


class Attention(nn.Module):
    """Plain causal multi-head attention through SDPA."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.packed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.packed(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


def feed_forward(width):
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def contenders(kind):
    """Name → a function that makes the module."""
    from kexue.nn.flash_layer import FlashLayer
    from kexue.nn.gau import GatedAttentionUnit
    from kexue.nn.log_n_attention import LogNAttention
    from kexue.nn.performer import PerformerAttention
    from kexue.nn.vq_layer import TransformerVQLayer

    width = WIDTHS[kind]
    if kind == "heads":
        found = {
            "SDPA": lambda: LogNAttention(width, 4, base=None, causal=True),
            "SDPA, log n": lambda: LogNAttention(width, 4, base=512, causal=True),
            "Performer": lambda: PerformerAttention(width, 4, num_features=256, causal=True),
        }
        if find_spec("performer_pytorch"):

            def performer():
                from performer_pytorch import SelfAttention

                return SelfAttention(dim=width, heads=4, dim_head=64, nb_features=256, causal=True)

            found["performer-pytorch"] = performer
        return found
    two = {
        "FLASH": lambda: FlashLayer(width, chunk_size=256, causal=True),
        "GAU": lambda: GatedAttentionUnit(width, causal=True),
        "Transformer-VQ": lambda: TransformerVQLayer(width, causal=True),
    }
    if find_spec("flash_pytorch"):

        def flash():
            from flash_pytorch import FLASH

            return FLASH(
                dim=width, group_size=256, causal=True, query_key_dim=128, expansion_factor=2.0
            )

        two["FLASH-pytorch"] = flash
    found = {"SDPA + FFN": lambda: nn.Sequential(Attention(width, 12), feed_forward(width))}
    for name, make in two.items():
        found[f"2 × {name}"] = lambda make=make: nn.Sequential(make(), make())
    return found


def step(module, x):
    """One forward and backward pass."""
    for p in module.parameters():
        p.grad = None
    x.grad = None
    module(x).square().mean().backward()


def inputs(kind, length):
    noise = torch.Generator().manual_seed(length)
    return torch.randn(1, length, WIDTHS[kind], generator=noise).requires_grad_()


def timed(kind, length, skip, rounds):
    """Name → milliseconds of each round, contenders in turns."""
    torch.manual_seed(0)
    x = inputs(kind, length)
    made = {name: make() for name, make in contenders(kind).items() if name not in skip}
    taken = {name: [] for name in made}
    for number in range(rounds + 1):
        for name, module in made.items():
            began = time.process_time()
            step(module, x)
            if number:
                taken[name].append(1e3 * (time.process_time() - began))
    return taken


def peak_megabytes(kind, name, length):
    """What one pass adds to the resident memory of a fresh process."""
    command = [sys.executable, __file__, "--peak", kind, name, str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def print_peak(kind, name, length):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module, small, x = contenders(kind)[name](), inputs(kind, 64), inputs(kind, length)
    step(module, small)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory_of("VmRSS")
    step(module, x)
    print((memory_of("VmHWM") - before) / 1024)


def memory_of(what):
    """Kilobytes of this process, as the kernel says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1])


@torch.no_grad()
def decoding(lengths, calls=64):
    """Milliseconds per token behind a cache of so many tokens."""
    from kexue.nn.flash_layer import FlashLayer
    from kexue.nn.performer import PerformerAttention
    from kexue.nn.vq_layer import TransformerVQLayer

    makers = {
        "FLASH": lambda: FlashLayer(256, chunk_size=256, causal=True),
        "Performer": lambda: PerformerAttention(256, 4, num_features=256, causal=True),
        "Transformer-VQ": lambda: TransformerVQLayer(256, causal=True),
    }
    table = []
    for name, make in makers.items():
        torch.manual_seed(0)
        layer, seen = make().eval(), 0
        cache = layer.new_cache()
        for length in lengths:
            while seen < length:  # read on in parts, as a prompt is read
                part = min(8192, length - seen)
                layer(torch.randn(1, part, 256), cache=cache)
                seen += part
            times = []
            for _ in range(calls):
                token = torch.randn(1, 1, 256)
                began = time.perf_counter()
                layer(token, cache=cache)
                times.append(1e3 * (time.perf_counter() - began))
                seen += 1
            row = {"layer": name, "tokens": length, "ms_per_token": statistics.median(times)}
            table.append(row)
            print(f"decoding  {name:<18}{length:>8} tokens {row['ms_per_token']:8.3f} ms")
    return table


def compare(kind, given):
    """The table of one kind, printed as it grows."""
    table, before, skip = [], {}, set()
    for length in given.lengths:
        taken = timed(kind, length, skip, given.rounds)
        first = next(iter(taken.values()))
        for name, times in taken.items():
            ms = statistics.median(times)
            row = {
                "kind": kind,
                "contender": name,
                "length": length,
                "ms": round(ms, 2),
                "ratio": round(
                    statistics.median(t / f for t, f in zip(times, first, strict=True)), 3
                ),
                "growth": round(ms / before[name], 2) if name in before else None,
                "peak_mb": None,
            }
            if given.memory:
                row["peak_mb"] = round(peak_megabytes(kind, name, length), 1)
            before[name] = ms
            table.append(row)
            growth = "" if row["growth"] is None else f"{row['growth']:6.2f} ×"
            memory = "" if row["peak_mb"] is None else f"{row['peak_mb']:10.1f} MB"
            print(
                f"{kind:<8}{length:>7}  {name:<22}{ms:10.1f} ms {row['ratio']:8.3f}"
                f"{growth:>10}{memory}",
                flush=True,
            )
            if ms > 1e3 * given.limit:
                skip.add(name)  # twice the length would take four times as long
    return table


def median_ratio(times, first):
    """Of the times within each round."""
    return statistics.median(one / other for one, other in zip(times, first, strict=True))


def main():
    if len(sys.argv) == 5 and sys.argv[1] == "--peak":
        print_peak(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS))
    parser.add_argument("--kinds", nargs="*", default=["block", "heads"])
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of a pass, then no more")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--no-decoding", dest="decoding", action="store_false")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    from kexue.report.environment import environment

    table = [row for kind in given.kinds for row in compare(kind, given)]
    decoded = decoding([1_000, 10_000, 100_000]) if given.decoding else []
    names = [name for name in ("FLASH-pytorch", "performer-pytorch") if installed(name)]
    given.out.write_text(
        json.dumps(
            {
                "environment": environment() | {"platform": platform.platform(), "threads": 1},
                "peers": {name: version(name) for name in names},
                "cuda": "not measured",
                "table": table,
                "decoding": decoded,
            },
            indent=1,
        )
        + "\n"
    )


def installed(name):
    return find_spec(name.lower().replace("-", "_")) is not None


if __name__ == "__main__":
    main()
