"""Where the data come from: official folders, the Hub's layout, the built-in look-alike (S01, 2.1).

The Hub's class ids follow an order of their own; what counts is that labels are equal by *name*.
"""

import json
import re
import shutil
import zipfile
from dataclasses import asdict, replace

import pytest
import yaml

from kexue.data.corpus import DataError
from kexue.tasks.clue import TASKS, load_clue, make_task
from kexue.tasks.clue.sources import FolderSource, HubSource, MiniSource, open_source

SPLITS = ("train", "dev", "test")
REAL_COUNTS = {
    "tnews": (4000, 978, 978),
    "iflytek": (3024, 1000, 1000),
    "afqmc": (4000, 1000, 1000),
    "cmnli": (4001, 1002, 1002),
    "ocnli": (4000 - 7, 1001 - 21, 1001),
    "wsc": (649, 196, 196),
    "csl": (1705, 400, 400),
    "cmrc2018": (2221, 1000, 1000),
    "c3": (4000, 1002, 1002),
    "chid": (1202, 202, 202),
    "cluener": (4000, 671, 671),
}


# The official layout


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", TASKS)
def test_every_row_of_the_real_files_is_read(name, split, real_clue):
    assert len(load_clue(name, real_clue, split)) == REAL_COUNTS[name][SPLITS.index(split)]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("name", ["tnews", "wsc", "c3", "chid"])
def test_both_versions_of_the_real_test_files_are_read(name, version, real_clue):
    assert len(load_clue(name, real_clue, "test", version)) == REAL_COUNTS[name][2]


def test_rows_of_a_split_are_numbered_through_with_the_dropped_ones_counted(real_clue):
    rows = [e.row for e in load_clue("ocnli", real_clue, "dev")]
    assert rows == sorted(set(rows))
    assert len(rows) == 980
    assert max(rows) == 1000


def test_what_was_left_out_is_noted(real_clue):
    task = make_task("ocnli")
    for record in open_source(real_clue).records(task, "train"):
        task.read(record, 0, labelled=True)
    assert task.notes == {"rows without a majority label were left out": 7}


@pytest.mark.parametrize("name", TASKS)
def test_the_official_folder_name_of_the_zip_is_found(name, mini, tmp_path):
    shutil.copytree(mini / name, tmp_path / f"{name}_public")
    assert load_clue(name, tmp_path, "dev") == relocated(
        load_clue(name, mini, "dev"), mini / name, tmp_path / f"{name}_public"
    )


def relocated(examples, old, new):
    """The same examples, read from another folder."""
    return [replace(e, where=e.where.replace(str(old), str(new))) for e in examples]


@pytest.mark.parametrize("folder", ["cluewsc2020_public", "wsc_public", "wsc", "cluewsc"])
def test_wsc_goes_by_all_the_names_it_has(folder, mini, tmp_path):
    shutil.copytree(mini / "wsc", tmp_path / folder)
    assert len(load_clue("wsc", tmp_path, "train")) == 48


@pytest.mark.parametrize("name", TASKS)
def test_a_single_task_folder_may_be_given_itself(name, mini):
    assert load_clue(name, mini / name, "dev") == load_clue(name, mini, "dev")


def test_a_zip_given_as_the_folder_is_refused_with_the_command_that_helps(tmp_path):
    archive = tmp_path / "tnews_public.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("train.json", "{}")
    with pytest.raises(DataError, match=r"tnews_public\.zip: a folder is needed.* unzip "):
        load_clue("tnews", archive, "train")


def test_a_zip_in_the_folder_is_refused_with_the_command_that_helps(tmp_path):
    with zipfile.ZipFile(tmp_path / "tnews_public.zip", "w") as file:
        file.writestr("train.json", "{}")
    with pytest.raises(DataError, match=r"tnews_public\.zip: not unpacked yet; unzip "):
        load_clue("tnews", tmp_path, "train")


def test_a_zip_under_the_name_of_a_data_file_is_refused(mini, tmp_path):
    shutil.copytree(mini / "tnews", tmp_path / "tnews")
    with zipfile.ZipFile(tmp_path / "tnews" / "train.json", "w") as file:
        file.writestr("train.json", "{}")
    with pytest.raises(DataError, match=r"train\.json: this is a zip archive; unpack it first"):
        load_clue("tnews", tmp_path, "train")


def test_a_missing_file_is_named_with_what_is_there_instead(mini, tmp_path):
    shutil.copytree(mini / "afqmc", tmp_path / "afqmc")
    (tmp_path / "afqmc" / "dev.json").unlink()
    with pytest.raises(DataError, match=r"dev\.json: no such file; .* test\.json, train\.json"):
        load_clue("afqmc", tmp_path, "dev")


