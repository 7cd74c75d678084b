"""Look-alike CLUE data: the promises of kexue.data.mini, one test each (S01, section 2.1)."""

import json
import re
from pathlib import Path

import pytest

from kexue.data.mini import MINI_TASKS, write_mini
from kexue.data.mini.entities import TYPES
from kexue.data.mini.source import Source, owner
from kexue.data.mini.topics import NEWS

REAL = Path(__file__).parents[2].parent / "shared" / "clue"
FILES = {
    "iflytek": ("train", "dev", "test"),
    "tnews": ("train", "dev", "test", "test1.0"),
    "afqmc": ("train", "dev", "test"),
    "cmnli": ("train", "dev", "test"),
    "ocnli": ("train.50k", "dev", "test"),
    "wsc": ("train", "dev", "test", "test1.0"),
    "csl": ("train", "dev", "test"),
    "cmrc2018": ("train", "dev", "test"),
    "c3": ("m-train", "d-train", "m-dev", "d-dev", "test1.0", "test1.1"),
    "chid": ("train", "train_answer", "dev", "dev_answer", "test1.0", "test1.1"),
    "cluener": ("train", "dev", "test"),
}
ONE_VALUE = {"cmrc2018", "c3"}
EVERY_FILE = [(task, name) for task, names in FILES.items() for name in names]


def read(folder, task, name):
    """The records of a JSON-lines file, or the one value of any other."""
    path = folder / task / f"{name}.json"
    if task in ONE_VALUE or name.endswith("_answer"):
        return json.loads(path.read_text(encoding="utf-8"))
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def shape(value):
    """Types and keys of a value, following the first item of a list; idiom marks are alike."""
    if isinstance(value, dict):
        if all(key.startswith("#idiom") for key in value):
            return {"#idiom#": shape(next(iter(value.values())))}
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def texts(folder, task, split):
    """Every text of a split: sentences, passages, abstracts."""
    if task == "cmrc2018":
        data = read(folder, task, split)["data"]
        return {paragraph["context"] for item in data for paragraph in item["paragraphs"]}
    if task == "c3":
        names = ["test1.1"] if split == "test" else [f"m-{split}", f"d-{split}"]
        return {"".join(doc[0]) for name in names for doc in read(folder, task, name)}
    if task == "chid":
        rows = read(folder, task, "test1.1" if split == "test" else split)
        return {re.sub(r"idiom\d+", "", passage) for row in rows for passage in row["content"]}
    rows = read(folder, task, "train.50k" if (task, split) == ("ocnli", "train") else split)
    keys = ("sentence", "sentence1", "sentence2", "text", "abst")
    return {row[key] for row in rows for key in keys if key in row}


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return write_mini(tmp_path_factory.mktemp("mini"))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.json"))}


def test_all_eleven_tasks_are_written_and_nothing_else(mini):
    written = {str(path.relative_to(mini)) for path in mini.rglob("*") if path.is_file()}
    assert written == {f"{task}/{name}.json" for task, name in EVERY_FILE}
    assert set(MINI_TASKS) == set(FILES)


@pytest.mark.parametrize(("task", "name"), EVERY_FILE)
def test_first_record_has_the_keys_of_the_real_file_in_the_same_order(mini, task, name):
    if not REAL.exists():
        pytest.skip(f"real slices not found at {REAL}")
    ours, real = read(mini, task, name), read(REAL, task, name)
    assert type(ours) is type(real)
    if task == "cmrc2018":
        assert list(ours) == list(real)
        ours, real = ours["data"], real["data"]
    if task == "cluener" and "test" not in name:  # the types of the first record differ by chance
        assert [list(ours[0]), shape(list(ours[0]["label"].values())[:0])] == [list(real[0]), []]
        return
    if task in ("wsc", "ocnli"):  # key order inside a record
        assert list(ours[0]) == list(real[0])
    if isinstance(ours, list):
        ours, real = ours[0], real[0]
    assert shape(ours) == shape(real)


