"""Submission files of all eleven tasks: what is written reads back and scores the same (S01, 4)."""

import json
import random

import pytest

from kexue.data.corpus import DataError
from kexue.tasks.clue import TASKS, examples, load_clue, make_task
from kexue.tasks.clue.sources import FolderSource

PLAIN = ("iflytek", "tnews", "afqmc", "cmnli", "ocnli", "wsc", "csl")
BY_LINE = (*PLAIN, "c3", "cluener")
OFFICIAL_NAMES = {
    ("iflytek", "1.1"): "iflytek_predict.json",
    ("tnews", "1.0"): "tnews10_predict.json",
    ("tnews", "1.1"): "tnews11_predict.json",
    ("afqmc", "1.1"): "afqmc_predict.json",
    ("cmnli", "1.1"): "cmnli_predict.json",
    ("ocnli", "1.1"): "ocnli_50k_predict.json",
    ("wsc", "1.0"): "cluewsc10_predict.json",
    ("wsc", "1.1"): "cluewsc11_predict.json",
    ("csl", "1.1"): "csl_predict.json",
    ("cmrc2018", "1.1"): "cmrc2018_predict.json",
    ("c3", "1.0"): "c310_predict.json",
    ("c3", "1.1"): "c311_predict.json",
    ("chid", "1.0"): "chid10_predict.json",
    ("chid", "1.1"): "chid11_predict.json",
    ("cluener", "1.1"): "cluener_predict.json",
}


def guess(name, example, dice):
    """A random legal prediction, right about half of the time where gold is known."""
    task = TASKS[name]
    if name == "cmrc2018":
        if example.answers and dice.random() < 0.5:
            return example.answers[0][0]
        start = dice.randrange(len(example.context))
        return example.context[start : start + dice.randint(1, 6)]
    if name == "c3":
        return dice.randrange(len(example.choices))
    if name == "chid":
        return dice.sample(range(10), len(example.blanks))
    if name == "cluener":
        spans = {e for e in example.entities or () if dice.random() < 0.5}
        for _ in range(dice.randint(0, 3)):
            start = dice.randrange(len(example.text))
            end = dice.randint(start + 1, len(example.text))
            spans.add((dice.choice(task.labels), start, end))
        return frozenset(spans)
    return example.label if example.label and dice.random() < 0.5 else dice.choice(task.labels)


def guesses(name, examples, seed=0):
    dice = random.Random(seed)
    return [guess(name, e, dice) for e in examples]


def written(tmp_path, name, examples, predictions, **options):
    task = make_task(name, **options)
    path = tmp_path / task.submission_name
    task.write_submission(path, examples, predictions)
    return path


def lines(path):
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def rewrite(path, rows):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")


# One claim after the other


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize("name", TASKS)
def test_a_submission_reads_back_as_the_predictions_it_was_written_from(
    name, split, mini, tmp_path
):
    examples = load_clue(name, mini, split)
    predictions = guesses(name, examples)
    path = written(tmp_path, name, examples, predictions)
    assert make_task(name).read_submission(path, examples) == predictions


@pytest.mark.parametrize("name", TASKS)
def test_the_file_scores_what_the_predictions_scored(name, mini, tmp_path):
    task, examples = make_task(name), load_clue(name, mini, "dev")
    predictions = guesses(name, examples, seed=1)
    path = written(tmp_path, name, examples, predictions)
    scores = task.score(examples, predictions)
    assert task.score(examples, task.read_submission(path, examples)) == scores
    assert 0 < scores[task.metric] < 100


@pytest.mark.parametrize("name", TASKS)
def test_gold_submitted_scores_a_hundred(name, mini, tmp_path):
    task, examples = make_task(name), load_clue(name, mini, "dev")
    gold = {
        "cmrc2018": lambda e: e.answers[0][0],
        "c3": lambda e: e.choices.index(e.answer),
        "chid": lambda e: [e.candidates.index(a) for a in e.answers],
        "cluener": lambda e: e.entities,
    }.get(name, lambda e: getattr(e, "label", None))
    path = written(tmp_path, name, examples, [gold(e) for e in examples])
    scores = task.score(examples, task.read_submission(path, examples))
    present = {kind for e in examples for kind, _, _ in e.entities} if name == "cluener" else ()
    expected = 100 * len(present) / 10 if name == "cluener" else 100
    assert scores[task.metric] == pytest.approx(expected, abs=1e-9)


