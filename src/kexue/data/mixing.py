"""How well records are mixed: measured on files, whoever shuffled them (S09).

Records are known again by their hash; their places give the numbers of `mixing_numbers.py`.

Whether the output holds the same records at all is told from sums of hashes over every record,
which no order changes. Records that occur several times have no place of their own: they are left
out, and counted. Cost: both files are read once; memory does not grow with them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kexue.data.mixing_numbers import CHUNKS, WINDOW, Mixing, mixing_of
from kexue.data.record_places import Lookup, Total, Windows, hashed
from kexue.data.shuffle.input_paths import expand
from kexue.data.shuffle.parquet_files import is_parquet
from kexue.data.shuffle.plan import Memory, parse_size

__all__ = ["Mixing", "MixingReport", "measure_mixing", "mixing_of"]

Array = NDArray[Any]
MOST_RECORDS = 400_000
"""Records of windows that are held; at least half as many are measured in a file that has them."""


@dataclass(frozen=True)
class MixingReport:
    """What two sets of files have in common, and how their records are mixed.

    Args:
        records: of the input.
        shuffled_records: of the output.
        bytes: of the input's records, with their delimiters.
        same: whether the output has exactly the records of the input.
        lost: records that the output lacks; estimated from the windows unless `same`.
        added: records that only the output has; estimated likewise.
        repeated: records in the windows that occur several times, and so are left out.
        mixing: the numbers; None where fewer than two records occur once.
    """

    records: int
    shuffled_records: int
    bytes: int
    same: bool
    lost: int
    added: int
    repeated: int
    mixing: Mixing | None

    @property
    def kind(self) -> str:
        """That of the mixing; `unknown` where there is nothing to measure."""
        return "unknown" if self.mixing is None else self.mixing.kind

    def as_json(self) -> dict[str, Any]:
        """Plain values, without the points."""
        found = asdict(self)
        if self.mixing is not None:
            del found["mixing"]["points"]
        return found | {"kind": self.kind}


def measure_mixing(
    inputs: str | Path | Sequence[str | Path],
    shuffled: str | Path | Sequence[str | Path],
    *,
    header: int = 0,
    delimiter: bytes = b"\n",
    window: int = WINDOW,
    chunks: int = CHUNKS,
    memory: str | int = "256MB",
    warn: Callable[[str], None] | None = None,
) -> MixingReport:
    """Compares files before and after a shuffle by any program.

    Args:
        inputs: files or patterns, in the order in which they were read; compressed or not.
        shuffled: files or patterns of the output, in their order.
        header: lines at the head of every file that are no records.
        delimiter: ends a record.
        window: records of a window of the output.
        chunks: of the input, for the variance.
        memory: bounds what is held beside the process itself; a record may have a quarter of it.
        warn: receives remarks for people.

    Raises:
        ValueError: standard input, Parquet, a record that is too long, files that have nothing in
            common.
        OSError: a file that cannot be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a").write_text("".join(f"{j}\\n" for j in range(500)))
        >>> _ = (folder / "b").write_text("".join(f"{j}\\n" for j in range(499, -1, -1)))
        >>> found = measure_mixing(folder / "a", folder / "b")
        >>> found.same, found.mixing.neighbours, found.mixing.correlation
        (True, 1.0, -1.0)
    """
    room = Memory(parse_size(memory), 0)

    def stream(paths: list[str]) -> Iterator[tuple[int, Array, int]]:
        return hashed(paths, delimiter, header, room, warn)

    paths, others = lines_only(inputs), lines_only(shuffled)
    windows = Windows(window, MOST_RECORDS)
    after = Total()
    for first, some, size in stream(others):
        after.add(some, size)
        windows.add(first, some)
    places, hashes = windows.kept()
    lookup = Lookup(hashes)
    before = Total()
    for first, some, size in stream(paths):
        before.add(some, size)
        lookup.add(first, some)
    times, found = lookup.of(hashes)
    once, same = times == 1, before == after
    few = int(once.sum()) < 2
    if few and not same:
        raise ValueError(
            f"{', '.join(others[:3])}: of {len(hashes):,} records looked at, {int(once.sum())} "
            "stand exactly once in the inputs; two are needed. Are these the files that were "
            "shuffled, with the same --header and --delimiter?"
        )
    added = 0 if same else round(after.records * float((times == 0).mean()))
    return MixingReport(
        records=before.records,
        shuffled_records=after.records,
        bytes=before.bytes,
        same=same,
        lost=0 if same else max(0, before.records - after.records + added),
        added=added,
        repeated=int((times > 1).sum()),
        mixing=None
        if few
        else mixing_of(
            found[once], places[once], before.records, after.records, window=window, chunks=chunks
        ),
    )


def lines_only(given: str | Path | Sequence[str | Path]) -> list[str]:
    """The files; refuses what can not be read twice, and rows."""
    paths = expand(given)
    for path in paths:
        if path == "-":
            raise ValueError("mixing is measured on files; standard input (-) is gone once read")
        if is_parquet(path):
            raise ValueError(f"{path}: mixing is measured on lines, this is a Parquet file")
    return paths
