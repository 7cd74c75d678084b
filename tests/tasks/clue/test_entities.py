"""cluener as a task: spans, loss, decoding and its two scores (S01, 2.3, 2.4 and 4.6)."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kexue.data.corpus import Record
from kexue.losses import multilabel_cross_entropy
from kexue.models.tiny import tiny_tokenizer
from kexue.tasks.clue import load_clue, make_task
from kexue.tasks.clue.cluener import CLUENER, EntityExample
from naive.entity_scores import naive_position_micro_f1, naive_string_macro_f1

TASK = make_task("cluener", tiny_tokenizer())
TYPES = len(CLUENER.labels)


def sentence(text, *entities):
    return EntityExample(id="0", row=0, where="here:1", text=text, entities=frozenset(entities))


texts = st.text("甲乙丙丁a1 😀，", min_size=1, max_size=12)


@st.composite
def labelled(draw, size=3):
    """Sentences, and two lists of entity sets over them."""
    sentences = draw(st.lists(texts, min_size=1, max_size=size))

    def entities(text):
        borders = st.tuples(st.integers(0, len(text) - 1), st.integers(1, len(text)))
        spans = borders.filter(lambda b: b[0] < b[1])
        return st.frozensets(
            st.builds(lambda k, b: (k, *b), st.sampled_from(CLUENER.labels[:3]), spans), max_size=4
        )

    return sentences, *([draw(entities(t)) for t in sentences] for _ in range(2))


class Told(nn.Module):
    """A model that returns the scores it was given."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, input_ids, attention_mask):
        return self.scores


