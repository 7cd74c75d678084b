"""A measured mixing: known orders give known numbers, and other records are told."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from kexue.data import mixing as module
from kexue.data import record_places
from kexue.data.mixing import measure_mixing, mixing_of
from kexue.data.record_places import Lookup, Total, Windows, record_hashes
from kexue.data.shuffle import loops as loops_module
from kexue.data.shuffle.arrow_loops import ArrowLoops

N = 200_000
THERE = np.arange(N)


def orders():
    rng = np.random.default_rng(0)
    half = N // 2
    return {
        "same": THERE,
        "reversed": THERE[::-1],
        "uniform": rng.permutation(N),
        "halves": np.concatenate([rng.permutation(half), half + rng.permutation(half)]),
        "interleaved": np.stack([THERE[:half], THERE[half:]], axis=1).ravel(),
        "blocks": (rng.permutation(N // 500)[:, None] * 500 + np.arange(500)).ravel(),
        "rounds": THERE.reshape(20, -1)[:, rng.permutation(N // 20)].T.ravel(),
    }


@pytest.fixture(scope="module")
def found():
    return {name: mixing_of(order, THERE, N) for name, order in orders().items()}


def test_a_uniform_order_has_every_number_of_a_uniform_order(found):
    mixing = found["uniform"]
    assert mixing.kind == "uniform"
    assert mixing.score == pytest.approx(1, abs=0.01)
    for name, (mean, error) in mixing.expected.items():
        assert abs(getattr(mixing, name) - mean) <= 4 * error, name


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("n", [1000, 5000, 60_000])
def test_uniform_orders_are_called_uniform_whatever_their_length(n, seed):
    order = np.random.default_rng(seed).permutation(n)
    assert mixing_of(order, np.arange(n), n).kind == "uniform"


def test_the_variance_of_a_uniform_order_has_the_mean_one_and_the_error_stated():
    values = []
    for seed in range(200):
        order = np.random.default_rng(seed).permutation(3000)
        mixing = mixing_of(order, np.arange(3000), 3000)
        values.append(mixing.variance)
    error = mixing.expected["variance"][1]
    assert np.mean(values) == pytest.approx(1, abs=4 * error / 200**0.5)
    assert np.std(values) == pytest.approx(error, rel=0.2)


def test_an_unchanged_order_has_score_zero_correlation_one_and_no_displacement(found):
    mixing = found["same"]
    assert mixing.score < 0.01
    assert (mixing.correlation, mixing.displacement, mixing.neighbours) == (1, 0, 1)
    assert mixing.variance > 500
    assert mixing.kind == "local"


def test_a_reversed_order_has_score_zero_correlation_minus_one_and_displacement_1_5(found):
    mixing = found["reversed"]
    assert mixing.score < 0.01
    assert mixing.correlation == -1
    assert mixing.displacement == pytest.approx(1.5)
    assert mixing.neighbours == 1


def test_two_halves_shuffled_apart_draw_from_half_of_the_input(found):
    assert found["halves"].score == pytest.approx(0.5, abs=0.01)
    assert found["halves"].correlation == pytest.approx(0.75, abs=0.01)
    assert found["halves"].kind == "local"


def test_two_halves_merely_interleaved_are_not_mixed(found):
    assert found["interleaved"].score < 0.01
    assert found["interleaved"].kind == "local"


def test_blocks_moved_whole_keep_their_neighbours(found):
    assert found["blocks"].neighbours == pytest.approx(499 / 500, abs=1e-3)
    assert abs(found["blocks"].correlation) < 0.2
    assert found["blocks"].score < 0.02


def test_a_line_of_each_chunk_per_round_is_stratified():
    rng = np.random.default_rng(0)
    chunks = np.stack([k * 10_000 + rng.permutation(10_000) for k in range(20)])
    for row in range(10_000):
        chunks[:, row] = rng.permutation(chunks[:, row])
    mixing = mixing_of(chunks.T.ravel(), THERE, N)
    assert mixing.kind == "stratified"
    assert mixing.variance < 0.5
    assert mixing.score == 1
    assert mixing_of(chunks.T.ravel(), THERE, N, chunks=20).variance < 1e-9


@pytest.mark.parametrize("room", [100, 1000, 10_000])
def test_a_window_of_a_buffer_draws_from_a_share_that_grows_with_its_room(room):
    rng = np.random.default_rng(0)
    held, out = list(range(room)), []
    for line, slot in enumerate(rng.integers(0, room, N - room).tolist(), start=room):
        out.append(held[slot])
        held[slot] = line
    mixing = mixing_of(np.array(out + held), THERE, N)
    # the age of a line in the buffer is exponential: two of them are `room` apart on average
    assert mixing.score == pytest.approx((2 * room + 1000) / N, rel=0.5)
    assert mixing.variance > 100


def test_numbers_do_not_depend_on_records_left_out_unevenly():
    """Records that occur several times may all lie in one half of the input."""
    order = np.random.default_rng(0).permutation(N)
    kept = (order > N // 2) | (order % 10 == 0)
    mixing = mixing_of(order[kept], THERE[kept], N)
    mean, error = mixing.expected["variance"]
    assert abs(mixing.variance - mean) < 4 * error
    assert mixing.score == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("n", [2, 3, 10, 99])
def test_few_records_give_finite_numbers_and_no_judgement(n):
    mixing = mixing_of(np.arange(n)[::-1], np.arange(n), n)
    assert mixing.kind == "unknown"
    assert np.isfinite([mixing.score, mixing.variance, mixing.displacement]).all()


def test_a_window_of_one_record_and_one_chunk_are_refused():
    for options in ({"window": 1}, {"chunks": 1}):
        with pytest.raises(ValueError, match="at least 2"):
            mixing_of(THERE, THERE, N, **options)
    with pytest.raises(ValueError, match="at least two records"):
        mixing_of(THERE[:1], THERE[:1], N)


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture(params=["compiled", "numpy"])
def way(request, monkeypatch):
    """Hashes in C, and without a compiler."""
    if request.param == "numpy":
        monkeypatch.setattr(record_places, "native_function", lambda *given: None)
        monkeypatch.setattr(record_places, "loops", ArrowLoops)
    return request.param


def written(path, lines, delimiter=b"\n"):
    path.write_bytes(b"".join(line + delimiter for line in lines))
    return path


def some_lines(n=3000):
    rng = np.random.default_rng(1)
    sizes = rng.integers(0, 60, n).tolist()
    return [b"%d " % j + bytes(rng.integers(32, 255, sizes[j], np.uint8)) for j in range(n)]


def permuted(lines, seed=0):
    return [lines[j] for j in np.random.default_rng(seed).permutation(len(lines))]


def test_each_record_has_the_hash_of_the_loops(way):
    lines = [b"\n", b"a\n", b"ab\n", b"x" * 70_000 + b"\n", b"0123456789abcdef\n"] * 3
    block = np.frombuffer(b"".join(lines), np.uint8)
    lengths = np.array([len(line) for line in lines], np.uint32)
    engine = ArrowLoops() if way == "numpy" else loops_module.loops()
    wanted = [engine.hash(np.frombuffer(line, np.uint8)) for line in lines]
    assert record_hashes(block, lengths).tolist() == wanted


def test_a_shuffled_file_is_uniform_and_holds_the_same_records(tmp_path, way):
    lines = some_lines()
    a, b = written(tmp_path / "a", lines), written(tmp_path / "b", permuted(lines))
    report = measure_mixing(a, b)
    assert (report.same, report.lost, report.added, report.repeated) == (True, 0, 0, 0)
    assert report.records == report.shuffled_records == report.mixing.sampled == 3000
    assert report.bytes == a.stat().st_size
    assert report.mixing.kind == "uniform"


def test_lost_and_added_records_are_told(tmp_path, way):
    lines = some_lines()
    a = written(tmp_path / "a", lines)
    b = written(tmp_path / "b", [*permuted(lines[:-100]), b"new", b"newer"])
    report = measure_mixing(a, b)
    assert (report.same, report.lost, report.added) == (False, 100, 2)


@pytest.mark.parametrize("change", ["flip", "swap", "double"])
def test_a_changed_byte_is_told_though_number_and_bytes_agree(tmp_path, change):
    lines = some_lines()
    other = permuted(lines)
    if change == "flip":
        other[5] = other[5][:-1] + bytes([other[5][-1] ^ 1]) if len(other[5]) > 1 else b"?"
    elif change == "swap":
        other[5], other[6] = other[5][1:] + other[6][:1], other[5][:1] + other[6][1:]
    else:
        same = next(j for j in range(6, 3000) if len(other[j]) == len(other[5]))
        other[5] = other[same]
    report = measure_mixing(written(tmp_path / "a", lines), written(tmp_path / "b", other))
    assert report.shuffled_records == report.records
    assert not report.same


def test_records_that_occur_several_times_are_left_out_and_counted(tmp_path, way):
    lines = [*some_lines(2000), *[b""] * 500, *[b"twice"] * 2]
    report = measure_mixing(
        written(tmp_path / "a", lines), written(tmp_path / "b", permuted(lines))
    )
    assert report.same
    assert report.repeated == 502
    assert report.mixing.sampled == 2000


def test_a_record_that_the_output_has_twice_has_no_place_either(tmp_path):
    lines = some_lines(2000)
    out = permuted(lines)
    out[5] = out[6]
    report = measure_mixing(written(tmp_path / "a", lines), written(tmp_path / "b", out))
    assert (report.same, report.repeated, report.mixing.sampled) == (False, 2, 1998)


def test_headers_delimiters_compression_and_several_files_are_understood(tmp_path):
    lines = [line.replace(b"|", b"") for line in some_lines(2000)]
    out = permuted(lines)
    parts = {"a0": lines[:700], "a1": lines[700:]}
    a = [written(tmp_path / name, [b"id", *part], b"|") for name, part in parts.items()]
    written(tmp_path / "b0", [b"id", *out[:1500]], b"|")
    with gzip.open(tmp_path / "b1", "wb") as file:
        file.write(b"|".join([b"id", *out[1500:]]))
    report = measure_mixing(a, str(tmp_path / "b*"), header=1, delimiter=b"|")
    assert report.same
    assert report.records == 2000


def test_a_sample_of_the_records_is_not_called_the_same(tmp_path):
    lines = some_lines()
    report = measure_mixing(
        written(tmp_path / "a", lines), written(tmp_path / "b", permuted(lines)[:1500])
    )
    assert (report.same, report.lost, report.added) == (False, 1500, 0)
    assert report.mixing.kind == "uniform"


def test_files_that_have_nothing_in_common_are_refused_with_a_hint(tmp_path):
    a, b = written(tmp_path / "a", [b"1", b"2"]), written(tmp_path / "b", [b"3", b"4"])
    with pytest.raises(ValueError, match="Are these the files that were shuffled"):
        measure_mixing(a, b)
    with pytest.raises(ValueError, match="of 0 records"):
        measure_mixing(a, written(tmp_path / "c", []))


@pytest.mark.parametrize("lines", [[], [b"one"], [b"twice"] * 2000], ids=["none", "one", "alike"])
def test_the_same_records_without_two_that_occur_once_are_told_and_not_judged(tmp_path, lines):
    a = written(tmp_path / "a", lines)
    report = measure_mixing(a, written(tmp_path / "b", lines))
    assert (report.same, report.mixing, report.kind) == (True, None, "unknown")
    assert report.records == len(lines)
    assert report.as_json()["mixing"] is None
    assert json.dumps(report.as_json())


def test_standard_input_and_parquet_are_refused(tmp_path):
    a = written(tmp_path / "a", [b"1"])
    with pytest.raises(ValueError, match="standard input"):
        measure_mixing(a, "-")
    (tmp_path / "rows").write_bytes(b"PAR1........PAR1")
    with pytest.raises(ValueError, match="Parquet"):
        measure_mixing(tmp_path / "rows", a)
    same = written(tmp_path / "text", [b"PAR1 is the first hole", b"the second"])
    assert measure_mixing(same, same).same


def test_of_a_long_file_evenly_spread_windows_are_kept(tmp_path):
    windows = Windows(10, most=100)
    for first in range(0, 1003, 17):
        windows.add(first, np.arange(first, min(first + 17, 1003), dtype=np.uint64))
    places, hashes = windows.kept()
    assert places.tolist() == hashes.tolist()
    assert 50 <= len(places) <= 100
    assert windows.step == 16
    assert np.unique(places // 10).tolist() == list(range(0, 101, 16))
    assert (np.bincount(places // 10)[::16][:-1] == 10).all()


def test_a_long_file_gives_the_numbers_of_its_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_RECORDS", 20_000)
    rng = np.random.default_rng(0)
    lines = [b"%d" % j for j in range(60_000)]
    a = written(tmp_path / "a", lines)
    report = measure_mixing(a, written(tmp_path / "b", permuted(lines)), window=100)
    assert report.same
    assert 10_000 <= report.mixing.sampled <= 20_000
    assert report.mixing.kind == "uniform"
    order = rng.permutation(60)
    blocks = [line for block in order for line in lines[block * 1000 : (block + 1) * 1000]]
    report = measure_mixing(a, written(tmp_path / "c", blocks), window=100)
    assert report.mixing.kind == "local"


def test_places_are_found_whether_they_come_at_once_or_in_pieces():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 64, 5000, dtype=np.uint64)
    wanted = rng.permutation(hashes)[:300]
    lookup = Lookup(wanted)
    for first in range(0, 5000, 333):
        lookup.add(first, hashes[first : first + 333])
    times, place = lookup.of(wanted)
    assert (times == 1).all()
    assert (hashes[place] == wanted).all()
    assert Lookup(np.zeros(0, np.uint64)).add(0, hashes) is None


def test_totals_do_not_depend_on_the_order_nor_on_the_pieces():
    hashes = np.random.default_rng(0).integers(0, 1 << 64, 1000, dtype=np.uint64)
    one, two = Total(), Total()
    one.add(hashes, 77)
    for part in np.array_split(np.random.default_rng(1).permutation(hashes), 7):
        two.add(part, 11)
    assert one == two


def test_nothing_heavy_is_imported():
    code = "import sys, kexue.data.mixing; print({'torch', 'pyarrow', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
