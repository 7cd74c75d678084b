"""cmrc2018 as a task: targets, loss, decoding over windows, offsets (S01, 2.3, 4.3 and 8)."""

import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from families.wordpiece import wordpiece
from kexue.models.tiny import tiny_tokenizer
from kexue.nn import best_span, span_cross_entropy
from kexue.tasks.clue import load_clue, make_task
from kexue.tasks.clue.cmrc2018 import QuestionExample

TINY = tiny_tokenizer()


def asked(context, *answers, question="问谁", name="0"):
    return QuestionExample(
        id=name, row=0, where="dev:1", context=context, question=question, answers=answers
    )


def task_of(tokenizer=TINY, max_length=512, stride=128):
    task = make_task("cmrc2018", tokenizer, max_length=max_length)
    task.stride = stride
    return task


class Told(nn.Module):
    """A model that returns the scores it was given, where they may be seen."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, input_ids, attention_mask, visible):
        both = visible[:, :, None] & visible[:, None, :]
        upper = torch.ones_like(both[0]).triu()
        return self.scores.masked_fill(~(both & upper), -torch.inf)


def answered(task, examples, score_of):
    """The predictions when `score_of(example, first character, end)` is a cell's score."""
    outputs = []
    for feature in task.encode(examples, 0):
        batch = task.collate([feature])
        length = batch.inputs["input_ids"].shape[1]
        scores = torch.zeros(1, length, length)
        scores[:, 0, 0] = 1000  # [CLS] would win if it might
        places = list(enumerate(zip(feature["starts"], feature["ends"], strict=True)))
        for m, (start, _) in places:
            for n, (_, end) in places[m:]:
                value = score_of(feature["example"], start, end)
                scores[0, feature["prefix"] + m, feature["prefix"] + n] = value
        [output] = task.outputs(Told(scores), batch)
        outputs.append((feature["example"], output))
    return task.decode(examples, outputs)


# Targets


@given(st.text("甲乙丙a1 ，😀", min_size=1, max_size=60), st.data())
@settings(max_examples=60)
def test_the_target_of_a_window_reads_the_answer(context, data):
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    answer = context[start:end]
    if answer != answer.strip():
        return
    task = task_of(max_length=25, stride=7)
    for feature in task.encode([asked(context, (answer, start))], 0):
        if feature["first"]:
            first, last = (feature[k] - feature["prefix"] for k in ("first", "last"))
            assert context[feature["starts"][first] : feature["ends"][last]] == answer


@given(st.integers(1, 60), st.integers(0, 59), st.integers(1, 14))
@settings(max_examples=60)
def test_an_answer_short_enough_is_the_target_of_some_window(context, start, length):
    text = "".join(chr(0x4E00 + i) for i in range(context))
    if start + length > context:
        return
    task = task_of(max_length=25, stride=7)  # windows of 20: answers up to 14 are safe
    features = list(task.encode([asked(text, (text[start : start + length], start))], 0))
    assert any(f["first"] for f in features)


def test_an_answer_off_its_offset_trains_at_the_nearest_occurrence():
    [feature] = task_of().encode([asked("甲乙丙甲乙丙甲乙", ("甲乙", 4))], 0)
    assert (feature["first"], feature["last"]) == (4 + 3, 4 + 4)


def test_where_the_first_reference_does_not_occur_the_next_one_trains():
    [feature] = task_of().encode([asked("甲乙丙", ("丁", 0), ("乙丙", 1))], 0)
    assert (feature["first"], feature["last"]) == (4 + 1, 4 + 2)


def test_a_question_whose_answers_do_not_occur_trains_nothing_but_is_answered():
    task = task_of()
    examples = [asked("甲乙丙", ("丁", 0)), asked("丙乙甲", ("乙", 1))]
    features = list(task.encode(examples, 0))
    assert [f["example"] for f in features] == [0, 1]
    assert task.notes == {"questions whose answer was not found train nothing": 1}
    batch = task.collate(features)
    scores = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = task.loss(Told(scores), batch)
    loss.backward()
    assert not scores.grad[0].any()
    assert scores.grad[1].any()
    other = task.loss(Told(scores[1:]), task.collate(features[1:]))
    torch.testing.assert_close(loss, other / 2, rtol=0, atol=1e-6)
    assert answered(task, examples, lambda e, s, t: s + t)[0] == "丙"


def test_an_answer_that_cuts_a_token_trains_nothing_and_is_noted():
    task = task_of(words())
    [feature] = task.encode([asked("共1999人", ("99", 3))], 0)
    assert (feature["first"], feature["last"]) == (-1, -1)
    assert task.notes == {"questions whose answer cuts a token train nothing where it stands": 1}


