"""Language models with different layers under one budget, and what each of them reached.

run_pretraining(data, settings, out)  →  run folder/<layer>/ {metrics.jsonl, best/}
                                         run folder/ {config, environment, results}.json report.html
"""

import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.data.batching import Batch, LengthBatches
from kexue.data.features import FeatureTable
from kexue.generation.sampling import sample
from kexue.models.language_model import (
    LanguageModel,
    LanguageModelConfig,
    load_language_model,
    save_language_model,
)
from kexue.report import RunFolder
from kexue.report.environment import environment
from kexue.report.pretrain_report import write_pretrain_report
from kexue.tasks.pretrain.rows import character_tokenizer, collate, split_rows
from kexue.tasks.pretrain.settings import LayerResult, PretrainSettings
from kexue.tasks.pretrain.texts import Texts
from kexue.tasks.run_start import may_write
from kexue.training.checkpoint import replace_folder, restore_folder, whole_or_nothing
from kexue.training.fit import fit
from kexue.training.processes import make_accelerator, processes
from kexue.training.steps import batches

__all__ = ["next_token_loss", "run_pretraining", "score_texts", "train_layer"]

COMMITMENT = 1e-4
"""Weight of the layers' own loss (Transformer-VQ's commitment), as in its published script."""
SAMPLE_LENGTH = 96


def run_pretraining(
    data: str,
    settings: PretrainSettings,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Trains one language model per layer and writes the run folder.

    Args:
        data: "mini", a folder or a file of texts.
        settings: what to train, and the budget.
        out: the run folder.
        resume: go on with a run that was stopped; its settings must be the same.
        overwrite: throw away what stands in `out`.
        command: the command line, for the report.
        quiet: no progress.

    Returns:
        The results as results.json holds them.

    Raises:
        ValueError: a setting is out of range, the texts are too short, or `out` is taken.
    """
    process, run = processes(), RunFolder(out)
    config = {"command": command, "data": data, "settings": asdict(settings)}
    texts = Texts(data)
    goes_on = may_write(run, config, resume=resume, overwrite=overwrite)
    tokenizer = character_tokenizer(texts.read("train"))
    most = None if settings.tokens is None else settings.tokens // settings.length
    train = split_rows(texts, "train", tokenizer, settings.length, most)
    dev = split_rows(texts, "dev", tokenizer, settings.length)
    shapes = {name: shape_of(name, settings, len(tokenizer)) for name in settings.layers}
    for shape in shapes.values():
        with torch.device("meta"):
            LanguageModel(shape)  # a bad option is told before the first layer is trained
    process.wait_for_everyone()
    if not goes_on and process.is_main_process:
        if run.path.exists():
            shutil.rmtree(run.path)
        run.write_json("config.json", config)
        run.write_json("environment.json", environment())
    process.wait_for_everyone()
    kept = goes_on and run.exists("results.json")
    results: list[dict[str, Any]] = run.read_json("results.json") if kept else []
    finished = {result["layer"] for result in results}
    for name, shape in shapes.items():
        if name in finished:
            continue
        result = train_layer(
            shape, train, dev, tokenizer, settings, run, resume=resume, quiet=quiet
        )
        results.append(asdict(result))
        if process.is_main_process:
            run.write_json("results.json", results)
            shutil.rmtree(run.path / name / "checkpoints", ignore_errors=True)
            write_pretrain_report(run.path)
        process.wait_for_everyone()
    return results


def shape_of(layer: str, settings: PretrainSettings, vocabulary_size: int) -> LanguageModelConfig:
    """The model that stands for a layer."""
    return LanguageModelConfig(
        vocabulary_size=vocabulary_size,
        layer=layer,
        d_model=settings.d_model,
        depth=settings.depth,
        num_heads=settings.num_heads,
        options=settings.options.get(layer, {}),
    )


def train_layer(
    shape: LanguageModelConfig,
    train: FeatureTable,
    dev: FeatureTable,
    tokenizer: Any,
    settings: PretrainSettings,
    run: RunFolder,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> LayerResult:
    """Trains one model, keeps the best epoch, scores what was saved and lets it write."""
    loop = settings.fit
    torch.manual_seed(loop.seed)
    folder = run.path / shape.layer
    accelerator = make_accelerator(loop, folder)
    model = LanguageModel(shape)
    best = folder / "best"
    folder.mkdir(parents=True, exist_ok=True)
    restore_folder(best)

    def evaluate(model: nn.Module) -> dict[str, float]:
        scores = score_texts(model, dev, loop.max_tokens, accelerator)
        return {**scores, "log_likelihood": -scores["loss"]}

    def keep(model: nn.Module) -> None:
        state = accelerator.get_state_dict(model)
        if accelerator.is_main_process:
            partial = best.with_name(".best.partial")
            with whole_or_nothing(partial):
                save_language_model(partial, accelerator.unwrap_model(model), tokenizer, state)
                replace_folder(partial, best)
        accelerator.wait_for_everyone()

    result = fit(
        model,
        next_token_loss,
        train,
        collate,
        loop,
        folder=folder,
        evaluate=evaluate,
        keep=keep,
        metric="log_likelihood",
        label=shape.layer,
        accelerator=accelerator,
        resume=resume,
        quiet=quiet,
    )
    saved = load_language_model(best).to(accelerator.device)
    wrote, milliseconds = write_on(saved, tokenizer, settings.prompt, loop.seed)
    return LayerResult(
        layer=shape.layer,
        parameters=sum(p.numel() for p in saved.parameters()),
        scores=score_texts(saved, dev, loop.max_tokens, accelerator),
        best_epoch=result.best_epoch,
        epochs=result.epochs,
        seconds=result.seconds,
        tokens_per_second=result.tokens_per_second,
        train_tokens=int(train.lengths.sum()),
        dev_tokens=int(dev.lengths.sum()),
        milliseconds_per_token=milliseconds,
        sample=wrote,
        folder=shape.layer,
    )


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the next token in nats, and the layers' own loss beside it."""
    logits = model(**batch.inputs)  # (R, L, V)
    loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets["next"].flatten())
    plain: Any = getattr(model, "module", model)
    own: Tensor = plain.auxiliary_loss()
    return loss + COMMITMENT * own


