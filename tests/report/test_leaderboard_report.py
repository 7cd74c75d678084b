"""The page of a leaderboard and its two kinds of picture."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from kexue.analysis.leaderboard import Leaderboard, built_in, summary
from kexue.report.leaderboard_report import leaderboard_page, write_leaderboard_report
from kexue.report.rank_flow import MOST_MODELS, rank_flow, rank_spread


def page_of(board, **options):
    return leaderboard_page(summary(board, **options), {"source": "<b>.csv"})


def plain(scores, **options):
    scores = np.asarray(scores, dtype=float)
    tasks = [f"t{t}" for t in range(scores.shape[1])]
    return Leaderboard(scores, tasks, [f"model {m}" for m in range(len(scores))], **options)


@pytest.fixture(scope="module")
def superglue():
    return page_of(Leaderboard.read(built_in("superglue")))


def pictures(page):
    return [ET.fromstring(one) for one in re.findall(r"<svg.*?</svg>", page, flags=re.S)]


def test_the_page_is_one_file_with_three_pictures_in_both_languages(superglue):
    assert len(pictures(superglue)) == 3
    assert "http" not in superglue.replace("http://www.w3.org", "")
    for words in ("What to distrust", "哪里要小心", "One task less", "Stability", "稳定性"):
        assert words in superglue
    assert superglue.count('lang="en"') - 1 == superglue.count('lang="zh"')  # the page's own


def test_every_mean_and_rank_of_every_model_is_there(superglue):
    row = re.search(r'<th>Human</th>(<td class="r">.*?)</tr>', superglue, flags=re.S)[1]
    cells = re.sub(r"<[^>]+>", " ", row).split()
    assert " ".join(cells) == "89.787 8 89.090 8 88.320 10 56.0 4 9.5 2 89.8"


def test_a_wrong_comparison_is_marked_and_names_what_is_left_out():
    page = page_of(Leaderboard.read(built_in("glue")))
    assert "wrong comparison" in page
    assert "比较有误" in page
    assert "Human would be number 1 under the geometric mean" in page
    assert "<dd>AX</dd>" in page


def test_a_calm_table_says_that_nothing_was_found():
    assert "Nothing was found" in page_of(plain([[90.0]]))


def test_names_from_the_table_are_escaped(tmp_path):
    board = Leaderboard([[9.0, 8], [7, 6]], ["<i>", "b"], ["<script>", "m&m"])
    path = write_leaderboard_report(
        tmp_path / "new" / "p.html", summary(board), {"source": "<b>.csv"}
    )
    page = path.read_text(encoding="utf-8")
    assert "<script>" not in page.split("<main>")[1].split("<footer>")[0]
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;.csv" in page
    assert pictures(page)


@pytest.mark.parametrize(
    ("models", "tasks"), [(1, 1), (1, 4), (2, 1), (40, 3), (5, 20)], ids=lambda n: str(n)
)
def test_small_and_large_tables_have_a_page(models, tasks):
    page = page_of(plain(np.random.default_rng(0).uniform(50, 99, (models, tasks))), draws=200)
    assert all(len(one) for one in pictures(page))
    assert "nan" not in page.casefold().replace("finance", "")
    assert (f"The first {MOST_MODELS} models" in page) == (models > MOST_MODELS)


def test_fractions_have_more_decimals_than_percentages():
    page = page_of(plain([[0.91234, 0.8], [0.7, 0.6]]))
    assert ">0.85617<" in page


def test_the_scores_have_two_decimals_and_all_that_tie_for_the_best_are_bold():
    page = page_of(plain([[66.85, 80], [75.7 - 8.85, 60], [50, 40]]))
    scores = page.split("成绩")[1]
    assert scores.count("<b>66.85</b>") == 2
    assert scores.count("<b>80.00</b>") == 1


def test_weights_are_named_where_they_differ():
    page = page_of(plain([[90.0, 80], [70, 60]], weights=[3, 1]))
    assert "t0 0.75, t1 0.25" in page
    assert "t0 0.5" not in page_of(plain([[90.0, 80], [70, 60]]))


def height_of(picture, words):
    """Of the text elements with these words, from left to right."""
    found = [one for one in picture.iter() if one.tag.endswith("text") and one.text == words]
    return [float(one.get("y")) for one in sorted(found, key=lambda one: float(one.get("x")))]


def test_a_line_goes_from_the_first_rank_to_the_last_and_one_is_on_top():
    drawn = rank_flow(["A", "B"], ["up", "down"], [[2, 1], [1, 2]], title="flow")
    picture = ET.fromstring(drawn)
    first, last = height_of(picture, "up")
    assert first > last
    assert height_of(picture, "down") == [last, first]


def test_ties_stand_apart_and_carry_the_same_number():
    picture = ET.fromstring(rank_flow(["A"], ["x", "y", "z"], [[1, 1, 3]], title="flow"))
    assert len(set(height_of(picture, "1"))) == 2
    assert len(height_of(picture, "3")) == 1


def test_long_names_keep_their_beginning_and_their_end():
    names = [f"a-very-long-name-of-a-model-number-{m}" for m in range(2)]
    drawn = rank_flow(["A"], names, [[1, 2]], title="flow")
    for m in range(2):
        assert names[m] not in drawn
        assert re.search(rf">a-very-\S*…\S*number-{m}<", drawn)
    stages = [f"without-the-task-{t}-of-many" for t in range(12)]
    crowded = rank_flow(stages, ["x"], [[1]] * 12, title="flow")
    assert "of-many<" in crowded
    assert "without-the-task-0-of-many" not in crowded


def test_only_models_that_move_have_a_colour():
    drawn = rank_flow(["A", "B"], ["x", "y", "still"], [[1, 2, 3], [2, 1, 3]], title="flow")
    strokes = re.findall(r'<path[^>]*stroke="([^"]+)"', drawn)
    assert sum("series" in one for one in strokes) == 2
    assert sum("faint" in one for one in strokes) == 1


def test_a_spread_runs_from_its_low_to_its_high_rank():
    drawn = ET.fromstring(rank_spread(["x", "y"], [("AM", [(1, 2, 3), (3, 3, 3)])], title="spread"))
    dots = [float(one.get("cx")) for one in drawn.iter() if one.tag.endswith("circle")]
    assert dots[0] < dots[1]
    assert len(dots) == 2


def test_a_picture_of_nothing_says_so():
    assert "no data" in rank_flow([], [], [], title="flow")
    assert "no data" in rank_spread([], [], title="spread")
