"""The rule behind published averages, and the traps of a table."""

import itertools
import time

import numpy as np
import pytest

from kexue.analysis.leaderboard import Leaderboard, Rule, audit_averages, built_in, traps
from kexue.analysis.leaderboard.audit import _subsets, decimals_of, known_pairs
from kexue.analysis.leaderboard.table import ScoreTable
from kexue.probability.means import MEANS, power_mean


def table(scores, tasks=None, **options):
    scores = np.asarray(scores, dtype=float)
    tasks = tuple(tasks or (f"t{t}" for t in range(scores.shape[1])))
    return ScoreTable(tuple(f"m{m}" for m in range(len(scores))), tasks, scores, **options)


def some(models=5, tasks=6, seed=0):
    return np.random.default_rng(seed).uniform(40, 99, (models, tasks)).round(1)


def findings(scores, tasks=None, **options):
    return traps(Leaderboard.of(table(scores, tasks, **options)))


def where(found, level):
    return [one.where for one in found if one.level == level]


# the audit -------------------------------------------------------------------------------------


def test_superglues_averages_have_one_rule_the_plain_arithmetic_mean():
    found = Leaderboard.read(built_in("superglue")).audit()
    assert found.common[0] == Rule("arithmetic")
    assert found.groups == ((Rule("arithmetic"), tuple(SUPER)),)
    assert found.unexplained == ()


SUPER = Leaderboard.read(built_in("superglue")).models


def test_glues_averages_leave_out_ax_and_count_mnli_once():
    found = Leaderboard.read(built_in("glue")).audit()
    assert found.common[0] == Rule("arithmetic", ("AX",), merged=("MNLI",))


def test_superglues_averages_leave_out_the_diagnostics():
    found = Leaderboard.read(built_in("superglue-diagnostics")).audit()
    assert found.common[0] == Rule("arithmetic", ("AX-b", "AX-g"))


@pytest.mark.parametrize("mean", ["geometric", "harmonic"])
def test_the_papers_glue_columns_are_caught_as_two_rules(mean):
    glue = Leaderboard.read(built_in("glue"))
    rows = glue.table.scores()
    printed = {
        model: round(float(power_mean(row[~np.isnan(row)], mean)), 2)
        for model, row in zip(glue.table.models, rows, strict=True)
    }
    found = glue.audit(printed)
    assert not found.consistent
    assert {rows: rule for rule, rows in found.groups} == {
        ("ERNIE", "DeBERTa"): Rule(mean),
        ("Human",): Rule(mean, ("AX",)),
    }


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("out", [(), ("t2",), ("t0", "t5")])
@pytest.mark.parametrize("decimals", [1, 3])
def test_a_consistent_table_always_has_a_common_rule(mean, out, decimals):
    scores = some()
    kept = [t for t in range(6) if f"t{t}" not in out]
    values = power_mean(scores[:, kept], mean).round(decimals)
    found = audit_averages(table(scores), {f"m{m}": v for m, v in enumerate(values)}, decimals)
    assert Rule(mean, out) in found.common
    assert found.common == tuple(sorted(found.common, key=lambda rule: rule.cost))


def test_metrics_counted_one_by_one_and_decimals_cut_off_are_found():
    scores = some(models=8)
    double = table(scores).merged({"pair": ["t0", "t1"]})
    values = scores.mean(axis=1)
    cut = np.floor(values * 100) / 100
    found = audit_averages(double, {f"m{m}": v for m, v in enumerate(cut)}, 2)
    assert Rule("arithmetic", separate=True, cut=True) in found.common
    assert Rule("arithmetic") not in found.common


def test_all_subsets_are_those_of_a_naive_search():
    scores = some(models=1, tasks=4)
    found = audit_averages(table(scores), {"m0": 71.3})
    count = 0
    for size in range(1, 5):
        for kept in itertools.combinations(range(4), size):
            for mean in MEANS:
                off = float(power_mean(scores[0, list(kept)], mean)) - 71.3
                count += (abs(off) <= 0.05 + 1e-9) + (-1e-9 <= off <= 0.1 + 1e-9)
    assert found.rows["m0"] == count


def test_a_row_that_no_rule_explains_is_named():
    found = audit_averages(table(some()), {"m0": 12.3, "m1": float(some()[1].mean().round(1))})
    assert found.unexplained == ("m0",)
    assert not found.consistent


def test_a_wide_table_is_searched_by_few_columns_left_out_and_in_time():
    scores = some(models=6, tasks=22)
    values = {f"m{m}": float(v) for m, v in enumerate(scores[:, 2:].mean(axis=1).round(2))}
    start = time.perf_counter()
    found = audit_averages(table(scores), values)
    assert time.perf_counter() - start < 5
    assert found.common[0] == Rule("arithmetic", ("t0", "t1"))


def test_a_very_wide_table_is_searched_by_fewer_columns_left_out():
    scores = some(models=2, tasks=120)
    values = {f"m{m}": float(v) for m, v in enumerate(scores[:, 1:].mean(axis=1).round(6))}
    found = audit_averages(table(scores), values)
    assert found.common[0] == Rule("arithmetic", ("t0",))
    assert [len(_subsets(n)) for n in (67, 68, 317)] == [100_367, 4_693, 635]


