"""Rows token by token, padding, token types and lengths, for all eleven tasks (S01, 2.2, 4.7)."""

import pytest
import torch

from kexue.models.text_model import TextModel
from kexue.models.tiny import tiny_encoder, tiny_tokenizer
from kexue.tasks.clue import TASKS, load_clue, make_task
from kexue.tasks.clue.c3 import ChoiceExample
from kexue.tasks.clue.classification import TextExample
from kexue.tasks.clue.cluener import EntityExample
from kexue.tasks.clue.cmrc2018 import QuestionExample

PLACE = {"id": "0", "row": 0, "where": "here:1"}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def rows_of(task, *examples):
    """The tokens of every row of the examples."""
    rows = []
    for feature in task.encode(examples, 0):
        ids = feature["input_ids"]
        rows += ids if isinstance(ids[0], list) else [ids]
    return [task.tokenizer.convert_ids_to_tokens(row) for row in rows]


# Layouts


@pytest.mark.parametrize("name", ["iflytek", "tnews", "wsc"])
def test_one_text_stands_between_cls_and_sep(name, tokenizer):
    task = make_task(name, tokenizer)
    example = TextExample(**PLACE, texts=("上分了",), label=task.labels[0])
    assert rows_of(task, example) == [["[CLS]", *"上分了", "[SEP]"]]


@pytest.mark.parametrize("name", ["afqmc", "cmnli", "ocnli", "csl"])
def test_two_texts_have_a_sep_each(name, tokenizer):
    task = make_task(name, tokenizer)
    example = TextExample(**PLACE, texts=("问题", "回答"), label=task.labels[0])
    assert rows_of(task, example) == [["[CLS]", *"问题", "[SEP]", *"回答", "[SEP]"]]


def test_csl_puts_the_keywords_joined_by_full_width_semicolons_before_the_abstract(mini):
    first = load_clue("csl", mini, "train")[0]
    keywords, abstract = first.texts
    assert keywords.count("；") >= 1
    assert not abstract.count("；")


def test_wsc_marks_both_spans_in_the_row(mini, tokenizer):
    task = make_task("wsc", tokenizer)
    for example in load_clue("wsc", mini, "dev"):
        [row] = rows_of(task, example)
        assert row.count("_") == 2
        assert row.count("[") == row.count("]") == 1


def test_c3_has_passage_question_choice_and_four_rows(tokenizer):
    task = make_task("c3", tokenizer)
    example = ChoiceExample(
        **PLACE, passage="男：走||女：好", question="谁", choices=("男", "女"), answer="女"
    )
    head = ["[CLS]", *"男：走||女：好", "[SEP]", "谁", "[SEP]"]
    assert rows_of(task, example) == [
        [*head, "男", "[SEP]"],
        [*head, "女", "[SEP]"],
        [*head, *"无效答案", "[SEP]"],
        [*head, *"无效答案", "[SEP]"],
    ]


def test_cmrc_has_question_then_window(tokenizer):
    task = make_task("cmrc2018", tokenizer, max_length=28)
    task.stride = 8
    context = "".join(chr(0x4E00 + i) for i in range(40))
    answer = (context[17:20], 17)
    example = QuestionExample(**PLACE, context=context, question="何时何地呢", answers=(answer,))
    prefix = ["[CLS]", *"何时何地呢", "[SEP]"]
    assert rows_of(task, example) == [
        [*prefix, *context[a:b], "[SEP]"] for a, b in ((0, 20), (8, 28), (16, 36), (24, 40))
    ]


def test_cmrc_targets_follow_the_answer_through_the_windows(tokenizer):
    task = make_task("cmrc2018", tokenizer, max_length=28)
    task.stride = 8
    context = "".join(chr(0x4E00 + i) for i in range(40))
    answer = (context[17:20], 17)
    example = QuestionExample(**PLACE, context=context, question="何时何地呢", answers=(answer,))
    targets = [(f["first"], f["last"]) for f in task.encode([example], 0)]
    assert targets == [(7 + 17, 7 + 19), (7 + 9, 7 + 11), (7 + 1, 7 + 3), (0, 0)]


