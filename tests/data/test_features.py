"""Encoded examples on disk: made once per content, whole or not at all (S01, 7; DESIGN, 5)."""

import errno
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from kexue.cache import cache_folder
from kexue.data.features import FeatureTable, content_hash, encode_once

COLUMNS = {"example": "int", "length": "int", "input_ids": "ints", "spans": "lists"}


def features(count=5):
    return [
        {"example": i, "length": i + 1, "input_ids": [*range(i + 1)], "spans": [[i, 0, 1]] * i}
        for i in range(count)
    ]


class Counted:
    """Makes features and counts how often it was asked to."""

    def __init__(self, rows):
        self.rows, self.calls = rows, 0

    def __call__(self):
        self.calls += 1
        yield from self.rows


def final(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_features_come_back_as_they_were_made(tmp_path):
    table = encode_once("key", COLUMNS, Counted(features()), tmp_path)
    assert len(table) == 5
    assert table.rows([3, 0, 3]) == [features()[3], features()[0], features()[3]]


def test_lengths_are_in_memory_as_integers(tmp_path):
    table = encode_once("key", COLUMNS, Counted(features()), tmp_path)
    assert table.lengths.dtype == np.int64
    assert table.lengths.tolist() == [1, 2, 3, 4, 5]


def test_the_second_call_opens_without_encoding_again(tmp_path):
    made = Counted(features())
    first = encode_once("key", COLUMNS, made, tmp_path)
    second = encode_once("key", COLUMNS, made, tmp_path)
    assert made.calls == 1
    assert second.rows([*range(5)]) == first.rows([*range(5)])


def test_another_key_is_encoded_anew(tmp_path):
    made = Counted(features())
    encode_once("one", COLUMNS, made, tmp_path)
    encode_once("two", COLUMNS, made, tmp_path)
    assert made.calls == 2
    assert final(tmp_path) == ["one.arrow", "two.arrow"]


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    encode_once("key", COLUMNS, Counted(features()))
    assert final(tmp_path / "here") == ["key.arrow"]
    monkeypatch.delenv("KEXUE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    assert cache_folder() == tmp_path / "there" / "kexue"
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # an empty variable is none, not this folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "kexue"


# What the key says


def test_the_hash_follows_the_bytes_of_a_file_not_its_name(tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_bytes(b"x" * 3_000_000)
    b.write_bytes(b"x" * 3_000_000)
    assert content_hash(a) == content_hash(b)
    b.write_bytes(b"x" * 2_999_999 + b"y")
    assert content_hash(a) != content_hash(b)


@pytest.mark.parametrize(
    ("one", "other"),
    [(("ab", "c"), ("a", "bc")), ((1,), ("1",)), (({"a": 1},), ({"a": 2},)), (("a",), ("a", ""))],
)
def test_other_parts_give_another_hash(one, other):
    assert content_hash(*one) == content_hash(*one)
    assert content_hash(*one) != content_hash(*other)


def test_a_task_hashes_settings_tokenizer_and_corpus(mini, tokenizer, tmp_path):
    from kexue.models.tiny import tiny_tokenizer
    from kexue.tasks.clue import make_task

    path = tmp_path / "dev.json"
    path.write_bytes((mini / "tnews" / "dev.json").read_bytes())
    task = make_task("tnews", tokenizer)
    key = task.fingerprint("dev", path)
    assert make_task("tnews", tiny_tokenizer()).fingerprint("dev", path) == key
    other = tiny_tokenizer()
    other.add_tokens(["新词"])
    keys = {
        make_task("tnews", tokenizer, max_length=64).fingerprint("dev", path),
        make_task("iflytek", tokenizer).fingerprint("dev", path),
        make_task("tnews", other).fingerprint("dev", path),
        task.fingerprint("train", path),
    }
    path.write_bytes(path.read_bytes() + b"\n")
    keys.add(task.fingerprint("dev", path))
    assert len(keys | {key}) == 6


# What a failure leaves behind


def test_a_failure_in_the_middle_leaves_nothing_and_the_next_call_succeeds(tmp_path):
    def failing():
        yield from features(3)
        raise KeyError("row 4")

    with pytest.raises(KeyError, match="row 4"):
        encode_once("key", COLUMNS, failing, tmp_path)
    assert final(tmp_path) == []
    assert len(encode_once("key", COLUMNS, Counted(features()), tmp_path)) == 5


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupted():
        yield from features(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_once("key", COLUMNS, interrupted, tmp_path)
    assert final(tmp_path) == []


def test_a_corpus_without_a_feature_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="there is not a single example to encode"):
        encode_once("key", COLUMNS, Counted([]), tmp_path)
    assert final(tmp_path) == []


@pytest.mark.parametrize("method", ["write", "finalize"])
def test_a_full_disk_is_said_and_leaves_nothing(method, monkeypatch, tmp_path):
    from datasets.arrow_writer import ArrowWriter

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ArrowWriter, method, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        encode_once("key", COLUMNS, Counted(features()), tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert final(tmp_path) == []
    monkeypatch.undo()
    assert len(encode_once("key", COLUMNS, Counted(features()), tmp_path)) == 5


def test_what_another_killed_process_left_is_not_taken_for_the_whole(tmp_path):
    (tmp_path / "key.99999.partial").write_bytes(b"half of it")
    assert len(encode_once("key", COLUMNS, Counted(features()), tmp_path)) == 5


def test_a_file_is_flushed_to_the_disk_before_it_gets_its_name(monkeypatch, tmp_path):
    seen = []
    real = os.fsync

    def watch(handle):
        seen.append(final(tmp_path))
        real(handle)

    monkeypatch.setattr(os, "fsync", watch)
    encode_once("key", COLUMNS, Counted(features()), tmp_path)
    assert seen
    assert all("key.arrow" not in names for names in seen)


def test_two_processes_encode_once(tmp_path):
    code = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from kexue.data.features import encode_once
        folder = Path(sys.argv[1])

        def features():
            with open(folder / "made.log", "a") as log:
                log.write("made\\n")
            time.sleep(1.5)
            yield {"length": 3}

        print(len(encode_once("key", {"length": "int"}, features, folder)))
        """
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == ["1", "1"]
    assert (tmp_path / "made.log").read_text() == "made\n"


# Memory

MEMORY = """
import resource, sys
from pathlib import Path
import psutil
from kexue.data.features import encode_once
import datasets, pyarrow

ids = list(range(100))
def features():
    for i in range(200_000):
        yield {"length": 100, "input_ids": ids}

def private():  # pages of mapped files are not ours: they are the disk's cache
    info = psutil.Process().memory_full_info()
    return info.uss

columns = {"length": "int", "input_ids": "ints"}
encode_once("warm", columns, lambda: iter([{"length": 1, "input_ids": [1]}]), Path(sys.argv[1]))
before = private()
table = encode_once("key", columns, features, Path(sys.argv[1]))
for start in range(0, len(table), 10_000):
    table.rows(list(range(start, start + 64)))
print((private() - before) / 2**20, (Path(sys.argv[1]) / "key.arrow").stat().st_size / 2**20)
"""


def test_two_hundred_thousand_features_stay_on_the_disk(tmp_path):
    """80 MB of features; making and reading them takes less than 60 MB of memory of our own."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True
    )
    grown, size = map(float, done.stdout.split())
    assert size > 75
    assert grown < 60


def test_a_table_reads_only_the_rows_that_are_asked_for(tmp_path):
    table = encode_once("key", COLUMNS, Counted(features()), tmp_path)
    assert isinstance(table, FeatureTable)
    assert table.rows([]) == []
    with pytest.raises(IndexError):
        table.rows([5])
