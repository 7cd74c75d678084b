"""Time of losses, forward and backward, beside their peers and limits, in one run on one thread.

    python benchmarks/losses.py [--rounds 5] [--out FILE]

- Contrastive loss in a batch: against the matrix products it cannot do without (the limit), and
  against pytorch-metric-learning's NTXentLoss where that is installed (at 512 pairs it needs 18 GB;
  `--ntxent 512` asks for it). With 16,384 rows the scores are held in chunks and computed again in
  the backward pass: the limit is the same four products, chunk by chunk.
- Multi-label cross-entropy from indices on (32, 10, 128 · 128) scores, against a plain logsumexp.
- FGM and R-Drop in plain training steps of a BERT of 4 layers × 312, as `--trick` runs them.

Rounds are interleaved; the table gives medians and the median of the ratios within a round.
"""

import argparse
import json
import platform
import statistics
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "losses.json"


def seconds(run):
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def side_by_side(runs, rounds):
    """Name → (median seconds, median ratio to the first one), after one round to warm up."""
    taken = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            spent = seconds(run)
            if number:
                taken[name].append(spent)
    first = next(iter(taken.values()))
    return {
        name: (
            statistics.median(times),
            statistics.median(t / f for t, f in zip(times, first, strict=True)),
        )
        for name, times in taken.items()
    }


def contrastive(pairs, dim, pairing):
    """The loss, and the products it cannot do without, as functions."""
    from kexue.losses.flat_nce import InfoNCELoss

    generator = torch.Generator().manual_seed(0)
    rows = 2 * pairs if pairing == "two_views" else pairs
    inputs = [
        torch.randn(rows, dim, generator=generator).requires_grad_()
        for _ in range(1 if pairing == "two_views" else 2)
    ]
    loss = InfoNCELoss(0.07, pairing)
    x, y = inputs[0].detach(), inputs[-1].detach()
    chunk = max(64, (1 << 20) // rows)

    def step():
        for one in inputs:
            one.grad = None
        loss(*inputs).backward()

    def dense():
        w = x @ y.T
        w @ y
        w.T @ x

    def chunked():
        other = torch.zeros_like(y)
        for start in range(0, rows, chunk):
            here = x[start : start + chunk]
            here @ y.T
        for start in range(0, rows, chunk):
            here = x[start : start + chunk]
            w = here @ y.T
            w @ y
            other.addmm_(w.T, here)

    return {"products alone": dense if rows <= chunk else chunked, "kexue": step}


def ntxent(pairs, dim):
    """pytorch-metric-learning's loss on two views."""
    from pytorch_metric_learning.losses import NTXentLoss

    x = torch.randn(2 * pairs, dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(pairs).repeat(2)
    loss = NTXentLoss(0.07)

    def step():
        x.grad = None
        loss(x, labels).backward()

    return step


def multilabel():
    """A span table's loss, and a logsumexp over the same scores."""
    from kexue.losses import multilabel_cross_entropy

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(32, 10, 128 * 128, generator=generator).requires_grad_()
    index = torch.randint(128 * 128, (32, 10, 5), generator=generator)

    def plain():
        scores.grad = None
        scores.logsumexp(-1).sum().backward()

    def sparse():
        scores.grad = None
        multilabel_cross_entropy(scores, positive_index=index, reduction="sum").backward()

    return {"logsumexp": plain, "kexue": sparse}


def tricks():
    """Training steps of a small BERT: plain, and as `--trick fgm` and `--trick r_drop` run them."""
    from transformers import BertConfig, BertForSequenceClassification

    from kexue.data.batching import Batch
    from kexue.training import apply_tricks
    from kexue.training.objective import TaskFacts

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=21128,
        hidden_size=312,
        num_hidden_layers=4,
        num_attention_heads=12,
        intermediate_size=1200,
        num_labels=15,
    )

    class Scores(BertForSequenceClassification):
        def forward(self, **inputs):
            return super().forward(**inputs).logits

    model = Scores(config).train()
    ids = torch.randint(100, 21128, (32, 48))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = Batch(inputs, {"label": torch.randint(15, (32,))}, count=32)

    def loss(model, batch):
        return F.cross_entropy(model(**batch.inputs), batch.targets["label"])

    def step(*named):
        objective = apply_tricks(loss, named, TaskFacts("bert", "softmax"))

        def run():
            model.zero_grad()
            objective(model, batch).backward()

        return run

    return {"plain step": step(), "fgm": step("fgm=1"), "r_drop": step("r_drop=4")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ntxent", type=int, nargs="*", default=[32, 128])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    from kexue.report.environment import environment

    peer = find_spec("pytorch_metric_learning") is not None
    table, targets = [], {}

    def add(what, runs, target, rounds=given.rounds):
        found = side_by_side(runs, rounds)
        for name, (spent, ratio) in found.items():
            row = {"what": what, "contender": name, "ms": round(1e3 * spent, 3)}
            row["ratio"] = round(ratio, 2)
            table.append(row)
            print(f"{what:<44}{name:<24}{1e3 * spent:12.2f} ms {ratio:9.2f} ×")
        targets[what] = target

    for pairs in (32, 128, 512):
        what = f"contrastive, {pairs} pairs, D = 128"
        runs = contrastive(pairs, 128, "two_views")
        if peer and pairs in given.ntxent:
            runs["pytorch-metric-learning"] = ntxent(pairs, 128)
        add(what, runs, "100 times faster than the peer")
    add(
        "contrastive, 16,384 rows, D = 256, chunks",
        contrastive(16_384, 256, "in_batch"),
        "1.5 × the products",
        rounds=2,
    )
    add("multi-label, (32, 10, 128 · 128), sparse", multilabel(), "1.2 × logsumexp")
    add("training step, BERT 4 × 312, 32 × 48", tricks(), "2.1 × a plain step")

    kept = ("cpu", "cores", "memory_gb")
    result = {
        "task": "forward and backward, float32, one thread; ratio to the first contender",
        "rounds": given.rounds,
        "hardware": {k: v for k, v in environment().items() if k in kept},
        "python": platform.python_version(),
        "versions": {n: version(n) for n in ("torch", "transformers", "kexue")},
        "peer": version("pytorch-metric-learning") if peer else "not installed",
        "targets": targets,
        "table": table,
        "cuda": "not measured",
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    given.out.write_text(text, encoding="utf-8")
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