def test_cluener_rows_and_spans_count_from_cls(tokenizer):
    task = make_task("cluener", tokenizer)
    example = EntityExample(**PLACE, text="去 北京", entities=frozenset({("address", 2, 4)}))
    [feature] = task.encode([example], 0)
    assert rows_of(task, example) == [["[CLS]", "去", "北", "京", "[SEP]"]]
    assert feature["spans"] == [[task.labels.index("address"), 2, 3]]
    assert list(zip(feature["starts"], feature["ends"], strict=True)) == [(0, 1), (2, 3), (3, 4)]


# Lengths


def test_the_longest_piece_is_cut_from_its_end(tokenizer):
    task = make_task("afqmc", tokenizer, max_length=12)
    example = TextExample(**PLACE, texts=("一二三四五六七八", "甲乙丙"), label="0")
    assert rows_of(task, example) == [["[CLS]", *"一二三四五六", "[SEP]", *"甲乙丙", "[SEP]"]]


def test_ties_are_cut_from_the_first_piece(tokenizer):
    task = make_task("afqmc", tokenizer, max_length=10)
    example = TextExample(**PLACE, texts=("一二三四", "甲乙丙丁"), label="0")
    assert rows_of(task, example) == [["[CLS]", *"一二三", "[SEP]", *"甲乙丙丁", "[SEP]"]]


@pytest.mark.parametrize("length", [16, 33, 64])
@pytest.mark.parametrize("name", [n for n in TASKS if n != "chid"])
def test_no_row_exceeds_the_maximum_length(name, length, mini, tokenizer):
    length = max(length, 48) if name == "cmrc2018" else length
    task = make_task(name, tokenizer, max_length=length)
    task.stride = 8
    longest = 0
    for feature in task.encode(load_clue(name, mini, "train"), 0):
        ids = feature["input_ids"]
        rows = ids if isinstance(ids[0], list) else [ids]
        assert max(map(len, rows)) == feature["length"] <= length
        longest = max(longest, feature["length"])
    assert longest == length or name in {"tnews", "wsc", "afqmc", "cluener", "cmnli", "ocnli"}


@pytest.mark.parametrize("name", TASKS)
def test_the_default_length_is_the_authors(name):
    lengths = {"cmrc2018": 512, "c3": 512, "chid": 64, "cluener": 256}
    assert make_task(name).length == lengths.get(name, 128)


@pytest.mark.parametrize("name", TASKS)
def test_real_rows_fit_the_positions_of_bert(name, real_clue, tokenizer):
    task = make_task(name, tokenizer)
    features = task.encode(load_clue(name, real_clue, "dev")[:200], 0)
    assert max(f["length"] for f in features) <= (task.length if name != "chid" else 128)


