"""Shuffling text: kexue beside GNU shuf, sort -R, terashuf, two stages in Python, and cp twice.

    python benchmarks/shuffle.py [--size 1GB] [--large] [--rounds 3] [--terashuf PATH] [--out FILE]

- The file: JSON lines of Chinese text, words of Zipf's law, lengths log-normal with the median 346
  and the mean 573 bytes; 1,750,000 lines make 1 GB. It is read once before each run, so it comes
  from the page cache. `--large` adds ten times as much, at 256 MB.
- The limit: two copies by cp, since what does not fit into memory is written twice.
- Two stages: the published script, written anew from its description: chunks of 100,000 lines
  shuffled by five processes behind a queue of ten, then a line of each chunk per round.
- Shapes: as many bytes in lines of 100 bytes and of 10 KB; ten million empty lines.

Contenders take turns; before each, 3 GB of memory are touched and given back (`touch`). Best and
median of wall time, CPU seconds, and the greatest memory of all processes together: resident pages,
sampled every 50 ms, and no less than the peak of one of them, which the system keeps. How well each
output is mixed is measured once, outside the clock.
"""

import argparse
import json
import mmap
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from importlib.metadata import version
from itertools import islice
from multiprocessing import Process, Queue
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "shuffle.json"
MEAN, MEDIAN = 573, 346
CHUNK = 100_000
TOUCHED = 3 << 30
TARGETS = {
    "kexue 256MB": "≥ 400 MB/s on 1 GB, memory ≤ 256 MB",
    "kexue 2GB": "≥ 0.9 × GNU shuf, with less memory",
    "kexue 256MB, large": "≤ 12 × the time of a tenth",
    "shapes": "100 bytes to 10 KB: no slowdown beyond bytes; 10 million empty lines in seconds",
}


# --- the files ------------------------------------------------------------------------------------


def chinese(rng, letters=8_000_000):
    """Characters whose frequencies follow Zipf's law, in UTF-8: three bytes each."""
    weights = 1 / np.arange(1, 4001)
    picked = rng.choice(4000, letters, p=weights / weights.sum())
    codes = (0x4E00 + rng.permutation(4000))[picked]
    return codes.astype("<u4").tobytes().decode("utf-32-le").encode()


