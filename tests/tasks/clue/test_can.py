"""CAN on a task's predictions: it is CAN by hand, and it touches unsure rows alone."""

import json
import math
import shutil
from collections import Counter

import numpy as np
import pytest

from kexue.data.corpus import DataError
from kexue.models.tiny import tiny_tokenizer
from kexue.probability.can_estimator import CAN
from kexue.tasks.clue import TASKS, can, examples, load_clue, make_task
from kexue.tasks.clue.can import correct, record_path, with_classes, write_record
from kexue.tasks.clue.can_options import CANOptions, parse_can_options
from kexue.tasks.clue.class_prior import ClassPrior, find_prior, label_counts, read_prior
from kexue.tasks.clue.classification import Classification, TextExample
from kexue.tasks.clue.predict import split_features
from kexue.tasks.clue.sources import FolderSource
from kexue.tasks.clue.tnews import TNews
from naive.can import naive_can, naive_uncertainty

PLAIN = [name for name, kind in TASKS.items() if issubclass(kind, Classification)]
OTHERS = [name for name in TASKS if name not in PLAIN]


def labelled(task, rows, seed=0):
    labels = np.random.default_rng(seed).choice(task.labels, rows)
    return [
        TextExample(id=str(i), row=i, where=f"dev.json:{i + 1}", texts=("文",), label=str(label))
        for i, label in enumerate(labels)
    ]


def scores_of(task, rows, seed=0):
    """Logits, float32 as a model gives them: one row in three is unsure."""
    dice = np.random.default_rng(seed)
    sharp = np.where(np.arange(rows) % 3 == 0, 0.3, 9.0)[:, None]
    return (dice.standard_normal((rows, len(task.labels))) * sharp).astype(np.float32)


def prior_of(task, seed=0):
    counts = np.random.default_rng(seed).integers(1, 90, len(task.labels)).astype(float)
    return ClassPrior(dict(zip(task.labels, counts.tolist(), strict=True)), "drawn")