@pytest.mark.parametrize(("task", "name"), EVERY_FILE)
def test_line_files_end_each_record_with_a_newline_and_keep_characters_readable(mini, task, name):
    raw = (mini / task / f"{name}.json").read_bytes()
    one_value = task in ONE_VALUE or name.endswith("_answer")
    assert raw.endswith(b"\n") != one_value
    assert b"\\u" not in raw
    assert b"\r" not in raw


def test_same_seed_same_bytes_and_another_seed_other_bytes(mini, tmp_path):
    again = write_mini(tmp_path / "again")
    assert contents(again) == contents(mini)
    other = contents(write_mini(tmp_path / "other", seed=1))
    assert all(other[name] != content for name, content in contents(mini).items())


def test_bytes_do_not_depend_on_which_other_tasks_are_written(mini, tmp_path):
    alone = contents(write_mini(tmp_path, ["wsc"]))
    assert alone == {k: v for k, v in contents(mini).items() if k.startswith("wsc/")}


def test_size_of_one_split_leaves_the_others_as_they_were(mini, tmp_path):
    small = write_mini(tmp_path, ["tnews"], train=30)
    for name in ("dev", "test"):
        assert read(small, "tnews", name) == read(mini, "tnews", name)


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("task", MINI_TASKS)
def test_splits_share_no_text(tmp_path, task, seed):
    folder = write_mini(tmp_path, [task], seed=seed)
    train, dev, test = (texts(folder, task, split) for split in ("train", "dev", "test"))
    assert train
    assert dev
    assert test
    assert not train & dev
    assert not train & test
    assert not dev & test


def test_texts_do_not_repeat_within_the_training_split(mini):
    for task in ("iflytek", "tnews", "wsc", "cluener"):
        key = "text" if task in ("wsc", "cluener") else "sentence"
        rows = [row[key] for row in read(mini, task, "train")]
        assert len(set(rows)) == len(rows)


def test_every_text_has_one_owner_and_a_source_draws_only_its_own():
    source = Source(0, "demo", "test")
    drawn = [source.fresh(lambda: str(source.random.random()), str) for _ in range(50)]
    assert {owner(text) for text in drawn} == {"test"}


def test_a_grammar_too_small_to_split_is_refused():
    source = Source(0, "demo", "dev")
    text = next(str(i) for i in range(100) if owner(str(i)) == "train")
    with pytest.raises(RuntimeError, match="no text for split 'dev'"):
        source.fresh(lambda: text, str)


@pytest.mark.parametrize("task", MINI_TASKS)
def test_some_texts_are_awkward_and_most_are_not(mini, task):
    every = texts(mini, task, "train")
    odd = [
        text
        for text in every
        if re.search("[😀👍ＶＡ\u3000é𠮷①α🇨２]|Wi-Fi|OK，|No[.]7|iPad|5G", text)
    ]
    assert 0.005 < len(odd) / len(every) < 0.12


# ---- labels ------------------------------------------------------------------------------------


def test_all_fifteen_tnews_codes_occur_in_train_and_none_else(mini):
    rows = read(mini, "tnews", "train")
    assert {row["label"] for row in rows} == {str(k) for k in range(100, 117)} - {"105", "111"}
    assert all(row["label_desc"] == NEWS[row["label"]][0] for row in rows)


def test_iflytek_labels_are_some_of_the_119_and_descriptions_are_long(mini):
    rows = read(mini, "iflytek", "train")
    assert {int(row["label"]) for row in rows} < set(range(119))
    assert len({row["label"] for row in rows}) == len({row["label_des"] for row in rows}) == 12
    assert all(60 <= len(row["sentence"]) <= 160 for row in rows)


