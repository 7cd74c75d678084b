"""Bad data are refused with one line that names file, line and field (S01, 3; DESIGN, 5)."""

import json
import shutil
from pathlib import Path

import pytest

from kexue.data.corpus import DataError
from kexue.tasks.clue import TASKS, load_clue, make_task

NLI = "sentence1", "sentence2"
LINES = ["iflytek", "tnews", "afqmc", "cmnli", "ocnli", "wsc", "csl", "cluener", "chid"]
PLAIN = LINES[:7]


@pytest.fixture
def folder(mini, tmp_path):
    """A copy of the data whose dev files a test may spoil."""
    return lambda name: shutil.copytree(mini / name, tmp_path / name)


def refused(name, folder, split="dev"):
    """The message, once it is sure that it is one line."""
    with pytest.raises(DataError) as caught:
        load_clue(name, folder.parent, split)
    message = str(caught.value)
    assert "\n" not in message
    return message


def spoil(folder, number, change, file="dev.json"):
    """Changes record `number` (from 1) of a JSON-lines file."""
    path = folder / file
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    change(rows[number - 1])
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return f"{path}:{number}:"


@pytest.mark.parametrize("name", TASKS)
def test_a_missing_file(name, folder):
    path = folder(name) / make_task(name).file_names("dev")[-1]
    path.unlink()
    assert refused(name, path.parent).startswith(f"{path}: no such file; ")


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_is_not_json(name, folder):
    path = folder(name) / "dev.json"
    rows = path.read_text("utf-8").split("\n")
    rows[2] = rows[2][:-5]
    path.write_text("\n".join(rows), "utf-8")
    assert refused(name, path.parent).startswith(f"{path}:3: not JSON at column ")


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_is_no_object(name, folder):
    path = folder(name) / "dev.json"
    path.write_text("[1, 2]\n", "utf-8")
    assert refused(name, path.parent) == f"{path}:1: needs one JSON object a line, got [1, 2]"


@pytest.mark.parametrize("name", ["c3", "cmrc2018"])
def test_a_file_that_is_not_json(name, folder):
    path = folder(name) / ("m-dev.json" if name == "c3" else "dev.json")
    path.write_text('[{"a": 1,\n]', "utf-8")
    assert refused(name, path.parent).startswith(f"{path}:2: not JSON at column 1: ")


@pytest.mark.parametrize("name", TASKS)
def test_a_file_in_another_encoding(name, folder):
    path = folder(name) / ("m-dev.json" if name == "c3" else "dev.json")
    path.write_bytes(path.read_text("utf-8").encode("gb18030"))
    message = refused(name, path.parent)
    assert message.startswith(f"{path}:")
    assert "is not UTF-8; convert the file" in message


@pytest.mark.parametrize("name", TASKS)
def test_an_empty_file(name, folder):
    path = folder(name) / "dev.json"
    empty = {"c3": "[]", "cmrc2018": '{"data": []}'}.get(name, "")
    for file in ("m-dev.json", "d-dev.json") if name == "c3" else ("dev.json",):
        (path.parent / file).write_text(empty, "utf-8")
    assert refused(name, path.parent) == f"{name}: the dev split holds no records"


@pytest.mark.parametrize("name", PLAIN)
def test_an_unknown_label(name, folder):
    where = spoil(folder(name), 3, lambda row: row.update(label="maybe"))
    assert refused(name, folder_of(where)).startswith(
        f"{where}label: 'maybe' is no label of {name}"
    )


def folder_of(where):
    return Path(where.rsplit(":", 2)[0]).parent


@pytest.mark.parametrize("code", ["105", "111", 105])
def test_a_tnews_code_that_does_not_exist(code, folder):
    where = spoil(folder("tnews"), 1, lambda row: row.update(label=code))
    assert "is no label of tnews; known: 100, 101, " in refused("tnews", folder_of(where))


@pytest.mark.parametrize("name", PLAIN)
def test_a_missing_label(name, folder):
    where = spoil(folder(name), 5, lambda row: row.pop("label"))
    assert refused(name, folder_of(where)).startswith(f"{where}label: field is missing (present: ")


FIELDS = [("iflytek", "sentence"), ("tnews", "sentence"), ("wsc", "text"), ("csl", "abst")]
FIELDS += [("cluener", "text"), *((t, f) for t in ("afqmc", "cmnli", "ocnli") for f in NLI)]


@pytest.mark.parametrize("text", ["", " \u3000\n"])
@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_an_empty_text(name, field, text, folder):
    where = spoil(folder(name), 2, lambda row: row.update({field: text}))
    assert refused(name, folder_of(where)).startswith(f"{where}{field}: text is empty")


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_text_that_is_no_string(name, field, folder):
    where = spoil(folder(name), 2, lambda row: row.update({field: 7}))
    assert refused(name, folder_of(where)) == f"{where}{field}: needs a string, got 7"


