"""The CLUE report: right numbers, and a page from whatever the run holds."""

import io

import pytest
from rich.console import Console

from kexue.report import RunFolder, clue_means, clue_table, print_clue_table, write_clue_report
from report.test_page import EVIL, check

TASKS = ["iflytek", "tnews", "afqmc", "cmnli", "ocnli", "wsc"]
TASKS += ["csl", "cmrc2018", "c3", "chid", "cluener"]


def result(task="tnews", score=50.0, seed=0, **more):
    scores = {"accuracy": score} if score is not None else {}
    return {"task": task, "seed": seed, "metric": "accuracy", "scores": scores, **more}


def full_run(path, seeds=(0, 1)):
    run, results = RunFolder(path), []
    for number, task in enumerate(TASKS):
        for seed in seeds:
            folder = f"{task}/seed{seed}"
            for step in (1, 2, 3):
                run.append_jsonl(
                    f"{folder}/metrics.jsonl", {"step": step, "epoch": step / 3, "loss": 3.0 / step}
                )
            run.append_jsonl(
                f"{folder}/metrics.jsonl", {"step": 3, "epoch": 1, "dev": {"accuracy": 50.0}}
            )
            one = result(
                task,
                40.0 + number + seed,
                seed,
                folder=folder,
                chance=10.0,
                seconds=4.0,
                best_epoch=1 + seed,
                epochs=3,
            )
            one |= {
                "errors": [{"text": EVIL, "gold": "甲", "predicted": "乙"}],
                "notes": ["3 answers skipped"],
            }
            one["confusion"] = {"labels": ["a", "b"], "counts": [[1, 2], [3, 4]]}
            one["scores"]["f1/book"] = 61.25
            one |= {"dev_examples": 120, "train_examples": 600, "tokens_per_second": 21000.0}
            results.append(one)
    run.write_json("results.json", results)
    run.write_json(
        "config.json", {"command": "kexue clue train all", "data": "mini", "model": "tiny"}
    )
    run.write_json("environment.json", {"torch": "2.13.0", "memory_gb": 23.4})
    return run


def report(path):
    text = write_clue_report(path).read_text(encoding="utf-8")
    check(text)
    assert ">nan" not in text.lower()
    return text


def printed(results, width=80):
    out = io.StringIO()
    print_clue_table(results, Console(file=out, width=width))
    return out.getvalue()


def test_means_of_known_scores():
    means = clue_means([result("tnews", 40.0), result("wsc", 90.0)])
    assert means.arithmetic.mean == pytest.approx(65, abs=1e-12)
    assert means.geometric.mean == pytest.approx(60, abs=1e-12)
    assert means.harmonic.mean == pytest.approx(2 / (1 / 40 + 1 / 90), abs=1e-12)


def test_means_are_ordered_and_equal_for_equal_scores():
    means = clue_means([result(task, 30.0 + 7 * i) for i, task in enumerate(TASKS)])
    assert means.harmonic.mean < means.geometric.mean < means.arithmetic.mean
    same = clue_means([result(task, 42.0) for task in TASKS])
    for mean in (same.arithmetic, same.geometric, same.harmonic):
        assert mean.mean == pytest.approx(42, abs=1e-12)


def test_a_zero_score_makes_two_means_zero_and_is_named(tmp_path):
    results = [result("tnews", 0.0), result("wsc", 50.0)]
    means = clue_means(results)
    assert (means.geometric.mean, means.harmonic.mean, means.zero) == (0, 0, (("", ("tnews",)),))
    RunFolder(tmp_path).write_json("results.json", results)
    text = report(tmp_path)
    assert "Geometric and harmonic mean count as 0: tnews scored 0." in text
    assert "tnews 的得分为 0" in text


def test_a_zero_of_one_seed_counts_in_its_seed_alone(tmp_path):
    results = [result("tnews", 4.0, 0), result("wsc", 9.0, 0)]
    results += [result("tnews", 0.0, 1), result("wsc", 9.0, 1)]
    means = clue_means(results)
    assert means.geometric.mean == pytest.approx(3)  # of 6 and 0
    assert means.zero == (("1", ("tnews",)),)
    RunFolder(tmp_path).write_json("results.json", results)
    words = "eometric and harmonic mean of seed 1 count as 0: tnews scored 0"
    assert words in report(tmp_path)
    assert words in " ".join(printed(results).split())


def test_a_single_task_has_no_means(tmp_path):
    results = [result("tnews", 40.0), result("tnews", 50.0, 1)]
    RunFolder(tmp_path).write_json("results.json", results)
    assert "mean over" not in report(tmp_path)
    assert "mean" not in printed(results)


def test_wrong_answers_are_counted_beyond_those_shown(tmp_path):
    errors = [{"text": "t", "gold": "a", "predicted": "b"}] * 12
    run = RunFolder(tmp_path)
    run.write_json("results.json", [result(errors=errors, wrong=1734)])
    assert "12 of 1,734 wrong answers" in report(tmp_path)
    run.write_json("results.json", [result(errors=errors)])
    assert "12 wrong answers" in report(tmp_path)


def test_the_settings_that_were_used_are_shown_per_task(tmp_path):
    used = {"optimizer": "adamw", "learning_rate": 2e-5, "epochs": 10, "seed": 0}
    results = [result("tnews", settings=used), result("wsc", settings=used | {"epochs": 30})]
    run = RunFolder(tmp_path)
    run.write_json("results.json", results)
    asked = {"epochs": None, "pooling": "avg", "fit": {"epochs": 3, "batch_size": 77}}
    run.write_json("config.json", {"model": "tiny", "settings": asked})
    text = report(tmp_path)
    assert '<th>tnews</th><td class="r">10</td>' in text
    assert '<th>wsc</th><td class="r">30</td>' in text
    assert "<dt>learning_rate</dt><dd>2e-05</dd>" in text
    assert "<dt>pooling</dt><dd>avg</dd>" in text
    assert "77" not in text.split('id="run"')[1]
    run.write_json("results.json", results[:1])
    assert "<dt>epochs</dt><dd>10</dd>" in report(tmp_path)


