"""Anything in, and the naive twin's bytes out."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from families.shuffling import below
from kexue.data.shuffle import request, shuffle_lines
from kexue.data.shuffle.arrow_loops import ArrowLoops
from kexue.data.shuffle.loops import loops
from kexue.data.shuffle.packed import kind_of
from naive.shuffle import parts, shuffled

ALPHABET = [b"a", b"b", b"\n", b"\0", b"\xff", b"\r", b"\n\n", b"aa", b"ab", b"x" * 40, b"\xe5\xad"]
CONTENT = st.lists(st.sampled_from(ALPHABET), max_size=120).map(b"".join) | st.binary(max_size=300)
PLAIN = CONTENT.filter(lambda content: not kind_of(content))  # the search knows the magic bytes
DELIMITERS = st.sampled_from(
    [b"\n", b"\0", b"a", b"aa", b"ab", b"\n\n", b"\r\n", b"aba", b"\xff\xff"]
)
SPLITS = st.sampled_from(
    [{}, {"lines_per_file": 1}, {"lines_per_file": 3}, {"files": 1}, {"files": 4}]
)


@settings(max_examples=90, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    contents=st.lists(PLAIN, min_size=1, max_size=4),
    seed=st.integers(0, 2**64 - 1),
    delimiter=DELIMITERS,
    header=st.integers(0, 3),
    split=SPLITS,
    buckets=st.sampled_from([None, 1, 2, 3, 50, 900]),
    threads=st.sampled_from([1, 2]),
    sample=st.sampled_from([None, None, 0, 1, 5]),
    arrow=st.booleans(),
)
def test_any_input_comes_out_as_the_naive_twin_says(
    contents, seed, delimiter, header, split, buckets, threads, sample, arrow
):
    head, rows = shuffled(contents, seed, delimiter=delimiter, header=header)
    rows = rows if sample is None else rows[:sample]
    wanted = parts(rows, **split) if split else [rows]
    engine = ArrowLoops() if arrow else loops()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"in{number}" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        kept, request.loops = request.loops, lambda: engine
        try:
            report = shuffle_lines(
                paths,
                Path(folder) / "out.txt",
                memory="4GB",
                seed=seed,
                delimiter=delimiter,
                header=header,
                buckets=buckets,
                threads=threads,
                sample=sample,
                progress=False,
                warn=lambda text: None,
                **split,
            )
        finally:
            request.loops = kept
        made = [Path(path).read_bytes() for path in report.outputs]
        assert made == [head + b"".join(part) for part in wanted]
        assert report.lines == len(rows)
        assert report.bytes == sum(map(len, rows))
        inputs = {path.name: path.read_bytes() for path in paths}
        assert list(inputs.values()) == contents
        assert set(below(folder)) == {*inputs, *(Path(p).name for p in report.outputs)}