def hide_labels(name, source, target):
    """The dev files of a task as test files: no labels, ids that run."""
    (target / name).mkdir(parents=True)
    for path in (source / name).iterdir():
        (target / name / path.name).write_bytes(path.read_bytes())
    dev = target / name / "dev.json"
    if name == "c3":
        parts = [json.loads((target / name / f"{p}-dev.json").read_text("utf-8")) for p in "md"]
        for i, question in enumerate(q for part in parts for doc in part for q in doc[1]):
            del question["answer"]
            question["id"] = i
        text = json.dumps(parts[0] + parts[1], ensure_ascii=False)
    elif name == "cmrc2018":
        articles = json.loads(dev.read_text("utf-8"))
        for article in articles["data"]:
            for asked in (q for p in article["paragraphs"] for q in p["qas"]):
                asked["answers"] = [{"text": "", "answer_start": -1}]
        text = json.dumps(articles, ensure_ascii=False)
    elif name == "chid":
        text = dev.read_text("utf-8")
    else:
        hidden = {"label", "label_des", "label_desc", "idx", "id"}
        rows = ({k: v for k, v in row.items() if k not in hidden} for row in lines(dev))
        text = "".join(
            json.dumps({"id": i, **r}, ensure_ascii=False) + "\n" for i, r in enumerate(rows)
        )
    for file in ("test.json", "test1.0.json", "test1.1.json"):
        (target / name / file).write_text(text, "utf-8")
    return target


@pytest.mark.parametrize("name", TASKS)
def test_a_file_made_for_the_unlabelled_rows_is_scored_against_the_labelled_ones(
    name, mini, tmp_path
):
    folder = hide_labels(name, mini, tmp_path / "hidden")
    task, dev, test = make_task(name), load_clue(name, mini, "dev"), load_clue(name, folder, "test")
    predictions = guesses(name, test, seed=2)
    path = written(tmp_path, name, test, predictions)
    of_row = {e.row: p for e, p in zip(test, predictions, strict=True)}
    expected = [of_row[e.row] for e in dev]
    assert task.read_submission(path, dev) == expected
    assert task.score(dev, task.read_submission(path, dev)) == task.score(dev, expected)


def test_rows_without_majority_are_answered_in_the_test_split_and_skipped_in_the_score(
    mini, tmp_path
):
    folder = tmp_path / "own"
    (folder / "ocnli").mkdir(parents=True)
    rows = lines(mini / "ocnli" / "dev.json")
    undecided = {0, 3, len(rows) - 1}
    for i, row in enumerate(rows):
        row["label"] = "-" if i in undecided else "neutral"
    rewrite(folder / "ocnli" / "dev.json", rows)
    dev = load_clue("ocnli", folder, "dev")
    test = load_clue("ocnli", hide_labels("ocnli", folder, tmp_path / "hidden"), "test")
    assert (len(test), len(dev)) == (len(rows), len(rows) - 3)
    predictions = guesses("ocnli", test)
    path = written(tmp_path, "ocnli", test, predictions)
    kept = [p for i, p in enumerate(predictions) if i not in undecided]
    assert make_task("ocnli").read_submission(path, dev) == kept


@pytest.mark.parametrize("name", TASKS)
def test_predictions_for_the_real_test_files_score_against_the_real_dev_files(
    name, real_clue, tmp_path
):
    task, dev = make_task(name), load_clue(name, real_clue, "dev")
    test = load_clue(name, real_clue, "test")
    predictions = guesses(name, test)
    path = written(tmp_path, name, test, predictions)
    of_row = {e.row: p for e, p in zip(test, predictions, strict=True)}
    expected = task.score(dev, [of_row[e.row] for e in dev])
    assert task.score(dev, task.read_submission(path, dev)) == expected