def test_seeds_give_mean_sample_deviation_and_range():
    (row,) = clue_table(
        [result(score=score, seed=seed) for seed, score in enumerate((1.0, 2.0, 6.0))]
    )
    assert row.score.mean == pytest.approx(3)
    assert row.score.deviation == pytest.approx(7**0.5)
    assert (row.score.low, row.score.high, row.score.count) == (1, 6, 3)


def test_means_over_tasks_are_taken_per_complete_seed():
    results = [result("tnews", 10.0, 0), result("wsc", 30.0, 0), result("tnews", 90.0, 1)]
    assert clue_means(results).arithmetic.mean == 20
    several = [*results, result("wsc", 50.0, 1)]
    assert clue_means(several).arithmetic.mean == 45
    assert clue_means(several).arithmetic.deviation == pytest.approx(50 / 2**0.5)


def test_without_any_score_there_is_no_mean():
    assert clue_means([]) is None
    assert clue_means([result(score=None), {}]) is None


def test_the_page_shows_every_task_in_both_languages(tmp_path):
    full_run(tmp_path)
    text = report(tmp_path)
    for task in TASKS:
        assert f'id="{task}"' in text
    for words in (
        "45.50",
        "± sd",
        "标准差",
        "训练损失",
        "Training loss",
        "混淆矩阵",
        "F1 per type",
    ):
        assert words in text
    for words in ("3 answers skipped", "kexue clue train all", "2.13.0", "21,000", "1–2 / 3"):
        assert words in text


def test_text_of_the_data_is_escaped_and_nothing_is_loaded(tmp_path):
    full_run(tmp_path)
    text = report(tmp_path)
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    assert "http" not in text.replace("http-equiv", "")


def test_mini_data_and_slices_are_not_called_clue_results(tmp_path):
    run = full_run(tmp_path)
    assert "These scores are not CLUE results" in report(tmp_path)
    run.write_json("config.json", {"data": "/data/clue"})
    assert "The scores are not CLUE results: fewer dev examples" in report(tmp_path)
    whole = [result("tnews", dev_examples=10000), result("wsc", dev_examples=50)]
    run.write_json("results.json", whole)
    assert "The scores of wsc are not CLUE results" in report(tmp_path)
    run.write_json("results.json", whole[:1])
    assert "not CLUE results" not in report(tmp_path)


def test_an_empty_folder_gives_a_page_that_says_what_is_missing(tmp_path):
    text = report(tmp_path / "nothing")
    for name in ("config.json", "environment.json", "results.json"):
        assert f"{name} is missing" in text
    assert "The run has no results yet." in text


def test_broken_files_are_stated_on_the_page(tmp_path):
    run = full_run(tmp_path)
    run.file("config.json").write_text("{oops")
    run.write_json("environment.json", [1])
    run.file("tnews/seed0/metrics.jsonl").write_text("oops\n")
    run.file("wsc/seed0/metrics.jsonl").unlink()
    text = report(tmp_path)
    assert "config.json:1 is not JSON" in text
    assert "environment.json holds a list, a dict was expected" in text
    assert "metrics.jsonl:1 is not JSON" in text
    assert "wsc/seed0/metrics.jsonl is missing" in text


@pytest.mark.parametrize(
    "strange",
    [
        {},
        {"task": None, "scores": None, "metric": None},
        result(score=None, confusion=None, errors=None, notes=None, submission=None),
        result(confusion={"labels": ["a"], "counts": [[1, 2]]}, errors=["text"], chance="?"),
        result(confusion={"labels": ["a"], "counts": 3}, seconds=None, best_epoch=None),
        result(confusion={"labels": ["a", "b"], "counts": [1, 2]}),
        result(score="high", folder=None, epochs=None),
    ],
)
def test_strange_results_never_break_the_page(tmp_path, strange):
    run = RunFolder(tmp_path)
    run.write_json("results.json", [strange, "text", result()])
    report(tmp_path)


def test_a_diverged_loss_is_stated(tmp_path):
    run = RunFolder(tmp_path)
    run.write_json("results.json", [result(folder="tnews")])
    run.append_jsonl("tnews/metrics.jsonl", {"step": 1, "epoch": 1, "loss": float("nan")})
    assert "the loss was not finite at some steps" in report(tmp_path)


def test_many_classes_are_shown_as_their_most_frequent_confusions(tmp_path):
    labels = [f"类{i}" for i in range(119)]
    counts = [[5 if j == i + 1 else 0 for j in range(119)] for i in range(119)]
    one = result("iflytek", confusion={"labels": labels, "counts": counts})
    RunFolder(tmp_path).write_json("results.json", [one])
    text = report(tmp_path)
    assert "Most frequent confusions of 119 classes" in text
    assert len(text) < 60_000


def test_the_terminal_table_fits_eighty_columns(tmp_path):
    run = full_run(tmp_path)
    text = printed(run.read_json("results.json"))
    assert len(text.splitlines()) == 1 + 11 + 3
    assert "…" not in text
    assert "arithmetic mean over 11 tasks: 45.50 ± 0.71" in text


@pytest.mark.parametrize("width", [16, 20, 40, 60])
def test_a_narrow_terminal_loses_columns_and_never_a_score(tmp_path, width):
    run = full_run(tmp_path)
    text = printed(run.read_json("results.json"), width)
    for number in range(11):
        assert f"{40.5 + number:.2f}" in text
    assert "tokens/s" not in text
    assert "…" not in text
