"""`kexue pretrain`: language models from plain texts, any layer, one budget."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kexue.cli.console import console, fail, print_json

__all__ = ["pretrain"]


def pretrain(
    data: Annotated[
        str,
        typer.Argument(
            help="mini (built in), a folder with train.jsonl and dev.jsonl, or a .jsonl/.txt file."
        ),
    ] = "mini",
    layer: Annotated[
        list[str] | None,
        typer.Option(help="attention, gau, flash, performer, vq or all; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/pretrain"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training texts.")] = 2,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Training tokens per epoch at most.")
    ] = None,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a row.")] = 512,
    width: Annotated[int, typer.Option(min=1, help="Width of the model.")] = 128,
    depth: Annotated[int, typer.Option(min=1, help="Blocks of about 12 width² parameters.")] = 2,
    heads: Annotated[int, typer.Option(min=1, help="Heads, in layers that have them.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per step.")] = 8,
    lr: Annotated[float, typer.Option(help="Peak rate of AdamW.")] = 2e-3,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and samples.")] = 0,
    prompt: Annotated[str, typer.Option(help="What the samples of text continue.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Train a small language model per layer on the same texts, and compare them.

    Example: kexue pretrain mini --layer gau --layer flash --out runs/lm

    Example: kexue pretrain ~/poems --layer all --prompt 明月
    """
    try:
        from kexue.models.language_model import LAYERS
        from kexue.report.pretrain_report import print_pretrain_table
        from kexue.tasks.pretrain import PretrainSettings, run_pretraining
        from kexue.training.processes import processes
        from kexue.training.settings import FitSettings

        chosen = layer or ["gau"]
        if "all" in chosen:
            chosen = list(LAYERS)
        settings = PretrainSettings(
            layers=tuple(dict.fromkeys(chosen)),
            d_model=width,
            depth=depth,
            num_heads=heads,
            length=length,
            tokens=tokens,
            fit=FitSettings(
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=lr,
                precision=precision,
                seed=seed,
            ),
            prompt=prompt,
        )
        results = run_pretraining(
            data,
            settings,
            out,
            resume=resume,
            overwrite=overwrite,
            command=" ".join(["kexue", *sys.argv[1:]]),
            quiet=json,
        )
        if not processes().is_main_process:
            return
    except ImportError as error:
        fail(f'{error.name or error} is not installed; pip install "kexue[nlp,lab]"')
    except (ValueError, OSError, FloatingPointError) as error:
        fail(str(error))
    if json:
        print_json(results)
    else:
        print_pretrain_table(results, console())
        print(f"report: {out / 'report.html'}")