@torch.no_grad()
def score_texts(
    model: nn.Module, rows: FeatureTable, max_tokens: int, accelerator: Any
) -> dict[str, float]:
    """Loss in nats per token, perplexity, and how often the most probable token was right, in %.

    Computed in float32; every process scores its share of the rows.
    """
    model.eval()
    plan = LengthBatches(
        rows.lengths,
        batch_size=len(rows),
        max_tokens=max_tokens,
        shuffle=False,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    total = torch.zeros(3, dtype=torch.float64)
    steps = [[micro] for step in plan.epoch(0) for micro in step]
    for [batch] in batches(steps, rows, collate):
        if not batch.count:
            continue
        batch = batch.to(accelerator.device)
        logits, wanted = (
            model(**batch.inputs).flatten(0, 1).float(),
            batch.targets["next"].flatten(),
        )
        loss = F.cross_entropy(logits, wanted, reduction="sum")
        right = (logits.argmax(dim=-1) == wanted).sum()
        total += torch.tensor([loss.item(), right.item(), batch.count], dtype=torch.float64)
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total.to(accelerator.device), "sum").cpu()
    loss, right, count = total.tolist()
    nats = loss / count
    return {"loss": nats, "perplexity": math.exp(min(nats, 700)), "accuracy": 100 * right / count}


def write_on(model: LanguageModel, tokenizer: Any, prompt: str, seed: int) -> tuple[str, float]:
    """What the model writes behind a prompt, and the milliseconds each token took."""
    device = next(model.parameters()).device
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.sep_token_id]
    start = torch.tensor([ids], device=device)
    draw: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9}
    draw["generator"] = torch.Generator(device).manual_seed(seed)
    sample(model, start, 2, **draw)  # the first call compiles kernels
    draw["generator"].manual_seed(seed)
    began = time.perf_counter()
    drawn = sample(model, start, SAMPLE_LENGTH, **draw)[0].tolist()
    took = 1000 * (time.perf_counter() - began) / len(drawn)
    text = "".join(tokenizer.convert_ids_to_tokens(drawn))
    return prompt + text.replace(tokenizer.sep_token, "\n"), took