@pytest.mark.parametrize("keywords", [[], "词；词", ["词", 3]])
def test_keywords_that_are_no_list_of_strings(keywords, folder):
    where = spoil(folder("csl"), 4, lambda row: row.update(keyword=keywords))
    assert refused("csl", folder_of(where)).startswith(f"{where}keyword: needs a list")


# Spans


@pytest.mark.parametrize("spans", [[[0, 1]], [[-2, -1]], [[1, 0]], [[900, 901]]])
def test_an_entity_that_is_not_where_it_should_be(spans, folder):
    where = spoil(folder("cluener"), 2, lambda row: row.update(label={"name": {"没有": spans}}))
    message = refused("cluener", folder_of(where))
    assert message.startswith(f"{where}label.name.没有: not at characters ")
    assert "(end included)" in message


def test_an_entity_without_text(folder):
    where = spoil(folder("cluener"), 2, lambda row: row.update(label={"name": {"": [[1, 0]]}}))
    assert refused("cluener", folder_of(where)).startswith(f"{where}label.name.: not at characters")


def test_an_unknown_entity_type(folder):
    where = spoil(folder("cluener"), 2, lambda row: row.update(label={"city": {}}))
    assert refused("cluener", folder_of(where)).startswith(
        f"{where}label.city: no such type; known: address, book, "
    )


@pytest.mark.parametrize("spans", [3, [3], [[1]], [["0", "1"]], [[0, 1, 2]], [[0.0, 1.0]]])
def test_entity_spans_of_another_form(spans, folder):
    where = spoil(folder("cluener"), 2, lambda row: row.update(label={"name": {"词": spans}}))
    assert refused("cluener", folder_of(where)).startswith(
        f"{where}label.name.词: needs [[start, end]"
    )


@pytest.mark.parametrize("label", [{"name": ["词"]}, {"name": None}, ["name"]])
def test_entity_labels_of_another_form(label, folder):
    where = spoil(folder("cluener"), 2, lambda row: row.update(label=label))
    assert refused("cluener", folder_of(where)).startswith(f"{where}label")


# cmrc2018


def reading(folder, change):
    path = folder("cmrc2018") / "dev.json"
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return path


def question_of(content):
    return content["data"][1]["paragraphs"][0]["qas"][0]


@pytest.mark.parametrize("content", [[], {"data": {}}, {"version": 1}, 3])
def test_reading_data_in_another_form(content, folder):
    path = folder("cmrc2018") / "dev.json"
    path.write_text(json.dumps(content), "utf-8")
    assert refused("cmrc2018", path.parent).startswith(
        f'{path}:1:data: needs the SQuAD form {{"data"'
    )


def test_an_article_that_is_no_object(folder):
    path = reading(folder, lambda c: c["data"].insert(0, "文"))
    assert refused("cmrc2018", path.parent).startswith(f"{path}:data[0]: needs an object, got ")


def test_an_article_without_paragraphs(folder):
    path = reading(folder, lambda c: c["data"][2].pop("paragraphs"))
    assert refused("cmrc2018", path.parent).startswith(
        f"{path}:data[2]:paragraphs: field is missing"
    )


@pytest.mark.parametrize(("context", "problem"), [("", "text is empty"), (3, "needs a string")])
def test_a_passage_without_text(context, problem, folder):
    path = reading(folder, lambda c: c["data"][1]["paragraphs"][0].update(context=context))
    message = refused("cmrc2018", path.parent)
    assert message.startswith(f"{path}:data[1].paragraphs[0]:context: {problem}")


@pytest.mark.parametrize("field", ["id", "question", "answers"])
def test_a_question_without_one_of_its_fields(field, folder):
    path = reading(folder, lambda c: question_of(c).pop(field))
    where = f"{path}:data[1].paragraphs[0].qas[0]:{field}: field is missing"
    assert refused("cmrc2018", path.parent).startswith(where)


def test_a_labelled_question_without_answers(folder):
    path = reading(folder, lambda c: question_of(c).update(answers=[]))
    where = f"{path}:data[1].paragraphs[0].qas[0]:answers: needs at least one answer"
    assert refused("cmrc2018", path.parent).startswith(where)


