"""Fine-tuning throughput on short titles, side by side in one run.

    python benchmarks/clue_throughput.py [--data ../shared/clue] [--rounds 3] [--titles 2000]

Task: BERT of 4 layers × 312 (random weights), batch 32, at most 128 tokens, 15 classes, dropout
0.1, AdamW, gradients clipped at 1. Every contender gets the same tokenised titles, trains the same
number of epochs in a process of its own, and is timed over its training loop alone (after one
warm-up epoch): no tokenising, no evaluation, no saving. Rounds are interleaved; the table gives
medians.

Contenders: transformers' Trainer as it comes; the Trainer with bf16 and batches grouped by length;
bert4torch's fit, where it is installed; a plain loop with kexue's batches, bf16 and a fused
optimizer; kexue's fit. The floor is the time of the matrix products alone, in bf16, as the plain
loop runs them (kexue leaves out most of the last layer's).
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "clue_throughput.json"
CONTENDERS = ("trainer", "trainer-tuned", "bert4torch", "plain", "kexue")
NAMES = {
    "trainer": "Trainer as it comes",
    "trainer-tuned": "Trainer, bf16, grouped by length",
    "bert4torch": "bert4torch fit",
    "plain": "plain loop: length batches, bf16, fused AdamW",
    "kexue": "kexue fit",
    "floor": "matrix products alone, bf16",
}
BATCH, MAX_LENGTH, CLASSES = 32, 128, 15
EPOCHS = 2


def build():
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=21429,
        hidden_size=312,
        num_hidden_layers=4,
        num_attention_heads=12,
        intermediate_size=1200,
        num_labels=CLASSES,
    )
    return config, BertModel


def encoded(data, titles):
    """The titles as ids and labels, tokenised once for everybody."""
    from kexue.models.tiny import tiny_tokenizer
    from kexue.tasks.clue import load_clue, make_task

    task = make_task("tnews", tiny_tokenizer(), max_length=MAX_LENGTH)
    examples = load_clue("tnews", data, "train")
    while len(examples) < titles:
        examples += examples
    return task, list(task.encode(examples[:titles], 0))


def trainer(features, tuned):
    from datasets import Dataset
    from transformers import (
        BertForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from kexue.models.tiny import tiny_tokenizer

    config, _ = build()
    rows = Dataset.from_list(
        [
            {
                "input_ids": f["input_ids"],
                "attention_mask": [1] * len(f["input_ids"]),
                "labels": f["label"],
                "length": f["length"],
            }
            for f in features
        ]
    )
    options = {"bf16": True, "train_sampling_strategy": "group_by_length"} if tuned else {}

    def run(epochs):
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            logging_strategy="no",
            **options,
        )
        worker = Trainer(
            model=BertForSequenceClassification(config),
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(tiny_tokenizer()),
        )
        began = time.perf_counter()
        worker.train()
        return time.perf_counter() - began

    run(1)
    return run(EPOCHS)


def plain(features, task):
    import torch
    from torch.nn import functional as F

    from kexue.data.batching import LengthBatches

    config, model_class = build()
    encoder, head = model_class(config, add_pooling_layer=False), task.head(312)
    model = torch.nn.ModuleList([encoder, head])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    plan = LengthBatches([f["length"] for f in features], batch_size=BATCH)

    def run(epochs):
        began = time.perf_counter()
        for epoch in range(epochs):
            for [micro] in plan.epoch(epoch):
                batch = task.collate([features[i] for i in micro.indices])
                with torch.autocast("cpu", torch.bfloat16):
                    states = encoder(**batch.inputs).last_hidden_state
                    scores = head(states, batch.inputs["attention_mask"].bool())
                loss = F.cross_entropy(scores.float(), batch.targets["label"])
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        return time.perf_counter() - began

    run(1)
    return run(EPOCHS)


def kexue(features, task):
    from kexue.data.features import encode_once
    from kexue.models.cpu_training import prepare_for_cpu
    from kexue.models.text_model import TextModel
    from kexue.training.fit import fit
    from kexue.training.settings import FitSettings

    folder = Path(tempfile.mkdtemp())
    table = encode_once("titles", task.columns, lambda: features, folder)

    def run(epochs):
        config, model_class = build()
        encoder = model_class(config, add_pooling_layer=False)
        prepare_for_cpu(encoder)
        result = fit(
            TextModel(encoder, task.head(312)),
            task.loss,
            table,
            task.collate,
            FitSettings(epochs=epochs, batch_size=BATCH),
            folder=folder,
            evaluate=lambda model: {"accuracy": 0.0},
            keep=lambda model: None,
            metric="accuracy",
            quiet=True,
        )
        return result.seconds

    run(1)
    return run(EPOCHS)


def bert4torch(features):
    import numpy as np
    import torch
    from bert4torch.models import BaseModel, build_transformer_model
    from torch import nn
    from torch.utils.data import DataLoader

    config, _ = build()
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "model": "bert"}))

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.bert = build_transformer_model(str(folder / "config.json"), with_pool=False)
            self.dense = nn.Linear(312, CLASSES)

        def forward(self, token_ids):
            return self.dense(self.bert([token_ids, torch.zeros_like(token_ids)])[:, 0])

    def collate(batch):
        width = max(len(f["input_ids"]) for f in batch)
        ids = np.zeros((len(batch), width), dtype=np.int64)
        for i, f in enumerate(batch):
            ids[i, : len(f["input_ids"])] = f["input_ids"]
        return torch.from_numpy(ids), torch.tensor([f["label"] for f in batch])

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    model.compile(loss=nn.CrossEntropyLoss(), optimizer=optimizer, clip_grad_norm=1.0)
    loader = DataLoader(features, batch_size=BATCH, shuffle=True, collate_fn=collate)
    model.fit(loader, epochs=1, verbose=0)
    began = time.perf_counter()
    model.fit(loader, epochs=EPOCHS, verbose=0)
    return time.perf_counter() - began


def floor(features):
    """Forward and backward products of every layer, on the length batches, nothing else."""
    import torch

    from kexue.data.batching import LengthBatches

    shapes = [(312, 312)] * 4 + [(312, 1200), (1200, 312)]
    weights = [torch.randn(s, dtype=torch.bfloat16) for s in shapes]
    plan = LengthBatches([f["length"] for f in features], batch_size=BATCH)
    tokens = [
        max(features[i]["length"] for i in micro.indices) * len(micro.indices)
        for [micro] in plan.epoch(0)
    ]
    wide = torch.randn(max(tokens), 1200).bfloat16()

    def run():
        began = time.perf_counter()
        for count in tokens:
            x = {size: wide[:count, :size].contiguous() for size in (312, 1200)}
            for (a, b), weight in zip(shapes * 4, weights * 4, strict=True):
                x[a] @ weight
                x[b] @ weight.T
                x[a].T @ x[b]
        return time.perf_counter() - began

    run()
    return run() * EPOCHS


def measure(contender, data, titles):
    """One contender in this process: samples per second and peak memory."""
    import torch

    task, features = encoded(data, titles)
    seconds = {
        "trainer": lambda: trainer(features, tuned=False),
        "trainer-tuned": lambda: trainer(features, tuned=True),
        "bert4torch": lambda: bert4torch(features),
        "plain": lambda: plain(features, task),
        "kexue": lambda: kexue(features, task),
        "floor": lambda: floor(features),
    }[contender]()
    print(
        json.dumps(
            {
                "samples_per_second": titles * EPOCHS / seconds,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "threads": torch.get_num_threads(),
            }
        )
    )


def apart(contender, data, titles):
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--only", contender, "--data", data]
    command += ["--titles", str(titles)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return None, done.stderr.strip().splitlines()[-1]
    return json.loads(done.stdout.strip().splitlines()[-1]), None


def hardware():
    from kexue.report.environment import environment

    names = ("torch", "transformers", "accelerate", "bert4torch", "kexue")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    kept = ("cpu", "cores", "memory_gb", "bf16")
    found = {k: v for k, v in environment().items() if k in kept}
    return {**found, "python": platform.python_version(), "versions": versions}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "clue"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--titles", type=int, default=2000)
    parser.add_argument("--only", choices=[*CONTENDERS, "floor"])
    given = parser.parse_args()
    if not Path(given.data).is_dir():
        given.data = "mini"
    if given.only:
        measure(given.only, given.data, given.titles)
        return

    speeds = {c: [] for c in (*CONTENDERS, "floor")}
    memory, threads, failures = {}, 0, {}
    for number in range(given.rounds):
        for contender in speeds:
            found, failure = apart(contender, given.data, given.titles)
            if found is None:
                failures[contender] = failure
                continue
            speeds[contender].append(found["samples_per_second"])
            memory[contender] = max(memory.get(contender, 0), found["peak_mb"])
            threads = found["threads"]
            print(f"round {number + 1}  {NAMES[contender]:<46}{speeds[contender][-1]:8.1f}/s")
    medians = {c: statistics.median(v) for c, v in speeds.items() if v}
    base, tuned = medians["trainer"], medians["trainer-tuned"]
    table = [
        {
            "contender": NAMES[c],
            "samples_per_second": round(medians[c], 1),
            "range": [round(min(speeds[c]), 1), round(max(speeds[c]), 1)],
            "over_trainer": round(medians[c] / base, 2),
            "over_tuned_trainer": round(medians[c] / tuned, 2),
            "peak_mb": round(memory[c]),
        }
        for c in medians
    ]
    print(f"\n{'':<46}{'samples/s':>10}{'× Trainer':>11}{'× tuned':>9}{'peak MB':>9}")
    for row in table:
        print(
            f"{row['contender']:<46}{row['samples_per_second']:>10}{row['over_trainer']:>11}"
            f"{row['over_tuned_trainer']:>9}{row['peak_mb']:>9}"
        )
    for contender, failure in failures.items():
        print(f"{NAMES[contender]}: not measured ({failure})")
    result = {
        "task": "BERT 4 × 312, batch 32, max length 128, tnews titles",
        "titles": given.titles,
        "data": "real tnews titles" if given.data != "mini" else "built-in titles",
        "rounds": given.rounds,
        "threads": threads,
        "hardware": hardware(),
        "table": table,
        "targets": {"over_trainer": 3.0, "over_tuned_trainer": 1.15},
        "not_measured": failures,
        "cuda": "not measured",
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
