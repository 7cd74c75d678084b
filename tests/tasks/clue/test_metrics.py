"""EM and F1 of cmrc2018, and accuracy, against hand-worked cases and a naive twin (S01, 2.4)."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kexue.tasks.clue import load_clue, make_task
from kexue.tasks.clue.c3 import ChoiceExample
from kexue.tasks.clue.classification import TextExample
from kexue.tasks.clue.cmrc2018 import QuestionExample
from kexue.tasks.clue.reading_scores import exact_match, f1, segments
from naive.reading_scores import naive_exact_match, naive_f1, naive_segments

texts = st.text("甲乙丙AbcΩé12，。：-！ ）『…", max_size=14)


def asked(*answers, context="甲乙丙丁"):
    return QuestionExample(
        id="0",
        row=0,
        where="here:1",
        context=context,
        question="问",
        answers=tuple((a, 0) for a in answers),
    )


def test_chinese_is_compared_character_by_character():
    assert segments("北京大学") == ["北", "京", "大", "学"]
    assert f1("北京大学", "北京") == pytest.approx(2 / 3, abs=1e-12)  # 2/4 and 2/2


def test_letters_and_digits_are_compared_word_by_word():
    assert segments("光荣和omega force公司") == ["光", "荣", "和", "omega", "force", "公", "司"]
    assert f1("光荣和omega公司", "光荣和omega") == pytest.approx(0.8, abs=1e-12)  # 4/6 and 4/4


def test_numbers_with_points_and_thousands_stay_whole():
    assert segments("约3.5万或1,200人") == ["约", "3.5", "万", "或", "1,200", "人"]


def test_words_of_other_scripts_stay_whole():
    assert segments("ω-force与Café") == ["ωforce", "与", "café"]


def test_official_punctuation_counts_for_nothing():
    assert segments("《战国无双》（2009年）。") == ["战", "国", "无", "双", "2009", "年"]
    assert segments("3-0") == ["30"]
    assert exact_match("《战国无双3》", "战国无双3")
    assert f1("，。！", "战") == 0


def test_case_does_not_count():
    assert exact_match("KOEI", "koei")
    assert f1("KOEI", "koei") == 1


def test_the_longest_common_run_counts_not_the_common_set():
    # 甲乙丙丁 and 丁丙乙甲 share four characters, but no run longer than one
    assert f1("甲乙丙丁", "丁丙乙甲") == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize("prediction", ["", " ", "，"])
def test_an_empty_prediction_scores_nothing(prediction):
    assert f1(prediction, "答案") == 0
    assert not exact_match(prediction, "答案")


def test_identical_texts_score_one_even_of_signs_alone():
    assert f1("答案", "答案") == 1
    assert f1("%", "%") == 1
    assert exact_match("……", "……")


@given(texts, texts)
@example("甲乙", "乙甲乙")
def test_f1_is_that_of_the_naive_twin(prediction, answer):
    assert f1(prediction, answer) == pytest.approx(naive_f1(prediction, answer), abs=1e-12)


@given(texts, texts)
def test_exact_match_is_that_of_the_naive_twin(prediction, answer):
    assert exact_match(prediction, answer) == naive_exact_match(prediction, answer)


@given(texts)
def test_segments_are_those_of_the_naive_twin(text):
    assert segments(text) == naive_segments(text)


@given(texts, texts)
def test_f1_is_symmetric_and_between_zero_and_one(prediction, answer):
    assert 0 <= f1(prediction, answer) <= 1
    assert f1(prediction, answer) == pytest.approx(f1(answer, prediction), abs=1e-12)


# Of the whole split


def test_the_best_of_three_references_counts():
    task = make_task("cmrc2018")
    scores = task.score([asked("北京", "北京大学", "大学")], ["北京大学"])
    assert scores == {"exact_match": 100, "f1": 100, "first_reference_exact": 0}
    assert task.score([asked("北京", "北京大学", "大学")], ["大学城"])["f1"] == pytest.approx(
        80, abs=1e-9
    )  # against 大学: 2/3 and 2/2


def test_scores_are_means_over_questions_in_percent():
    scores = make_task("cmrc2018").score(
        [asked("北京"), asked("上海"), asked("天津")], ["北京", "上", ""]
    )
    assert scores["exact_match"] == pytest.approx(100 / 3, abs=1e-9)
    assert scores["f1"] == pytest.approx(100 * (1 + 2 / 3) / 3, abs=1e-9)
    assert scores["first_reference_exact"] == pytest.approx(100 / 3, abs=1e-9)


def test_second_references_on_the_real_dev_file_are_as_the_spec_counted(real_clue):
    """96.6 % of second references equal the first, 72.7 % of third ones (whole dev file)."""
    examples = load_clue("cmrc2018", real_clue, "dev")
    assert {len(e.answers) for e in examples} == {3}
    second = sum(e.answers[1][0] == e.answers[0][0] for e in examples) / len(examples)
    third = sum(e.answers[2][0] == e.answers[0][0] for e in examples) / len(examples)
    assert second == pytest.approx(0.966, abs=0.05)
    assert third == pytest.approx(0.727, abs=0.08)


def test_answering_with_the_second_reference_is_exact_in_the_official_score_only(real_clue):
    examples = load_clue("cmrc2018", real_clue, "dev")
    scores = make_task("cmrc2018").score(examples, [e.answers[2][0] for e in examples])
    assert scores["exact_match"] == scores["f1"] == 100
    assert scores["first_reference_exact"] < 85


def test_accuracy_counts_equal_labels():
    examples = [
        TextExample(id=str(i), row=i, where="", texts=("文",), label=label)
        for i, label in enumerate(["game", "game", "car"])
    ]
    task = make_task("tnews")
    assert task.score(examples, ["game", "car", "car"])["accuracy"] == pytest.approx(200 / 3)
    assert task.chance(examples) == pytest.approx(200 / 3)


def test_the_confusion_table_counts_gold_in_rows_and_predictions_in_columns():
    examples = [
        TextExample(id=str(i), row=i, where="", texts=("文",), label=label)
        for i, label in enumerate(["1", "1", "0"])
    ]
    table = make_task("afqmc").confusion(examples, ["0", "1", "0"])
    assert table == {"labels": ["0", "1"], "counts": [[1, 0], [1, 1]]}


def test_choices_that_read_the_same_are_the_same_answer():
    example = ChoiceExample(
        id="0",
        row=0,
        where="",
        passage="文",
        question="问",
        choices=("甲", "乙", "甲"),
        answer="甲",
    )
    assert make_task("c3").score([example], [2]) == {"accuracy": 100}


@pytest.mark.parametrize("name", ["tnews", "c3", "chid", "cmrc2018"])
def test_examples_without_labels_hold_no_mistakes(name, mini):
    task, examples = make_task(name), load_clue(name, mini, "test")
    nothing = {"tnews": "car", "c3": 0, "cmrc2018": ""}
    predictions = [[0] * len(e.blanks) if name == "chid" else nothing[name] for e in examples]
    assert list(task.mistakes(examples, predictions)) == []


@pytest.mark.parametrize("name", ["tnews", "c3", "chid", "cluener", "cmrc2018"])
def test_mistakes_are_the_examples_that_were_answered_wrongly(name, mini):
    task, examples = make_task(name), load_clue(name, mini, "dev")
    gold = {
        "tnews": lambda e: e.label,
        "c3": lambda e: e.choices.index(e.answer),
        "chid": lambda e: [e.candidates.index(a) for a in e.answers],
        "cluener": lambda e: e.entities,
        "cmrc2018": lambda e: e.answers[0][0],
    }[name]
    predictions = [gold(e) for e in examples]
    assert list(task.mistakes(examples, predictions)) == []
    other = {
        "tnews": lambda e: "car" if e.label != "car" else "game",
        "c3": lambda e: (e.choices.index(e.answer) + 1) % len(e.choices),
        "chid": lambda e: [(e.candidates.index(a) + 1) % 10 for a in e.answers],
        "cluener": lambda e: e.entities ^ {("name", 0, len(e.text))},
        "cmrc2018": lambda e: "别的",
    }[name]
    predictions[3] = other(examples[3])
    assert len(list(task.mistakes(examples, predictions))) == (
        len(predictions[3]) if name == "chid" else 1
    )
