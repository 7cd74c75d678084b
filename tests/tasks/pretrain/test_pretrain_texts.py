"""Texts of a language model: where they come from, and what is said of bad ones."""

import json
from pathlib import Path

import pytest

from kexue.data.corpus import DataError
from kexue.tasks.pretrain.texts import Texts


def write(path: Path, *texts: str) -> Path:
    if path.suffix == ".jsonl":
        texts = tuple(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    path.write_bytes("".join(f"{text}\n" for text in texts).encode())
    return path


def test_mini_needs_nothing_and_no_text_is_in_two_splits():
    texts = Texts("mini")
    train, dev = set(texts.read("train")), list(texts.read("dev"))
    assert len(train) == 6000
    assert len(dev) == 400
    assert not train & set(dev)


@pytest.mark.parametrize("ending", ["jsonl", "txt"])
def test_a_folder_gives_the_texts_of_its_two_files_in_order(tmp_path, ending):
    write(tmp_path / f"train.{ending}", "春眠不觉晓", "处处闻啼鸟")
    write(tmp_path / f"dev.{ending}", "夜来风雨声")
    texts = Texts(tmp_path)
    assert list(texts.read("train")) == ["春眠不觉晓", "处处闻啼鸟"]
    assert list(texts.read("dev")) == ["夜来风雨声"]


def test_a_single_file_is_cut_in_two_and_every_text_is_in_one_part(tmp_path):
    everything = [f"第{i}句" for i in range(1000)]
    texts = Texts(write(tmp_path / "all.txt", *everything))
    train, dev = list(texts.read("train")), list(texts.read("dev"))
    assert sorted(train + dev) == sorted(everything)
    assert 5 <= len(dev) <= 50


def test_equal_texts_of_a_single_file_never_stand_on_both_sides(tmp_path):
    texts = Texts(write(tmp_path / "all.txt", *[f"第{i % 100}句" for i in range(1000)]))
    assert not set(texts.read("train")) & set(texts.read("dev"))


def test_blank_lines_windows_line_ends_and_strange_separators_are_no_trouble(tmp_path):
    file = tmp_path / "all.txt"
    file.write_bytes("\ufeff甲\u2028乙\r\n\r\n  \n丙\x85丁\n戊".encode())
    texts = Texts(file)
    assert sorted([*texts.read("train"), *texts.read("dev")]) == ["丙\x85丁", "戊", "甲\u2028乙"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("all.jsonl", b'{"text": 3}\n', r"all.jsonl:1:text: needs a string, got 3"),
        ("all.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', r"all.jsonl:2:text: field is missing"),
        ("all.txt", "好\n".encode() + b"\xff\xfe\n", r"all.txt:2: byte 0 is not UTF-8.*iconv"),
    ],
)
def test_a_bad_line_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    texts = Texts(tmp_path / name)
    with pytest.raises(DataError, match=says):
        [*texts.read("train"), *texts.read("dev")]


def test_what_is_not_there_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match="no such file or folder; give mini"):
        Texts(tmp_path / "nowhere")
    write(tmp_path / "train.txt", "一")
    with pytest.raises(DataError, match=r"needs dev.jsonl or dev.txt"):
        Texts(tmp_path)
    (tmp_path / "book.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError, match=r"ends in .jsonl or .txt"):
        Texts(tmp_path / "book.pdf")