@pytest.mark.parametrize(
    ("task", "names"), [("afqmc", "01"), ("csl", "01"), ("wsc", ("true", "false"))]
)
def test_two_way_labels_are_roughly_balanced(mini, task, names):
    for split in ("train", "dev"):
        labels = [row["label"] for row in read(mini, task, split)]
        assert set(labels) == set(names)
        assert 0.39 < labels.count(names[1]) / len(labels) < 0.61


@pytest.mark.parametrize(("task", "train"), [("cmnli", "train"), ("ocnli", "train.50k")])
def test_inference_has_three_balanced_labels_and_a_few_without_majority(mini, task, train):
    for name in (train, "dev"):
        labels = [row["label"] for row in read(mini, task, name)]
        assert 0 < labels.count("-") < 0.05 * len(labels)
        for label in ("entailment", "neutral", "contradiction"):
            assert labels.count(label) > 0.3 * len(labels)


def test_ocnli_dev_label_is_the_majority_of_its_five_annotators(mini):
    for row in read(mini, "ocnli", "dev"):
        votes = [row[f"label{k}"] for k in range(5)]
        if row["label"] == "-":
            assert max(map(votes.count, votes)) < 3
        else:
            assert votes.count(row["label"]) >= 3


def test_no_label_reaches_a_test_file(mini):
    secret = {"label", "label_des", "label_desc", "answer", *(f"label{k}" for k in range(5))}
    for task, name in EVERY_FILE:
        if name.startswith("test"):
            text = (mini / task / f"{name}.json").read_text(encoding="utf-8")
            assert not any(f'"{key}":' in text for key in secret), (task, name)


# ---- spans -------------------------------------------------------------------------------------


def questions(folder, split):
    for item in read(folder, "cmrc2018", split)["data"]:
        for paragraph in item["paragraphs"]:
            for question in paragraph["qas"]:
                yield paragraph["context"], question


def test_every_cmrc_answer_is_at_its_offset(mini):
    for split, references in (("train", 1), ("dev", 3)):
        for context, question in questions(mini, split):
            assert len(question["answers"]) == references
            for answer in question["answers"]:
                start = answer["answer_start"]
                assert answer["text"]
                assert context[start : start + len(answer["text"])] == answer["text"]


def test_the_third_cmrc_reader_disagrees_now_and_then(mini):
    answers = [[a["text"] for a in q["answers"]] for _, q in questions(mini, "dev")]
    assert all(first == second for first, second, _ in answers)
    assert 0.1 < sum(third != first for first, _, third in answers) / len(answers) < 0.4


def test_cmrc_test_answers_are_placeholders(mini):
    for _, question in questions(mini, "test"):
        assert question["answers"] == [{"text": "", "answer_start": -1}] * 3


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_some_cmrc_contexts_need_several_windows_and_question_ids_are_unique(mini, split):
    contexts = {context for context, _ in questions(mini, split)}
    assert sum(len(context) > 520 for context in contexts) >= 2
    assert sum(len(context) <= 200 for context in contexts) > 0.8 * len(contexts)
    ids = [question["id"] for _, question in questions(mini, split)]
    assert len(set(ids)) == len(ids)


def test_wsc_spans_are_at_their_index(mini):
    for split in ("train", "dev", "test"):
        for row in read(mini, "wsc", split):
            for span in ("span1", "span2"):
                start, text = row["target"][f"{span}_index"], row["target"][f"{span}_text"]
                assert row["text"][start : start + len(text)] == text


def test_every_cluener_surface_is_at_its_inclusive_offsets(mini):
    for split in ("train", "dev"):
        rows = read(mini, "cluener", split)
        assert {kind for row in rows for kind in row["label"]} == set(TYPES)
        for row in rows:
            for surfaces in row["label"].values():
                for surface, spans in surfaces.items():
                    assert spans
                    assert all(row["text"][s : e + 1] == surface for s, e in spans)


# ---- choices -----------------------------------------------------------------------------------


