"""S01 in the lab: assignment against argmax, and windows."""

import json
import math

import pytest

from kexue.lab import Verdict, s01_assignment, s01_windows
from kexue.lab.s01_windows import Question


@pytest.mark.parametrize("blanks", [2, 4, 6, 8])
def test_accuracies_agree_with_the_published_within_their_error(blanks):
    records = 500
    ours = s01_assignment.accuracies(blanks, 2.0, records=records, seed=3)
    for mine, published in zip(ours, s01_assignment.PUBLISHED[blanks], strict=True):
        assert abs(mine - published) < 4 * s01_assignment.standard_error(published, blanks, records)


def test_without_signal_both_guess():
    for percent in s01_assignment.accuracies(4, 0.0, records=1000):
        assert percent == pytest.approx(10, abs=2.5)


def test_with_one_blank_assignment_is_argmax():
    argmax, assigned = s01_assignment.accuracies(1, 2.0, records=200)
    assert argmax == assigned


def test_the_same_seed_gives_the_same_numbers():
    numbers = [s01_assignment.accuracies(3, 1.0, records=50, seed=seed) for seed in (1, 1, 2)]
    assert numbers[0] == numbers[1] != numbers[2]


def test_the_assignment_verdict_follows_the_numbers():
    published = s01_assignment.PUBLISHED
    assert s01_assignment.verdict(published) is Verdict.HOLDS
    higher = {m: (a + 10, b + 10) for m, (a, b) in published.items()}
    assert s01_assignment.verdict(higher) is Verdict.PARTLY
    useless = {m: (a, a) for m, (a, _) in published.items()}
    assert s01_assignment.verdict(useless) is Verdict.FAILS


def dataset(folder, contexts, answers=((0, 2),), repeat=1):
    data = []
    for number, length in enumerate(contexts):
        context = "".join(chr(0x4E00 + k % 5000) for k in range(length))
        refs = [{"text": context[s : s + n], "answer_start": s} for s, n in answers]
        refs.append({"text": "absent", "answer_start": -1})
        asked = [{"question": "问" * 9, "id": f"q{k}", "answers": refs} for k in range(repeat)]
        data.append({"paragraphs": [{"id": f"p{number}", "context": context, "qas": asked}]})
    (folder / "cmrc2018").mkdir(parents=True)
    (folder / "cmrc2018" / "dev.json").write_text(json.dumps({"data": data}))
    return folder


def test_windows_are_counted_by_hand(tmp_path):
    asked = s01_windows.questions(dataset(tmp_path, [500, 501, 629]) / "cmrc2018" / "dev.json")
    assert [len(one.windows()) for one in asked] == [1, 2, 3]  # W = 512 − 9 − 3 = 500
    assert asked[0].answers == ((0, 2),)


@pytest.mark.parametrize("stride", [64, 128, 448])
def test_answers_no_longer_than_the_overlap_are_never_lost(stride):
    width = 500
    safe = width - stride + 1
    asked = [Question("p", 1500, 9, ((start, safe),)) for start in range(1500 - safe)]
    assert s01_windows.lost(asked, stride) == 0
    longer = [Question("p", 1500, 9, ((start, safe + 1),)) for start in range(1500 - safe - 1)]
    assert s01_windows.lost(longer, stride) > 0


def test_the_error_grows_when_questions_share_a_passage():
    values = [1.0, 1.0, 3.0, 3.0]
    mean, alone = s01_windows.mean_and_error(values, ["a", "b", "c", "d"])
    _, shared = s01_windows.mean_and_error(values, ["a", "a", "b", "b"])
    assert mean == 2
    assert alone == pytest.approx(math.sqrt(4 / 3) / 2)
    assert shared == pytest.approx(math.sqrt(2 * 8) / 4)
    assert s01_windows.mean_and_error([1.0, 2.0], ["a", "a"])[1] == math.inf


def counts_of_the_whole_set():
    """3,219 counts with mean 1.90, 56 % ones and at most five."""
    ones = round(0.56 * 3219)
    rest = 3219 - ones
    total = round(1.90 * 3219) - ones
    fours = total - 3 * rest
    return [1] * ones + [3] * (rest - fours) + [4] * fours


def test_the_windows_verdict_follows_the_counts():
    counts = counts_of_the_whole_set()
    groups = [str(k) for k in range(len(counts))]
    assert s01_windows.verdict(counts, groups)[0] is Verdict.HOLDS
    assert s01_windows.verdict([*counts[:-1], 6], groups)[0] is Verdict.PARTLY
    assert s01_windows.verdict([6] * 3219, groups)[0] is Verdict.FAILS
    assert s01_windows.verdict([1] * 1000, groups[:1000])[0] is Verdict.FAILS


def test_a_spread_sample_of_the_set_agrees_within_its_error():
    counts = counts_of_the_whole_set()[::4]
    assert s01_windows.verdict(counts, [str(k) for k in range(len(counts))])[0] is Verdict.HOLDS


def test_a_folder_is_counted_and_named_as_a_part(tmp_path):
    finding = s01_windows.EXPERIMENT.run(data=dataset(tmp_path, [500, 501, 629], repeat=2))
    assert finding.numbers["questions"] == "6 / 3,219"
    assert finding.numbers["most"] == 3
    assert "6 of 3,219" in finding.comment_en
    assert finding.figure.count("<svg") == 2


def test_on_mini_data_the_published_counts_are_not_judged(monkeypatch):
    monkeypatch.delenv("KEXUE_CLUE", raising=False)
    finding = s01_windows.EXPERIMENT.run()
    assert finding.verdict is Verdict.OPEN
    assert "cannot be compared" in finding.comment_en


def test_the_environment_names_the_data_and_a_missing_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("KEXUE_CLUE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"dev\.json is missing; --data needs"):
        s01_windows.EXPERIMENT.run()
