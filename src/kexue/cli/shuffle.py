"""`kexue shuffle`: records of files far larger than memory, in uniformly random order."""

import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from kexue.cli.console import fail, print_json

__all__ = ["shuffle"]


def shuffle(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="IN…", help="Files, patterns, or - for standard input."),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", help="The output; - is standard output.")
    ] = "-",
    memory: Annotated[str, typer.Option(help="What the whole process may hold.")] = "2GB",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the order. Default: drawn, and told.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option("-n", "--sample", min=0, help="This many records only.")
    ] = None,
    split_lines: Annotated[
        int | None, typer.Option(min=1, help="Records of each of several outputs.")
    ] = None,
    split_files: Annotated[
        int | None, typer.Option(min=1, help="How many outputs, equally long.")
    ] = None,
    header: Annotated[
        int, typer.Option(min=0, help="Lines at the head of every input that are no records.")
    ] = 0,
    nul: Annotated[bool, typer.Option("-z", "--zero", help="Records end with NUL.")] = False,
    delimiter: Annotated[
        str | None, typer.Option(help=r"Records end with this; \n, \t, \0, \xNN are known.")
    ] = None,
    tmp_dir: Annotated[
        Path | None, typer.Option(help="For temporary files. Default: the output's folder.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Default: the cores, at most 4.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a killed run.")] = False,
    fsync: Annotated[bool, typer.Option("--fsync", help="Have the disk keep the output.")] = False,
    mixing_report: Annotated[
        Path | None, typer.Option(help="Write a page on how well the output is mixed.")
    ] = None,
    shuffled: Annotated[
        list[str] | None,
        typer.Option(help="Shuffle nothing; measure this output of another program."),
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: on a Ray cluster.")] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="Of the cluster, or auto. Default: Ray is started here.")
    ] = None,
    exchange: Annotated[
        str, typer.Option(help="With ray, pieces are shared files or objects of Ray's store.")
    ] = "shared",
    nodes: Annotated[int, typer.Option(min=1, help="For the plan of --engine ray.")] = 4,
    disk_mb_s: Annotated[float, typer.Option(help="For that plan, of a node.")] = 1000.0,
    network_mb_s: Annotated[float, typer.Option(help="For that plan, of a node.")] = 1250.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan only.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Put the records of files into uniformly random order, in bounded memory.

    The order follows from the seed and the input alone: not from memory, threads, compression, or
    how the input is cut into files.

    Example: kexue shuffle corpus/*.jsonl.gz -o shuffled.jsonl --memory 4GB --seed 7

    Example: kexue shuffle corpus.txt -o part.txt --split-lines 100000

    Example: kexue shuffle '/shared/*.jsonl' -o /shared/out.jsonl --engine ray --ray-address auto

    Example: kexue shuffle corpus.txt --shuffled theirs.txt --mixing-report page.html
    """
    from kexue.cli.cluster import check_engine, leave, plan_on_cluster, shuffle_on_cluster
    from kexue.cli.mixing import check_mixing, mixing
    from kexue.data.shuffle import plan_shuffle, shuffle_lines

    signal.signal(signal.SIGTERM, terminated)
    mark = b"\0" if nul else read_delimiter(delimiter)
    common: dict[str, Any] = {
        "memory": memory,
        "tmp_dir": tmp_dir,
        "header": header,
        "delimiter": mark,
        "seed": seed,
        "threads": threads,
        "lines_per_file": split_lines,
        "files": split_files,
        "sample": sample,
        "overwrite": overwrite,
    }
    check_engine(engine, ray_address, exchange, threads, resume)
    check_mixing(inputs, output, shuffled or [], mixing_report)
    lines: dict[str, Any] = {"header": header, "delimiter": mark, "memory": memory}
    measured: dict[str, Any] = {}
    try:
        if shuffled:
            to = None if json else sys.stdout
            measured = mixing(inputs, shuffled, mixing_report, to=to, **lines)
            if json:
                print_json(measured)
            return
        if dry_run and engine == "ray":
            rates: dict[str, Any] = {
                "nodes": nodes,
                "disk_mb_s": disk_mb_s,
                "network_mb_s": network_mb_s,
            }
            show_plan(plan_on_cluster(inputs, memory, exchange=exchange, **rates), json)
            return
        if dry_run:
            show_plan(asdict(plan_shuffle(inputs, output, **common)), json)
            return
        common |= {"fsync": fsync, "progress": not (quiet or json)}
        if engine == "ray":
            common |= {"ray_address": ray_address, "exchange": exchange}
            report = shuffle_on_cluster(inputs, output, **common)
        else:
            report = shuffle_lines(inputs, output, resume=resume, **common)
        sys.stdout.flush()
        if mixing_report is not None:
            to, names = None if quiet or json else sys.stderr, list(report.outputs)
            found = mixing(inputs, names, mixing_report, report.seed, to=to, **lines)
            measured = {"mixing": found}
    except BrokenPipeError:
        sys.stdout = None  # nobody reads what is left in its buffer
        fail("standard output was closed before everything was written")
    except KeyboardInterrupt:
        print("error: interrupted; temporary files are removed", file=sys.stderr)
        leave(engine, 130)
    except Terminated:
        print("error: terminated; temporary files are removed", file=sys.stderr)
        leave(engine, 143)
    except (ImportError, ValueError, OSError, MemoryError) as error:
        fail(reason(error))
    if json and output != "-":
        print_json(asdict(report) | measured)
    elif not quiet:
        rate = report.bytes / 1e6 / max(report.seconds, 1e-9)
        print(
            f"{report.lines:,} records, {report.bytes / 1e6:,.1f} MB in {report.seconds:.1f} s "
            f"({rate:,.0f} MB/s), peak {report.peak_memory / 1e6:,.0f} MB, seed {report.seed}",
            file=sys.stderr,
        )


def reason(error: BaseException) -> str:
    """What went wrong, without the number of the system's error."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return error.strerror
    return str(error) or type(error).__name__


class Terminated(BaseException):
    """SIGTERM came."""


def terminated(number: int, frame: object) -> NoReturn:
    """Turns the signal into an exception, so that temporary files are removed."""
    raise Terminated


ESCAPES = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\"}


def read_delimiter(text: str | None) -> bytes:
    r"""The bytes that `\n`, `\x1e` or plain text stand for."""
    if text is None:
        return b"\n"
    found, at = b"", 0
    while at < len(text):
        if text[at] != "\\":
            found += text[at].encode("utf-8", "surrogateescape")
            at += 1
            continue
        letter = text[at + 1 : at + 2]
        if letter == "x" and (digits := text[at + 2 : at + 4]) and is_hex(digits):
            found, at = found + bytes.fromhex(digits), at + 4
        elif letter in ESCAPES:
            found, at = found + ESCAPES[letter], at + 2
        else:
            fail(rf"--delimiter knows \n, \t, \r, \0, \\ and \xNN, got {text!r}")
    if not found:
        fail("--delimiter must not be empty")
    return found


def is_hex(digits: str) -> bool:
    """Two hexadecimal digits."""
    return len(digits) == 2 and all(one in "0123456789abcdefABCDEF" for one in digits)


def show_plan(plan: dict[str, Any], json: bool) -> None:
    """What would be done."""
    if json:
        print_json(plan)
        return
    for name, value in plan.items():
        shown = "unknown until read" if value is None else value
        if isinstance(value, int | float) and not isinstance(value, bool):
            shown = f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
        print(f"{name.replace('_', ' '):<16} {shown}")
