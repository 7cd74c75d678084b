"""`kexue clue` from the command line: what it leaves behind, what it prints, how it fails."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kexue.cli.clue import app

QUICK = ("--epochs", "1", "--batch-size", "16")


def kexue(*arguments):
    """A command in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def well(*arguments):
    result = kexue(*arguments)
    assert result.exit_code == 0, result.output
    return result


def badly(*arguments):
    """The one line on stderr of a command that fails."""
    result = kexue(*arguments)
    assert result.exit_code == 1, (result.output, result.exception)
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def rewrite(path, change):
    """Replaces the rows of a JSON-lines file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in change(rows))
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def trained(mini, tmp_path_factory):
    """A finished run of tnews, and what the command printed."""
    out = tmp_path_factory.mktemp("trained") / "run"
    return out, well("train", "tnews", "--data", mini, "--out", out, *QUICK)


@pytest.fixture
def data(mini, tmp_path):
    """A copy of the small tnews and ocnli folders, to be spoiled."""
    for task in ("tnews", "ocnli"):
        shutil.copytree(mini / task, tmp_path / "data" / task)
    return tmp_path / "data"


# What a run leaves behind


def test_training_fills_the_run_folder(trained):
    out, _ = trained
    assert names(out) == [
        "config.json",
        "environment.json",
        "report.html",
        "results.json",
        "submission/tnews11_predict.json",
        "tnews/best/config.json",
        "tnews/best/head.safetensors",
        "tnews/best/model.safetensors",
        "tnews/best/task.json",
        "tnews/best/tokenizer.json",
        "tnews/best/tokenizer_config.json",
        "tnews/metrics.jsonl",
        "tnews/predictions.jsonl",
    ]


def test_results_hold_scores_in_percent_speed_and_places(trained):
    out, _ = trained
    [result] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert (result["task"], result["seed"], result["metric"]) == ("tnews", 0, "accuracy")
    assert 0 <= result["scores"]["accuracy"] <= 100
    assert 0 < result["chance"] < 100
    assert (result["train_examples"], result["dev_examples"]) == (48, 24)
    assert (result["best_epoch"], result["epochs"]) == (1, 1)
    assert min(result[k] for k in ("seconds", "tokens_per_second", "samples_per_second")) > 0
    assert (out / result["folder"] / "best").is_dir()
    assert (out / result["submission"]).is_file()
    right = sum(row[i] for i, row in enumerate(result["confusion"]["counts"]))
    assert 100 * right / 24 == pytest.approx(result["scores"]["accuracy"])
    assert len(result["errors"]) == min(12, 24 - right)


def test_the_run_remembers_its_settings(trained, mini):
    config = json.loads((trained[0] / "config.json").read_text(encoding="utf-8"))
    assert config["tasks"] == ["tnews"]
    assert (config["data"], config["model"]) == (str(mini), "tiny")
    assert config["settings"]["epochs"] == 1


def test_the_table_shows_the_score_beside_chance(trained):
    out, printed = trained
    [result] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    heading, row = printed.stdout.splitlines()[:2]
    assert heading.split()[:4] == ["task", "metric", "score", "chance"]
    shown = row.split()
    assert shown[:2] == ["tnews", "accuracy"]
    assert shown[2] == f"{result['scores']['accuracy']:.2f}"
    assert float(shown[3]) == pytest.approx(result["chance"], abs=0.05)
    assert f"report: {out / 'report.html'}" in printed.stdout


def test_dev_predictions_give_the_score(trained, mini):
    rows = (trained[0] / "tnews" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    from kexue.tasks.clue import load_clue

    gold = [e.label for e in load_clue("tnews", mini, "dev")]
    right = sum(json.loads(r)["prediction"] == g for r, g in zip(rows, gold, strict=True))
    [result] = json.loads((trained[0] / "results.json").read_text(encoding="utf-8"))
    assert result["scores"]["accuracy"] == 100 * right / 24


def test_json_on_stdout_is_what_results_json_holds(mini, tmp_path):
    options = ("--data", mini, "--out", tmp_path / "run", "--json", *QUICK)
    done = process("-m", "kexue", "clue", "train", "tnews", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == json.loads((tmp_path / "run/results.json").read_text("utf-8"))


def test_every_seed_has_its_folder_and_its_row(mini, tmp_path):
    out = tmp_path / "run"
    well("train", "tnews", "--data", mini, "--out", out, "--seeds", 2, *QUICK)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [(r["seed"], r["folder"]) for r in results] == [
        (0, "tnews/seed0"),
        (1, "tnews/seed1"),
    ]
    first, second = (out / f"tnews/seed{s}/best/model.safetensors" for s in (0, 1))
    assert first.read_bytes() != second.read_bytes()
    assert (out / results[0]["submission"]) == out / "submission/tnews11_predict.json"
    assert (out / results[1]["submission"]).is_file()
    assert results[0]["submission"] != results[1]["submission"]


def test_a_campaign_runs_several_tasks_into_one_table(mini, tmp_path):
    from kexue.tasks.clue.campaign import run_campaign
    from kexue.tasks.clue.settings import ClueSettings

    settings = ClueSettings(epochs=1, batch_size=16)
    said = []
    results = run_campaign(
        ["tnews", "ocnli"], str(mini), settings, tmp_path / "run", quiet=True, say=said.append
    )
    assert [r["task"] for r in results] == ["tnews", "ocnli"]
    assert json.loads((tmp_path / "run/results.json").read_text("utf-8")) == results
    submissions = [p.name for p in (tmp_path / "run/submission").iterdir()]
    assert sorted(submissions) == ["ocnli_50k_predict.json", "tnews11_predict.json"]
    assert said == []


def test_a_campaign_goes_on_after_the_tasks_that_are_finished(mini, tmp_path):
    from kexue.tasks.clue.campaign import run_campaign
    from kexue.tasks.clue.settings import ClueSettings

    settings, out = ClueSettings(epochs=1, batch_size=16), tmp_path / "run"
    tasks = ["tnews", "ocnli"]
    first = run_campaign(tasks, str(mini), settings, out, quiet=True)
    [done, _] = first
    (out / "results.json").write_text(json.dumps([done]), encoding="utf-8")
    before = (out / "tnews/best/model.safetensors").stat().st_mtime_ns
    again = run_campaign(tasks, str(mini), settings, out, quiet=True, resume=True)
    assert (out / "tnews/best/model.safetensors").stat().st_mtime_ns == before
    assert [r["scores"] for r in again] == [r["scores"] for r in first]


def test_resuming_with_other_settings_is_refused(trained, mini):
    before = names(trained[0])
    options = ("--data", mini, "--out", trained[0], "--resume")
    line = badly("train", "tnews", *options, "--epochs", 2, "--batch-size", 16)
    assert "cannot resume, the run was started with other settings" in line
    assert "tasks: ['tnews'], now ['ocnli']" in badly("train", "ocnli", *options, *QUICK)
    assert names(trained[0]) == before


def test_resuming_a_finished_run_prints_its_table(trained, mini):
    out, printed = trained
    again = well("train", "tnews", "--data", mini, "--out", out, "--resume", *QUICK)
    assert again.stdout == printed.stdout


def test_a_folder_that_holds_a_run_is_not_touched(trained, mini):
    before = {p: p.stat().st_mtime_ns for p in trained[0].rglob("*")}
    line = badly("train", "tnews", "--data", mini, "--out", trained[0], *QUICK)
    assert "holds a run already" in line
    assert {p: p.stat().st_mtime_ns for p in trained[0].rglob("*")} == before


def test_a_folder_that_holds_something_else_is_not_touched(mini, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for more in ((), ("--overwrite",), ("--resume",)):
        line = badly("train", "tnews", "--data", mini, "--out", tmp_path, *QUICK, *more)
        assert "is not empty and not a run" in line
    assert names(tmp_path) == ["thesis.tex"]


def test_overwriting_with_bad_settings_keeps_the_old_run(trained, mini, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained[0], out)
    options = ("--data", mini, "--out", out, "--overwrite")
    badly("train", "tnews", *options, "--trick", "bogus=1")
    badly("train", "tnews", *options, "--model", tmp_path / "none")
    assert names(out) == names(trained[0])


def test_overwriting_replaces_the_old_run(trained, mini, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained[0], out)
    (out / "left.over").write_text("")
    well("train", "tnews", "--data", mini, "--out", out, "--overwrite", *QUICK)
    assert names(out) == names(trained[0])


def test_a_bert_without_pooler_trains(mini, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    from kexue.models.loading import quiet_transformers
    from kexue.models.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    with quiet_transformers():
        BertForMaskedLM(small(BertConfig, len(tokenizer))).save_pretrained(tmp_path / "mlm")
        tokenizer.save_pretrained(tmp_path / "mlm")
    out = tmp_path / "run"
    options = ("--data", mini, "--model", tmp_path / "mlm", "--out", out)
    done = well("train", "tnews", *options, *QUICK)
    assert "100.0% of" in done.stderr
    assert (out / "report.html").is_file()


def small(config, vocabulary_size, **options):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return config(vocab_size=vocabulary_size, intermediate_size=32, **{**sizes, **options})


# predict, score, check, zip


def test_predict_writes_the_submission_that_training_wrote(trained, mini, tmp_path):
    out, _ = trained
    best = out / "tnews/best"
    well("predict", "tnews", "--model", best, "--data", mini, "--out", tmp_path)
    name = "tnews11_predict.json"
    assert (tmp_path / name).read_bytes() == (out / "submission" / name).read_bytes()


def test_predict_refuses_a_model_of_another_task(trained, mini, tmp_path):
    best = trained[0] / "tnews/best"
    line = badly("predict", "ocnli", "--model", best, "--data", mini, "--out", tmp_path / "x")
    assert "was trained for tnews, not for ocnli" in line
    assert not (tmp_path / "x").exists()


def test_predict_refuses_a_folder_that_is_no_trained_model(tmp_path):
    assert "task.json" in badly("predict", "tnews", "--model", tmp_path, "--out", tmp_path / "x")


def unlabelled(task, mini, folder):
    """Data whose test split is the dev split without its labels."""
    shutil.copytree(mini / task, folder / task)
    here = folder / task
    if task == "ocnli":  # a row without a majority: left out of dev, kept in test
        rewrite(here / "dev.json", lambda rows: [*rows[:3], {**rows[0], "label": "-"}, *rows[3:]])
    if task == "cmrc2018":
        data = json.loads((here / "dev.json").read_text(encoding="utf-8"))
        for document in data["data"]:
            for paragraph in document["paragraphs"]:
                for question in paragraph["qas"]:
                    question["answers"] = [{"text": "", "answer_start": -1}]
        (here / "test.json").write_text(json.dumps(data), encoding="utf-8")
    elif task == "c3":
        documents = []
        for name in ("m-dev.json", "d-dev.json"):
            documents += json.loads((here / name).read_text(encoding="utf-8"))
        asked = [question for document in documents for question in document[1]]
        for number, question in enumerate(asked):
            del question["answer"]
            question["id"] = number
        (here / "test1.1.json").write_text(json.dumps(documents), encoding="utf-8")
    elif task == "chid":
        shutil.copy(here / "dev.json", here / "test1.1.json")
    else:
        shutil.copy(here / "dev.json", here / "test.json")
        hidden = re.compile("label.*")
        rewrite(
            here / "test.json",
            lambda rows: [
                {"id": i, **{k: v for k, v in row.items() if not hidden.match(k) and k != "id"}}
                for i, row in enumerate(rows)
            ],
        )
    return folder


# rate and epochs at which the scores are neither none nor all
LEARNABLE = {
    "tnews": ("--epochs", "12", "--lr", "0.003"),
    "ocnli": ("--epochs", "2"),
    "cmrc2018": ("--epochs", "2"),
    "chid": ("--epochs", "1"),
    "cluener": ("--epochs", "1", "--lr", "1e-9"),  # untrained: it names half of all spans
    "c3": ("--epochs", "1"),
}


@pytest.mark.parametrize("task", LEARNABLE)
def test_the_scorer_gives_the_dev_score_of_training_to_the_digit(mini, tmp_path, task):
    data, out = unlabelled(task, mini, tmp_path / "data"), tmp_path / "run"
    well("train", task, "--data", data, "--out", out, "--json", *LEARNABLE[task])
    [result] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert any(0 < value < 100 for value in result["scores"].values()), result["scores"]
    scored = json.loads(well("score", task, data, out / result["submission"], "--json").stdout)
    assert scored == {task: result["scores"]}


def test_score_finds_the_file_in_a_folder_and_prints_two_digits(trained, mini, tmp_path):
    data = unlabelled("tnews", mini, tmp_path / "data")
    best = trained[0] / "tnews/best"
    well("predict", "tnews", "--model", best, "--data", data, "--out", tmp_path)
    [result] = json.loads((trained[0] / "results.json").read_text(encoding="utf-8"))
    printed = well("score", "tnews", mini, tmp_path).stdout
    assert printed.split() == ["tnews", "accuracy", f"{result['scores']['accuracy']:.2f}"]


def test_check_passes_what_training_wrote(trained, mini):
    path = trained[0] / "submission/tnews11_predict.json"
    assert "good" in well("check", "tnews", path, "--data", mini).stdout
    assert json.loads(well("check", "tnews", path, "--data", mini, "--json").stdout) == {
        "tnews": str(path)
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rows: rows[:-1], "no answer"),
        (lambda rows: [*rows, rows[0]], "stands in line 1 already"),
        (lambda rows: [*rows[:5], {**rows[5], "label": "105"}, *rows[6:]], "json:6:label"),
        (lambda rows: [*rows[:5], {"id": rows[5]["id"]}, *rows[6:]], "json:6:label"),
    ],
    ids=["too short", "doubled", "no label of the task", "no label at all"],
)
def test_check_refuses_a_damaged_file(trained, mini, tmp_path, damage, message):
    path = tmp_path / "tnews11_predict.json"
    shutil.copy(trained[0] / "submission" / path.name, path)
    rewrite(path, damage)
    assert message in badly("check", "tnews", path, "--data", mini)


def test_check_refuses_a_file_cut_in_the_middle_of_a_line(trained, mini, tmp_path):
    path = tmp_path / "tnews11_predict.json"
    path.write_bytes((trained[0] / "submission" / path.name).read_bytes()[:-9])
    assert "tnews11_predict.json:24: not JSON" in badly("check", "tnews", path, "--data", mini)


def test_zip_holds_the_submission_files_and_nothing_else(trained, tmp_path):
    out, archive = trained[0], tmp_path / "submission.zip"
    assert "1 files" in well("zip", out, "-o", archive).stdout
    with zipfile.ZipFile(archive) as packed:
        assert packed.namelist() == ["tnews11_predict.json"]
        expected = (out / "submission/tnews11_predict.json").read_bytes()
        assert packed.read("tnews11_predict.json") == expected
    assert names(tmp_path) == ["submission.zip"]


def test_zip_of_a_folder_without_submissions_is_refused(tmp_path):
    assert "holds no submission files" in badly("zip", tmp_path, "-o", tmp_path / "a.zip")
    assert names(tmp_path) == []


# The program


def test_the_help_comes_within_half_a_second():
    def seconds():
        began = time.perf_counter()
        done = process("-m", "kexue", "--help")
        assert "clue" in done.stdout
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 0.5


def test_the_help_imports_neither_torch_nor_transformers():
    done = process("-X", "importtime", "-m", "kexue", "clue", "--help")
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & {"torch", "transformers", "datasets", "accelerate", "numpy", "pyarrow"}


@pytest.mark.parametrize("command", ["train", "predict", "score", "check", "zip"])
def test_every_command_shows_an_example(command):
    assert "Example: kexue clue" in well(command, "--help").stdout


# Bad input


def spoil(path, number, **fields):
    rewrite(path, lambda rows: [{**r, **fields} if i == number else r for i, r in enumerate(rows)])


def test_a_missing_data_folder_is_named(tmp_path):
    line = badly("train", "tnews", "--data", tmp_path / "none", "--out", tmp_path / "run")
    assert f"{tmp_path / 'none'}: no such folder" in line
    assert not (tmp_path / "run").exists()


def test_a_missing_task_folder_is_named_with_what_is_there(data, tmp_path):
    line = badly("train", "c3", "--data", data, "--out", tmp_path / "run")
    assert "no folder c3/ here, only ocnli, tnews" in line
    assert not (tmp_path / "run").exists()


def test_a_zip_as_data_is_told_how_to_be_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "tnews_public.zip", "w") as archive:
        archive.writestr("dev.json", "")
    archive = tmp_path / "tnews_public.zip"
    line = badly("train", "tnews", "--data", archive, "--out", tmp_path / "run")
    assert f"unzip {archive}" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_line_that_is_not_json_is_named_whatever_the_split(data, tmp_path, split):
    path = data / "tnews" / f"{split}.json"
    rows = path.read_text(encoding="utf-8").splitlines()
    rows[4] = rows[4][:-3]
    path.write_text("\n".join(rows), encoding="utf-8")
    line = badly("train", "tnews", "--data", data, "--out", tmp_path / "run")
    assert f"{path}:5: not JSON" in line
    assert not (tmp_path / "run").exists()


def test_an_unknown_label_is_named_with_its_line(data, tmp_path):
    spoil(data / "tnews/train.json", 6, label="105")
    line = badly("train", "tnews", "--data", data, "--out", tmp_path / "run")
    assert "train.json:7:label: '105' is no label of tnews" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", " \n", None, 3])
def test_an_empty_text_is_named_with_its_line(data, tmp_path, text):
    spoil(data / "tnews/dev.json", 2, sentence=text)
    line = badly("train", "tnews", "--data", data, "--out", tmp_path / "run")
    assert "dev.json:3:sentence: " in line
    assert not (tmp_path / "run").exists()


TRICKS = {
    "flooding": "5",
    "r_drop": "4",
    "fgm": "0.5",
    "pgd": "0.5",
    "vat": "0.5",
    "gradient_penalty": "0.5",
    "weissi": "0.01",
    "logit_adjustment": "1",
    "focal": "2",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_every_trick_trains_and_the_raw_loss_stands_beside_its_own(mini, tmp_path, trick):
    out, named = tmp_path / "run", f"{trick}={TRICKS[trick]}"
    well("train", "tnews", "--data", mini, "--out", out, "--epochs", "2", "--trick", named)
    text = (out / "tnews/metrics.jsonl").read_text(encoding="utf-8")
    lines = [line for line in map(json.loads, text.splitlines()) if "loss" in line]
    assert lines
    assert all("raw_loss" in line for line in lines)
    if trick != "logit_adjustment":  # the built-in classes are equally frequent
        assert all(abs(line["loss"] - line["raw_loss"]) > 1e-6 for line in lines)
    assert "seed 0, raw" in (out / "report.html").read_text(encoding="utf-8")
    [result] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert result["settings"]["tricks"] == [named]


@pytest.mark.parametrize("task", ["cmrc2018", "cluener", "c3"])
def test_tricks_for_any_loss_stack_on_tasks_without_classes(mini, tmp_path, task):
    tricks = ("--trick", "fgm=0.5", "--trick", "weissi=0.01", "--trick", "flooding=0.1")
    out = tmp_path / "run"
    well("train", task, "--data", mini, "--out", out, "--epochs", "1", *tricks)
    assert "raw_loss" in (out / task / "metrics.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("task", "trick", "message"),
    [
        ("cmrc2018", "focal=2", "focal needs a softmax over classes, which cmrc2018 does not have"),
        ("cluener", "r_drop=4", "r_drop needs a softmax over classes, which cluener does not"),
        ("c3", "logit_adjustment=1", "logit_adjustment needs classes to count; c3 has none"),
        ("tnews", "fgm=-1", "fgm must be positive, got -1"),
    ],
)
def test_a_trick_that_is_not_for_the_task_is_refused_before_anything_is_written(
    mini, tmp_path, task, trick, message
):
    out = tmp_path / "run"
    assert message in badly("train", task, "--data", mini, "--out", out, "--trick", trick)
    assert not out.exists()


def test_an_empty_file_is_named(data, tmp_path):
    (data / "tnews/train.json").write_text("")
    line = badly("train", "tnews", "--data", data, "--out", tmp_path / "run")
    assert "train" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trick", "bogus=1"), "no trick is called 'bogus'"),
        (("--trick", "bogus"), "--trick needs name=value, got 'bogus'"),
        (("--optimizer", "adamm"), "no optimizer is called 'adamm'"),
        (("--lr", "0"), "learning_rate must be positive and finite, got 0.0"),
        (("--lr", "-1"), "learning_rate must be positive and finite, got -1.0"),
        (("--schedule", "cosine"), "schedule must be one of"),
        (("--precision", "fp16"), "precision must be one of"),
        (("--checkpoint-minutes", "-1"), "checkpoint_minutes must not be negative"),
        (("--test-version", "2"), "test version must be 1.0 or 1.1"),
        (("--tracker", "bogus"), "bogus"),
        (("--model", "./none"), "no such folder"),
        (("--model", "/none/at/all"), "no such folder"),
        (("--model", "none-at-all"), "none-at-all"),
    ],
)
def test_a_bad_option_is_one_line_and_leaves_nothing(mini, tmp_path, options, message):
    out = tmp_path / "run"
    assert message in badly("train", "tnews", "--data", mini, "--out", out, *options)
    assert not out.exists()


def test_an_unknown_task_is_refused_with_the_names_known(tmp_path):
    for command in (("train", "news"), ("score", "news", "mini", "x"), ("check", "news", "x")):
        assert "no CLUE task is called 'news'; known: iflytek, tnews" in badly(*command)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder, to be spoiled."""
    from transformers import BertConfig, BertModel

    from kexue.models.loading import quiet_transformers
    from kexue.models.tiny import tiny_tokenizer

    path, tokenizer = tmp_path_factory.mktemp("model"), tiny_tokenizer()
    with quiet_transformers():
        BertModel(small(BertConfig, len(tokenizer)), add_pooling_layer=False).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path