def test_a_missing_task_folder_is_named_with_what_is_there_instead(mini, tmp_path):
    shutil.copytree(mini / "afqmc", tmp_path / "afqmc")
    with pytest.raises(DataError, match=r"no folder tnews/ here, only afqmc"):
        load_clue("tnews", tmp_path, "dev")


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder; give mini, hub or a folder"):
        load_clue("tnews", tmp_path / "nowhere", "dev")


def test_an_unknown_split_is_refused(mini):
    with pytest.raises(ValueError, match="split must be train, dev or test, got 'validation'"):
        load_clue("tnews", mini, "validation")


def test_an_unknown_task_is_refused_with_the_known_ones(mini):
    with pytest.raises(ValueError, match=r"no CLUE task is called 'qqp'; known: iflytek, tnews"):
        load_clue("qqp", mini, "dev")


def test_contents_are_the_files_the_records_come_from(mini):
    source, task = FolderSource(mini), make_task("chid")
    assert source.contents(task, "dev") == [
        mini / "chid" / "dev.json",
        mini / "chid" / "dev_answer.json",
    ]


# c3: two files in the author's order


def test_c3_reads_texts_before_dialogues(mini):
    def questions(part):
        documents = json.loads((mini / "c3" / f"{part}-dev.json").read_text("utf-8"))
        return [q["question"] for document in documents for q in document[1]]

    read = [e.question for e in load_clue("c3", mini, "dev")]
    assert read == questions("m") + questions("d")


# The built-in look-alike


def test_the_built_in_data_are_made_once_and_need_no_files():
    before = MiniSource().path
    stamp = (before / "complete").stat().st_mtime_ns
    assert len(load_clue("wsc", "mini", "test")) > 100
    assert (MiniSource().path / "complete").stat().st_mtime_ns == stamp


def test_another_seed_gives_other_sentences():
    assert MiniSource(1).path != MiniSource(0).path


# The Hub's layout, in a local copy

NLI = ["neutral", "entailment", "contradiction"]
TNEWS = [
    "100",
    "101",
    "102",
    "103",
    "104",
    "106",
    "107",
    "108",
    "109",
    "110",
    "112",
    "113",
    "114",
    "115",
    "116",
]
CLASSES = {
    "cmnli": NLI,
    "cluewsc2020": ["false", "true"],
    "tnews": TNEWS[::-1],
    "afqmc": ["1", "0"],
    "csl": ["1", "0"],
    "iflytek": [str(i) for i in reversed(range(119))],
}


def records_of(name, split, folder):
    task = make_task(name)
    return [record.value for record in task.records(folder / name, split)]


def hub_rows(name, split, folder):
    """The rows of an official file in the Hub's form."""
    rows = records_of(name, split, folder)
    if name == "c3":  # the Hub puts dialogues first
        if split != "test":
            documents = len(json.loads((folder / "c3" / f"m-{split}.json").read_text("utf-8")))
            rows = rows[documents:] + rows[:documents]
        asked = [(row["lines"], q) for row in rows for q in row["questions"]]
        return [
            {
                "id": i,
                "context": lines,
                "question": q["question"],
                "choice": q["choice"],
                "answer": q.get("answer", ""),
            }
            for i, (lines, q) in enumerate(asked)
        ]
    if name == "chid":
        found = []
        for i, row in enumerate(rows):
            marks = re.findall(r"#idiom\d+#", "".join(row["content"]))
            ids = [row["answers"][m] for m in marks] if row["answers"] else []
            answers = {"text": [row["candidates"][k] for k in ids], "candidate_id": ids}
            found.append({"idx": i, **{k: row[k] for k in ("candidates", "content")}})
            found[-1]["answers"] = answers
        return found
    if name == "cmrc2018":
        return [
            {
                **{k: row[k] for k in ("id", "context", "question")},
                "answers": {
                    "text": [a["text"] for a in row["answers"]],
                    "answer_start": [a["answer_start"] for a in row["answers"]],
                },
            }
            for row in rows
        ]
    keys = {
        "cmnli": ("sentence1", "sentence2"),
        "afqmc": ("sentence1", "sentence2"),
        "wsc": ("text", "target"),
        "tnews": ("sentence",),
        "iflytek": ("sentence",),
        "csl": ("abst", "keyword"),
    }[name]
    kept = [row for row in rows if row.get("label") != "-"]
    return [
        {"idx": i, **{k: row[k] for k in keys}, "label": row.get("label")}
        for i, row in enumerate(kept)
    ]


