"""Leaderboards: the SuperGLUE and GLUE tables to the digit, and what every ranking must obey."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kexue.analysis.leaderboard import Leaderboard, built_in
from kexue.analysis.leaderboard.bootstrap import task_counts
from kexue.analysis.leaderboard.ranks import average_ranks, kendall, ranks, spearman
from kexue.analysis.leaderboard.table import ScoreTable

MEANS = ("arithmetic", "geometric", "harmonic")
SUPERGLUE = {
    "ST-MoE-32B": (91.1625, 90.7866, 90.3893, 77.70),
    "Turing NLR v5": (90.9125, 90.4782, 90.0152, 75.70),
    "ERNIE 3.0": (90.6188, 90.2014, 89.7600, 75.90),
    "T5 + UDG": (90.3875, 89.9974, 89.5837, 75.65),
    "DeBERTa ensemble": (90.2875, 89.8965, 89.4829, 75.95),
    "T5 + Meena": (90.1750, 89.7980, 89.3983, 75.65),
    "DeBERTa-1.5B+SiFT": (89.8750, 89.4826, 89.0661, 75.95),
    "Human": (89.7875, 89.0896, 88.3200, 66.85),
    "T5-11B": (89.2500, 88.9063, 88.5411, 75.70),
    "SPoT (T5 XXL)": (89.2062, 88.8064, 88.3807, 74.90),
    "NEZHA-Plus": (86.6500, 86.1768, 85.6702, 69.85),
    "RoBERTa-large": (84.5500, 84.0264, 83.4620, 68.45),
}


def board(scores, weights=None):
    scores = np.asarray(scores, dtype=float)
    names = [f"m{m}" for m in range(len(scores))]
    return Leaderboard(scores, [f"t{t}" for t in range(scores.shape[1])], names, weights)


def some(seed=0, models=6, tasks=5):
    return np.random.default_rng(seed).uniform(20, 99, (models, tasks))


@pytest.fixture(scope="module")
def superglue():
    return Leaderboard.read(built_in("superglue"))


@pytest.fixture(scope="module")
def human(superglue):
    return superglue.models.index("Human")


# the tables ------------------------------------------------------------------------------------


def test_the_means_of_superglue_are_the_recomputed_ones(superglue):
    assert superglue.models == tuple(SUPERGLUE)
    for column, mean in enumerate(MEANS):
        expected = [row[column] for row in SUPERGLUE.values()]
        np.testing.assert_allclose(superglue.aggregate(mean), expected, rtol=0, atol=5.1e-5)
    lowest = [row[3] for row in SUPERGLUE.values()]
    np.testing.assert_allclose(superglue.scores.min(axis=1), lowest, rtol=0, atol=1e-10)


def test_the_published_averages_of_superglue_are_arithmetic_means_in_all_twelve_rows(superglue):
    published = [superglue.table.published[model] for model in superglue.models]
    assert np.abs(superglue.aggregate() - published).max() <= 0.05 + 1e-9


def test_no_mean_puts_human_first_and_the_harmonic_one_puts_it_tenth(superglue, human):
    assert [int(superglue.rank(mean)[human]) for mean in MEANS] == [8, 8, 10]


def test_borda_puts_human_fourth_with_56_points(superglue, human):
    assert superglue.borda()[human] == pytest.approx(56, abs=1e-10)
    assert superglue.rank("borda")[human] == 4


def test_kendall_between_the_means_of_superglue(superglue):
    taus = [superglue.agreement("arithmetic", way).kendall for way in (*MEANS[1:], "borda")]
    np.testing.assert_allclose(taus, [1, 0.9394, 0.8485], atol=5e-5)


def test_with_the_diagnostics_for_everybody_human_is_first_under_all_three_means():
    found = Leaderboard.read(built_in("superglue-diagnostics"))
    expected = {
        "Human": (89.440, 88.729, 87.962),
        "ERNIE 3.0": (88.725, 88.100, 87.431),
        "DeBERTa ensemble": (88.255, 87.601, 86.893),
        "T5-11B": (87.190, 86.568, 85.887),
    }
    for column, mean in enumerate(MEANS):
        values = dict(zip(found.models, found.aggregate(mean), strict=True))
        for model, row in expected.items():
            assert values[model] == pytest.approx(row[column], abs=6e-4)
        assert found.rank(mean)[found.models.index("Human")] == 1


def test_glue_on_ten_columns_for_everybody():
    found = Leaderboard.read(built_in("glue"))
    assert found.tasks_left_out == ("AX",)
    expected = [(87.585, 86.906, 86.159), (91.180, 90.930, 90.662), (90.865, 90.518, 90.136)]
    for column, mean in enumerate(MEANS):
        values = [row[column] for row in expected]
        np.testing.assert_allclose(found.aggregate(mean), values, atol=6e-4)
        assert found.rank(mean).tolist() == [3, 1, 2]


def test_glue_with_ax_for_the_models_only_makes_human_win_as_in_the_paper():
    whole = Leaderboard.read(built_in("glue")).table.scores()
    models = board(whole[1:])
    for mean, values in (("geometric", (86.380, 86.249)), ("harmonic", (84.849, 84.785))):
        np.testing.assert_allclose(models.aggregate(mean), values, atol=6e-4)
        human = board(whole[:1, :10]).aggregate(mean)[0]
        assert human > models.aggregate(mean).max()
    np.testing.assert_allclose(models.aggregate(), (87.591, 87.441), atol=6e-4)


def test_the_stability_of_humans_rank_is_exact_over_all_6435_resamples(superglue, human):
    medians, firsts = [], []
    for mean in MEANS:
        found = superglue.bootstrap(mean=mean)
        assert found.exact
        assert len(found.values) == 6435
        low, median, high = found.rank_interval()[human]
        assert (low, high) == (1, 10)
        medians.append(int(median))
        firsts.append(found.first[human])
    assert medians == [7, 8, 9]
    np.testing.assert_allclose(firsts, [0.164, 0.159, 0.162], atol=5e-4)


def test_humans_lead_over_deberta_may_have_either_sign(superglue, human):
    found = superglue.bootstrap()
    low, _, high = found.difference("Human", "DeBERTa ensemble")
    assert (low, high) == pytest.approx((-3.39, 1.84), abs=5e-3)
    at_most_seven = found.probability @ (found.ranks[:, human] <= 7)
    assert at_most_seven == pytest.approx(0.505, abs=5e-4)


def test_one_task_moves_human_from_eighth_to_third_second_and_first(superglue, human):
    without = [superglue.leave_one_out(mean) for mean in MEANS]
    assert [int(one["MultiRC"][human]) for one in without] == [3, 2, 1]
    assert [int(one["WSC"][human]) for one in without] == [10, 10, 10]


def test_all_of_it_takes_seconds_and_a_million_resampled_entries_a_fraction(superglue):
    start = time.perf_counter()
    board(some(models=12, tasks=9)).bootstrap(10_000).rank_interval()
    assert time.perf_counter() - start < 2  # 0.015 s on a free core


# properties ------------------------------------------------------------------------------------

TABLES = st.integers(0, 10_000).map(some)


@settings(max_examples=25)
@given(TABLES)
def test_harmonic_is_below_geometric_is_below_arithmetic(scores):
    am, gm, hm = (board(scores).aggregate(mean) for mean in MEANS)
    assert (hm < gm).all()
    assert (gm < am).all()


@settings(max_examples=25)
@given(TABLES, st.floats(0.01, 100))
def test_scaling_all_scores_scales_every_mean(scores, c):
    for mean in (*MEANS, 2.5):
        once, scaled = board(scores).aggregate(mean), board(c * scores).aggregate(mean)
        np.testing.assert_allclose(scaled, c * once, rtol=1e-12)


def test_the_arithmetic_mean_is_linear():
    a, b = some(1), some(2)
    together = board(2 * a + 3 * b).aggregate()
    np.testing.assert_allclose(together, 2 * board(a).aggregate() + 3 * board(b).aggregate())


@settings(max_examples=25)
@given(TABLES, st.floats(0.01, 100))
def test_rescaling_a_column_never_moves_a_rank_under_the_geometric_mean(scores, c):
    rescaled = scores.copy()
    rescaled[:, 2] *= c
    assert (board(scores).rank("geometric") == board(rescaled).rank("geometric")).all()


def test_rescaling_a_column_can_move_ranks_under_the_other_two():
    scores = np.array([[80, 30.0], [60, 45.0]])
    for mean, c in (("arithmetic", 3.0), ("harmonic", 3.0)):
        rescaled = scores * [1, c]
        assert (board(scores).rank(mean) != board(rescaled).rank(mean)).any()


@settings(max_examples=25)
@given(TABLES, st.randoms(use_true_random=False))
def test_permuting_models_and_tasks_permutes_the_results(scores, random):
    rows, columns = list(range(6)), list(range(5))
    random.shuffle(rows)
    random.shuffle(columns)
    for way in (*MEANS, "borda", "wins"):
        moved = board(scores[np.ix_(rows, columns)]).aggregate(way)
        np.testing.assert_allclose(moved, board(scores).aggregate(way)[rows], rtol=1e-12)


@settings(max_examples=25)
@given(TABLES, st.integers(0, 4))
def test_a_model_that_is_nowhere_worse_and_once_better_is_above(scores, better):
    scores[1] = scores[0]
    scores[1, better] -= 1
    weights = [1, 2, 3, 1, 5]
    for way in (*MEANS, -4, 3, "borda", "wins"):
        values = board(scores, weights).aggregate(way)
        assert values[0] > values[1]


def test_a_common_zero_ties_two_models_under_the_geometric_and_harmonic_mean_only():
    found = board([[0, 90], [0, 50.0]])
    assert [found.rank(mean).tolist() for mean in MEANS] == [[1, 2], [1, 1], [1, 1]]


def test_a_third_model_can_turn_borda_round_but_no_mean():
    two = np.array([[90, 90, 50.0], [80, 80, 99.0]])
    third = np.array([[10, 10, 60.0], [10, 10, 70.0], [10, 10, 80.0]])
    assert board(two).rank("borda").tolist() == [1, 2]
    more = board(np.concatenate([two, third]))
    assert more.rank("borda")[1] < more.rank("borda")[0]
    for mean in MEANS:
        before = board(two).rank(mean)
        after = more.rank(mean)[:2]
        assert (before[0] < before[1]) == (after[0] < after[1])


def test_tau_is_one_with_itself_and_minus_one_with_the_reverse():
    assert board(some()).agreement("arithmetic", "arithmetic").kendall == pytest.approx(1)
    assert board(some()).agreement("borda", "borda").spearman == pytest.approx(1)
    opposed = board([[90, 10.0], [45, 45.0]])  # the means disagree about the only pair
    found = opposed.agreement("arithmetic", "harmonic")
    assert (found.kendall, found.spearman) == pytest.approx((-1, -1))


def test_tau_is_undefined_where_all_models_tie():
    found = board([[5, 5.0], [5, 5.0]]).agreement("arithmetic", "harmonic")
    assert math.isnan(found.kendall)
    assert math.isnan(found.spearman)


def test_agreement_is_scipys():
    found = board(some(3, models=9)).agreement("arithmetic", "borda")
    a, b = board(some(3, models=9)).aggregate(), board(some(3, models=9)).borda()
    assert found.kendall == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)
    assert found.spearman == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 5))
def test_with_ties_tau_b_rho_and_ranks_are_scipys(seed, models, levels):
    a, b = np.random.default_rng(seed).integers(0, levels, (2, models)).astype(float)
    tau, rho = kendall(a, b), spearman(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(tau)
        assert math.isnan(rho)
    else:
        assert tau == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)
        assert rho == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    np.testing.assert_array_equal(ranks(a), stats.rankdata(-a, method="min"))
    np.testing.assert_array_equal(average_ranks(a), stats.rankdata(-a, method="average"))


def test_resampled_ranks_lie_between_one_and_the_number_of_models():
    for over_many in (5, 12):
        found = board(some(4, tasks=over_many)).bootstrap(500)
        assert found.ranks.min() >= 1
        assert found.ranks.max() <= 6
        assert found.probability.sum() == pytest.approx(1, abs=1e-12)


def test_with_one_task_every_resample_is_the_plain_ranking():
    one = board(some()[:, :1])
    assert (one.bootstrap().ranks == one.rank()).all()
    assert one.leave_one_out() == {}


# ranks, Borda, wins ----------------------------------------------------------------------------


def test_ties_share_the_smallest_rank_and_the_next_one_is_skipped():
    assert ranks(np.array([5, 9, 9, 1.0])).tolist() == [3, 1, 1, 4]
    assert average_ranks(np.array([5, 9, 9, 1.0])).tolist() == [3, 1.5, 1.5, 4]


def test_scores_that_differ_in_their_last_bits_tie():
    pairs = [(88.1, 63.3), (88.4, 63.0), (90.1, 61.3), (75.7, 75.7)]
    values = np.array([(a + b) / 2 for a, b in pairs])
    assert len(set(values.tolist())) > 1
    assert ranks(values).tolist() == [1, 1, 1, 1]
    assert ranks(np.array([75.7, 75.7 + 2e-9])).tolist() == [2, 1]


@settings(max_examples=25)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_ranks_and_borda_are_those_counted_by_hand(values):
    x = np.array(values, dtype=float)
    by_hand = [1 + sum(b > a for b in values) for a in values]
    assert ranks(x).tolist() == by_hand
    points = [sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]
    assert board(x[:, None]).borda().tolist() == pytest.approx(points)


def test_pairwise_wins_are_those_counted_by_hand():
    scores = some(5).round(-1)  # with ties
    wins = board(scores).pairwise()
    for m, x in enumerate(scores):
        for n, y in enumerate(scores):
            assert wins[m, n] == pytest.approx((x > y).sum() + (x == y).sum() / 2)
    beaten = [
        sum((wins[m, n] > wins[n, m]) + (wins[m, n] == wins[n, m]) / 2 for n in range(6) if n != m)
        for m in range(6)
    ]
    assert board(scores).aggregate("wins").tolist() == pytest.approx(beaten)


def test_weighted_borda_and_wins_are_those_counted_by_hand():
    scores, weights = some(9).round(-1), np.array([1, 0, 2.5, 4, 1])
    found = board(scores, weights.tolist())
    share = 5 * weights / weights.sum()
    for m, x in enumerate(scores):
        others = np.delete(scores, m, axis=0)
        points = ((x > others) + (x == others) / 2) @ share
        assert found.borda()[m] == pytest.approx(points.sum(), abs=1e-12)
        np.testing.assert_allclose(np.delete(found.pairwise()[m], m), points, atol=1e-12)


def test_a_task_without_weight_counts_nowhere():
    scores = some(6)
    full, less = board(scores, [1, 1, 0, 1, 1]), board(np.delete(scores, 2, axis=1))
    for way in (*MEANS, "wins"):
        np.testing.assert_allclose(full.aggregate(way), less.aggregate(way), rtol=1e-12)
    assert (full.rank("borda") == less.rank("borda")).all()
    np.testing.assert_allclose(
        full.bootstrap(1000).rank_interval(), less.bootstrap(1000).rank_interval()
    )


# bootstrap -------------------------------------------------------------------------------------


def test_all_resamples_carry_their_multinomial_weights():
    counts, probability, exact = task_counts(4, 1000)
    assert exact
    assert len(counts) == math.comb(7, 4)
    assert (counts.sum(axis=1) == 4).all()
    assert len(np.unique(counts, axis=0)) == len(counts)
    expected = stats.multinomial.pmf(counts, 4, [0.25] * 4)
    np.testing.assert_allclose(probability, expected, rtol=1e-12)
    assert probability.sum() == pytest.approx(1, abs=1e-14)


def test_drawn_and_exact_resamples_agree():
    scores = some(7, tasks=6)
    exact, drawn = board(scores).bootstrap(10_000), board(scores).bootstrap(400)
    assert exact.exact
    assert not drawn.exact
    assert np.abs(exact.first - drawn.first).max() < 0.1
    assert np.abs(exact.value_interval() - drawn.value_interval()).max() < 6


def test_the_same_seed_gives_the_same_draws_and_another_others():
    wide = board(some(8, tasks=12))
    a, b, c = (wide.bootstrap(300, seed=seed).values for seed in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_resampled_seeds_spread_a_model_by_its_own_noise():
    seeds = {("a", "t"): (80.0, 90.0), ("b", "t"): (84.0, 84.0, 84.0)}
    table = ScoreTable(("a", "b"), ("t",), np.array([[85.0], [84.0]]), seeds=seeds)
    found = Leaderboard.of(table).bootstrap(4000, over="seeds")
    assert set(found.values[:, 0]) == {80, 85, 90}
    assert set(found.values[:, 1]) == {84}
    assert found.first[0] == pytest.approx(0.75, abs=0.03)


def test_examples_are_drawn_in_pairs():
    right = np.random.default_rng(0).integers(0, 2, (1, 50)) * 100.0
    twin = board([[right.mean()], [right.mean() - 2]])
    worse = right.copy()
    worse[0, right[0].argmax()] = 0  # one answer less
    found = twin.bootstrap(500, "examples", examples={"t0": np.concatenate([right, worse])})
    gap = found.values[:, 0] - found.values[:, 1]
    assert gap.min() >= -1e-9  # never behind: both see the same examples
    assert gap.max() > 2


def test_what_cannot_be_resampled_is_refused():
    plain = board(some())
    with pytest.raises(ValueError, match="one score per cell"):
        plain.bootstrap(over="seeds")
    with pytest.raises(ValueError, match="must hold a matrix for each of t0"):
        plain.bootstrap(over="examples")
    with pytest.raises(ValueError, match=r"shape \(6 models, examples\), got \(2, 3\)"):
        plain.bootstrap(over="examples", examples={f"t{t}": np.ones((2, 3)) for t in range(5)})
    with pytest.raises(ValueError, match='must be "tasks", "seeds" or "examples"'):
        plain.bootstrap(over="rows")
    with pytest.raises(ValueError, match="n must be at least 1"):
        plain.bootstrap(0)
    with pytest.raises(ValueError, match="'x' is no model here"):
        plain.bootstrap().difference("x", "m0")
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        plain.bootstrap().rank_interval(95.0)


# construction ----------------------------------------------------------------------------------


def test_a_data_frame_brings_its_own_names():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"A": [1.0, 2.0], "B": [3.0, 4.0]}, index=["x", "y"])
    found = Leaderboard(frame)
    assert (found.models, found.tasks) == (("x", "y"), ("A", "B"))
    assert found.rank().tolist() == [2, 1]


def test_metrics_of_one_task_are_averaged_first():
    found = Leaderboard(
        [[60, 80, 90.0]], ["F1", "acc", "RTE"], ["m"], metrics_per_task={"CB": ["F1", "acc"]}
    )
    assert found.tasks == ("CB", "RTE")
    assert found.aggregate()[0] == pytest.approx(80)


def test_weights_by_name_or_in_order_are_the_same():
    scores = some(9)
    named = board(scores, {"t1": 3.0}).aggregate("geometric")
    np.testing.assert_allclose(named, board(scores, [1, 3, 1, 1, 1]).aggregate("geometric"))


def test_ranks_relative_to_a_reference_stay_under_the_geometric_mean():
    plain = board(some(10))
    assert (plain.relative_to("m3").rank("geometric") == plain.rank("geometric")).all()
    assert plain.relative_to("m3").aggregate()[3] == pytest.approx(1)
    scores = plain.standardised().scores
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(scores.std(axis=0), 1)


NAN = math.nan


def test_missing_scores_restrict_every_row_to_common_tasks():
    scores = [[90, 80, NAN], [70, 60, 50.0], [60, 50, 99.0]]
    common = board(scores)
    assert (common.tasks, common.tasks_left_out) == (("t0", "t1"), ("t2",))
    rows = Leaderboard(scores, ["a", "b", "c"], ["x", "y", "z"], missing="drop_rows")
    assert (rows.models, rows.models_left_out, rows.tasks) == (("y", "z"), ("x",), ("a", "b", "c"))


@pytest.mark.parametrize(
    ("scores", "options", "words"),
    [
        (np.zeros((0, 0)), {}, "the table is empty: 0 models and 0 columns"),
        ([[1.0, 2.0]], {"tasks": ["a", "a"]}, "column 'a' is there twice, as number 1 and 2"),
        ([[1.0], [2.0]], {"models": ["m", "m"]}, "model 'm' is there twice"),
        ([[1.0, math.inf]], {}, "row 'm0', column 't1': inf is no score"),
        ([[1.0, 2.0]], {"weights": [1.0]}, "2 weights are needed, one per task, got 1"),
        ([[1.0, 2.0]], {"weights": {"z": 1.0}}, "weight for 'z', which is no task"),
        ([[1.0, 2.0]], {"weights": [-1.0, 1.0]}, "the weight of 't0' must be >= 0"),
        ([[1.0, 2.0]], {"weights": [0.0, 0.0]}, "have no weight"),
        ([[1.0, 2.0], [3.0]], {}, "scores must be numbers, a row per model"),
        ([["x", "y"]], {}, "scores must be numbers"),
        ([[1.0, NAN]], {"missing": "error"}, "row 'm0', column 't1': the score is missing"),
        ([[1.0, NAN]], {"missing": "guess"}, 'must be "common", "drop_rows" or "error"'),
        ([[1.0, NAN], [NAN, 1.0]], {}, "no task is there in every row"),
        ([[1.0, NAN], [NAN, 1.0]], {"missing": "drop_rows"}, "no row has every task"),
        ([[1.0, 2.0], [NAN, NAN]], {}, "row 'm1' has no score at all"),
        ([[1.0, 2.0]], {"metrics_per_task": {"x": ["nope"]}}, "'nope' is no task of the table"),
        ([[1.0, 2.0]], {"metrics_per_task": {"t0": ["t1"]}}, "'t0' is a task already"),
    ],
)
def test_a_table_that_is_none_is_refused(scores, options, words):
    shape = np.shape(scores) if not isinstance(scores, list) else (len(scores), len(scores[0]))
    names = {"tasks": [f"t{t}" for t in range(shape[1])]}
    names |= {"models": [f"m{m}" for m in range(shape[0])]}
    with pytest.raises(ValueError, match=words):
        Leaderboard(scores, **(names | options))


def test_scores_without_names_are_refused():
    with pytest.raises(ValueError, match="give the names of tasks and models"):
        Leaderboard([[1.0]])


def test_a_negative_score_is_named_under_any_mean_but_the_arithmetic():
    found = board([[50, 60.0], [-3, 70.0]])
    assert found.rank().tolist() == [1, 2]
    for mean in ("geometric", "harmonic", 2):
        with pytest.raises(ValueError, match="row 'm1', column 't0': -3 is negative"):
            found.aggregate(mean)
        with pytest.raises(ValueError, match="row 'm1', column 't0': -3 is negative"):
            found.bootstrap(mean=mean)
    assert "geometric" not in found.report()


def test_the_report_is_a_markdown_table_with_every_model(superglue):
    lines = superglue.report().splitlines()
    assert len(lines) == 2 + 12
    assert {line.count("|") for line in lines} == {10}
    assert lines[2].startswith(
        "| ST-MoE-32B | 91.1625 | 90.7866 | 90.3893 | 76.5 | 1 | 1 | 1 | 1 |"
    )
