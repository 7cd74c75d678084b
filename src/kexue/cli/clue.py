"""`kexue clue`: train, predict, score and check the eleven CLUE tasks."""

import collections
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from kexue.cli.console import console, fail, print_json

__all__ = ["app"]

app = typer.Typer(help="The eleven CLUE tasks: train, predict, score, check.", no_args_is_help=True)

TaskName = Annotated[str, typer.Argument(help="A task such as tnews, or all.")]
Data = Annotated[
    str, typer.Option(help="mini (built in), hub, hub:NAME, or a folder in the official layout.")
]
RECIPE = "Default: the optimizer's recipe."
Version = Annotated[str, typer.Option("--test-version", help="Published test files: 1.0 or 1.1.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def train(
    task: TaskName,
    data: Data = "mini",
    model: Annotated[
        str, typer.Option(help="tiny (built in, from scratch), a model folder, or a hub name.")
    ] = "tiny",
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/clue"),
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the recipe's.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples per step. Default: the recipe's.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=8, help="Tokens per row. Default: the recipe's.")
    ] = None,
    optimizer: Annotated[
        str, typer.Option(help="Ours (adafactor, adax, lion, tiger) or a class of torch.optim.")
    ] = "adafactor",
    option: Annotated[
        list[str] | None, typer.Option(help="name=value of the optimizer, may be repeated.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help=f"Peak rate. {RECIPE}")] = None,
    schedule: Annotated[
        str | None, typer.Option(help=f"linear or constant, after the warm-up. {RECIPE}")
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help=f"Share of the steps in which the rate climbs. {RECIPE}")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help=f"Decoupled, on matrices only. {RECIPE}")
    ] = None,
    max_grad_norm: Annotated[
        float | None,
        typer.Option(help=f"Clip the global norm of the gradient; 0: never. {RECIPE}"),
    ] = None,
    pooling: Annotated[
        str, typer.Option(help="What a head reads: first ([CLS]), avg or max.")
    ] = "first",
    seeds: Annotated[
        int, typer.Option(min=1, help="How many seeds; the report gives mean and spread.")
    ] = 1,
    trick: Annotated[
        list[str] | None, typer.Option(help="name=value, may be repeated; first is innermost.")
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32.")] = "auto",
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Padded tokens per forward pass: the memory knob.")
    ] = 8192,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many epochs without gain.")
    ] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Write a checkpoint at least this often.")
    ] = 10.0,
    tracker: Annotated[
        str | None, typer.Option(help="tensorboard, wandb, …, beside metrics.jsonl.")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    test_version: Version = "1.1",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run.")] = False,
    json: Json = False,
) -> None:
    """Train, keep the best epoch, write checked submissions and report.html.

    Example: kexue clue train tnews --data mini --model tiny --out runs/tnews
    """
    with told():
        from kexue.report import print_clue_table
        from kexue.tasks.clue.campaign import run_campaign
        from kexue.tasks.clue.settings import ClueSettings
        from kexue.training.recipes import parse_option
        from kexue.training.settings import FitSettings

        given = {"learning_rate": lr, "schedule": schedule, "warmup": warmup}
        given |= {"weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
        rates: dict[str, Any] = {n: value for n, value in given.items() if value is not None}
        if max_grad_norm == 0:
            rates["max_grad_norm"] = None
        if option:
            rates["options"] = dict(map(parse_option, option))
        settings = ClueSettings(
            model=model,
            version=test_version,
            epochs=epochs,
            batch_size=batch_size,
            max_length=max_length,
            pooling=pooling,
            optimizer=optimizer,
            rates=rates,
            tricks=tuple(trick or ()),
            fit=FitSettings(
                max_tokens=max_tokens,
                precision=precision,
                patience=patience,
                checkpoint_minutes=checkpoint_minutes,
                compile=compile,
                tracker=tracker,
            ),
        )
        results = run_campaign(
            named(task),
            data,
            settings,
            out,
            seeds=seeds,
            resume=resume,
            overwrite=overwrite,
            command=" ".join(["kexue", *sys.argv[1:]]),
            quiet=json,
            say=lambda text: print(text, file=sys.stderr),
        )
        if not is_main_process():
            return
        if json:
            print_json(results)
        else:
            print_clue_table(results, console())
            print(f"report: {out / 'report.html'}")


@app.command()
def predict(
    task: TaskName,
    model: Annotated[Path, typer.Option(help="The best/ folder of a run, or for all the run.")],
    data: Data = "mini",
    split: Annotated[str, typer.Option(help="dev or test.")] = "test",
    out: Annotated[Path, typer.Option(help="Folder of the submission files.")] = Path("submission"),
    can: Annotated[
        bool, typer.Option("--can", help="Correct unsure predictions with the class prior (CAN).")
    ] = False,
    can_prior: Annotated[
        str | None,
        typer.Option(
            help="uniform, or a file of labelled rows or of class counts (a JSON object). "
            "Default: the training labels."
        ),
    ] = None,
    can_option: Annotated[
        list[str] | None,
        typer.Option(
            help="name=value of CAN (k, tau, alpha, steps, uncertainty, no_confident, "
            "pseudo_count), may be repeated."
        ),
    ] = None,
    test_version: Version = "1.1",
    json: Json = False,
) -> None:
    """Write the submission file of a trained model.

    Example: kexue clue predict tnews --model runs/tnews/tnews/best --data mini --out submission

    Example: kexue clue predict iflytek --model runs/clue/iflytek/best --data ~/CLUE --can
    """
    with told():
        from kexue.tasks.clue.can_options import parse_can_options
        from kexue.tasks.clue.submit import CANRequest, submit

        if not can and (can_prior is not None or can_option):
            raise ValueError("--can-prior and --can-option say how --can works; give --can too")
        written = submit(
            {name: model / name / "best" if task == "all" else model for name in named(task)},
            data,
            out,
            split=split,
            version=test_version,
            can=CANRequest(can_prior, parse_can_options(can_option or ())) if can else None,
            say=lambda text: print(text, file=sys.stderr),
        )
        if can and json:
            print_json({name: done.told() for name, done in written.items()})
            return
        show({name: str(done.path) for name, done in written.items()}, json, "written")
        for name, done in written.items():
            for line in done.correction.summary() if done.correction else ():
                print(f"{name:<10} {line}")


@app.command()
def score(
    task: TaskName,
    gold: Annotated[
        str, typer.Argument(help="Data with labels: mini, hub, a folder, or a file of one task.")
    ],
    predictions: Annotated[Path, typer.Argument(help="A submission file, or for all a folder.")],
    split: Annotated[str, typer.Option(help="The labelled split: dev or train.")] = "dev",
    test_version: Version = "1.1",
    json: Json = False,
) -> None:
    """Score a submission against labels.

    Example: kexue clue score tnews ~/CLUE/tnews/dev.json submission/tnews11_predict.json
    """
    with told():
        from kexue.tasks.clue import examples, make_task
        from kexue.tasks.clue.sources import FolderSource, open_source

        if split not in ("dev", "train"):
            raise ValueError(f"only dev and train have labels to score against, got {split!r}")
        scores = {}
        for name in named(task):
            made = make_task(name, version=test_version)
            official = Path(gold).is_file() and Path(gold).name in made.file_names(split)
            source = FolderSource(Path(gold).parent, own=True) if official else open_source(gold)
            found = list(examples(made, source, split))
            path = predictions
            if path.is_dir():
                path = path / made.submission_name
                own = path.with_name(f"{split}_{path.name}")
                path = own if own.exists() else path
            scores[name] = made.score(found, made.read_submission(path, found))
        if json:
            print_json(scores)
            return
        for name, values in scores.items():
            shown = "  ".join(f"{k} {v:.2f}" for k, v in values.items() if "/" not in k)
            print(f"{name:<10} {shown}")


@app.command()
def check(
    task: TaskName,
    predictions: Annotated[
        Path | None, typer.Argument(help="A submission file, or for all a folder.")
    ] = None,
    data: Data = "mini",
    test_version: Version = "1.1",
    json: Json = False,
) -> None:
    """Check data files, or a submission: every id of the test files once, every answer legal.

    Example: kexue clue check tnews --data ~/CLUE

    Example: kexue clue check tnews runs/tnews/submission/tnews11_predict.json --data mini
    """
    with told():
        from kexue.models.tiny import tiny_tokenizer
        from kexue.tasks.clue import examples, make_task
        from kexue.tasks.clue.sources import open_source

        source, good = open_source(data), {}
        tokenizer = tiny_tokenizer()
        for name in named(task):
            made = make_task(name, None if predictions else tokenizer, version=test_version)
            if predictions is None:
                counts = {}
                for split in made.files:
                    found = list(examples(made, source, split))
                    counts[split] = len(found)
                    collections.deque(made.encode(found, 0), maxlen=0)  # what training would do
                remarks = [f"{text} ({count})" for text, count in made.notes.items()]
                good[name] = "; ".join([*(f"{s} {n}" for s, n in counts.items()), *remarks])
                continue
            path = predictions / made.submission_name if predictions.is_dir() else predictions
            made.read_submission(path, list(examples(made, source, "test")))
            good[name] = str(path)
        show(good, json, "good")


@app.command("zip")
def zip_command(
    run: Annotated[Path, typer.Argument(help="A run folder, or its submission/ folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The archive.")] = Path("submission.zip"),
) -> None:
    """Pack the submission files into the archive that the benchmark takes.

    Example: kexue clue zip runs/clue -o submission.zip
    """
    with told():
        from kexue.tasks.clue.submission import pack

        files = pack(run, out)
        print(f"{out}: {len(files)} files")


def named(task: str) -> list[str]:
    """The task names that an argument stands for.

    Raises:
        ValueError: no such task.
    """
    from kexue.tasks.clue import TASKS

    if task == "all":
        return list(TASKS)
    if task not in TASKS:
        raise ValueError(f"no CLUE task is called {task!r}; known: {', '.join(TASKS)}, all")
    return [task]


def show(paths: dict[str, str], json: bool, what: str) -> None:
    """One line per file."""
    if json:
        print_json(paths)
    else:
        for name, path in paths.items():
            print(f"{name:<10} {what}: {path}")


def is_main_process() -> bool:
    """Whether this process prints; the others of a distributed run are silent."""
    from kexue.training.processes import processes

    return bool(processes().is_main_process)


@contextmanager
def told() -> Iterator[Any]:
    """Errors of the user's making become one line and exit code 1."""
    try:
        yield
    except ImportError as error:
        fail(f'{error.name or error} is not installed; pip install "kexue[nlp,lab]"')
    except (ValueError, OSError, FloatingPointError) as error:
        fail(str(error))
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        fail(f"out of memory; give a smaller --max-tokens (default 8192): {error}")