# Names and forms


@pytest.mark.parametrize(("name", "version"), OFFICIAL_NAMES)
def test_the_file_has_the_name_the_benchmark_expects(name, version):
    assert make_task(name, version=version).submission_name == OFFICIAL_NAMES[name, version]


@pytest.mark.parametrize(("name", "version"), OFFICIAL_NAMES)
def test_each_version_reads_its_own_test_file(name, version):
    two = {"tnews", "wsc", "c3", "chid"}
    expected = f"test{version}.json" if name in {"c3", "chid"} else "test.json"
    if name in two and version == "1.0":
        expected = "test1.0.json"
    assert make_task(name, version=version).file_names("test") == (expected,)


def test_an_unknown_version_is_refused():
    with pytest.raises(ValueError, match=r"test version must be 1\.0 or 1\.1, got '2'"):
        make_task("tnews", version="2")


@pytest.mark.parametrize("name", BY_LINE)
def test_every_line_has_its_id_as_a_string(name, mini, tmp_path):
    examples = load_clue(name, mini, "test")
    rows = lines(written(tmp_path, name, examples, guesses(name, examples)))
    assert [row["id"] for row in rows] == [str(i) for i in range(len(examples))]


@pytest.mark.parametrize("name", [*PLAIN, "c3"])
def test_every_line_has_its_label_as_a_string_and_nothing_else(name, mini, tmp_path):
    examples = load_clue(name, mini, "test")
    for row in lines(written(tmp_path, name, examples, guesses(name, examples))):
        assert set(row) == {"id", "label"}
        assert isinstance(row["label"], str)


def test_tnews_submits_codes_not_names(mini, tmp_path):
    examples = load_clue("tnews", mini, "test")
    path = written(tmp_path, "tnews", examples, ["game"] * len(examples))
    assert {row["label"] for row in lines(path)} == {"116"}


def test_chid_submits_one_object_of_mark_to_integer(mini, tmp_path):
    examples = load_clue("chid", mini, "test")
    path = written(tmp_path, "chid", examples, guesses("chid", examples))
    answers = json.loads(path.read_text("utf-8"))
    assert set(answers) == {b.mark for e in examples for b in e.blanks}
    assert {type(v) for v in answers.values()} == {int}


def test_cluener_submits_the_record_with_labels_in_the_training_form(mini, tmp_path):
    examples = load_clue("cluener", mini, "dev")
    path = written(tmp_path, "cluener", examples, [e.entities for e in examples])
    for given, row in zip(lines(mini / "cluener" / "dev.json"), lines(path), strict=True):
        assert row["text"] == given["text"]
        assert row["label"] == given["label"]


def test_cmrc_submits_one_object_of_question_id_to_text(mini, tmp_path):
    examples = load_clue("cmrc2018", mini, "test")
    path = written(tmp_path, "cmrc2018", examples, ["答案"] * len(examples))
    assert json.loads(path.read_text("utf-8")) == {e.id: "答案" for e in examples}


def test_chinese_stands_unescaped_in_the_file(mini, tmp_path):
    examples = load_clue("cmrc2018", mini, "test")
    path = written(tmp_path, "cmrc2018", examples, ["答案"] * len(examples))
    assert "答案" in path.read_text("utf-8")


# What the check refuses


def refused(path, name, examples):
    """The one-line message with which the file is refused."""
    with pytest.raises(DataError) as caught:
        make_task(name).read_submission(path, examples)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.fixture
def by_line(tmp_path, mini):
    """A file and its examples, for a task with one line per example."""

    def make(name):
        examples = load_clue(name, mini, "test")
        return written(tmp_path, name, examples, guesses(name, examples)), examples

    return make


@pytest.mark.parametrize("name", BY_LINE)
def test_a_file_that_ends_early_is_refused(name, by_line):
    path, examples = by_line(name)
    rewrite(path, lines(path)[:-1])
    last = len(examples) - 1
    assert f"{path}:{last}:id: no answer for '{last}'" in refused(path, name, examples)


