"""Outputs: names of parts, places to go back to, names given at the end."""

from pathlib import Path

import pytest

from families.shuffling import below
from kexue.data.shuffle.outputs import Mark, Outputs, is_part, older_parts, part_name


@pytest.mark.parametrize(
    ("output", "parts", "name"),
    [
        ("news.txt", 3, "news-00001.txt"),
        ("a/b.c/news.txt.gz", 3, "a/b.c/news-00001.txt.gz"),
        ("news", 3, "news-00001"),
        (".hidden", 3, ".hidden-00001"),
        (".hidden.txt", 3, ".hidden-00001.txt"),
        ("news.txt", 100_001, "news-000001.txt"),
        ("/news.jsonl", 1, "/news-00001.jsonl"),
    ],
)
def test_parts_are_numbered_before_the_suffixes(output, parts, name):
    assert part_name(output, 1, parts) == name


def test_names_in_order_are_parts_in_order():
    names = [part_name("x.txt", part, 100_000) for part in (0, 1, 9, 10, 99_999)]
    assert names == sorted(names)


def test_older_parts_are_those_without_a_gap(tmp_path):
    for name in ("x-00000.txt", "x-00001.txt", "x-00003.txt", "x-000000.txt", "y-00000.txt"):
        (tmp_path / name).write_bytes(b"")
    found = [Path(one).name for one in older_parts(str(tmp_path / "x.txt"))]
    assert found == ["x-00000.txt", "x-00001.txt", "x-000000.txt"]
    assert is_part(str(tmp_path / "x.txt"), str((tmp_path / "x-20210908.txt").resolve()))
    assert not is_part(str(tmp_path / "x.txt"), str((tmp_path / "x-1.txt").resolve()))


def written(outputs, *records):
    for record in records:
        while outputs.room() == 0:
            raise AssertionError("no room is left")
        outputs.write(memoryview(record), 1)


def test_going_back_to_a_mark_forgets_what_came_after(tmp_path):
    name = str(tmp_path / "out.txt")
    first = Outputs(name, b"head\n", [2, 3], partial="x")
    written(first, b"a\n", b"b\n", b"c\n")
    mark = first.mark()
    assert mark == Mark(part=1, offset=7, lines=1)
    written(first, b"lost\n")
    first.file.close()
    second = Outputs(name, b"head\n", [2, 3], partial="x")
    second.go_back(mark)
    written(second, b"d\n", b"e\n")
    second.finish()
    assert below(tmp_path) == [".out-00000.txt.x", ".out-00001.txt.x"] or len(below(tmp_path)) == 2
    second.publish()
    assert (tmp_path / "out-00000.txt").read_bytes() == b"head\na\nb\n"
    assert (tmp_path / "out-00001.txt").read_bytes() == b"head\nc\nd\ne\n"


def test_an_interrupt_while_names_are_given_comes_when_all_have_theirs(tmp_path, monkeypatch):
    outputs = Outputs(str(tmp_path / "out"), b"", [1, 1, 1], partial="x")
    written(outputs, b"a\n", b"b\n", b"c\n")
    outputs.finish()
    original, calls = type(tmp_path).replace, []

    def replace(self, name):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, name)

    monkeypatch.setattr(type(tmp_path), "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        outputs.publish()
    assert below(tmp_path) == ["out-00000", "out-00001", "out-00002"]


def test_an_error_while_names_are_given_is_told_with_the_name(tmp_path):
    outputs = Outputs(str(tmp_path / "out"), b"", [None], partial="x")
    written(outputs, b"a\n")
    outputs.finish()
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        outputs.publish()
    outputs.discard()
    assert below(tmp_path) == ["out"]
