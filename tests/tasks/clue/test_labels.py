"""Labels travel as names; ids exist between encode and decode only (S01, 4.1)."""

from pathlib import Path

import numpy as np
import pytest

from kexue.data.corpus import Record
from kexue.models.tiny import tiny_tokenizer
from kexue.tasks.clue import TASKS, load_clue, make_task
from kexue.tasks.clue.classification import Classification, TextExample
from kexue.tasks.clue.tnews import CODE_TO_NAME

PLAIN = [name for name, task in TASKS.items() if issubclass(task, Classification)]
SIZES = {"iflytek": 119, "tnews": 15, "afqmc": 2, "cmnli": 3, "ocnli": 3, "wsc": 2, "csl": 2}


def test_seven_tasks_have_one_label_a_record():
    assert list(SIZES) == PLAIN


@pytest.mark.parametrize("name", PLAIN)
def test_every_label_goes_to_its_id_and_back(name):
    task = make_task(name, tiny_tokenizer())
    examples = [
        TextExample(id=str(i), row=i, where="", texts=("文",) * arity(name), label=label)
        for i, label in enumerate(task.labels)
    ]
    ids = [f["label"] for f in task.encode(examples, 0)]
    assert ids == list(range(len(task.labels)))
    outputs = list(enumerate(np.eye(len(ids))[ids]))
    assert task.decode(examples, outputs) == list(task.labels)


def arity(name):
    return 1 if name in {"iflytek", "tnews", "wsc"} else 2


@pytest.mark.parametrize("name", PLAIN)
def test_every_label_goes_to_its_code_and_back(name):
    task = make_task(name)
    assert [task.name_of(task.code_of(label)) for label in task.labels] == list(task.labels)


@pytest.mark.parametrize("name", PLAIN)
def test_labels_are_as_many_as_the_benchmark_has_and_all_different(name):
    assert len(set(TASKS[name].labels)) == len(TASKS[name].labels) == SIZES[name]


def test_tnews_has_fifteen_codes_without_105_and_111():
    assert set(CODE_TO_NAME) == {str(i) for i in range(100, 117)} - {"105", "111"}
    assert len(CODE_TO_NAME) == 15


def test_tnews_names_are_those_the_real_file_describes(real_clue):
    task = make_task("tnews")
    for record in task.records(real_clue / "tnews", "train"):
        assert record.value["label_desc"] == f"news_{task.label_of(record)}"


@pytest.mark.parametrize("name", PLAIN)
def test_a_label_may_stand_in_the_file_as_string_or_integer(name):

    task = make_task(name)
    for label in task.labels:
        code = task.code_of(label)
        forms = [code, int(code)] if code.isdigit() else [code]
        for form in forms:
            assert task.label_of(Record(Path("dev.json"), "1", {"label": form})) == label


@pytest.mark.parametrize("name", [*PLAIN, "c3", "chid", "cluener", "cmrc2018"])
def test_test_examples_have_no_labels_and_train_nothing(name, mini):
    task = make_task(name, tiny_tokenizer())
    for feature in task.encode(load_clue(name, mini, "test")[:5], 0):
        if name == "cluener":
            assert feature["spans"] == []
        elif name == "cmrc2018":
            assert (feature["first"], feature["last"]) == (0, 0)
        else:
            assert feature["label"] == -1


@pytest.mark.parametrize("name", ["cmnli", "ocnli"])
def test_a_dash_is_dropped_from_train_and_dev_and_kept_in_test(name):

    record = Record(Path("dev.json"), "1", {"sentence1": "甲", "sentence2": "乙", "label": "-"})
    task = make_task(name)
    assert task.read(record, 0, labelled=True) == [None]
    [kept] = task.read(record, 0, labelled=False)
    assert kept.label is None
