"""Files that are whole or absent: what tests/report/test_run_folder.py does not show."""

import errno
import os

import pytest

from kexue.data import files
from kexue.data.files import append_line, atomic_write_text, atomic_writer, explained


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_torn_last_line_is_removed_by_the_next_line(tmp_path):
    path = tmp_path / "log"
    path.write_bytes("one\ntwo\n半".encode() + b"\xe5\x8d")
    append_line(path, "three")
    assert path.read_bytes() == b"one\ntwo\nthree\n"


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 20_000])
def test_a_torn_line_of_any_length_is_removed(tmp_path, size):
    path = tmp_path / "log"
    path.write_bytes(b"one\n" + b"x" * size)
    append_line(path, "two")
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_file_that_is_one_torn_line_starts_anew(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"x" * 9000)
    append_line(path, "one")
    assert path.read_bytes() == b"one\n"


def test_a_line_comes_into_a_new_file_in_a_new_folder(tmp_path):
    append_line(tmp_path / "a" / "b" / "log", "一")
    assert (tmp_path / "a" / "b" / "log").read_text(encoding="utf-8") == "一\n"


def test_a_line_that_meets_a_full_disk_half_way_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "log"
    append_line(path, "one")

    def half(file, data):
        file.write(data[: len(data) // 2])
        full()

    with monkeypatch.context() as patch:
        patch.setattr(files, "_write_all", half)
        with pytest.raises(OSError, match=r"no space left to write this file.*log") as caught:
            append_line(path, "a longer line")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"one\n"


def test_a_write_that_takes_only_a_part_is_continued(tmp_path):
    class Slow:
        def __init__(self):
            self.taken = b""

        def write(self, data):
            self.taken += data[:3]
            return min(3, len(data))

    slow = Slow()
    files._write_all(slow, b"a line of some length\n")
    assert slow.taken == b"a line of some length\n"


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(IsADirectoryError):
        append_line(tmp_path, "one")
    (tmp_path / "file").write_text("")
    with pytest.raises((NotADirectoryError, FileExistsError)):
        atomic_write_text(tmp_path / "file" / "below", "text")


def test_the_final_name_is_there_only_after_the_last_word(tmp_path):
    path = tmp_path / "scores"
    with atomic_writer(path) as file:
        file.write("tnews")
        file.flush()
        assert not path.exists()
    assert path.read_text() == "tnews"


def test_a_disk_that_is_full_at_the_last_flush_leaves_no_temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left to write this file"):
        atomic_write_text(tmp_path / "scores", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_quota_that_is_used_up_is_told_like_a_full_disk(tmp_path):
    with pytest.raises(OSError, match="no space left") as caught, explained(tmp_path / "weights"):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert caught.value.filename == str(tmp_path / "weights")


def test_writers_in_other_languages_that_name_the_full_disk_are_understood(tmp_path):
    told = "I/O error: No space left on device (os error 28)"
    with (
        pytest.raises(OSError, match="no space left to") as caught,
        explained(tmp_path / "weights"),
    ):
        raise RuntimeError(told)
    assert caught.value.errno == errno.ENOSPC


def test_writers_that_name_nothing_are_believed_if_the_disk_is_full(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="unexpected pos"), explained(tmp_path / "weights"):
        raise RuntimeError("unexpected pos 64 vs 0")
    monkeypatch.setattr(files, "_is_full", lambda path: True)
    with pytest.raises(OSError, match="no space left"), explained(tmp_path / "weights"):
        raise RuntimeError("unexpected pos 64 vs 0")


def test_an_interruption_is_no_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_is_full", lambda path: True)
    with pytest.raises(KeyboardInterrupt), explained(tmp_path):
        raise KeyboardInterrupt