def write_lines(path, size, seed=0):
    """About `size` bytes of JSON lines; returns their number."""
    rng = np.random.default_rng(seed)
    text = chinese(rng)
    sigma = (2 * np.log(MEAN / MEDIAN)) ** 0.5
    number = 0
    with path.open("wb") as file:
        while file.tell() < size:
            lengths = np.exp(rng.normal(np.log(MEDIAN), sigma, 10_000))
            starts = rng.integers(0, len(text) // 3 - 20_000, 10_000).tolist()
            lines = []
            for start, length in zip(starts, lengths.tolist(), strict=True):
                letters = max(0, int(length - 26) // 3)
                body = text[3 * start : 3 * (start + letters)]
                lines.append(b'{"id": %d, "text": "%b"}\n' % (number, body))
                number += 1
            file.write(b"".join(lines))
    return number


def write_equal_lines(path, size, length):
    """`size` bytes of lines of equal length, digits; returns their number."""
    number = size // length
    with path.open("wb") as file:
        for first in range(0, number, 10_000):
            some = range(first, min(first + 10_000, number))
            file.write(b"".join(b"%0*d\n" % (length - 1, j) for j in some))
    return number


# --- two stages -----------------------------------------------------------------------------------


def shuffle_chunks(waiting, folder):
    """A worker of the first stage."""
    while (work := waiting.get()) is not None:
        number, lines = work
        random.shuffle(lines)
        with (folder / f"{number}.chunk").open("w", encoding="utf-8") as file:
            file.writelines(lines)


def two_stages(source, folder):
    """The published script: into chunk files, then out of them by rounds."""
    waiting = Queue(10)
    workers = [Process(target=shuffle_chunks, args=(waiting, folder)) for _ in range(5)]
    for worker in workers:
        worker.start()
    chunks = 0
    with source.open(encoding="utf-8") as file:
        while lines := list(islice(file, CHUNK)):
            waiting.put((chunks, lines))
            chunks += 1
    for _ in workers:
        waiting.put(None)
    for worker in workers:
        worker.join()
    with ExitStack() as stack:
        names = [folder / f"{k}.chunk" for k in range(chunks)]
        lines = rounds([stack.enter_context(name.open(encoding="utf-8")) for name in names])
        for part in range(1 << 30):
            some = list(islice(lines, CHUNK))
            if not some:
                break
            with (folder / f"out-{part:05}.txt").open("w", encoding="utf-8") as out:
                out.writelines(some)


def rounds(files):
    """A line of each file, in random order, until all are empty."""
    while files:
        random.shuffle(files)
        left = []
        for file in files:
            if line := file.readline():
                left.append(file)
                yield line
        files = left


# --- the clock ------------------------------------------------------------------------------------


def family(pid):
    """A process and all below it."""
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    except OSError:
        pass
    return found


def memory_of(pid):
    """Bytes that a process holds now, and the most it has held."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+)", status, re.M))
    return 1024 * int(found.get("VmRSS", 0)), 1024 * int(found.get("VmHWM", 0))


def touch(size):
    """Writes to so much memory and gives it back.

    A virtual machine returns idle memory to its host; who asks for it next waits for it. So that no
    contender pays for what another left, all find as much memory at hand.
    """
    with mmap.mmap(-1, size) as memory:
        for place in range(0, size, mmap.PAGESIZE):
            memory[place] = 1


def timed(command, stdout=None, env=None):
    """Wall seconds, CPU seconds and greatest memory of a command and its children.

    Raises:
        RuntimeError: it failed.
    """
    os.sync()
    touch(TOUCHED)
    peak, stop = 0, threading.Event()
    opened = stdout.open("wb") if stdout else subprocess.DEVNULL
    began = time.perf_counter()
    child = subprocess.Popen(
        command, stdout=opened, stderr=subprocess.PIPE, env={**os.environ, **(env or {})}
    )

    def watch():
        nonlocal peak
        while not stop.wait(0.05):
            now, most = zip(*map(memory_of, family(child.pid)), strict=True)
            peak = max(peak, sum(now), *most)

    watcher = threading.Thread(target=watch)
    watcher.start()
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - began
    stop.set()
    watcher.join()
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stderr.close()
    if stdout:
        opened.close()
    if child.returncode:
        raise RuntimeError(f"{command} failed: {said.decode(errors='replace')[-500:]}")
    return wall, usage.ru_utime + usage.ru_stime, peak


def contenders(source, folder, terashuf, memories, small):
    """Name → what runs once and returns (wall, CPU, memory); all write into `folder`."""
    out, again = folder / "out.txt", folder / "again.txt"

    def copies(times):
        def run():
            found = [timed(["cp", source, out])]
            if times == 2:
                found.append(timed(["cp", out, again]))
            walls, seconds, memory = zip(*found, strict=True)
            return sum(walls), sum(seconds), max(memory)

        return run

    def kexue(memory):
        command = [sys.executable, "-m", "kexue", "shuffle", source, "-o", out, "-q"]
        return lambda: timed([*command, "--memory", memory, "--seed", "7"])

    runs = {f"kexue {memory}": kexue(memory) for memory in memories}
    runs |= {"cp": copies(1), "cp twice (the limit)": copies(2)}
    if small:
        runs["GNU shuf"] = lambda: timed(["shuf", source, "-o", out])
        script = [sys.executable, __file__, "--two-stages", source, folder]
        runs["two stages"] = lambda: timed(script)
    if terashuf:
        for gigabytes in ("0.25", "2")[: len(memories)]:
            env = {"MEMORY": gigabytes, "TMPDIR": str(folder)}
            runs[f"terashuf {gigabytes} GB"] = lambda env=env: timed(
                ["sh", "-c", f"'{terashuf}' < '{source}'"], stdout=out, env=env
            )
    return runs


def cleared(folder):
    """Removes what a run left."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def compared(what, source, folder, runs, rounds, mixing=False):
    """Rows of the table: every contender, in turns."""
    size = source.stat().st_size
    taken, mixed = {name: [] for name in runs}, {}
    for number in range(rounds):
        for name, run in runs.items():
            subprocess.run(["cat", source], stdout=subprocess.DEVNULL, check=True)
            taken[name].append(run())
            if mixing and number == 0 and not name.startswith("cp"):
                mixed[name] = measured(source, folder)
            cleared(folder)
    rows = []
    for name, found in taken.items():
        walls = [wall for wall, _, _ in found]
        row = {
            "what": what,
            "contender": name,
            "best_s": round(min(walls), 3),
            "median_s": round(statistics.median(walls), 3),
            "mb_per_s": round(size / 1e6 / min(walls), 1),
            "cpu_s": round(statistics.median(cpu for _, cpu, _ in found), 2),
            "memory_mb": round(max(memory for _, _, memory in found) / 1e6),
            "runs": len(found),
        } | mixed.get(name, {})
        rows.append(row)
        print(
            f"{what:<24}{name:<22}{row['best_s']:8.2f} s {row['median_s']:8.2f} s"
            f"{row['mb_per_s']:9.0f} MB/s{row['cpu_s']:8.2f} CPU s{row['memory_mb']:7,} MB"
            f"  {mixed.get(name, '')}",
            flush=True,
        )
    return rows


def measured(source, folder):
    """How well the output in a folder is mixed."""
    from kexue.data.mixing import measure_mixing

    found = measure_mixing(source, sorted(folder.glob("out*.txt")))
    kept = {"same_records": found.same, "score": round(found.mixing.score, 4)}
    return kept | {"variance": round(found.mixing.variance, 3), "order": found.mixing.kind}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="1GB")
    parser.add_argument("--large", action="store_true", help="ten times as much, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--terashuf", help="the binary")
    parser.add_argument("--no-sort", action="store_true", help="without sort -R, which is slow")
    parser.add_argument("--no-shapes", action="store_true")
    parser.add_argument("--folder", type=Path, help="for the files; default: a temporary one")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--two-stages", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.two_stages:
        two_stages(*map(Path, given.two_stages))
        return
    from kexue.data.shuffle.plan import parse_size

    size = parse_size(given.size)
    table = []

    def keep(rows):
        """Adds rows and writes all there are, so that a run cut short is not lost."""
        table.extend(rows)
        found = result | {"table": table}
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text, encoding="utf-8")

    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        source, folder = Path(made) / "in.txt", Path(made) / "out"
        folder.mkdir()
        lines = write_lines(source, size)
        real = source.stat().st_size
        result = about(given, lines, real)
        what = f"{real / 1e6:,.0f} MB"
        memories = ("256MB", "2GB")
        runs = contenders(source, folder, given.terashuf, memories, small=True)
        keep(compared(what, source, folder, runs, given.rounds, mixing=True))
        if not given.no_sort:
            for memory in ("256M", "2G"):
                command = ["sort", "-R", "-S", memory, "-T", folder, source]
                one = {
                    f"sort -R -S {memory}": lambda c=command: timed([*c, "-o", folder / "out.txt"])
                }
                keep(compared(what, source, folder, one, 1, mixing=True))
        if not given.no_shapes:
            for length, name in ((100, "lines of 100 bytes"), (10_000, "lines of 10 KB")):
                write_equal_lines(source, real, length)
                one = contenders(source, folder, None, memories[:1], small=False)
                keep(compared(name, source, folder, one, given.rounds))
            source.write_bytes(b"\n" * 10_000_000)
            one = contenders(source, folder, None, memories[:1], small=False)
            keep(compared("10 million empty lines", source, folder, one, given.rounds))
        if given.large:
            write_lines(source, 10 * size)
            what = f"{source.stat().st_size / 1e6:,.0f} MB"
            one = contenders(source, folder, given.terashuf, memories[:1], small=False)
            keep(compared(what, source, folder, one, given.rounds))
    print(f"written to {given.out}")


def about(given, lines, size):
    """What the table is of."""
    kept = ("cpu", "cores", "memory_gb")
    from kexue.report.environment import environment

    return {
        "task": "lines of a cached file into random order; best and median of runs in turns",
        "lines": lines,
        "bytes": size,
        "rounds": given.rounds,
        "hardware": {k: v for k, v in environment().items() if k in kept},
        "python": platform.python_version(),
        "versions": {n: version(n) for n in ("numpy", "kexue")},
        "shuf": subprocess.run(
            ["shuf", "--version"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0],
        "terashuf": given.terashuf or "not given",
        "targets": TARGETS,
    }


if __name__ == "__main__":
    main()
