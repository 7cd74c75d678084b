"""The loops over bytes, compiled and not: the same results, each checked against plain Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from families.shuffling import the_loops
from kexue.data.shuffle.loops import ENTRY, LENGTH_BITS, LONG
from naive.shuffle import key, records


@pytest.fixture(params=["compiled", "arrow"])
def loops(request):
    return the_loops(request.param)


DELIMITERS = [b"\n", b"\0", b"\xff", b"ab", b"aa", b"\n\n", b"abcab"]


def array(content):
    return np.frombuffer(content, np.uint8)


def lines_of(loops, content, delimiter, most=1 << 16):
    lengths = np.empty(most, np.uint32)
    lines, used = loops.scan(array(content), delimiter, lengths)
    return lengths[:lines].tolist(), used


@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_scan_finds_whole_records_and_nothing_else(loops, delimiter):
    text = [b"a", b"", b"b\r", b"xyz" * 9, delimiter[:-1]]
    content = b"".join(one + delimiter for one in text) + b"rest"
    found, used = lines_of(loops, content, delimiter)
    wanted = [len(one) for one in records(content, delimiter)[:-1]]
    assert (found, used) == (wanted, sum(wanted))
    assert loops.skip(array(content), delimiter) == used


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([b"a", b"b", b"\n", b"aa", b"x" * 9]), max_size=60),
    st.sampled_from(DELIMITERS),
)
def test_scan_and_skip_agree_in_c_and_numpy(pieces, delimiter):
    content = b"".join(pieces)
    compiled, arrow = the_loops("compiled"), the_loops("arrow")
    found = lines_of(compiled, content, delimiter)
    assert found == lines_of(arrow, content, delimiter)
    for one in (compiled, arrow):
        assert one.skip(array(content), delimiter) == found[1]


def test_scan_stops_at_the_most_records(loops):
    assert lines_of(loops, b"a\nb\nc\n", b"\n", most=2) == ([2, 2], 4)
    assert lines_of(loops, b"", b"\n") == ([], 0)
    assert lines_of(loops, b"no end", b"\n") == ([], 0)


def test_delimiters_across_the_steps_of_the_numpy_search_are_found():
    content = (b"y" * ((1 << 18) - 1) + b"ab") * 3 + b"z"
    for one in ("compiled", "arrow"):
        found, used = lines_of(the_loops(one), content, b"ab")
        assert (found, used) == ([(1 << 18) + 1] * 3, len(content) - 1)


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
@pytest.mark.parametrize("levels", [[1], [5], [3, 4]])
def test_scatter_keeps_every_record_with_its_number_in_its_bucket(loops, levels, seed):
    rows = [b"x" * (j % 7) + b"\n" for j in range(500)]
    content, lengths = b"".join(rows), np.array([len(row) for row in rows], np.uint32)
    out, numbers = np.empty(len(content), np.uint8), np.empty(500, np.uint64)
    given = np.arange(500, dtype=np.uint64) * np.uint64(3)
    count, taken, hashes = loops.scatter(
        array(content), lengths, given, seed, np.array(levels, np.uint64), out, numbers
    )
    at = line = 0
    for b in range(levels[-1]):
        mine = [int(number) for number in numbers[line : line + count[b]]]
        assert mine == sorted(mine), "in the order they came"
        x = [key(seed, number)[0] for number in mine]
        for level in levels[:-1]:
            x = [one * level % 2**64 for one in x]
        assert {one * levels[-1] >> 64 for one in x} <= {b}
        text = b"".join(rows[number // 3] for number in mine)
        assert out[at : at + taken[b]].tobytes() == text
        hashed = sum(loops.hash(array(rows[number // 3])) for number in mine)
        assert int(hashes[b]) == hashed % 2**64
        at, line = at + int(taken[b]), line + int(count[b])
    assert (at, line) == (len(content), 500)


@pytest.mark.parametrize("lines", [0, 1, 2, 3, 1000])
def test_entries_are_sorted_by_key(loops, lines):
    content = b"\n" * lines
    entries = np.empty(lines, ENTRY)
    assert loops.enter(array(content), 0, b"\n", 0, 5, entries) == lines
    loops.sort(entries)
    keys = sorted((*key(5, number), number) for number in range(lines))
    assert entries["k"].tolist() == [one[0] for one in keys]
    assert entries["t"].tolist() == [one[1] for one in keys]
    assert (entries["where"] >> np.uint64(LENGTH_BITS)).tolist() == [one[2] for one in keys]


@pytest.mark.parametrize("few", [1, 2, 5])
def test_equal_keys_are_sorted_by_the_second_word(loops, few):
    random = np.random.Generator(np.random.PCG64(0))
    entries = np.empty(400, ENTRY)
    entries["k"] = random.integers(0, few, 400).astype(np.uint64) + np.uint64(2**64 - 9)
    entries["t"] = random.integers(0, 2**64, 400, np.uint64)
    entries["where"] = np.arange(400, dtype=np.uint64)
    wanted = sorted(map(tuple, entries.tolist()))
    loops.sort(entries)
    assert entries.tolist() == wanted


def test_entries_of_data_that_end_too_early_are_refused(loops):
    entries = np.empty(3, ENTRY)
    assert loops.enter(array(b"a\nb\nc"), 0, b"\n", 0, 1, entries) == -1


@pytest.mark.parametrize("room", [3, 4, 100])
def test_gather_copies_as_many_records_as_fit(loops, room):
    content = b"aa\nb\ncccccc\n"
    entries = np.empty(3, ENTRY)
    loops.enter(array(content), 0, b"\n", 0, 1, entries)
    out = np.zeros(room, np.uint8)
    lines, size, hash = loops.gather(array(content), b"\n", entries[[1, 0, 2]], out)
    wanted = {3: b"b\n", 4: b"b\n", 100: b"b\naa\ncccccc\n"}[room]
    assert (lines, out[:size].tobytes()) == (len(wanted.split(b"\n")) - 1, wanted)
    assert hash == sum(loops.hash(array(row)) for row in records(wanted)) % 2**64


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_records_around_sixteen_megabytes_have_their_true_length(loops, extra):
    size = LONG + extra
    content = b"y" * (size - 1) + b"\n" + b"z\n"
    entries = np.empty(2, ENTRY)
    assert loops.enter(array(content), 0, b"\n", 0, 1, entries) == len(content)
    out = np.empty(size + 2, np.uint8)
    lines, taken, _ = loops.gather(array(content), b"\n", entries[::-1].copy(), out)
    assert (lines, taken) == (2, size + 2)
    assert out[:3].tobytes() == b"z\ny"
    assert out[-1] == 10


def test_the_hash_tells_records_apart(loops):
    rows = [b"", b"\n", b"\0", b"\0\0", b"a", b"b", b"ab", b"ba", b"a" * 15, b"a" * 16, b"a" * 17]
    rows += [b"\0" * size for size in (7, 8, 9, 16, 24, 32)] + [b"x" * 40, b"x" * 39 + b"y"]
    assert len({loops.hash(array(row)) for row in rows}) == len(rows)
