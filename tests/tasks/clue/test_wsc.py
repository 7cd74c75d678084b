"""wsc: both spans are marked, and the marks come off again (S01, 4.7)."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue.data.corpus import DataError, Record
from kexue.tasks.clue import load_clue, make_task
from kexue.tasks.clue.wsc import mark_spans

marked = st.lists(st.text("甲乙他它a，😀 ", max_size=6), min_size=5, max_size=5).filter(
    lambda parts: parts[1] and parts[3]
)


def spans_of(parts):
    """Text, and the ranges of its second and fourth part."""
    a = len(parts[0])
    b = a + len(parts[1])
    c = b + len(parts[2])
    return "".join(parts), (a, b), (c, c + len(parts[3]))


@given(marked, st.booleans())
def test_marking_adds_four_characters_around_the_spans(parts, swap):
    text, first, second = spans_of(parts)
    noun, pronoun = (second, first) if swap else (first, second)
    marks = ("[", "]", "_", "_") if swap else ("_", "_", "[", "]")
    a, b, c, d = marks
    expected = a.join(parts[:2]) + b + parts[2] + c + parts[3] + d + parts[4]
    assert mark_spans(text, noun, pronoun) == expected
    assert len(expected) == len(text) + 4


@given(marked, st.booleans())
def test_taking_the_marks_off_gives_the_text_back(parts, swap):
    text, first, second = spans_of(parts)
    noun, pronoun = (second, first) if swap else (first, second)
    assert "".join(c for c in mark_spans(text, noun, pronoun) if c not in "_[]") == text


@pytest.mark.parametrize(
    ("noun", "pronoun", "expected"),
    [((0, 2), (2, 3), "_小明_[他]走"), ((2, 3), (0, 2), "[小明]_他_走")],
)
def test_adjacent_spans_keep_their_own_marks(noun, pronoun, expected):
    assert mark_spans("小明他走", noun, pronoun) == expected


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_every_real_row_is_its_text_with_four_marks(split, real_clue):
    task = make_task("wsc")
    records = list(task.records(real_clue / "wsc", split))
    for record, example in zip(records, load_clue("wsc", real_clue, split), strict=True):
        target = record.value["target"]
        [text] = example.texts
        assert len(text) == len(record.value["text"]) + 4
        assert f"_{target['span1_text']}_" in text
        assert f"[{target['span2_text']}]" in text


def record(**target):
    full = {"span1_text": "小明", "span1_index": 0, "span2_text": "他", "span2_index": 5}
    value = {"text": "小明说，是他。", "label": "true", "target": {**full, **target}}
    return Record(Path("dev.json"), "7", value)


def test_an_index_off_by_some_characters_names_what_stands_there():
    with pytest.raises(
        DataError,
        match=r"dev\.json:7:target\.span2_index: '他' is not at character 4 "
        r"\(there stands '是'\); first occurrence: 5",
    ):
        make_task("wsc").read(record(span2_index=4), 0, labelled=True)


def test_a_negative_index_is_refused_even_where_python_would_count_from_the_end():
    with pytest.raises(DataError, match=r"'他' is not at character -2"):
        make_task("wsc").read(record(span2_index=-2), 0, labelled=True)


@pytest.mark.parametrize("wrong", [{"span1_text": ""}, {"span1_index": "0"}, {"span1_text": None}])
def test_a_span_without_text_or_index_is_refused(wrong):
    with pytest.raises(DataError, match=r"dev\.json:7:target\.span1: needs a non-empty text"):
        make_task("wsc").read(record(**wrong), 0, labelled=True)


def test_crossing_spans_are_refused():
    crossing = Record(
        Path("dev.json"),
        "7",
        {
            "text": "甲乙丙",
            "label": "true",
            "target": {
                "span1_text": "甲乙",
                "span1_index": 0,
                "span2_text": "乙丙",
                "span2_index": 1,
            },
        },
    )
    with pytest.raises(DataError, match=r"the two spans cross: \(0, 2\) and \(1, 3\)"):
        make_task("wsc").read(crossing, 0, labelled=True)


@pytest.mark.parametrize(
    ("noun", "pronoun", "marked"),
    [
        ((0, 4), (0, 1), "_[他]的父亲_来了"),
        ((0, 4), (2, 4), "_他的[父亲]_来了"),
        ((0, 1), (0, 4), "[_他_的父亲]来了"),
        ((0, 4), (1, 2), "_他[的]父亲_来了"),
    ],
)
def test_a_span_inside_the_other_is_marked_inside_it(noun, pronoun, marked):
    assert mark_spans("他的父亲来了", noun, pronoun) == marked