def gold_scores(batch, examples):
    """Scores that are positive on the gold cells and nowhere else."""
    length = batch.inputs["input_ids"].shape[1]
    scores = torch.full((len(examples), TYPES, length, length), -5.0)
    for row, types in zip(scores, batch.targets["positive"], strict=True):
        for table, cells in zip(row, types, strict=True):
            for cell in cells[cells >= 0].tolist():
                table[cell // length, cell % length] = 5.0
    return scores


def read_back(examples):
    """What the task answers when the model gives the gold cells."""
    batch = TASK.collate(list(TASK.encode(examples, 0)))
    found = TASK.outputs(Told(gold_scores(batch, examples)), batch)
    return TASK.decode(examples, list(zip(batch.examples, found, strict=True)))


# From characters to cells and back


def test_nested_entities_of_one_and_of_two_types_come_back():
    text = "北京大学校长在北京大学"
    gold = {("organization", 0, 4), ("address", 0, 2), ("address", 7, 9), ("organization", 7, 11)}
    gold |= {("position", 4, 6), ("position", 0, 6)}
    assert read_back([sentence(text, *gold)]) == [gold]


@pytest.mark.parametrize("text", ["😀北京😀上海", "  北京 上海", "ＡＢＣ北京", "IPHONE北京GPU"])
def test_emoji_spaces_case_and_full_width_forms_do_not_shift_entities(text):
    place = text.index("北京")
    gold = {("address", place, place + 2), ("scene", place, place + 1)}
    [told] = read_back([sentence(text, *gold)])
    assert told == gold
    assert {text[s:e] for kind, s, e in told if kind == "address"} == {"北京"}


@given(labelled())
@settings(max_examples=60)
def test_all_entities_with_visible_borders_come_back(case):
    sentences, gold, _ = case
    kept = [
        frozenset(e for e in entities if not (text[e[1]].isspace() or text[e[2] - 1].isspace()))
        for text, entities in zip(sentences, gold, strict=True)
    ]
    examples = [sentence(t, *g) for t, g in zip(sentences, gold, strict=True)]
    assert read_back(examples) == kept


def test_an_entity_that_cuts_a_token_trains_nothing_and_is_noted():
    task = make_task("cluener", tiny_tokenizer())
    [feature] = task.encode([sentence("在 北京", ("address", 1, 4))], 0)
    assert feature["spans"] == []
    assert task.notes == {"entities cut a token and train nothing": 1}


def test_entities_beyond_the_maximum_length_train_nothing_and_are_noted():
    task = make_task("cluener", tiny_tokenizer(), max_length=6)
    [feature] = task.encode([sentence("一二三四五六", ("address", 2, 4), ("scene", 3, 5))], 0)
    assert feature["spans"] == [[0, 3, 4]]
    assert task.notes == {"entities beyond the maximum length train nothing": 1}


def test_files_include_the_end_and_examples_exclude_it(tmp_path):
    value = {"text": "在北京", "label": {"address": {"北京": [[1, 2]]}}}
    [example] = TASK.read(Record(Path("dev.json"), "1", value), 0, labelled=True)
    assert example.entities == {("address", 1, 3)}
    assert example.text[1:3] == "北京"
    TASK.write_submission(tmp_path / "out.json", [example], [example.entities])
    assert '"北京": [[1, 2]]' in (tmp_path / "out.json").read_text("utf-8")


@given(labelled())
@settings(max_examples=40)
def test_written_entities_read_back(case):
    import tempfile

    sentences, gold, told = case
    examples = [
        EntityExample(id=str(i), row=i, where="", text=t, entities=g)
        for i, (t, g) in enumerate(zip(sentences, gold, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.json"
        TASK.write_submission(path, examples, told)
        assert TASK.read_submission(path, examples) == told


@pytest.mark.parametrize("split", ["train", "dev"])
def test_nearly_every_real_entity_is_one_the_model_can_answer(split, real_clue):
    """Those that begin or end with white space are not."""
    examples = load_clue("cluener", real_clue, split)[:300]
    told = read_back(examples)
    gold = [e.entities for e in examples]
    assert sum(map(len, told)) >= 0.998 * sum(map(len, gold))
    assert all(t <= g for t, g in zip(told, gold, strict=True))


def test_no_cell_of_cls_sep_or_padding_is_ever_an_entity():
    examples = [sentence("甲乙丙丁"), sentence("甲")]
    batch = TASK.collate(list(TASK.encode(examples, 0)))
    length = batch.inputs["input_ids"].shape[1]
    everywhere = torch.ones(2, TYPES, length, length)
    everywhere = everywhere.masked_fill(~torch.ones(length, length).triu().bool(), -torch.inf)
    first, second = TASK.outputs(Told(everywhere), batch)
    assert len(first) == TYPES * 4 * 5 // 2
    assert set(second) == {(kind, 0, 1) for kind in CLUENER.labels}


def test_the_decision_is_at_zero():
    examples = [sentence("甲")]
    batch = TASK.collate(list(TASK.encode(examples, 0)))
    scores = torch.full((1, TYPES, 3, 3), -1.0)
    scores[0, 0, 1, 1], scores[0, 1, 1, 1], scores[0, 2, 1, 1] = 1e-6, 0.0, -1e-6
    [found] = TASK.outputs(Told(scores), batch)
    assert found == [("address", 0, 1)]


# Loss


def loss_and_gradient(scores, examples):
    batch = TASK.collate(list(TASK.encode(examples, 0)))
    scores = scores(batch).double().requires_grad_()
    loss = TASK.loss(Told(scores), batch)
    loss.backward()
    return loss, scores.grad, batch


def random_scores(batch):
    rows, length = batch.inputs["input_ids"].shape
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(rows, TYPES, length, length, generator=generator)
    return scores.masked_fill(~torch.ones(length, length).triu().bool(), -torch.inf)


def test_the_worked_multi_label_value():
    scores = torch.tensor([[1, -1, 0.5, 0, -2, 2]], dtype=torch.float64)
    loss = multilabel_cross_entropy(scores, positive_index=torch.tensor([[5]]))
    assert loss.item() == pytest.approx(2.0541238232618144, abs=1e-12)


def test_without_entities_the_loss_is_log_one_plus_the_sum_over_cells():
    loss, _, batch = loss_and_gradient(random_scores, [sentence("甲乙")])
    scores = random_scores(batch).double().flatten(2)
    expected = torch.cat([scores, torch.zeros(1, TYPES, 1)], 2).logsumexp(2).mean()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)


def test_the_loss_is_the_mean_over_sentences_and_types_of_both_sums():
    examples = [sentence("甲乙丙", ("name", 0, 2), ("name", 1, 3)), sentence("丁", ("book", 0, 1))]
    loss, _, batch = loss_and_gradient(random_scores, examples)
    scores, gold = random_scores(batch).double(), gold_scores(batch, examples) > 0
    total = 0.0
    for row, right in zip(scores, gold, strict=True):
        for table, cells in zip(row, right, strict=True):
            negative = sum(math.exp(s) for s in table[~cells].tolist())
            positive = sum(math.exp(-s) for s in table[cells].tolist())
            total += math.log1p(negative) + math.log1p(positive)
    assert loss.item() == pytest.approx(total / (2 * TYPES), abs=1e-10)


def test_the_gradient_pulls_entities_up_and_everything_else_down():
    examples = [sentence("甲乙丙", ("name", 0, 2), ("name", 1, 3)), sentence("丁", ("book", 0, 1))]
    _, gradient, batch = loss_and_gradient(random_scores, examples)
    gold = gold_scores(batch, examples) > 0
    visible = random_scores(batch).isfinite()
    assert gold.sum() == 3
    assert (gradient[gold] < 0).all()
    assert (gradient[visible & ~gold] > 0).all()
    assert not gradient[~visible].any()


# Scores


@given(labelled(5))
@settings(max_examples=80)
def test_both_scores_are_those_of_the_naive_twins(case):
    sentences, gold, told = case
    examples = [sentence(t, *g) for t, g in zip(sentences, gold, strict=True)]
    scores = TASK.score(examples, told)
    expected = naive_string_macro_f1(sentences, gold, told, CLUENER.labels)
    assert scores["string_macro_f1"] == pytest.approx(expected, abs=1e-9)
    assert scores["position_micro_f1"] == pytest.approx(
        naive_position_micro_f1(gold, told), abs=1e-9
    )


def test_the_official_score_ignores_positions_and_the_authors_does_not():
    example = sentence("北京和北京", ("address", 0, 2))
    scores = TASK.score([example], [{("address", 3, 5)}])
    assert scores["f1/address"] == 100
    assert scores["position_micro_f1"] == 0


def test_a_string_named_twice_counts_once_in_the_official_score():
    example = sentence("北京和北京", ("address", 0, 2), ("address", 3, 5))
    scores = TASK.score([example], [{("address", 0, 2)}])
    assert scores["f1/address"] == 100
    assert scores["position_micro_f1"] == pytest.approx(200 / 3, abs=1e-9)


def test_types_without_any_entity_weigh_as_much_as_the_others():
    example = sentence("北京", ("address", 0, 2))
    assert TASK.score([example], [example.entities])["string_macro_f1"] == 10


def test_nothing_said_about_nothing_scores_zero_and_not_nan():
    assert set(TASK.score([sentence("甲")], [frozenset()]).values()) == {0.0}