def test_c3_answers_are_among_two_to_four_different_choices(mini):
    sizes = set()
    for name in ("m-train", "d-train", "m-dev", "d-dev"):
        for lines, asked, _ in read(mini, "c3", name):
            assert (len(lines) > 1) == name.startswith("d")
            for question in asked:
                sizes.add(len(question["choice"]))
                assert len(set(question["choice"])) == len(question["choice"])
                assert question["answer"] in question["choice"]
    assert sizes == {2, 3, 4}


def test_c3_test_questions_are_numbered_in_order(mini):
    ids = [question["id"] for doc in read(mini, "c3", "test1.1") for question in doc[1]]
    assert ids == list(range(len(ids)))


def test_every_chid_mark_is_unique_and_has_an_answer_among_ten_candidates(mini):
    for split in ("train", "dev"):
        rows, answers = read(mini, "chid", split), read(mini, "chid", f"{split}_answer")
        marks = [
            mark for row in rows for p in row["content"] for mark in re.findall(r"#idiom\d{6}#", p)
        ]
        assert marks == list(answers)
        assert all(len(set(row["candidates"])) == 10 for row in rows)
        assert set(answers.values()) == set(range(10))


def test_chid_blanks_of_a_record_take_different_idioms(mini):
    rows, answers = read(mini, "chid", "train"), read(mini, "chid", "train_answer")
    counts, twice = set(), False
    for row in rows:
        found = [re.findall(r"#idiom\d{6}#", passage) for passage in row["content"]]
        chosen = [answers[mark] for marks in found for mark in marks]
        assert 1 <= len(row["content"]) <= 4
        assert len(set(chosen)) == len(chosen)
        counts.add(len(chosen))
        twice |= any(len(marks) == 2 for marks in found)
    assert counts == {1, 2, 3, 4, 5}
    assert twice


def test_both_versions_of_a_test_file_exist_and_agree(mini):
    for task, names in (("tnews", ("test", "test1.0")), ("c3", ("test1.0", "test1.1"))):
        one, other = (read(mini, task, name) for name in names)
        assert one == other


# ---- sizes and errors --------------------------------------------------------------------------


@pytest.mark.parametrize("task", MINI_TASKS)
def test_sizes_are_honoured(tmp_path, task):
    folder = write_mini(tmp_path, [task], train=31, dev=2, test=3)
    for split, size in (("train", 31), ("dev", 2), ("test", 3)):
        if task == "cmrc2018":
            found = len(list(questions(folder, split)))
        elif task == "c3":
            names = ["test1.0"] if split == "test" else [f"m-{split}", f"d-{split}"]
            found = sum(len(doc[1]) for name in names for doc in read(folder, task, name))
        elif task == "chid":
            found = len(read(folder, task, "test1.0" if split == "test" else split))
        else:
            name = "train.50k" if (task, split) == ("ocnli", "train") else split
            found = len(read(folder, task, name))
        assert found == size


@pytest.mark.parametrize("task", MINI_TASKS)
def test_one_example_of_each_is_enough(tmp_path, task):
    write_mini(tmp_path, [task], train=1, dev=1, test=1)


@pytest.mark.parametrize("size", [0, -3])
def test_an_impossible_size_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match=f"dev must be at least 1 example, got {size}"):
        write_mini(tmp_path, dev=size)


def test_an_unknown_task_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"unknown tasks \['tnew'\]; choose from iflytek"):
        write_mini(tmp_path, ["tnews", "tnew"])
    assert not list(tmp_path.iterdir())


def test_a_plain_string_of_one_task_is_refused_with_advice(tmp_path):
    with pytest.raises(ValueError, match="list"):
        write_mini(tmp_path, "tnews")


def test_no_temporary_file_is_left_and_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    write_mini(tmp_path, ["afqmc"], train=5, dev=5, test=5)
    before = contents(tmp_path)

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_mini(tmp_path, ["afqmc"], train=6, dev=6, test=6)
    assert contents(tmp_path) == before
    assert not list(tmp_path.rglob("*.tmp"))
