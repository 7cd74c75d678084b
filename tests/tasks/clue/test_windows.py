"""cmrc2018: windows of a passage cover it and lose no short answer (S01, 2.3 and 4.2)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue.tasks.clue.cmrc2018 import locate, windows

sizes = st.tuples(st.integers(1, 60), st.integers(0, 400), st.integers(0, 30)).flatmap(
    lambda size: st.tuples(
        st.just(size[1]), st.just(size[2]), st.integers(size[0], 120), st.just(size[0])
    )
)  # context, question, width, stride <= width


def cut(size):
    context, question, width, stride = size
    return windows(context, question, max_length=width + question + 3, stride=stride)


def test_the_worked_windows():
    assert windows(40, 5, max_length=28, stride=8) == [(0, 20), (8, 28), (16, 36), (24, 40)]


def test_the_worked_answer_lies_in_the_first_three_windows():
    start, end = 17, 20
    places = [
        start - first if first <= start and end <= last else None
        for first, last in windows(40, 5, max_length=28, stride=8)
    ]
    assert places == [17, 9, 1, None]


@given(sizes)
def test_windows_cover_every_character_and_nothing_else(size):
    covered = {i for first, last in cut(size) for i in range(first, last)}
    assert covered == set(range(size[0]))


@given(sizes)
def test_consecutive_windows_start_one_stride_apart(size):
    starts = [first for first, _ in cut(size)]
    assert starts == [n * size[3] for n in range(len(starts))]


@given(sizes)
def test_windows_have_the_full_width_but_the_last(size):
    *full, (first, last) = cut(size)
    assert all(b - a == size[2] for a, b in full)
    assert last - first <= size[2]


@given(sizes)
def test_only_the_last_window_reaches_the_end(size):
    *before, last = cut(size)
    assert last[1] == size[0]
    assert all(end < size[0] for _, end in before)


@given(sizes, st.data())
def test_an_answer_no_longer_than_width_minus_stride_plus_one_lies_whole_in_a_window(size, data):
    context, _, width, stride = size
    longest = min(context, width - stride + 1)
    if longest < 1:
        return
    length = data.draw(st.integers(1, longest))
    start = data.draw(st.integers(0, context - length))
    assert any(first <= start and start + length <= last for first, last in cut(size))


def test_an_answer_one_longer_can_fall_between_the_windows():
    found = windows(40, 5, max_length=28, stride=8)  # width 20: 13 are safe, 14 are not
    assert not any(first <= 7 and last >= 7 + 14 for first, last in found)
    assert any(first <= 7 and last >= 7 + 13 for first, last in found)


@given(st.integers(0, 50), st.integers(0, 10))
def test_a_passage_that_fits_has_one_window_that_starts_at_zero(context, question):
    assert windows(context, question, max_length=63, stride=20) == [(0, context)]


def test_a_question_that_leaves_less_than_a_stride_is_refused():
    assert windows(40, 17, max_length=28, stride=8)[1][0] == 8
    with pytest.raises(ValueError, match="question of 18 characters leaves windows of 7"):
        windows(40, 18, max_length=28, stride=8)


@pytest.mark.parametrize("stride", [0, -1])
def test_a_stride_below_one_is_refused(stride):
    with pytest.raises(ValueError, match="stride must be at least 1"):
        windows(40, 5, max_length=28, stride=stride)


# Where an answer stands


def test_an_answer_at_its_offset_is_found_there():
    assert locate("甲乙甲乙甲乙", "甲乙", 2) == (2, 4)


@pytest.mark.parametrize(("start", "expected"), [(1, 0), (3, 2), (5, 4), (99, 4), (-1, 0)])
def test_an_answer_off_its_offset_is_found_at_the_nearest_occurrence(start, expected):
    assert locate("甲乙甲乙甲乙", "甲乙", start) == (expected, expected + 2)


def test_overlapping_occurrences_count():
    assert locate("一哈哈哈", "哈哈", 99) == (2, 4)


def test_signs_of_regular_expressions_in_an_answer_are_plain_text():
    assert locate("价格(约$3.5)元", "(约$3.5)", 0) == (2, 9)


def test_an_answer_that_does_not_occur_is_nowhere():
    assert locate("甲乙丙", "丁", 0) is None


@given(st.text("甲乙a", min_size=1, max_size=30), st.integers(-5, 40), st.data())
def test_the_place_found_holds_the_answer_and_none_is_nearer(context, start, data):
    first = data.draw(st.integers(0, len(context) - 1))
    text = context[first : data.draw(st.integers(first + 1, len(context)))]
    place, end = locate(context, text, start)
    assert context[place:end] == text
    others = [i for i in range(len(context)) if context.startswith(text, i)]
    assert abs(place - start) == min(abs(i - start) for i in others)