def words():
    """A WordPiece tokenizer as BERT's: lower case, accents stripped, words kept together."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cafe", "1999", "##s", "omega"]
    entries += list("共人甲乙丙问谁，。我在喝")
    return wordpiece(entries)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_stripped_accents_do_not_shift_the_answer(form):
    context = unicodedata.normalize(form, "ÀÉÎ甲Café在乙丙")
    answer = unicodedata.normalize(form, "乙丙")
    [feature] = task_of(words()).encode([asked(context, (answer, context.index(answer)))], 0)
    first, last = (feature[k] - feature["prefix"] for k in ("first", "last"))
    assert feature["first"] > 0
    assert context[feature["starts"][first] : feature["ends"][last]] == answer


def test_the_answer_comes_back_with_case_and_accents_of_the_passage():
    context = "我在Café喝OMEGA。"
    examples = [asked(context, ("Café", 2))]
    task = task_of(words())
    [feature] = task.encode(examples, 0)
    assert feature["first"] > 0
    assert answered(task, examples, lambda e, s, t: 5.0 * (s == 2) + 5.0 * (t == 6)) == ["Café"]
    assert answered(task, examples, lambda e, s, t: 5.0 * (s == 7) + 5.0 * (t == 12)) == ["OMEGA"]


# Masks and loss


def test_question_and_separators_are_invisible_and_cls_and_passage_visible():
    task = task_of()
    batch = task.collate(list(task.encode([asked("甲乙丙"), asked("甲乙丙丁", question="谁")], 0)))
    assert batch.inputs["visible"].int().tolist() == [
        [1, 0, 0, 0, 1, 1, 1, 0],
        [1, 0, 0, 1, 1, 1, 1, 0],
    ]


@pytest.mark.parametrize("constant", [-100.0, 3.5, 1000.0])
def test_a_constant_on_all_visible_logits_changes_no_loss(constant):
    task = task_of()
    features = list(
        task.encode([asked("甲乙丙丁", ("乙丙", 1)), asked("甲乙", ("丁", 0), ("甲", 0))], 0)
    )
    batch = task.collate(features)
    length = batch.inputs["input_ids"].shape[1]
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(2, length, length, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        task.loss(Told(scores + constant), batch),
        task.loss(Told(scores), batch),
        rtol=0,
        atol=1e-10,
    )


def test_masked_cells_have_zero_probability_and_the_target_never_is_one():
    task = task_of(max_length=25, stride=7)
    context = "".join(chr(0x4E00 + i) for i in range(50))
    features = list(task.encode([asked(context, (context[21:25], 21)), asked("甲", ("甲", 0))], 0))
    batch = task.collate(features)
    length = batch.inputs["input_ids"].shape[1]
    scores = Told(torch.zeros(len(features), length, length))(**batch.inputs)
    probability = scores.flatten(1).softmax(1).view_as(scores)
    hidden = ~batch.inputs["visible"]
    for row, cells, (first, last) in zip(hidden, probability, batch.targets["span"], strict=True):
        assert not cells[row].any()
        assert not cells[:, row].any()
        assert cells[first, last] > 0
        assert cells[0, 0] > 0


def test_the_worked_span_cross_entropy():
    hidden = -torch.inf
    cells = torch.tensor(
        [[[1, 2, -1], [hidden, 0.5, 0], [hidden, hidden, -2]]], dtype=torch.float64
    )
    loss = span_cross_entropy(cells, torch.tensor([[0, 1]]))
    assert loss.item() == pytest.approx(0.5846972262824712, abs=1e-12)


# Decoding


@given(st.integers(2, 7), st.integers(0, 2**32 - 1))
def test_decoding_never_gives_cls_while_a_token_is_visible(length, seed):
    random = np.random.default_rng(seed)
    scores = torch.from_numpy(random.normal(size=(1, length, length)))
    scores[0, 0] += 1000
    scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).triu(), -torch.inf)
    start, end, logit = best_span(scores)
    assert 1 <= start.item() <= end.item() < length
    assert logit == scores[0, 1:, 1:].max()


def test_the_window_with_the_largest_raw_logit_wins():
    context = "".join(chr(0x4E00 + i) for i in range(50))
    task = task_of(max_length=25, stride=7)
    examples = [asked(context)]
    assert len(list(task.encode(examples, 0))) == 6
    for start, end in ((0, 3), (20, 24), (41, 50)):
        told = answered(task, examples, lambda e, s, t, a=start, b=end: 9.0 * (s == a and t == b))
        assert told == [context[start:end]]


def test_windows_are_grouped_by_question_in_whatever_order_they_come():
    task = task_of()
    examples = [asked("甲乙丙"), asked("丁戊己")]
    outputs = [(1, (0, 1, 5.0)), (0, (1, 2, -3.0)), (1, (2, 3, 4.0)), (0, (0, 1, -9.0))]
    assert task.decode(examples, outputs) == ["乙", "丁"]
    assert task.decode(examples, outputs[::-1]) == ["乙", "丁"]


def test_a_question_without_any_visible_character_gets_the_empty_answer():
    task = task_of()
    examples = [asked("  ")]
    [feature] = task.encode(examples, 0)
    assert feature["starts"] == []
    assert answered(task, examples, lambda e, s, t: 0.0) == [""]
    assert task.decode([asked("甲")], []) == [""]


def test_a_question_too_long_for_the_windows_names_file_and_field():
    example = asked("甲" * 30, question="问" * 20)
    with pytest.raises(ValueError, match=r"^dev:1:question: a question of 20 characters leaves"):
        list(task_of(max_length=25, stride=7).encode([example], 0))


def test_the_real_dev_file_needs_the_windows_the_spec_counted(real_clue):
    """Mean 1.90 windows per question at 512/128, 56 % need one, at most 5 (whole dev file)."""
    from kexue.tasks.clue.cmrc2018 import windows

    examples = load_clue("cmrc2018", real_clue, "dev")
    counts = np.array([len(windows(len(e.context), len(e.question))) for e in examples])
    assert counts.mean() == pytest.approx(1.90, abs=0.15)
    assert (counts == 1).mean() == pytest.approx(0.56, abs=0.06)
    assert counts.max() <= 5


def test_nearly_every_real_answer_is_a_target_of_the_character_tokenizer(real_clue):
    task = task_of()
    examples = load_clue("cmrc2018", real_clue, "train")[:600]
    found = {f["example"] for f in task.encode(examples, 0) if f["first"] > 0}
    assert len(found) >= 0.99 * len(examples)