@pytest.fixture(scope="module")
def hub(mini, tmp_path_factory):
    """A folder laid out like the Hub's dataset repository."""
    from datasets import ClassLabel, Dataset

    folder = tmp_path_factory.mktemp("hub") / "clue"
    configs = []
    for name in TASKS:
        config = TASKS[name].hub_config
        if config is None or name == "ocnli":
            continue
        files = []
        for split, hub_split in zip(SPLITS, ("train", "validation", "test"), strict=True):
            rows = hub_rows(name, split, mini)
            classes = CLASSES.get(config)
            if classes:
                for row in rows:
                    row["label"] = -1 if row["label"] is None else classes.index(row["label"])
            data = Dataset.from_list(rows)
            if classes:
                data = data.cast_column("label", ClassLabel(names=classes))
            path = folder / config / f"{hub_split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            data.to_parquet(str(path))
            files.append({"split": hub_split, "path": f"{config}/{hub_split}-*"})
        configs.append({"config_name": config, "data_files": files})
    head = yaml.safe_dump({"configs": configs})
    (folder / "README.md").write_text(f"---\n{head}---\n", encoding="utf-8")
    return folder


def without_address(example):
    """Everything of an example but its place in the files."""
    return {k: v for k, v in asdict(example).items() if k not in ("id", "row", "where")}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "name", ["cmnli", "wsc", "tnews", "chid", "cmrc2018", "afqmc", "csl", "iflytek"]
)
def test_the_hub_gives_the_same_texts_and_the_same_labels_by_name(name, split, hub, mini):
    official = load_clue(name, mini, split)
    from_hub = load_clue(name, f"hub:{hub}", split)
    assert [without_address(e) for e in from_hub] == [without_address(e) for e in official]


@pytest.mark.parametrize("split", SPLITS)
def test_c3_of_the_hub_holds_the_same_questions_with_dialogues_first(split, hub, mini):
    official = [without_address(e) for e in load_clue("c3", mini, split)]
    from_hub = [without_address(e) for e in load_clue("c3", f"hub:{hub}", split)]
    texts = 0 if split == "test" else len(official) - sum("：" in e["passage"] for e in official)
    if split != "test":
        assert 0 < texts < len(official)
    assert sorted(map(repr, from_hub)) == sorted(map(repr, official))
    if split != "test":
        assert from_hub == official[texts:] + official[:texts]


@pytest.mark.parametrize("name", ["cmnli", "wsc", "tnews", "afqmc", "csl", "iflytek"])
def test_a_hub_label_of_minus_one_is_no_label(name, hub):
    assert {e.label for e in load_clue(name, f"hub:{hub}", "test")} == {None}


@pytest.mark.parametrize("name", ["cmnli", "wsc", "tnews"])
def test_the_hub_order_of_classes_differs_from_ours_in_this_test(name):
    ours = [make_task(name).code_of(n) for n in TASKS[name].labels]
    theirs = CLASSES[TASKS[name].hub_config]
    assert sorted(ours) == sorted(theirs)
    assert ours != theirs


@pytest.mark.parametrize("name", ["cmnli", "tnews", "c3", "chid"])
def test_ids_of_hub_rows_are_those_a_submission_needs(name, hub):
    examples = load_clue(name, f"hub:{hub}", "test")
    assert [e.id for e in examples] == [str(i) for i in range(len(examples))]


def test_cluener_is_not_on_the_hub_and_the_message_says_what_to_do(hub):
    with pytest.raises(DataError, match="has no cluener; give --data a folder with the official"):
        load_clue("cluener", f"hub:{hub}", "dev")


def test_a_task_the_copy_lacks_is_refused_in_one_line(hub):
    with pytest.raises(DataError, match=r"clue/ocnli: dev not loaded: ") as caught:
        load_clue("ocnli", f"hub:{hub}", "dev")
    assert "\n" not in str(caught.value)


def test_without_a_network_the_hub_is_refused_in_one_line_that_names_the_ways_out():
    with pytest.raises(DataError, match="give --data a folder, or set HF_ENDPOINT") as caught:
        load_clue("tnews", "hub", "dev")
    assert "\n" not in str(caught.value)


def test_the_hub_source_opens_a_split_once(hub):
    source, task = HubSource(str(hub)), make_task("tnews")
    assert source.dataset(task, "dev") is source.dataset(task, "dev")


def test_the_contents_of_a_hub_split_change_with_the_split(hub):
    source, task = HubSource(str(hub)), make_task("tnews")
    assert source.contents(task, "dev") != source.contents(task, "train")
    assert source.contents(task, "dev") == HubSource(str(hub)).contents(task, "dev")