@pytest.mark.parametrize("name", BY_LINE)
def test_a_doubled_id_is_refused(name, by_line):
    path, examples = by_line(name)
    rows = lines(path)
    rows[5]["id"] = rows[2]["id"]
    rewrite(path, rows)
    assert f"{path}:6:id: '2' stands in line 3 already" in refused(path, name, examples)


@pytest.mark.parametrize("name", BY_LINE)
def test_a_line_without_id_is_refused(name, by_line):
    path, examples = by_line(name)
    rows = lines(path)
    del rows[1]["id"]
    rewrite(path, rows)
    assert f"{path}:2:id: field is missing" in refused(path, name, examples)


@pytest.mark.parametrize("name", PLAIN)
def test_an_unknown_label_is_refused(name, by_line):
    path, examples = by_line(name)
    rows = lines(path)
    rows[3]["label"] = "105"
    if name == "iflytek":
        rows[3]["label"] = "119"
    rewrite(path, rows)
    assert f"{path}:4:label: " in refused(path, name, examples)


@pytest.mark.parametrize("label", ["4", "-1", "A", "01", ""])
def test_a_choice_that_is_not_there_is_refused(label, by_line):
    path, examples = by_line("c3")
    rows = lines(path)
    rows[0]["label"] = label
    rewrite(path, rows)
    assert f"{path}:1:label: needs 0 to" in refused(path, "c3", examples)


@pytest.mark.parametrize("name", BY_LINE)
def test_a_line_that_is_no_json_is_refused(name, by_line):
    path, examples = by_line(name)
    text = path.read_text("utf-8").splitlines(keepends=True)
    text[2] = text[2][:7] + "\n"
    path.write_text("".join(text), "utf-8")
    assert f"{path}:3: not JSON at column" in refused(path, name, examples)


def test_an_entity_that_is_not_in_the_text_is_refused(by_line):
    path, examples = by_line("cluener")
    rows = lines(path)
    rows[0]["label"] = {"name": {"不在文中": [[0, 3]]}}
    rewrite(path, rows)
    assert f"{path}:1:label.name.不在文中: not at characters" in refused(path, "cluener", examples)


@pytest.mark.parametrize("name", ["cmrc2018", "chid"])
def test_an_object_file_that_is_no_object_is_refused(name, mini, tmp_path):
    examples = load_clue(name, mini, "test")
    path = tmp_path / "list.json"
    path.write_text("[]", "utf-8")
    assert f"{path}:1: needs one JSON object" in refused(path, name, examples)


@pytest.mark.parametrize("name", ["cmrc2018", "chid"])
def test_an_object_file_that_is_no_json_is_refused(name, mini, tmp_path):
    examples = load_clue(name, mini, "test")
    path = tmp_path / "half.json"
    path.write_text('{"a": ', "utf-8")
    assert f"{path}:1: not JSON at column" in refused(path, name, examples)


@pytest.mark.parametrize("name", ["cmrc2018", "chid"])
def test_a_missing_key_is_named(name, mini, tmp_path):
    examples = load_clue(name, mini, "test")
    path = written(tmp_path, name, examples, guesses(name, examples))
    answers = json.loads(path.read_text("utf-8"))
    key, _ = answers.popitem()
    path.write_text(json.dumps(answers), "utf-8")
    assert f"{path}:1:{key}: needs" in refused(path, name, examples)


@pytest.mark.parametrize("name", ["cmrc2018", "chid"])
def test_an_unknown_key_is_named(name, mini, tmp_path):
    examples = load_clue(name, mini, "test")
    path = written(tmp_path, name, examples, guesses(name, examples))
    answers = json.loads(path.read_text("utf-8"))
    answers["#idiom999999#"] = answers[next(iter(answers))]
    path.write_text(json.dumps(answers), "utf-8")
    assert f"{path}:1:#idiom999999#: no " in refused(path, name, examples)


