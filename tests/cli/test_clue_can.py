"""`kexue clue predict --can`: what it writes, what it prints, how it fails."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kexue.cli.clue import app
from kexue.tasks.clue import load_clue, make_task

NAME = "tnews11_predict.json"


def kexue(*arguments):
    """A command in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def well(*arguments):
    result = kexue(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def badly(*arguments):
    """The one line on stderr of a command that fails."""
    result = kexue(*arguments)
    assert result.exit_code == 1, (result.output, result.exception)
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def labels(path):
    """Id → label, in the order of the file."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["label"] for row in rows}


def record(path):
    return json.loads(path.with_suffix(".can.json").read_text(encoding="utf-8"))


def scores_of(best, mini, split="test"):
    """The logits of a saved model, one row per example."""
    from kexue.tasks.clue.predict import load_trained, split_features, split_outputs
    from kexue.tasks.clue.sources import FolderSource

    task, network = load_trained(best)
    features = split_features(task, FolderSource(mini), split, [])
    return np.stack([row for _, row in split_outputs(task, network, features)])


def untrained(task, folder):
    """The best/ folder of a model with random weights, saved without counts of labels."""
    from kexue.models.loading import load_encoder
    from kexue.models.saving import save_text_model
    from kexue.models.text_model import TextModel
    from kexue.models.tiny import tiny_tokenizer

    torch.manual_seed(0)
    made = make_task(task, tiny_tokenizer())
    encoder, _ = load_encoder("tiny", vocabulary_size=len(made.tokenizer))
    width = encoder.config.hidden_size
    model = TextModel(encoder, made.head(width), padded_right=True)
    purpose = {"task": task, "max_length": 64, "pooling": "first"}
    save_text_model(folder, model, made.tokenizer, purpose, model.state_dict())
    return folder


def half_sure(best, mini):
    """Turns the head so that of the test predictions half are sure, half are not."""
    from safetensors.torch import load_file, save_file

    from kexue.probability.can import topk_uncertainty

    scores = torch.from_numpy(scores_of(best, mini)).double()
    mean = scores.mean(0)
    factor = 1.0
    while (topk_uncertainty(((scores - mean) * factor).softmax(1), 3) < 0.9).double().mean() < 0.5:
        factor *= 1.1
    head = load_file(best / "head.safetensors")
    head["classifier.weight"] *= factor
    head["classifier.bias"] = (head["classifier.bias"] - mean.float()) * factor
    save_file(head, best / "head.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def run(mini, tmp_path_factory):
    """A run of tnews, half of whose test predictions are unsure."""
    out = tmp_path_factory.mktemp("can") / "run"
    well("train", "tnews", "--data", mini, "--out", out, "--epochs", "1", "--batch-size", "16")
    half_sure(out / "tnews/best", mini)
    return out


@pytest.fixture(scope="session")
def best(run):
    return run / "tnews/best"


@pytest.fixture
def forgetful(best, tmp_path):
    """The model as it was saved before the counts of its labels were."""
    folder = tmp_path / "best"
    shutil.copytree(best, folder)
    purpose = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    del purpose["label_counts"]
    (folder / "task.json").write_text(json.dumps(purpose), encoding="utf-8")
    return folder


@pytest.fixture
def predict(best, mini, tmp_path):
    def call(*more, out=tmp_path / "out", model=best, data=mini):
        return well("predict", "tnews", "--model", model, "--data", data, "--out", out, *more)

    return call


# What it writes


def test_the_submission_holds_the_labels_of_can_by_hand(predict, best, mini, tmp_path):
    from kexue.probability.can_estimator import CAN

    predict("--can")
    task, scores = make_task("tnews"), scores_of(best, mini)
    gold = [example.label for example in load_clue("tnews", mini, "train")]
    prior = np.array([gold.count(label) for label in task.labels], dtype=float)
    p = torch.from_numpy(scores).double().softmax(1)
    with pytest.warns(UserWarning, match="trusted rows"):
        expected = CAN(prior=prior).fit_transform(p).argmax(1)
    found = labels(tmp_path / "out" / NAME)
    assert list(found) == [example.id for example in load_clue("tnews", mini, "test")]
    assert list(found.values()) == [task.code_of(task.labels[i]) for i in expected.tolist()]


def test_only_unsure_predictions_change_and_the_counts_are_true(predict, best, mini, tmp_path):
    predict("--can")
    predict(out=tmp_path / "plain")
    after, before = labels(tmp_path / "out" / NAME), labels(tmp_path / "plain" / NAME)
    changed = [key for key in before if before[key] != after[key]]
    from kexue.probability.can import topk_uncertainty

    u = topk_uncertainty(torch.from_numpy(scores_of(best, mini)).double().softmax(1), 3)
    unsure = [key for key, value in zip(before, u.tolist(), strict=True) if value >= 0.9]
    assert list(before) == list(after)
    assert len(changed) > 0
    assert set(changed) <= set(unsure)
    told = record(tmp_path / "out" / NAME)
    assert (told["uncertain"], told["changed"]) == (len(unsure), len(changed))
    assert 0 < told["uncertain"] < told["predictions"] == 24


def test_the_corrected_submission_passes_the_check_and_twice_gives_the_same_bytes(
    predict, mini, tmp_path
):
    predict("--can")
    path = tmp_path / "out" / NAME
    assert "good" in well("check", "tnews", path, "--data", mini).stdout
    predict("--can", out=tmp_path / "again")
    assert path.read_bytes() == (tmp_path / "again" / NAME).read_bytes()
    assert record(path) == record(tmp_path / "again" / NAME)


def test_the_record_says_what_was_done_to_which_file(predict, best, mini, tmp_path):
    from kexue.data.features import content_hash

    predict("--can", "--can-option", "tau=0.5", "--can-option", "k=2")
    path = tmp_path / "out" / NAME
    told = record(path)
    assert (told["method"], told["submission"]) == ("CAN", NAME)
    assert told["content"] == content_hash(path)
    assert [told[k] for k in ("task", "split", "data", "model")] == [
        *("tnews", "test", str(mini), str(best))
    ]
    assert (told["options"]["k"], told["options"]["tau"]) == (2, 0.5)
    assert told["prior"] == f"48 training labels, kept in {best / 'task.json'}"
    assert sum(told["class_shares"].values()) == 48
    assert told["accuracy"] is None


def test_predicting_anew_without_can_takes_the_record_away(predict, run, tmp_path):
    predict("--can")
    assert (tmp_path / "out/tnews11_predict.can.json").is_file()
    predict()
    assert [p.name for p in (tmp_path / "out").iterdir()] == [NAME]


def test_the_archive_holds_the_submission_without_its_record(predict, tmp_path):
    predict("--can")
    well("zip", tmp_path / "out", "-o", tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [NAME]


def test_the_model_goes_over_the_split_once(predict, monkeypatch):
    from kexue.tasks.clue.classification import Classification

    rows, plain = [], Classification.outputs

    def counted(task, model, batch):
        rows.extend(batch.examples)
        return plain(task, model, batch)

    monkeypatch.setattr(Classification, "outputs", counted)
    predict("--can")
    assert sorted(rows) == list(range(24))


# What it prints


def test_the_accuracies_are_those_that_score_gives_the_two_files(predict, mini, tmp_path):
    lopsided = tmp_path / "prior.json"
    counts = dict.fromkeys(make_task("tnews").labels, 1) | {"game": 500}
    lopsided.write_text(json.dumps(counts), encoding="utf-8")
    printed = predict("--can", "--can-prior", lopsided, "--split", "dev").stdout.splitlines()
    predict("--split", "dev", out=tmp_path / "plain")
    scores = []
    for folder in ("plain", "out"):
        path = tmp_path / folder / f"dev_{NAME}"
        found = json.loads(well("score", "tnews", mini, path, "--json").stdout)
        scores.append(found["tnews"]["accuracy"])
    told = record(tmp_path / "out" / f"dev_{NAME}")
    assert told["accuracy"] == {"before": scores[0], "after": scores[1]}
    assert told["changed"] > 0
    assert [line.split(maxsplit=1) for line in printed] == [
        ["tnews", f"written: {tmp_path / 'out' / f'dev_{NAME}'}"],
        [
            "tnews",
            f"CAN: {told['uncertain']} of 24 predictions uncertain, {told['changed']} changed",
        ],
        ["tnews", f"prior: given in {lopsided}"],
        ["tnews", f"accuracy: {scores[0]:.2f} before, {scores[1]:.2f} after"],
    ]


def test_json_says_the_same_as_the_record(predict, tmp_path):
    found = json.loads(predict("--can", "--json").stdout)
    path = tmp_path / "out" / NAME
    assert found["tnews"]["written"] == str(path)
    told = record(path)
    assert found["tnews"]["can"] == {key: told[key] for key in found["tnews"]["can"]}
    assert {"uncertain", "changed", "accuracy", "prior", "notes"} <= set(found["tnews"]["can"])
    assert json.loads(predict("--json").stdout) == {"tnews": str(path)}


def test_few_trusted_rows_are_a_remark_on_stderr(predict):
    remarks = predict("--can").stderr.splitlines()
    assert [line for line in remarks if line.startswith("tnews: CAN: only ")] == remarks
    assert len(remarks) == 1


# Where the prior comes from


def test_a_run_keeps_the_counts_of_its_training_labels(best, mini):
    kept = json.loads((best / "task.json").read_text(encoding="utf-8"))["label_counts"]
    gold = [example.label for example in load_clue("tnews", mini, "train")]
    assert kept == {label: gold.count(label) for label in make_task("tnews").labels}


def test_a_run_without_counts_takes_the_training_split_of_the_data(
    predict, forgetful, mini, tmp_path
):
    found = predict("--can", model=forgetful)
    assert f"prior: 48 labels counted in {mini / 'tnews/train.json'}" in found.stdout
    predict("--can", out=tmp_path / "kept")
    assert labels(tmp_path / "out" / NAME) == labels(tmp_path / "kept" / NAME)


def test_a_training_file_as_prior_is_the_same_as_its_counts(predict, mini, tmp_path):
    found = predict("--can", "--can-prior", mini / "tnews/train.json")
    assert f"prior: 48 labels counted in {mini / 'tnews/train.json'}" in found.stdout
    predict("--can", out=tmp_path / "kept")
    assert labels(tmp_path / "out" / NAME) == labels(tmp_path / "kept" / NAME)


def test_without_training_labels_the_prior_has_to_be_given(predict, forgetful, mini, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(mini / "tnews", data / "tnews")
    (data / "tnews/train.json").unlink()
    line = badly(*("predict", "tnews", "--can", "--model", forgetful, "--data", data, "--out", out))
    assert "train.json: no such file" in line
    assert "give --can-prior FILE or --can-prior uniform" in line
    assert not out.exists()
    found = predict("--can", "--can-prior", "uniform", model=forgetful, data=data)
    assert "prior: uniform, as given" in found.stdout


# Several tasks


def test_of_several_tasks_those_without_classes_are_left_as_they_are(best, mini, tmp_path):
    from kexue.tasks.clue.submit import CANRequest, submit

    models = {"tnews": best}
    models |= {task: untrained(task, tmp_path / task) for task in ("csl", "c3")}
    said = []
    done = submit(models, mini, tmp_path / "can", can=CANRequest(), say=said.append)
    submit(models, mini, tmp_path / "plain")
    assert "c3: has no fixed classes; CAN was not applied" in said
    assert done["c3"].correction is None
    assert done["c3"].told() == {"written": str(done["c3"].path), "can": None}
    assert done["csl"].correction.options.k == 2
    assert "48 labels counted in" in done["csl"].correction.prior.origin
    assert sorted(p.name for p in (tmp_path / "can").iterdir()) == [
        *("c311_predict.json", "csl_predict.can.json", "csl_predict.json"),
        *("tnews11_predict.can.json", "tnews11_predict.json"),
    ]
    plain, other = (tmp_path / f / "c311_predict.json" for f in ("plain", "can"))
    assert plain.read_bytes() == other.read_bytes()


# Bad input


@pytest.mark.parametrize("task", ["c3", "chid", "cmrc2018", "cluener"])
def test_a_task_without_fixed_classes_is_refused(mini, tmp_path, task):
    (tmp_path / "best").mkdir()
    needed = {"task": task, "max_length": 8, "pooling": "first", "hidden_size": 8}
    (tmp_path / "best/task.json").write_text(json.dumps(needed), encoding="utf-8")
    options = ("--model", tmp_path / "best", "--data", mini, "--out", tmp_path / "out")
    line = badly("predict", task, "--can", *options)
    assert f"and {task} has none; it is for iflytek, tnews, afqmc, cmnli, ocnli, wsc, csl" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--can-prior", "uniform"), "--can-prior and --can-option say how --can works"),
        (("--can-option", "tau=0.5"), "--can-prior and --can-option say how --can works"),
        (("--can", "--can-option", "tau"), "--can-option needs name=value, got 'tau'"),
        (("--can", "--can-option", "taus=1"), "no option of CAN is called 'taus'; known: k, tau"),
        (("--can", "--can-option", "uncertainty=top3"), "uncertainty must be topk or any_topk"),
        (("--can", "--can-prior", "none.json"), "none.json: no such file"),
        (("--can", "--split", "train"), "split must be dev or test, got 'train'"),
    ],
)
def test_a_bad_option_is_one_line_and_leaves_nothing(best, mini, tmp_path, options, message):
    out = tmp_path / "out"
    line = badly("predict", "tnews", "--model", best, "--data", mini, "--out", out, *options)
    assert message in line
    assert not out.exists()


def test_classes_without_training_rows_are_told_before_the_model_runs(
    best, mini, tmp_path, monkeypatch
):
    from kexue.tasks.clue import submit

    counts = dict.fromkeys(make_task("tnews").labels, 1) | {"game": 0}
    (tmp_path / "prior.json").write_text(json.dumps(counts), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.delattr(submit, "split_outputs")
        line = badly(
            *("predict", "tnews", "--can", "--can-prior", tmp_path / "prior.json"),
            *("--model", best, "--data", mini, "--out", tmp_path / "out"),
        )
    assert "1 of 15 classes have no share (the first: 'game')" in line
    assert "--can-option pseudo_count=1" in line
    more = ("--can-prior", tmp_path / "prior.json", "--can-option", "pseudo_count=1")
    options = ("--model", best, "--data", mini, "--out", tmp_path / "out")
    well("predict", "tnews", "--can", *more, *options)


def test_a_file_is_no_prior_for_all_tasks(mini, tmp_path):
    from kexue.tasks.clue import TASKS

    for task in TASKS:
        folder = tmp_path / "run" / task / "best"
        folder.mkdir(parents=True)
        needed = {"task": task, "max_length": 8, "pooling": "first", "hidden_size": 8}
        (folder / "task.json").write_text(json.dumps(needed), encoding="utf-8")
    options = ("--model", tmp_path / "run", "--data", mini, "--out", tmp_path / "out")
    line = badly("predict", "all", "--can", "--can-prior", "prior.json", *options)
    assert "--can-prior prior.json: a file is for the classes of one task, and 11 are" in line


def test_a_model_of_another_task_is_refused_before_its_counts_are_read(best, mini, tmp_path):
    options = ("--model", best, "--data", mini, "--out", tmp_path / "out")
    assert "was trained for tnews, not for csl" in badly("predict", "csl", "--can", *options)
    assert not (tmp_path / "out").exists()