def without(name):
    return lambda path: (path / name).unlink()


def other_width(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))


def other_names(path):
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    renamed = {f"another.{name}": value for name, value in weights.items()}
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})


def cut(path):
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:1000])


def too_short(path):
    from transformers import BertConfig, BertModel

    from kexue.models.loading import quiet_transformers

    size = json.loads((path / "config.json").read_text())["vocab_size"]
    with quiet_transformers():
        model = BertModel(small(BertConfig, size, max_position_embeddings=8))
        model.save_pretrained(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("tokenizer.json"), "no tokenizer here"),
        (without("config.json"), "no config.json here"),
        (without("model.safetensors"), "weights not loaded"),
        (other_width, "% of the encoder's parameters are in the checkpoint"),
        (other_names, "only 0.0% of the encoder's parameters are in the checkpoint"),
        (cut, "weights not loaded"),
        (too_short, "the encoder has 8 positions"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_a_model_folder_that_cannot_be_used_is_one_line(mini, tmp_path, folder, damage, message):
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(folder, model)
    damage(model)
    assert message in badly("train", "tnews", "--data", mini, "--model", model, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("file", ["head.safetensors", "task.json", "config.json"])
def test_a_trained_model_with_a_missing_part_is_one_line(trained, mini, tmp_path, file):
    best = tmp_path / "best"
    shutil.copytree(trained[0] / "tnews/best", best)
    (best / file).unlink()
    line = badly("predict", "tnews", "--model", best, "--data", mini, "--out", tmp_path / "x")
    assert file in line
    assert not (tmp_path / "x").exists()


def test_a_head_cut_short_is_one_line(trained, mini, tmp_path):
    best = tmp_path / "best"
    shutil.copytree(trained[0] / "tnews/best", best)
    (best / "head.safetensors").write_bytes(b"\x08")
    line = badly("predict", "tnews", "--model", best, "--data", mini, "--out", tmp_path / "x")
    assert str(best) in line


def test_bad_input_is_one_line_from_a_shell_too(tmp_path):
    options = ("--data", tmp_path / "none", "--out", tmp_path / "run")
    done = process("-m", "kexue", "clue", "train", "tnews", *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: {tmp_path / 'none'}: no such folder; give mini, hub or a folder of CLUE data\n"
    )


# A full disk


@pytest.fixture
def disk(tmp_path):
    """Mounts a small file system."""
    mounted = []

    def mount(size):
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return path

    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    yield mount
    for path in mounted:  # lazily: what failed may still hold a file open
        subprocess.run(["umount", "-l", str(path)], check=True)


def told_of_full_disk(result):
    """The one line about it; lines of progress may stand before."""
    assert result.exit_code == 1, (result.output, result.exception)
    [line] = [x for x in result.stderr.splitlines() if x.startswith("error: ")]
    assert line == result.stderr.splitlines()[-1]
    assert "no space left to write this file" in line
    return line


@pytest.mark.parametrize("size", ["4k", "12k", "2m", "12m", "30m", "46m"])
def test_a_full_disk_is_one_line_and_leaves_only_whole_files(mini, disk, size):
    out = disk(size) / "run"
    result = kexue("train", "tnews", "--data", mini, "--out", out, "--epochs", 9, *QUICK[2:])
    line = told_of_full_disk(result)
    assert str(out) in line
    for path in out.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    for path in out.rglob("*.jsonl"):
        for row in path.read_text(encoding="utf-8").splitlines(keepends=True):
            assert row.endswith("\n")
            json.loads(row)
    if (out / "tnews/best").exists():
        from kexue.tasks.clue.predict import load_trained

        load_trained(out / "tnews/best")
    assert list(out.rglob(".*")) == []


def test_a_cache_on_a_full_disk_is_one_line_and_leaves_no_half_file(
    mini, disk, tmp_path, monkeypatch
):
    cache = disk("16k")
    monkeypatch.setenv("KEXUE_CACHE", str(cache))
    result = kexue("train", "tnews", "--data", mini, "--out", tmp_path / "run", *QUICK)
    assert str(cache) in told_of_full_disk(result)
    from datasets import Dataset

    assert list(cache.glob("*.partial")) == []
    for path in cache.glob("*.arrow"):
        assert len(Dataset.from_file(str(path))) in (24, 48)
    assert not (tmp_path / "run").exists()


def test_a_submission_on_a_full_disk_is_one_line_and_leaves_nothing(trained, mini, disk):
    out = disk("4k")
    (out / "filler").write_bytes(b"x" * 4096)
    best = trained[0] / "tnews/best"
    told_of_full_disk(kexue("predict", "tnews", "--model", best, "--data", mini, "--out", out))
    assert [p.name for p in Path(out).iterdir()] == ["filler"]


def test_an_archive_on_a_full_disk_is_one_line_and_leaves_nothing(trained, disk):
    out = disk("4k")
    (out / "filler").write_bytes(b"x" * 4096)
    told_of_full_disk(kexue("zip", trained[0], "-o", out / "submission.zip"))
    assert [p.name for p in Path(out).iterdir()] == ["filler"]
