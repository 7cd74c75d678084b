"""CHID: idioms of a record are assigned together, contexts fit their budget (S01, 2.3 and 4.5)."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from families.wordpiece import wordpiece as bert_like
from kexue.data.corpus import Record
from kexue.models.tiny import tiny_tokenizer
from kexue.tasks.clue import load_clue, make_task
from kexue.tasks.clue.chid import Blank, IdiomExample, assign, blanks_of, context_of
from naive.idiom_context import naive_assignment, naive_context

IDIOMS = ("画蛇添足", "守株待兔", "亡羊补牢", "杯弓蛇影", "对牛弹琴")
IDIOMS += ("井底之蛙", "自相矛盾", "一帆风顺", "人山人海", "依依不舍")

pieces = st.lists(st.text("甲乙丙丁，a ", max_size=40), min_size=1, max_size=4)
tables = st.integers(1, 5).flatmap(
    lambda columns: st.integers(1, columns).flatmap(
        lambda rows: st.lists(
            st.lists(st.integers(-20, 20), min_size=columns, max_size=columns),
            min_size=rows,
            max_size=rows,
        )
    )
)


def example_of(*passages, candidates=IDIOMS, answers=None):
    return IdiomExample(
        id="0",
        row=0,
        where="here:1",
        blanks=tuple(b for p in passages for b in blanks_of(p)),
        candidates=candidates,
        answers=answers,
    )


# Assignment


def test_the_worked_assignment():
    scores = np.array([[2, 1.9, 0], [2.1, 1, 0.5]])
    assert scores.argmax(axis=1).tolist() == [0, 0]
    assert assign(scores).tolist() == [1, 0]
    assert scores[[0, 1], assign(scores)].sum() == pytest.approx(4.0, abs=1e-12)


@given(tables)
def test_no_injective_map_has_a_larger_total(table):
    scores = np.array(table, dtype=float)
    best = naive_assignment(table)
    total = scores[np.arange(len(scores)), assign(scores)].sum()
    assert total == sum(scores[r, c] for r, c in enumerate(best))


@given(tables)
def test_no_idiom_is_used_twice(table):
    chosen = assign(np.array(table, dtype=float)).tolist()
    assert len(set(chosen)) == len(chosen)


@given(st.permutations(range(10)), st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_distinct_row_maxima_are_the_assignment(order, rows, seed):
    scores = np.random.default_rng(seed).normal(size=(rows, 10))
    for row, column in zip(scores, order, strict=False):
        row[column] = row.max() + 1
    assert assign(scores).tolist() == list(order[:rows])


@given(tables, st.integers(-50, 50))
def test_a_shift_of_one_blank_changes_nothing(table, shift):
    scores = np.array(table, dtype=float) + np.linspace(0, 0.3, np.size(table)).reshape(
        np.shape(table)
    )
    moved = scores.copy()
    moved[0] += shift
    taken, taken_after = assign(scores), assign(moved)
    rows = np.arange(len(scores))
    assert scores[rows, taken].sum() == pytest.approx(scores[rows, taken_after].sum(), abs=1e-9)


def test_more_blanks_than_candidates_are_answered_one_by_one():
    scores = np.random.default_rng(0).normal(size=(11, 10))
    assert assign(scores).tolist() == scores.argmax(axis=1).tolist()


def test_a_crowded_record_is_noted_once_decoded():
    task = make_task("chid")
    text = "".join(f"句子{i}#idiom{i:06d}#。" for i in range(11))
    example = example_of(text)
    scores = np.random.default_rng(0).normal(size=(11, 10))
    told = task.decode([example], [(0, (i, row)) for i, row in enumerate(scores)])
    assert told == [scores.argmax(axis=1).tolist()]
    [(note, count)] = task.notes.items()
    assert "more blanks than candidates" in note
    assert count == 1


def test_blanks_of_all_passages_of_a_record_are_assigned_together():
    example = example_of("甲#idiom000001#乙", "丙#idiom000002#丁")
    scores = [np.zeros(10), np.zeros(10)]
    scores[0][:2] = 2, 1.9
    scores[1][:2] = 2.1, 1
    outputs = [(0, (part, row)) for part, row in enumerate(scores)]
    assert make_task("chid").decode([example], outputs) == [[1, 0]]


def test_the_order_in_which_outputs_arrive_does_not_matter():
    examples = [example_of("甲#idiom000001#乙#idiom000002#"), example_of("丙#idiom000003#丁")]
    scores = np.random.default_rng(1).normal(size=(3, 10))
    outputs = [(0, (0, scores[0])), (0, (1, scores[1])), (1, (0, scores[2]))]
    task = make_task("chid")
    expected = task.decode(examples, outputs)
    for order in itertools.permutations(outputs):
        assert task.decode(examples, order) == expected


# Contexts


@given(pieces, pieces, st.integers(0, 100))
def test_the_context_is_that_of_cutting_one_character_at_a_time(left, right, max_length):
    blank = Blank("#idiom000001#", tuple(left), tuple(right))
    assert context_of(blank, max_length) == naive_context(left, right, max_length)


@given(pieces, pieces, st.integers(8, 100))
def test_characters_and_blanks_hold_the_budget(left, right, max_length):
    kept = context_of(Blank("#idiom000001#", tuple(left), tuple(right)), max_length)
    others = sum(max(0, len(side) - 1) for side in kept)
    characters = sum(len(text) for side in kept for text in side)
    assert characters + 4 * others + 8 <= max_length


@given(pieces, pieces)
def test_what_is_kept_lies_next_to_the_blank(left, right):
    kept = context_of(Blank("#idiom000001#", tuple(left), tuple(right)), 64)
    assert "|".join(left).endswith("|".join(kept[0]))
    assert "|".join(right).startswith("|".join(kept[1]))


def test_a_passage_that_fits_is_kept_whole():
    blank = Blank("#idiom000001#", ("甲" * 20, "乙" * 10), ("丙" * 22,))
    assert context_of(blank, 64) == (["甲" * 20, "乙" * 10], ["丙" * 22])


def test_the_longer_side_loses_first_and_the_right_side_on_ties():
    blank = Blank("#idiom000001#", ("甲" * 40,), ("乙" * 30,))
    assert context_of(blank, 64) == (["甲" * 28], ["乙" * 28])
    blank = Blank("#idiom000001#", ("甲" * 30,), ("乙" * 30,))
    assert context_of(blank, 63) == (["甲" * 28], ["乙" * 27])


def test_a_piece_of_one_character_goes_with_its_blank():
    blank = Blank("#idiom000001#", ("甲", "乙" * 50), ("丙" * 3,))
    # 54 characters + 4 > 56: the far piece goes, and 53 fit without its blank
    assert context_of(blank, 64) == (["乙" * 50], ["丙" * 3])


@given(st.lists(st.text("甲乙#a1 ", max_size=12), min_size=2, max_size=5))
def test_marks_and_texts_put_together_are_the_passage(texts):
    marks = [f"#idiom{i:06d}#" for i in range(len(texts) - 1)]
    passage = "".join(itertools.chain(*zip(texts, [*marks, ""], strict=True)))
    blanks = blanks_of(passage)
    assert [b.mark for b in blanks] == marks
    for i, blank in enumerate(blanks):
        assert (list(blank.left), list(blank.right)) == (texts[: i + 1], texts[i + 1 :])


# Rows


@pytest.fixture(scope="module")
def task():
    return make_task("chid", tiny_tokenizer())


def tokens(task, row):
    return task.tokenizer.convert_ids_to_tokens(row)


def test_a_row_is_idiom_left_blank_right(task):
    [feature] = task.encode([example_of("他#idiom000001#了")], 0)
    expected = ["[CLS]", *"守株待兔", "[SEP]", "他", "[unused1]", "了", "[SEP]"]
    assert tokens(task, feature["input_ids"][1]) == expected


def test_other_blanks_of_the_passage_read_as_four_masks(task):
    example = example_of("甲#idiom000001#乙#idiom000002#丙")
    first, second = task.encode([example], 7)
    assert (first["example"], first["part"], second["part"]) == (7, 0, 1)
    masks = ["[MASK]"] * 4
    expected = ["[CLS]", *"画蛇添足", "[SEP]", "甲", "[unused1]", "乙", *masks, "丙", "[SEP]"]
    assert tokens(task, first["input_ids"][0]) == expected
    expected = ["[CLS]", *"画蛇添足", "[SEP]", "甲", *masks, "乙", "[unused1]", "丙", "[SEP]"]
    assert tokens(task, second["input_ids"][0]) == expected


def test_blanks_of_other_passages_do_not_show(task):
    example = example_of("甲#idiom000001#乙", "丙#idiom000002#丁")
    for feature in task.encode([example], 0):
        row = tokens(task, feature["input_ids"][0])
        assert "[MASK]" not in row
        assert ("甲" in row) != ("丙" in row)


def test_every_blank_brings_ten_rows_and_its_label(task):
    example = example_of("甲#idiom000001#乙", answers=("杯弓蛇影",))
    [feature] = task.encode([example], 0)
    assert len(feature["input_ids"]) == 10
    assert feature["label"] == IDIOMS.index("杯弓蛇影")
    assert feature["length"] == max(map(len, feature["input_ids"]))


def test_text_in_a_row_never_exceeds_the_budget(task, mini):
    examples = load_clue("chid", mini, "train")
    long = example_of("长" * 300 + "#idiom000001#" + "文" * 200 + "#idiom000002#" + "尾" * 9)
    for feature in task.encode([*examples, long], 0):
        for row in feature["input_ids"]:
            text = row[row.index(task.pieces.sep) + 1 : -1]
            assert len(text) - 1 <= task.length - 8  # without [unused1]; four masks a blank


@pytest.mark.parametrize("present", [True, False])
def test_the_blank_is_one_entry_of_the_vocabulary_and_added_where_it_is_absent(present):
    tokenizer = wordpiece(unused=present)
    size = len(tokenizer)
    task = make_task("chid", tokenizer)
    assert len(tokenizer) == size + (not present)
    index = task.pieces.id_of("[unused1]")
    assert tokenizer.convert_ids_to_tokens(index) == "[unused1]"
    [feature] = task.encode([example_of("他#idiom000001#了")], 0)
    for row in feature["input_ids"]:
        assert row.count(index) == 1


def wordpiece(unused):
    entries = ["[PAD]", *(["[unused1]"] if unused else []), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries += ["[", "]", "unused", "##1", "他", "了", *sorted(set("".join(IDIOMS)))]
    return bert_like(entries)


# Reading


def test_answers_are_idioms_in_reading_order(mini):
    answers = json.loads((mini / "chid" / "dev_answer.json").read_text("utf-8"))
    for example in load_clue("chid", mini, "dev"):
        given = [example.candidates[answers[b.mark]] for b in example.blanks]
        assert list(example.answers) == given


def test_a_score_counts_blanks_not_records():
    task = make_task("chid")
    examples = [
        example_of("甲#idiom000001#乙#idiom000002#丙", answers=("画蛇添足", "守株待兔")),
        example_of("甲#idiom000003#乙", answers=("亡羊补牢",)),
    ]
    assert task.score(examples, [[0, 1], [5]]) == {"accuracy": pytest.approx(200 / 3, abs=1e-12)}


def test_an_unmatched_mark_is_named(tmp_path):
    value = {"content": ["甲#idiom000009#"], "candidates": list(IDIOMS), "answers": {}}
    with pytest.raises(ValueError, match=r"train\.json:4:#idiom000009#: needs an answer"):
        make_task("chid").read(Record(tmp_path / "train.json", "4", value), 0, labelled=True)
