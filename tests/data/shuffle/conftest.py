"""Fixtures of the tests of the shuffle."""

from pathlib import Path

import pytest

from families.shuffling import below, the_loops
from kexue.data.shuffle import shuffle_lines


@pytest.fixture(autouse=True)
def _small_process(monkeypatch):
    """The process that runs all tests may hold gigabytes; a limit is for what a shuffle holds."""
    for module in ("request", "parquet"):
        monkeypatch.setattr(f"kexue.data.shuffle.{module}.resident", lambda: 60_000_000)


@pytest.fixture
def shuffle(tmp_path):
    """Shuffles bytes in files; returns the bytes of the outputs in the order of their names."""
    made = tmp_path / "made"
    made.mkdir()

    def call(contents, *, name="out.txt", **options):
        folder = tmp_path / "given"
        folder.mkdir(exist_ok=True)
        paths = []
        for number, content in enumerate([contents] if isinstance(contents, bytes) else contents):
            paths.append(folder / f"{number:03}")
            paths[-1].write_bytes(content)
        options = {"seed": 7, "progress": False, "memory": "4GB"} | options
        call.report = shuffle_lines(paths, made / name, **options)
        outputs = [Path(path) for path in call.report.outputs]
        assert below(made) == sorted(path.name for path in outputs), "something is left over"
        found = [path.read_bytes() for path in outputs]
        for path in outputs:
            path.unlink()
        return found if "files" in options or "lines_per_file" in options else found[0]

    return call


@pytest.fixture(params=["compiled", "arrow"])
def engine(request, monkeypatch):
    """Both kinds of loops, one after the other."""
    made = the_loops(request.param)
    monkeypatch.setattr("kexue.data.shuffle.request.loops", lambda: made)
    return made
