"""Rows of a language model: nothing lost, nothing twice, and the vocabulary that goes with them."""

import pytest

from kexue.data.tokens import Pieces
from kexue.tasks.pretrain.rows import character_tokenizer, collate, rows_of, split_rows
from kexue.tasks.pretrain.texts import Texts

POEM = ["春眠不觉晓", "处处闻啼鸟", "夜来风雨声", "花落知多少"]


@pytest.fixture(scope="module")
def pieces():
    return Pieces(character_tokenizer(POEM))


def stream(pieces, texts):
    return [i for text in texts for i in [*pieces.cut([text])[0].ids, pieces.sep]]


@pytest.mark.parametrize("length", [2, 3, 5, 8, 23])
def test_every_token_but_the_first_is_predicted_once_until_the_rest_is_too_short(pieces, length):
    whole = stream(pieces, POEM)
    rows = list(rows_of(POEM, pieces, length))
    assert all(len(row) == length + 1 for row in rows)
    predicted = [i for row in rows for i in row[1:]]
    assert predicted == whole[1 : 1 + len(predicted)]
    assert len(whole) - 1 - len(predicted) < length


def test_rows_do_not_depend_on_how_many_texts_are_cut_at_once(pieces, monkeypatch):
    texts = POEM * 30
    wanted = list(rows_of(texts, pieces, 7))
    monkeypatch.setattr("kexue.tasks.pretrain.rows.TEXTS_AT_ONCE", 3)
    assert list(rows_of(texts, pieces, 7)) == wanted


def test_the_batch_says_what_comes_next_at_every_position(pieces):
    row = next(rows_of(POEM, pieces, 6))
    batch = collate([{"input_ids": row, "length": 6, "example": 0}] * 2)
    assert batch.inputs["input_ids"].tolist() == [row[:-1]] * 2
    assert batch.targets["next"].tolist() == [row[1:]] * 2
    assert batch.count == batch.tokens == 12


def test_the_most_frequent_characters_come_first_and_the_rest_is_unknown():
    tokenizer = character_tokenizer(["甲甲甲乙乙丙", "甲 乙"], most=2)
    assert tokenizer.convert_ids_to_tokens([6, 7]) == ["甲", "乙"]
    assert tokenizer.tokenize("甲丙") == ["甲", "[UNK]"]


def test_texts_without_a_character_are_refused():
    with pytest.raises(ValueError, match="not a single character"):
        character_tokenizer([" ", "\t"])


def test_features_hold_the_rows_and_as_many_as_asked_for(tmp_path):
    (tmp_path / "all.txt").write_text("\n".join(POEM * 40), encoding="utf-8")
    texts = Texts(tmp_path / "all.txt")
    tokenizer = character_tokenizer(POEM)
    every = list(rows_of(texts.read("train"), Pieces(tokenizer), 16))
    table = split_rows(texts, "train", tokenizer, 16)
    assert [row["input_ids"] for row in table.rows(list(range(len(table))))] == every
    assert len(split_rows(texts, "train", tokenizer, 16, most=3)) == 3


def test_texts_shorter_than_a_row_are_told(tmp_path):
    (tmp_path / "train.txt").write_text("一二三\n", encoding="utf-8")
    (tmp_path / "dev.txt").write_text("一\n", encoding="utf-8")
    texts = Texts(tmp_path)
    with pytest.raises(ValueError, match="train texts do not fill a row of 16 tokens"):
        split_rows(texts, "train", character_tokenizer(["一二三"]), 16)
