"""What is asked of a shuffle, once everything that can be known before is known to be good."""

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from kexue.data.shuffle.inputs import Inputs, expand, unpacking_memory
from kexue.data.shuffle.loops import Loops, loops
from kexue.data.shuffle.outputs import Outputs, is_part, older_parts
from kexue.data.shuffle.packed import CODERS
from kexue.data.shuffle.plan import Memory, parse_size, resident, usual_limit
from kexue.data.shuffle.progress import Progress

__all__ = ["Request", "checked"]


@dataclass
class Request:
    """A checked request; `shuffle_lines` says what the fields are."""

    paths: list[str]
    output: str
    memory: Memory
    seed: int | None
    threads: int
    tmp_dir: Path
    lines_per_file: int | None
    files: int | None
    header: int
    delimiter: bytes
    sample: int | None
    buckets: int | None
    overwrite: bool
    resume: bool
    fsync: bool
    loops: Loops
    warn: Callable[[str], None]
    progress: Progress

    @property
    def stdout(self) -> bool:
        """Whether the output is standard output."""
        return self.output == "-"

    @property
    def several(self) -> bool:
        """Whether the output is several numbered files."""
        return self.lines_per_file is not None or self.files is not None

    @property
    def arguments(self) -> dict[str, Any]:
        """What the output follows from, beside seed and inputs."""
        return {
            "output": self.output if self.stdout else str(Path(self.output).absolute()),
            "lines_per_file": self.lines_per_file,
            "files": self.files,
            "header": self.header,
            "delimiter": self.delimiter.hex(),
            "sample": self.sample,
            "paths": [path if path == "-" else str(Path(path).absolute()) for path in self.paths],
        }

    @property
    def seen(self) -> list[Any]:
        """What the inputs are now: a killed run does not go on with others."""
        found = [None if path == "-" else Path(path).stat() for path in self.paths]
        return [one and [one.st_size, one.st_mtime_ns] for one in found]

    @property
    def fingerprint(self) -> str:
        """The same for the same request: the name of its folder."""
        text = json.dumps(self.arguments, sort_keys=True)
        name = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
        return f"{name}-{os.getpid()}" if self.stdout else name

    def limits(self, lines: int) -> list[int | None]:
        """Records of each output, now that their number is known."""
        if self.sample is not None:
            lines = min(lines, self.sample)
        if self.lines_per_file is not None:
            parts = max(1, math.ceil(lines / self.lines_per_file))
            rest = lines - (parts - 1) * self.lines_per_file
            return [*[self.lines_per_file] * (parts - 1), rest]
        if self.files is not None:
            edges = [lines * j // self.files for j in range(self.files + 1)]
            return [b - a for a, b in pairwise(edges)]
        return [None]

    def inputs(self, quiet: bool = False) -> Inputs:
        """The inputs, to be read once; quiet: without remarks on them."""
        warn = None if quiet else self.warn
        return Inputs(self.paths, self.delimiter, self.loops, self.header, warn)

    def outputs(self, header: bytes, lines: int) -> Outputs:
        """The outputs, now that the number of records is known."""
        return Outputs(
            self.output, header, self.limits(lines), fsync=self.fsync, partial=self.fingerprint
        )

    def leftovers(self) -> list[Path]:
        """Temporary outputs of this request."""
        folder = Path(self.output).absolute().parent
        return [] if self.stdout else list(folder.glob(f".*.{self.fingerprint}"))


def checked(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    memory: str | int | None,
    seed: int | None,
    threads: int | None,
    tmp_dir: str | Path | None,
    lines_per_file: int | None,
    files: int | None,
    header: int,
    delimiter: bytes,
    sample: int | None,
    buckets: int | None,
    progress: bool,
    overwrite: bool,
    resume: bool,
    fsync: bool,
    warn: Callable[[str], None] | None,
) -> Request:
    """The request, or an error that says what to mend."""
    for name, value, least in (
        ("threads", threads, 1),
        ("lines_per_file", lines_per_file, 1),
        ("files", files, 1),
        ("header", header, 0),
        ("sample", sample, 0),
        ("buckets", buckets, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if buckets is not None and buckets > 1 << 16:
        raise ValueError(f"buckets must be at most 65536, got {buckets}")
    if seed is not None and not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be in [0, 2^64), got {seed}")
    if lines_per_file is not None and files is not None:
        raise ValueError("give lines_per_file or files, not both")
    if not isinstance(delimiter, bytes):
        raise TypeError(f"delimiter must be bytes such as b'\\n', got {delimiter!r}")
    if not delimiter:
        raise ValueError("delimiter must not be empty")
    output, paths = str(output), expand(inputs)
    several = lines_per_file is not None or files is not None
    if output == "-":
        check_standard_output(several)
    else:
        output = str(Path(output).resolve()) if Path(output).is_symlink() else output
        check_output(output, paths, several, overwrite or resume)
    return Request(
        paths=paths,
        output=output,
        memory=divided(memory, paths, output),
        seed=seed,
        threads=threads or min(4, os.cpu_count() or 1),
        tmp_dir=temporary_folder(tmp_dir, output),
        lines_per_file=lines_per_file,
        files=files,
        header=header,
        delimiter=delimiter,
        sample=sample,
        buckets=buckets,
        overwrite=overwrite,
        resume=resume,
        fsync=fsync,
        loops=loops(),
        warn=warn or Progress.say,
        progress=Progress(progress),
    )


def divided(memory: str | int | None, paths: list[str], output: str) -> Memory:
    """The memory limit, less what is there and what compression takes."""
    engine = loops()  # before the memory is looked at, which it may fill with a package
    packed = CODERS.get(Path(output).suffix.lstrip("."), 0) if output != "-" else 0
    base, coders = resident(), packed + unpacking_memory(paths) + engine.spare
    return Memory(
        usual_limit(base + coders) if memory is None else parse_size(memory),
        base,
        coders=coders,
        per_line=engine.per_line,
        blocks=engine.blocks,
    )


def check_standard_output(several: bool) -> None:
    """Refuses what one stream cannot be."""
    if several:
        raise ValueError("several outputs need a file name, standard output is one stream")
    if sys.stdout is None:
        raise OSError("standard output is closed")


def check_output(output: str, paths: list[str], several: bool, overwrite: bool) -> None:
    """Refuses an output that would destroy an input or, unasked, an older file."""
    file = Path(output)
    folder = file.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder for the output")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: may not be written")
    if file.is_dir() or output.endswith("/") or not file.name:
        raise ValueError(f"{output}: is a folder; give a file name inside it")
    if file.exists() and not file.is_file():
        raise ValueError(f"{output}: is no regular file; give - and redirect: > {output}")
    if len(os.fsencode(file.name)) > 200:
        raise ValueError(f"{output}: this name is longer than 200 bytes")
    names = older_parts(output) if several else [output] * file.exists()
    for path in (path for path in paths if path != "-"):
        same = [name for name in names if Path(name).exists() and Path(name).samefile(path)]
        if several and is_part(output, str(Path(path).resolve())):
            same = [path]
        if same:
            raise ValueError(f"{same[0]}: is an input and an output; give another output")
    if names and not overwrite:
        raise FileExistsError(f"{names[0]}: exists; give --overwrite to replace it")


def temporary_folder(given: str | Path | None, output: str) -> Path:
    """Where the run has its folder."""
    if given is not None:
        folder = Path(given)
    else:
        folder = Path.cwd() if output == "-" else Path(output).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{folder}: is no folder for temporary files; make it, or give --tmp-dir")
    return folder