@pytest.mark.parametrize(
    ("answer", "field"),
    [
        ("文", ""),
        ({"text": ""}, "text:"),
        ({"text": "文", "answer_start": "3"}, "answer_start:"),
    ],
)
def test_an_answer_in_another_form(answer, field, folder):
    path = reading(folder, lambda c: question_of(c).update(answers=[answer]))
    where = f"{path}:data[1].paragraphs[0].qas[0].answers[0]:{field} "
    assert refused("cmrc2018", path.parent).startswith(where)


# c3


def choosing(folder, change):
    path = folder("c3") / "m-dev.json"
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return path


@pytest.mark.parametrize("choices", [[], ["甲"], list("甲乙丙丁戊"), ["甲", 3]])
def test_a_wrong_number_or_kind_of_choices(choices, folder):
    path = choosing(folder, lambda c: c[1][1][0].update(choice=choices))
    where = f"{path}:[1].questions[0]:choice: needs 2 to 4 choices"
    assert refused("c3", path.parent).startswith(where)


def test_an_answer_that_is_none_of_the_choices(folder):
    path = choosing(folder, lambda c: c[1][1][0].update(answer="别的"))
    where = f"{path}:[1].questions[0]:answer: '别的' is none of the choices"
    assert refused("c3", path.parent).startswith(where)


def test_an_empty_question(folder):
    path = choosing(folder, lambda c: c[1][1][0].update(question=" "))
    assert refused("c3", path.parent).startswith(f"{path}:[1].questions[0]:question: text is empty")


@pytest.mark.parametrize("question", ["问", 3, None, ["问"]])
def test_a_question_that_is_no_object(question, folder):
    path = choosing(folder, lambda c: c[1][1].__setitem__(0, question))
    assert refused("c3", path.parent).startswith(f"{path}:[1].questions[0]: needs an object")


@pytest.mark.parametrize("lines", [[], "文", [3]])
def test_a_passage_that_is_no_list_of_strings(lines, folder):
    path = choosing(folder, lambda c: c[1].__setitem__(0, lines))
    assert refused("c3", path.parent).startswith(f"{path}:[1]:lines: needs a list")


@pytest.mark.parametrize("document", [3, [["文"]], {}])
def test_a_document_that_is_no_triple(document, folder):
    path = choosing(folder, lambda c: c.__setitem__(1, document))
    assert refused("c3", path.parent) == f"{path}:[1]: needs [lines, questions, id]"


# chid


@pytest.mark.parametrize("count", [0, 7, 9, 11])
def test_a_wrong_number_of_candidates(count, folder):
    where = spoil(folder("chid"), 2, lambda row: row.update(candidates=["画蛇添足"] * count))
    message = refused("chid", folder_of(where))
    assert message == f"{where}candidates: needs 10 idioms, got {count}"


def test_a_candidate_that_is_no_string(folder):
    where = spoil(folder("chid"), 2, lambda row: row.update(candidates=[3] * 10))
    assert refused("chid", folder_of(where)) == f"{where}candidates: needs a list of strings"


def test_a_passage_that_is_no_string(folder):
    where = spoil(folder("chid"), 2, lambda row: row.update(content=[3]))
    assert refused("chid", folder_of(where)) == f"{where}content: needs a list of strings"


def test_a_record_without_blank(folder):
    where = spoil(folder("chid"), 2, lambda row: row.update(content=["没有空"]))
    assert refused("chid", folder_of(where)).startswith(f"{where}content: holds no mark such as")


def test_a_mark_without_answer(folder):
    where = spoil(folder("chid"), 2, lambda row: row.update(content=["甲#idiom999999#"]))
    assert refused("chid", folder_of(where)).startswith(
        f"{where}#idiom999999#: needs an answer from"
    )


@pytest.mark.parametrize("answer", [10, -1, "3", None, True])
def test_an_answer_that_is_no_candidate_number(answer, folder):
    chid = folder("chid")
    path = chid / "dev_answer.json"
    answers = json.loads(path.read_text("utf-8"))
    mark = next(iter(answers))
    path.write_text(json.dumps({**answers, mark: answer}), "utf-8")
    message = refused("chid", chid)
    assert message.startswith(f"{chid / 'dev.json'}:1:{mark}: needs an answer from 0 to 9")


def test_an_answer_file_that_is_no_object(folder):
    chid = folder("chid")
    (chid / "dev_answer.json").write_text("[1]", "utf-8")
    assert refused("chid", chid).startswith(f"{chid / 'dev.json'}:1:answers: needs an object")


def test_an_id_that_stands_twice_in_the_test_split_is_named_before_training(tmp_path):
    (tmp_path / "tnews").mkdir()
    rows = [{"id": n, "sentence": "标题"} for n in (0, 1, 1)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "tnews" / "test.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.json:3:id: '1' stands at .*test\.json:2 already"):
        load_clue("tnews", tmp_path, "test")