def test_a_vocabulary_finer_than_characters_cannot_crowd_out_the_passage():
    """Three tokens a character: the question is cut, the window keeps its room."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {t: i for i, t in enumerate(["[PAD]", "[CLS]", "[SEP]", *sorted(alphabet)])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fine = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    task = make_task("cmrc2018", fine, max_length=64)
    task.stride = 8
    example = QuestionExample(**PLACE, context="文" * 50, question="问" * 40, answers=())
    for feature in task.encode([example], 0):
        assert feature["length"] <= 64
        assert len(feature["starts"]) >= 8


# Batches


@pytest.mark.parametrize("name", TASKS)
def test_the_model_is_given_no_token_types(name, mini, tokenizer):
    task = make_task(name, tokenizer)
    batch = task.collate(list(task.encode(load_clue(name, mini, "dev")[:3], 0)))
    assert set(batch.inputs) - {"visible"} == {"input_ids", "attention_mask"}


def test_leaving_token_types_out_is_giving_zeros():
    torch.manual_seed(0)
    encoder = tiny_encoder(50, hidden_size=64).eval()
    ids = torch.randint(6, 50, (2, 9))
    mask = torch.ones_like(ids)
    plain = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    zeros = encoder(input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids))
    assert torch.equal(plain, zeros.last_hidden_state)


@pytest.mark.parametrize("name", TASKS)
def test_the_mask_is_one_exactly_on_the_tokens_of_the_row(name, mini, tokenizer):
    task = make_task(name, tokenizer)
    features = list(task.encode(load_clue(name, mini, "dev")[:4], 0))
    batch = task.collate(features)
    rows = [
        row
        for f in features
        for row in (f["input_ids"] if isinstance(f["input_ids"][0], list) else [f["input_ids"]])
    ]
    assert batch.inputs["attention_mask"].sum(1).tolist() == [len(row) for row in rows]
    assert batch.tokens == sum(map(len, rows))
    for ids, row in zip(batch.inputs["input_ids"].tolist(), rows, strict=True):
        assert ids == row + [tokenizer.pad_token_id] * (len(ids) - len(row))


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_knows_whose_its_features_are(name, mini, tokenizer):
    task = make_task(name, tokenizer)
    features = list(task.encode(load_clue(name, mini, "dev")[:4], 5))
    batch = task.collate(features)
    assert batch.examples == [f["example"] for f in features]
    assert set(batch.examples) == {5, 6, 7, 8}
    assert batch.count == len(features)


@pytest.fixture(scope="module")
def model_of(tokenizer):
    """A task and a small model in evaluation mode."""

    def make(name):
        torch.manual_seed(0)
        task = make_task(name, tokenizer)
        encoder = tiny_encoder(len(tokenizer), hidden_size=64)
        return task, TextModel(encoder, task.head(64)).eval()

    return make


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("name", TASKS)
def test_padding_does_not_change_the_logits(name, dtype, tolerance, mini, model_of):
    task, model = model_of(name)
    features = sorted(
        task.encode(load_clue(name, mini, "dev")[:6], 0), key=lambda feature: feature["length"]
    )
    assert features[0]["length"] < features[-1]["length"]
    options = {"num_choices": task.rows} if task.rows > 1 else {}
    half = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    if dtype == torch.bfloat16:  # larger weights, so that a look at the padding would show
        with torch.no_grad():
            for weight in (p for p in model.parameters() if p.ndim == 2):
                weight *= 5
    with torch.no_grad(), half:
        together = model(**task.collate(features).inputs, **options)
        for feature, padded in zip(features, together, strict=True):
            [alone] = model(**task.collate([feature]).inputs, **options)
            cut = padded[..., : alone.shape[-2], : alone.shape[-1]] if alone.ndim > 1 else padded
            torch.testing.assert_close(cut, alone, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["cmrc2018", "cluener"])
def test_span_scores_of_padding_are_minus_infinity(name, mini, model_of):
    task, model = model_of(name)
    features = list(task.encode(load_clue(name, mini, "dev")[:4], 0))
    batch = task.collate(features)
    with torch.no_grad():
        scores = model(**batch.inputs)
    hidden = ~batch.inputs["attention_mask"].bool()
    assert hidden.any()
    for table, row in zip(scores, hidden, strict=True):
        assert table[..., row].isneginf().all()
        assert table[..., row, :].isneginf().all()


@pytest.mark.parametrize("name", TASKS)
def test_padding_does_not_change_the_answers(name, mini, model_of):
    task, model = model_of(name)
    examples = load_clue(name, mini, "dev")[:6]
    features = list(task.encode(examples, 0))
    with torch.no_grad():
        batch = task.collate(features)
        together = list(zip(batch.examples, task.outputs(model, batch), strict=True))
        alone = []
        for feature in features:
            one = task.collate([feature])
            alone += zip(one.examples, task.outputs(model, one), strict=True)
    assert task.decode(examples, together) == task.decode(examples, alone)


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_of_a_batch_is_the_mean_over_its_features(name, mini, model_of):
    task, model = model_of(name)
    features = list(task.encode(load_clue(name, mini, "train")[:5], 0))
    with torch.no_grad():
        whole = task.loss(model, task.collate(features))
        each = torch.stack([task.loss(model, task.collate([f])) for f in features])
    torch.testing.assert_close(whole, each.mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_every_parameter_of_the_head_gets_a_gradient(name, mini, model_of):
    task, model = model_of(name)
    task.loss(
        model, task.collate(list(task.encode(load_clue(name, mini, "train")[:5], 0)))
    ).backward()
    for parameter in model.head.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0
    model.zero_grad()


@pytest.mark.parametrize("name", TASKS)
def test_the_declared_columns_are_those_of_a_feature(name, mini, tokenizer):
    task = make_task(name, tokenizer)
    [feature, *_] = task.encode(load_clue(name, mini, "train")[:1], 0)
    kinds = {
        name: "int" if isinstance(v, int) else "lists" if v and isinstance(v[0], list) else "ints"
        for name, v in feature.items()
    }
    if name == "cluener":  # may be empty
        kinds["spans"] = "lists"
    assert kinds == task.columns
