"""c3 and the loss of multiple choice (S01, 2.3 and 4.4)."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kexue.models.tiny import tiny_tokenizer
from kexue.tasks.clue import load_clue, make_task
from kexue.tasks.clue.c3 import DUMMY, ChoiceExample


def asked(*choices, answer=None):
    return ChoiceExample(
        id="0", row=0, where="here:1", passage="文", question="问", choices=choices, answer=answer
    )


@pytest.fixture(scope="module")
def task():
    return make_task("c3", tiny_tokenizer())


class Told(nn.Module):
    """A model that returns the scores it was given."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, input_ids, attention_mask, num_choices):
        assert len(input_ids) == self.scores.numel()
        assert self.scores.shape[1] == num_choices
        return self.scores


def loss_of(task, scores, answers):
    examples = [asked(*"甲乙丙丁", answer="甲乙丙丁"[a]) for a in answers]
    batch = task.collate(list(task.encode(examples, 0)))
    return task.loss(Told(scores), batch)


def test_the_worked_choice_cross_entropy(task):
    scores = torch.tensor([[0.2, 1.1, -0.3, 0.4]], dtype=torch.float64)
    exact = nn.functional.cross_entropy(scores, torch.tensor([1])).item()
    assert exact == pytest.approx(0.765352452912079, abs=1e-12)
    assert loss_of(task, scores, [1]).item() == pytest.approx(0.765352452912079, abs=1e-7)


SCORES = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def test_a_constant_on_the_scores_of_a_question_changes_no_loss(task):
    shifted = SCORES + torch.tensor([[5.0], [-7.0], [0.5]])
    torch.testing.assert_close(
        loss_of(task, shifted, [0, 3, 1]), loss_of(task, SCORES, [0, 3, 1]), rtol=0, atol=1e-6
    )


@given(st.permutations(range(4)))
def test_permuting_the_choices_with_the_answer_changes_no_loss(order):
    task = make_task("c3", tiny_tokenizer())
    answers = [0, 3, 1]
    moved = [order.index(a) for a in answers]
    torch.testing.assert_close(
        loss_of(task, SCORES[:, order], moved), loss_of(task, SCORES, answers), rtol=0, atol=1e-6
    )


@given(st.permutations(range(3)))
def test_the_order_of_questions_in_a_batch_changes_no_loss(order):
    task = make_task("c3", tiny_tokenizer())
    answers = [0, 3, 1]
    torch.testing.assert_close(
        loss_of(task, SCORES[order], [answers[i] for i in order]),
        loss_of(task, SCORES, answers),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_question_brings_four_rows_however_many_choices_it_has(task, count):
    [feature] = task.encode([asked(*"甲乙丙丁"[:count], answer="乙")], 0)
    rows = [task.tokenizer.convert_ids_to_tokens(row) for row in feature["input_ids"]]
    dummy = ["[CLS]", "文", "[SEP]", "问", "[SEP]", *DUMMY, "[SEP]"]
    assert len(rows) == 4
    assert [row == dummy for row in rows] == [False] * count + [True] * (4 - count)
    assert feature["label"] == 1


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_dummy_is_never_the_answer(task, count):
    scores = np.array([0.0, 1.0, 2.0, 3.0])
    told = task.decode([asked(*"甲乙丙丁"[:count])], [(0, (0, scores))])
    assert told == [count - 1]


@given(st.permutations(range(4)))
def test_the_answer_moves_with_its_choice(order):
    scores = np.array([0.3, -1.0, 2.0, 0.7])
    task = make_task("c3")
    [told] = task.decode([asked(*"甲乙丙丁")], [(0, (0, scores[list(order)]))])
    assert order[told] == 2


def test_outputs_may_come_in_any_order(task):
    examples = [asked("甲", "乙"), asked("丙", "丁")]
    outputs = [(1, (0, np.array([0.0, 1, 0, 0]))), (0, (0, np.array([1.0, 0, 0, 0])))]
    assert task.decode(examples, outputs) == [0, 1]


def test_utterances_are_joined_by_two_bars(mini):
    documents = json.loads((mini / "c3" / "d-dev.json").read_text("utf-8"))
    passages = {e.passage for e in load_clue("c3", mini, "dev")}
    assert {"||".join(lines) for lines, _, _ in documents} <= passages


def test_the_questions_of_the_test_file_have_their_own_ids(mini):
    examples = load_clue("c3", mini, "test")
    documents = json.loads((mini / "c3" / "test1.1.json").read_text("utf-8"))
    assert [e.id for e in examples] == [str(q["id"]) for d in documents for q in d[1]]


def test_chance_is_that_of_a_blind_guess_among_the_choices_there_are():
    examples = [asked("甲", "乙", answer="甲"), asked(*"甲乙丙丁", answer="甲")]
    assert make_task("c3").chance(examples) == pytest.approx(100 * (1 / 2 + 1 / 4) / 2)
