"""Tokens with character offsets, cut and joined; spans survive any Unicode (S01, 8; ask #30)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from families.wordpiece import wordpiece
from kexue.data.tokens import Pieces, SpanMap, truncate_longest
from kexue.models.tiny import tiny_tokenizer
from naive.truncation import naive_truncation

ALPHABET = "中文字甲乙，。「」aBcXéÀñΩßİ１２ＡＢ0129　 \t\n😀👩‍👩‍👧🇨🇳\u0301\u0308\u200d\ufe0fｶﾞ한각"
texts = st.text(ALPHABET, max_size=24)
anything = st.text(max_size=24)


def bert():
    """WordPiece with BERT's normalizer: lower case, accents stripped, CJK characters apart."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "##bc", "abc", "e", "##e"]
    entries += [*"中文字甲乙，。", "b", "12", "##9", "1", "２", "ω", "##ω", "x", "😀"]
    return wordpiece(entries)


TINY, BERT = Pieces(tiny_tokenizer()), Pieces(bert())
both = pytest.mark.parametrize("pieces", [TINY, BERT], ids=["tiny", "bert"])


def cut(pieces, text):
    [tokens] = pieces.cut([text])
    return tokens


# Truncation


@given(st.lists(st.integers(0, 40), max_size=5), st.integers(0, 120))
def test_truncation_is_that_of_taking_one_token_at_a_time(lengths, budget):
    assert truncate_longest(lengths, budget) == naive_truncation(lengths, budget)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=5), st.integers(0, 3000))
def test_truncation_fills_the_budget_or_keeps_everything(lengths, budget):
    assert sum(truncate_longest(lengths, budget)) == min(sum(lengths), budget)


def test_truncation_of_long_texts_takes_no_time():
    assert truncate_longest([10**9, 3, 10**9], 101) == [49, 3, 49]


def test_a_budget_below_zero_is_refused():
    with pytest.raises(ValueError, match="max_length leaves -1 tokens for text; raise it"):
        truncate_longest([3], -1)


@given(st.lists(st.lists(st.integers(10, 99), max_size=20), min_size=1, max_size=3))
def test_a_row_is_cls_and_every_piece_with_its_sep(pieces):
    expected = [TINY.cls]
    for piece in pieces:
        expected += [*piece, TINY.sep]
    assert TINY.row(*pieces, max_length=len(expected)) == expected


@given(
    st.lists(st.lists(st.integers(10, 99), max_size=20), min_size=1, max_size=3),
    st.integers(4, 30),
)
def test_a_row_never_exceeds_the_maximum_and_loses_tokens_at_the_ends_only(pieces, length):
    row = TINY.row(*pieces, max_length=length)
    assert len(row) <= length
    kept = naive_truncation([len(p) for p in pieces], length - len(pieces) - 1)
    expected = [TINY.cls]
    for piece, n in zip(pieces, kept, strict=True):
        expected += [*piece[:n], TINY.sep]
    assert row == expected


# Offsets


@both
@given(text=texts | anything)
def test_offsets_lie_in_the_text_and_in_order(pieces, text):
    tokens = cut(pieces, text)
    assert len(tokens.ids) == len(tokens.offsets) == len(tokens)
    previous = (0, 0)
    for start, end in tokens.offsets:
        assert 0 <= start < end <= len(text)
        assert previous <= (start, end)
        previous = (start, end)


@given(texts | anything)
def test_every_tiny_token_is_the_lower_case_of_its_characters(text):
    tokens = cut(TINY, text)
    for token, (start, end) in zip(tokens.ids, tokens.offsets, strict=True):
        entry = TINY.tokenizer.convert_ids_to_tokens(token)
        assert end == start + 1
        assert entry in (*text[start:end].lower(), "[UNK]")


@given(texts)
def test_every_visible_character_is_a_tiny_token(text):
    covered = {start for start, _ in cut(TINY, text).offsets}
    assert covered == {i for i, c in enumerate(text) if not c.isspace()}


@both
def test_case_accents_and_full_width_forms_do_not_shift_offsets(pieces):
    text = "ÀBC é中\u3000文 😀甲"
    tokens = cut(pieces, text)
    for place in (text.index("中"), text.index("文"), text.index("甲")):
        assert (place, place + 1) in tokens.offsets


def test_truncation_and_padding_set_in_the_tokenizer_do_not_touch_the_pieces():
    """tokenizer.json may switch them on, and so does any call with padding=True."""
    tokenizer = bert()
    pieces = Pieces(tokenizer)
    expected = pieces.cut(["中文", "中文字甲乙"])
    tokenizer(["中文", "中"], padding="max_length", truncation=True, max_length=4)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert pieces.cut(["中文", "中文字甲乙"]) == expected
    assert [len(t) for t in expected] == [2, 5]