@pytest.mark.parametrize("value", [10, -1, "3", None, True, 2.0])
def test_a_chid_answer_that_is_no_candidate_number_is_refused(value, mini, tmp_path):
    examples = load_clue("chid", mini, "test")
    path = written(tmp_path, "chid", examples, guesses("chid", examples))
    answers = json.loads(path.read_text("utf-8"))
    mark = examples[0].blanks[0].mark
    answers[mark] = value
    path.write_text(json.dumps(answers), "utf-8")
    assert f"{path}:1:{mark}: needs a number from 0 to 9" in refused(path, "chid", examples)


def test_a_file_that_is_not_there_is_refused_with_what_is(mini, tmp_path):
    examples = load_clue("tnews", mini, "test")
    (tmp_path / "other.json").touch()
    with pytest.raises(DataError, match=r"tnews11_predict\.json: no such file; .* holds other"):
        make_task("tnews").read_submission(tmp_path / "tnews11_predict.json", examples)


def test_a_write_that_fails_leaves_the_earlier_file_as_it_was(mini, tmp_path):
    examples = load_clue("tnews", mini, "test")
    path = written(tmp_path, "tnews", examples, ["game"] * len(examples))
    before = path.read_bytes()
    with pytest.raises(KeyError):
        written(tmp_path, "tnews", examples, ["game", "no such label"] * (len(examples) // 2))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_reordered_file_is_matched_by_id_and_one_wrong_id_is_refused(tmp_path):
    source = FolderSource(tmp_path)
    (tmp_path / "tnews").mkdir()
    rows = [{"id": 10 + n, "sentence": f"标题{n}"} for n in range(4)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "tnews" / "test.json").write_text(text, encoding="utf-8")
    task = make_task("tnews")
    found = list(examples(task, source, "test"))
    answers = [{"id": str(13 - n), "label": str(100 + n)} for n in range(4)]
    path = tmp_path / "answers.json"
    path.write_text("".join(json.dumps(a) + "\n" for a in answers), encoding="utf-8")
    assert task.read_submission(path, found) == ["sports", "entertainment", "culture", "story"]
    answers[2]["id"] = "99"
    path.write_text("".join(json.dumps(a) + "\n" for a in answers), encoding="utf-8")
    with pytest.raises(DataError, match="no answer for '11'"):
        task.read_submission(path, found)


def test_ids_of_another_split_are_refused_though_the_number_of_rows_agrees(tmp_path):
    (tmp_path / "tnews").mkdir()
    rows = [{"id": 100 + n, "sentence": f"标题{n}"} for n in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "tnews" / "test.json").write_text(text, encoding="utf-8")
    task = make_task("tnews")
    found = list(examples(task, FolderSource(tmp_path), "test"))
    path = tmp_path / "answers.json"
    answers = [{"id": f"other{n}", "label": "100"} for n in range(3)]
    path.write_text("".join(json.dumps(a) + "\n" for a in answers), encoding="utf-8")
    with pytest.raises(DataError, match="no answer for '100'"):
        task.read_submission(path, found)


def test_the_name_of_a_topic_is_no_code_and_refused(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text('{"id": "0", "label": "story"}\n', encoding="utf-8")
    (tmp_path / "tnews").mkdir()
    (tmp_path / "tnews" / "test.json").write_text(
        '{"id": 0, "sentence": "标题"}\n', encoding="utf-8"
    )
    task = make_task("tnews")
    found = list(examples(task, FolderSource(tmp_path), "test"))
    with pytest.raises(DataError, match="'story' is no label of tnews"):
        task.read_submission(path, found)


def test_a_line_too_many_is_refused_where_no_row_was_left_out(tmp_path):
    source = FolderSource(tmp_path)
    (tmp_path / "tnews").mkdir()
    rows = [{"id": n, "sentence": f"标题{n}"} for n in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "tnews" / "test.json").write_text(text, encoding="utf-8")
    task = make_task("tnews")
    found = list(examples(task, source, "test"))
    answers = [{"id": str(n), "label": "100"} for n in range(4)]
    path = tmp_path / "answers.json"
    path.write_text("".join(json.dumps(a) + "\n" for a in answers), encoding="utf-8")
    with pytest.raises(DataError, match=":4:id: '3' is no id of the split"):
        task.read_submission(path, found)