def test_an_average_of_nobody_or_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        audit_averages(table(some()), {})
    with pytest.raises(ValueError, match="an average for 'x', but no such row"):
        audit_averages(table(some()), {"x": 1.0})
    with pytest.raises(ValueError, match="of 'm0' is nan"):
        audit_averages(table(some()), {"m0": float("nan")})


def test_a_rule_reads_as_a_sentence_in_both_languages():
    rule = Rule("harmonic", ("AX",), separate=True, merged=("MNLI",), cut=True)
    assert rule.words() == (
        "harmonic mean of all columns but AX, every metric by itself, MNLI as one task, decimals "
        "cut off",
        "调和平均，不含 AX，各指标单独计入，MNLI 合一，小数直接截断",
    )
    assert decimals_of([90.0, 3.25]) == 2
    assert known_pairs(["A-m", "B-mm"]) == {}


# the traps -------------------------------------------------------------------------------------


def test_a_calm_table_has_nothing_bad_and_nothing_to_beware_of():
    calm = [[90, 91, 92.0], [80, 81, 82], [70, 71, 72]]
    found = findings(calm)
    assert {one.level for one in found} <= {"note"}


def test_averaging_over_what_is_there_is_shown_to_change_the_order():
    found = traps(Leaderboard.read(built_in("glue")))
    assert found[0].level == "bad"
    assert "Human would be number 1 under the geometric mean" in found[0].en
    assert "AX" in where(found, "warn")


def test_different_rules_behind_published_averages_are_the_worst_finding():
    scores = some(3, 11)
    values = power_mean(scores, "geometric").round(2)
    values[0] = round(float(power_mean(scores[0, :10], "geometric")), 2)
    found = findings(scores, published={f"m{m}": float(v) for m, v in enumerate(values)})
    assert (found[0].level, found[0].where) == ("bad", "published averages")
    assert "m1, m2: geometric mean of all columns" in found[0].en


def test_a_fraction_among_percentages_is_named_by_row_and_column():
    scores = [[90, 91.0], [0.87, 88], [85, 86], [84, 85]]
    assert "m1 / t0" in where(findings(scores), "bad")


def test_a_column_of_fractions_among_percentages_is_named():
    assert "t1" in where(findings([[90, 0.9], [80, 0.95]]), "warn")
    assert findings([[0.9, 0.91], [0.8, 0.81]])[0].level == "note"


def test_scores_above_100_zeros_and_negative_scores_are_named():
    found = findings([[120, 50, 50.0], [90, 0, 50], [90, 60, -5]])
    assert {"m0 / t0", "m1 / t1", "m2 / t2"} <= set(where(found, "warn"))


@pytest.mark.parametrize("name", ["AX", "ax-b", "AX_g", "Diagnostics"])
def test_diagnostic_columns_are_named(name):
    assert name in where(findings([[90, 91.0], [80, 81]], ["RTE", name]), "warn")
    assert "RTE" not in where(findings([[90, 91.0], [80, 81]], ["RTE", name]), "warn")


@pytest.mark.parametrize("name", ["WER", "error rate", "dev_loss", "perplexity", "RMSE", "rank"])
def test_columns_where_less_is_better_are_named(name):
    assert name in where(findings([[90, 91.0], [80, 81]], ["RTE", name]), "warn")


def test_innocent_names_are_left_alone():
    innocent = ["Winter", "Flossing", "CERN", "Taxi"]
    found = findings([[90.0] * 4, [80.0] * 4], innocent)
    assert where(found, "warn") == []


def test_a_leader_that_hangs_on_the_mean_or_on_one_task_is_named():
    found = findings([[100, 20.0], [58, 58]])
    assert {"m0", "m1"} <= set(where(found, "warn"))  # 60 > 58, but 44.7 < 58
    assert "t0" in where(found, "warn")


def test_gaps_within_rounding_are_ties():
    found = findings([[90.0, 80.0], [90.02, 80.02]])
    assert any("a tie at one decimal" in one.en for one in found)


def test_of_many_gaps_within_rounding_the_first_are_named_and_the_others_counted():
    found = findings([[90 - 0.01 * m, 80.0] for m in range(20)])
    assert sum("a tie at one decimal" in one.en for one in found) == 5
    assert any(one.en.startswith("14 more neighbours in the order") for one in found)


def test_a_single_seed_is_remarked_on():
    seeds = {("m0", "t0"): (90.0,), ("m0", "t1"): (91.0,)}
    assert "seeds" in where(findings([[90, 91.0]], seeds=seeds), "note")
    more = {("m0", "t0"): (90.0, 90.0), ("m0", "t1"): (91.0,)}
    assert "seeds" not in where(findings([[90, 91.0]], seeds=more), "note")


def test_one_model_or_one_task_is_no_trouble():
    assert findings([[90.0]]) == findings([[90.0, 80.0]]) == ()
    assert where(findings([[90.0], [80.0]]), "note") == ["means"]