@both
def test_no_special_tokens_are_added(pieces):
    assert pieces.cls not in cut(pieces, "中文").ids
    assert pieces.sep not in cut(pieces, "中文").ids


# Spans


def check_spans(pieces, text, start, end):
    """text[start:end] goes to tokens and back, or a border of it is no border of a token."""
    offsets = cut(pieces, text).offsets
    spans = SpanMap(offsets)
    found = spans.to_tokens(start, end)
    starts, ends = {a for a, _ in offsets}, {b for _, b in offsets}
    if start in starts and end in ends:
        first, last = found
        assert spans.to_characters(first, last) == (start, end)
        assert text[slice(*spans.to_characters(first, last))] == text[start:end]
        inside = [t for t, (a, b) in enumerate(offsets) if start <= a and b <= end]
        assert (first, last) == (inside[0], inside[-1])
    else:
        assert found is None


@both
@given(text=texts | anything, data=st.data())
def test_a_span_goes_to_tokens_and_back_or_to_none_where_it_does_not_align(pieces, text, data):
    start = data.draw(st.integers(0, max(0, len(text) - 1)))
    end = data.draw(st.integers(start + 1, max(start + 1, len(text))))
    check_spans(pieces, text, start, end)


@both
@given(before=texts, mention=st.text("中文字甲乙", min_size=1, max_size=5), after=texts)
def test_a_chinese_mention_is_found_whatever_stands_around_it(pieces, before, mention, after):
    text = before + " " + mention + " " + after
    start = len(before) + 1
    first, last = SpanMap(cut(pieces, text).offsets).to_tokens(start, start + len(mention))
    a, b = SpanMap(cut(pieces, text).offsets).to_characters(first, last)
    assert text[a:b] == mention


@both
@given(text=texts | anything)
def test_every_pair_of_tokens_goes_to_characters_and_back(pieces, text):
    offsets = cut(pieces, text).offsets
    spans = SpanMap(offsets)
    for first in range(len(offsets)):
        for last in range(first, min(first + 4, len(offsets))):
            start, end = spans.to_characters(first, last)
            wide = spans.to_tokens(start, end)
            assert wide is not None
            assert wide[0] <= first <= last <= wide[1]  # wider where tokens share a character
            assert spans.to_characters(*wide) == (start, end)


def test_a_span_that_cuts_a_word_has_no_tokens():
    spans = SpanMap(cut(BERT, "中abc文").offsets)
    assert spans.to_tokens(1, 4) == (1, 1)
    assert spans.to_tokens(1, 3) is None
    assert spans.to_tokens(2, 5) is None


def test_a_span_of_white_space_or_of_nothing_has_no_tokens():
    spans = SpanMap(cut(TINY, "中 文").offsets)
    assert spans.to_tokens(1, 2) is None
    assert spans.to_tokens(0, 2) is None
    assert spans.to_tokens(1, 1) is None
    assert spans.to_tokens(0, 3) == (0, 1)


def test_tokens_that_share_a_character_are_taken_together():
    offsets = cut(TINY, "aİb").offsets  # the lower case of İ is two characters
    assert offsets == [(0, 1), (1, 2), (1, 2), (2, 3)]
    assert SpanMap(offsets).to_tokens(1, 2) == (1, 2)
    assert SpanMap([]).to_tokens(0, 1) is None


# Special ids


def test_cls_sep_and_pad_may_go_by_the_names_of_generative_models():
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2, "a": 3}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    pieces = Pieces(tokenizer)
    assert (pieces.cls, pieces.sep, pieces.pad) == (0, 1, 2)


def test_a_tokenizer_without_padding_is_refused():
    backend = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1}, unk_token="[CLS]"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]"
    )
    with pytest.raises(ValueError, match="the tokenizer has no pad_token; set it before saving"):
        Pieces(tokenizer)


def test_a_slow_tokenizer_is_refused_because_it_has_no_offsets():
    class Slow:
        """Has no backend."""

    with pytest.raises(ValueError, match="Slow gives no character offsets; save a fast tokenizer"):
        Pieces(Slow())


def test_an_entry_that_is_not_there_is_refused():
    assert TINY.id_of("[unused1]") == 1
    with pytest.raises(ValueError, match=r"vocabulary has no \[unused99\]; add it"):
        TINY.id_of("[unused99]")