def softmax(scores):
    p = np.exp(scores.astype(float) - scores.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def corrected(task, scores, prior, options=None, **more):
    found = labelled(task, len(scores))
    return correct(task, found, list(enumerate(scores)), prior, options, **more)


def names_of(task, scores):
    return [task.labels[i] for i in scores.argmax(1)]


# It is CAN


@pytest.mark.parametrize("name", PLAIN)
def test_the_labels_are_those_of_can_called_by_hand(name):
    task = make_task(name)
    rows = 20 * len(task.labels)
    scores, prior = scores_of(task, rows), prior_of(task)
    done = corrected(task, scores, prior)
    by_hand = CAN(k=min(3, len(task.labels)), prior=np.array(list(prior.shares.values())))
    assert done.predictions == names_of(task, by_hand.fit_transform(softmax(scores)))
    assert done.changed == sum(
        a != b for a, b in zip(done.predictions, names_of(task, scores), strict=True)
    )
    assert 0 < done.changed < done.uncertain < rows


@pytest.mark.parametrize("uncertainty", ["topk", "any_topk", "paper"])
@pytest.mark.parametrize(("alpha", "steps"), [(1.0, 1), (0.5, 1), (1.0, 3), (2.0, 2)])
def test_every_option_reaches_can(uncertainty, alpha, steps):
    task = make_task("tnews")
    scores, prior = scores_of(task, 240), prior_of(task)
    given = {"tau": 0.3, "alpha": alpha, "steps": steps, "uncertainty": uncertainty}
    done = corrected(task, scores, prior, CANOptions(k=4, **given))
    by_hand = CAN(k=4, prior=np.array(list(prior.shares.values())), **given)
    assert done.predictions == names_of(task, by_hand.fit_transform(softmax(scores)))
    assert done.changed > 0


def test_the_labels_are_those_of_the_matrix_that_is_normalised_in_turns():
    task = make_task("ocnli")
    scores, prior = scores_of(task, 60), prior_of(task, seed=3)
    p, pi = softmax(scores), list(prior.probabilities())
    unsure = np.array([naive_uncertainty(row, 3) >= 0.9 for row in p])
    rows = [
        naive_can(row, p[~unsure], pi) if low else row for row, low in zip(p, unsure, strict=True)
    ]
    done = corrected(task, scores, prior)
    assert done.predictions == names_of(task, np.array(rows))
    assert done.uncertain == unsure.sum()


def test_two_classes_are_judged_by_the_two_and_three_by_the_three():
    for name, k in {"afqmc": 2, "wsc": 2, "csl": 2, "ocnli": 3, "cmnli": 3, "tnews": 3}.items():
        task = make_task(name)
        assert corrected(task, scores_of(task, 200), prior_of(task)).options.k == k


def test_the_worked_example_goes_to_the_class_that_is_short():
    task = make_task("afqmc")
    scores = np.log(np.array([[0.05, 0.95], [0.4999, 0.5001]], dtype=np.float32))
    done = corrected(task, scores, ClassPrior({"0": 1.0, "1": 1.0}, "even"))
    assert names_of(task, scores) == ["1", "1"]
    assert done.predictions == ["1", "0"]
    assert (done.uncertain, done.changed) == (1, 1)


# What it leaves alone


@pytest.mark.parametrize("name", PLAIN)
def test_trusted_rows_keep_their_label_whatever_the_prior(name):
    task = make_task(name)
    scores = scores_of(task, 20 * len(task.labels))
    k = min(3, len(task.labels))
    sure = np.array([naive_uncertainty(row, k) < 0.9 for row in softmax(scores)])
    last = task.labels[-1]
    lopsided = ClassPrior(dict.fromkeys(task.labels, 1e-9) | {last: 1.0}, "lopsided")
    done = corrected(task, scores, lopsided)
    before = names_of(task, scores)
    assert [p for p, s in zip(done.predictions, sure, strict=True) if s] == [
        p for p, s in zip(before, sure, strict=True) if s
    ]
    assert done.uncertain == (~sure).sum()
    moved = [p == last for p, s in zip(done.predictions, sure, strict=True) if not s]
    assert sum(moved) > 0.8 * len(moved)


def test_the_order_of_the_classes_does_not_matter():
    class Backwards(TNews):
        labels = tuple(reversed(TNews.labels))

    scores, prior = scores_of(TNews(), 300), prior_of(TNews())
    turned = ClassPrior(dict(reversed(prior.shares.items())), "turned")
    there, back = corrected(TNews(), scores, prior), corrected(Backwards(), scores[:, ::-1], turned)
    assert there.predictions == back.predictions
    assert there.changed == back.changed > 0


def test_the_order_of_the_rows_does_not_matter_beyond_their_own_place():
    task = make_task("tnews")
    scores, prior, found = scores_of(task, 300), prior_of(task), labelled(task, 300)
    shuffled = np.random.default_rng(1).permutation(300)
    outputs = [(int(i), scores[i]) for i in shuffled]
    done = correct(task, found, outputs, prior)
    assert done.predictions == corrected(task, scores, prior).predictions


@pytest.mark.parametrize("rows", [1, 7, 64, 300])
def test_rows_go_through_in_pieces_of_any_size_to_the_same_labels(monkeypatch, rows):
    task = make_task("tnews")
    scores, prior = scores_of(task, 300), prior_of(task)
    whole = corrected(task, scores, prior)
    monkeypatch.setattr(can, "ROWS", rows)
    pieced = corrected(task, scores, prior)
    assert pieced == whole


def test_twice_the_same_input_gives_the_same_record():
    task = make_task("cmnli")
    scores, prior = scores_of(task, 90), prior_of(task)
    assert corrected(task, scores, prior).record() == corrected(task, scores, prior).record()


def test_the_reference_names_the_trusted_rows_and_them_alone():
    task = make_task("cmnli")
    scores, prior = scores_of(task, 90), prior_of(task)
    plain = corrected(task, scores, prior).reference
    unsure, sure = scores.copy(), scores.copy()
    unsure[0] += np.float32([0.01, 0, 0])
    sure[1] += np.float32([0.01, 0, 0])
    assert corrected(task, unsure, prior).reference == plain
    assert corrected(task, sure, prior).reference != plain


def test_accuracy_before_and_after_is_that_of_the_labels():
    task = make_task("tnews")
    scores, found = scores_of(task, 300), labelled(make_task("tnews"), 300)
    done = correct(task, found, list(enumerate(scores)), prior_of(task))
    gold = [e.label for e in found]
    for labels, accuracy in zip(
        (names_of(task, scores), done.predictions), done.accuracy, strict=True
    ):
        right = sum(a == b for a, b in zip(labels, gold, strict=True))
        assert accuracy == pytest.approx(100 * right / 300, abs=1e-12)
    assert done.accuracy[0] != done.accuracy[1]
    assert done.record()["accuracy"] == {"before": done.accuracy[0], "after": done.accuracy[1]}


def test_a_split_without_labels_has_no_accuracy(mini):
    task, found = make_task("tnews"), load_clue("tnews", mini, "test")
    scores = scores_of(task, len(found))
    done = correct(task, found, list(enumerate(scores)), prior_of(task))
    assert done.accuracy is done.record()["accuracy"] is None
    assert not any("accuracy" in line for line in done.summary())


# What the user is told


def test_without_a_trusted_row_nothing_changes_and_it_is_said():
    task = make_task("tnews")
    scores, prior = scores_of(task, 90), prior_of(task)
    done = corrected(task, scores, prior, CANOptions(tau=0.0))
    assert done.predictions == names_of(task, scores)
    assert (done.uncertain, done.changed) == (90, 0)
    assert done.notes == ("no row is trusted (u < tau), so nothing is corrected; raise tau",)


def test_one_hot_rows_may_stand_in_for_trusted_ones():
    task = make_task("tnews")
    scores, prior = scores_of(task, 90), prior_of(task)
    done = corrected(task, scores, prior, CANOptions(tau=0.0, no_confident="identity"))
    rows = [naive_can(row, np.eye(15), list(prior.probabilities())) for row in softmax(scores)]
    assert done.predictions == names_of(task, np.array(rows))
    assert done.changed > 0
    assert done.notes == ()


def test_few_trusted_rows_are_a_note_and_no_warning():
    task = make_task("tnews")
    [note] = corrected(task, scores_of(task, 60), prior_of(task)).notes
    assert "only 38 trusted rows for 15 classes" in note


def test_a_k_beyond_the_classes_is_cut_and_it_is_said():
    task = make_task("csl")
    scores, prior = scores_of(task, 90), prior_of(task)
    done = corrected(task, scores, prior, CANOptions(k=5))
    assert done.options.k == 2
    assert done.notes == ("k = 5 is more than the 2 classes; 2 was taken",)
    assert done.predictions == corrected(task, scores, prior).predictions


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_named(value):
    task = make_task("csl")
    scores = scores_of(task, 9)
    scores[4, 1] = value
    with pytest.raises(ValueError, match="example 4 has scores that are not finite"):
        corrected(task, scores, prior_of(task))


@pytest.mark.parametrize("name", OTHERS)
def test_tasks_without_fixed_classes_are_refused_with_those_that_have(name):
    with pytest.raises(ValueError, match=f"and {name} has none; it is for {', '.join(PLAIN)}"):
        with_classes(make_task(name))


# The prior


@pytest.mark.parametrize("name", ["tnews", "cmnli", "wsc"])
def test_the_counts_that_a_run_keeps_are_those_of_its_training_labels(mini, name):
    task = make_task(name, tiny_tokenizer())
    table = split_features(task, FolderSource(mini), "train", [])
    found = Counter(e.label for e in examples(task, FolderSource(mini), "train"))
    assert label_counts(task, table) == {label: found[label] for label in task.labels}


@pytest.mark.parametrize("name", OTHERS)
def test_tasks_without_fixed_classes_have_no_counts(name, mini):
    task = make_task(name, tiny_tokenizer())
    assert label_counts(task, split_features(task, FolderSource(mini), "dev", [])) is None


def purpose(folder, **more):
    folder.mkdir(exist_ok=True)
    needed = {"task": "tnews", "max_length": 8, "pooling": "first", "hidden_size": 8}
    (folder / "task.json").write_text(json.dumps({**needed, **more}), encoding="utf-8")
    return folder


COUNTS = {name: 3.0 * i + 1 for i, name in enumerate(TNews.labels)}


def test_the_counts_of_the_run_come_before_those_of_the_data(mini, tmp_path):
    best = purpose(tmp_path / "best", label_counts=COUNTS)
    prior = find_prior(TNews(), None, best, FolderSource(mini))
    assert prior.shares == COUNTS
    assert prior.origin == f"330 training labels, kept in {best / 'task.json'}"


def test_a_run_without_counts_takes_those_of_the_training_split(mini, tmp_path):
    prior = find_prior(TNews(), None, purpose(tmp_path / "best"), FolderSource(mini))
    found = Counter(e.label for e in load_clue("tnews", mini, "train"))
    assert prior.shares == {label: found[label] for label in TNews.labels}
    assert prior.origin == f"48 labels counted in {mini / 'tnews/train.json'}"


def test_rows_without_a_majority_label_are_not_counted(mini, tmp_path):
    shutil.copytree(mini / "ocnli", tmp_path / "ocnli")
    path = tmp_path / "ocnli/train.50k.json"
    rows = path.read_text(encoding="utf-8").splitlines()
    dropped = json.dumps({**json.loads(rows[0]), "label": "-"}, ensure_ascii=False)
    path.write_text("\n".join([dropped, *rows, dropped]) + "\n", encoding="utf-8")
    best = purpose(tmp_path / "best", task="ocnli")
    task = make_task("ocnli")
    there = find_prior(task, None, best, FolderSource(tmp_path))
    assert there.shares == find_prior(task, None, best, FolderSource(mini)).shares
    assert read_prior(task, path).shares == there.shares


def test_without_training_labels_the_ways_out_are_named(mini, tmp_path):
    shutil.copytree(mini / "tnews", tmp_path / "tnews")
    (tmp_path / "tnews/train.json").unlink()
    best = purpose(tmp_path / "best")
    with pytest.raises(DataError) as told:
        find_prior(TNews(), None, best, FolderSource(tmp_path))
    for words in ("train.json: no such file", str(best / "task.json"), "--can-prior FILE"):
        assert words in str(told.value)
    uniform = find_prior(TNews(), "uniform", best, FolderSource(tmp_path))
    assert set(uniform.probabilities().tolist()) == {1 / 15}


def written(tmp_path, text):
    path = tmp_path / "prior.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


def test_a_file_may_name_the_classes_in_any_order_and_by_name_or_code(tmp_path):
    by_code = {TNews().code_of(name): n for name, n in reversed(COUNTS.items())}
    for given in (COUNTS, by_code, json.dumps(by_code, indent=2), "\ufeff" + json.dumps(COUNTS)):
        prior = read_prior(TNews(), written(tmp_path, given))
        assert list(prior.shares.items()) == list(COUNTS.items())
        assert prior.origin == f"given in {tmp_path / 'prior.json'}"


def test_a_file_may_be_labelled_rows_to_be_counted(mini):
    path = mini / "tnews/train.json"
    prior = read_prior(TNews(), path)
    assert prior.shares == Counter(e.label for e in load_clue("tnews", mini, "train"))
    assert prior.origin == f"48 labels counted in {path}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({**COUNTS, "105": 1}, "'105' is no class of tnews; known: story, culture"),
        ({**COUNTS, "100": 1}, "the class 'story' is given twice, also as '100'"),
        ({"story": 1}, "14 of 15 classes of tnews are missing, first 'culture'"),
        ({**COUNTS, "story": -1}, "'story' needs a count or frequency ≥ 0, got -1"),
        ({**COUNTS, "story": "many"}, "'story' needs a count or frequency ≥ 0, got \"many\""),
        ({**COUNTS, "story": True}, "'story' needs a count or frequency ≥ 0, got true"),
        ({**COUNTS, "story": math.nan}, "'story' needs a count or frequency ≥ 0, got NaN"),
        ({**COUNTS, "story": 10**400}, "'story' needs a count or frequency ≥ 0, got 1000"),
        ("", "holds no row with a label of tnews"),
        ("[1, 2]", "needs one JSON object a line, got [1, 2]"),
        ("[\n1]", "needs an object class → count, got list"),
        ("{", "not JSON"),
        ('{"label": "105", "sentence": "文"}\n', "'105' is no label of tnews"),
        ('{"label": "100"}\n', "sentence: field is missing"),
    ],
)
def test_a_file_that_is_no_prior_is_one_message_with_its_name(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(DataError) as told:
        read_prior(TNews(), path)
    assert str(told.value).startswith(str(path))
    assert message in str(told.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_prior(TNews(), tmp_path / "none.json")


@pytest.mark.parametrize("kept", [[], 3, {"story": 1}, {**COUNTS, "game": "x"}])
def test_damaged_counts_of_a_run_are_named(mini, tmp_path, kept):
    best = purpose(tmp_path / "best", label_counts=kept)
    with pytest.raises(DataError, match=r"task\.json:label_counts: "):
        find_prior(TNews(), None, best, FolderSource(mini))


def test_a_class_without_training_rows_is_refused_unless_all_get_a_pseudo_count():
    task = make_task("tnews")
    prior = ClassPrior({**COUNTS, "culture": 0.0}, "here")
    scores = scores_of(task, 90)
    with pytest.raises(ValueError, match="here: 1 of 15 classes have no share") as told:
        corrected(task, scores, prior)
    assert "'culture'" in str(told.value)
    assert "--can-option pseudo_count=1" in str(told.value)
    done = corrected(task, scores, prior, CANOptions(pseudo_count=2.0))
    added = ClassPrior({name: n + 2.0 for name, n in prior.shares.items()}, "here")
    assert done.predictions == corrected(task, scores, added).predictions


def test_a_factor_of_the_prior_changes_nothing():
    task = make_task("tnews")
    scores, prior = scores_of(task, 300), prior_of(task)
    tenth = ClassPrior({name: n / 10 for name, n in prior.shares.items()}, "a tenth")
    assert corrected(task, scores, prior).predictions == corrected(task, scores, tenth).predictions


# Options


def test_options_are_written_by_name_and_the_rest_is_the_articles():
    assert parse_can_options([]) == CANOptions()
    assert CANOptions() == CANOptions(None, 0.9, 1.0, 1, "topk", "unchanged", 0.0)
    texts = ["k=5", "tau=1", "alpha=0.5", "steps=2", "uncertainty=paper", "no_confident=identity"]
    given = parse_can_options([*texts, "pseudo_count=1"])
    assert given == CANOptions(5, 1.0, 0.5, 2, "paper", "identity", 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tau", "--can-option needs name=value, got 'tau'"),
        ("prior=uniform", "no option of CAN is called 'prior'; known: k, tau, alpha, steps"),
        ("=1", "no option of CAN is called ''"),
        ("tau=high", "tau must be a number, got 'high'"),
        ("tau=-0.1", "tau must be at least 0 and finite, got -0.1"),
        ("tau=NaN", "tau must be at least 0 and finite, got nan"),
        (f"tau={10**400}", "tau must be at least 0 and finite, got inf"),
        ("tau=true", "tau must be a number, got True"),
        ("k=2.5", "k must be a whole number, got 2.5"),
        ("k=1", "at least 2, since ln 1 = 0"),
        ("steps=0", "at least 1, got 0"),
        ("steps=true", "steps must be a whole number, got True"),
        ("alpha=0", "alpha must be positive and finite, got 0.0"),
        ("uncertainty=top", "uncertainty must be topk or any_topk or paper, got 'top'"),
        ("no_confident=1", "no_confident must be unchanged or identity, got 1"),
        ("pseudo_count=-1", "pseudo_count must be at least 0 and finite, got -1.0"),
    ],
)
def test_a_bad_option_is_one_message(text, message):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as told:
        parse_can_options([text])
    assert message in str(told.value)


# The record beside the file


def test_the_record_names_the_file_and_goes_when_the_file_is_written_anew(tmp_path):
    task = make_task("tnews")
    done = corrected(task, scores_of(task, 90), prior_of(task))
    path = tmp_path / "tnews11_predict.json"
    path.write_text("{}\n")
    write_record(path, done, task="tnews", split="test")
    assert record_path(path).name == "tnews11_predict.can.json"
    record = json.loads(record_path(path).read_text(encoding="utf-8"))
    assert (record["method"], record["submission"]) == ("CAN", path.name)
    assert (record["task"], record["split"]) == ("tnews", "test")
    assert {k: record[k] for k in done.record()} == done.record()
    write_record(path, None)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
