"""The page of a shuffle: its picture, its numbers, both languages, and what it says of them."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from kexue.data.mixing import MixingReport, mixing_of
from kexue.report.mixing_report import mixing_page, mixing_sentence, write_mixing_report
from kexue.report.scatter import scatter_chart

N = 50_000


def report(order, **changes):
    mixing = mixing_of(order, np.arange(len(order)), len(order))
    whole = MixingReport(N, N, 12_345, True, 0, 0, 0, mixing)
    return replace(whole, **changes)


def drifting():
    """Early records tend to stay early."""
    noise = 2 * np.random.default_rng(0).random(N)
    return np.argsort(np.arange(N) / N + noise)


@pytest.fixture(scope="module")
def uniform():
    return report(np.random.default_rng(0).permutation(N))


def test_the_page_is_one_file_with_one_picture_of_at_most_3000_points(uniform):
    page = mixing_page(uniform, {})
    pictures = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, flags=re.S)]
    assert len(pictures) == 1
    dots = next(one for one in pictures[0].iter() if one.get("stroke-linecap") == "round")
    assert dots.get("d").count("M") == 3000
    assert len(page) < 100_000
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (np.random.default_rng(0).permutation(N), ("No number differs", "没有一个数值")),
        (np.arange(N), ("Local:", "局部：")),
        (np.arange(100)[::-1], ("Too few records", "记录太少")),
        (drifting(), ("Uneven:", "不均：")),
    ],
)
def test_the_page_judges_in_both_languages(order, words):
    page = mixing_page(report(order), {})
    for one in (*words, "mixing score", "混合得分", "Where records went", "记录去了哪里"):
        assert one in page


def test_every_number_stands_beside_that_of_a_uniform_order(uniform):
    page = mixing_page(uniform, {})
    for name, (mean, _) in uniform.mixing.expected.items():
        if name != "neighbours":
            assert f"{mean:.3f} ± " in page
    assert f">{uniform.mixing.variance:.3f}<" in page
    assert f"{uniform.mixing.correlation:+.3f}" in page


def test_lost_and_added_records_are_said_loudly(uniform):
    page = mixing_page(replace(uniform, same=False, lost=5000, added=2), {})
    assert "about 5,000 are lost and 2 are in the output only" in page
    assert "约丢失 5,000 条" in page
    assert "exactly the records" in mixing_page(uniform, {})
    assert "exactly the records" not in page


def test_the_sentence_for_a_terminal_names_score_kind_and_loss(uniform):
    assert re.fullmatch(
        r"mixing score [01]\.\d+, variance [01]\.\d+, correlation [+-]0\.00\d: uniform; "
        r"the same records",
        mixing_sentence(uniform),
    )
    lost = mixing_sentence(replace(uniform, same=False, lost=5, added=1))
    assert "NOT the same records (about 5 lost, 1 added)" in lost


def test_what_is_said_of_the_run_is_escaped(uniform, tmp_path):
    path = write_mixing_report(tmp_path / "new" / "page.html", uniform, {"input": "<b>.txt"})
    page = path.read_text(encoding="utf-8")
    assert "&lt;b&gt;.txt" in page
    assert "<b>.txt" not in page


def test_points_outside_the_square_are_left_out_and_none_leave_a_word():
    picture = scatter_chart([(0.5, 0.5), (2, 0), (float("nan"), 0)], title="places")
    dots = next(one for one in ET.fromstring(picture).iter() if one.get("stroke-linecap"))
    assert dots.get("d").count("M") == 1
    assert "no data" in scatter_chart([], title="places")


def test_up_is_up_and_right_is_right():
    def place(x, y):
        picture = ET.fromstring(scatter_chart([(x, y)], title="places"))
        dots = next(one for one in picture.iter() if one.get("stroke-linecap"))
        return [float(v) for v in re.findall(r"[\d.]+", dots.get("d"))[:2]]

    assert place(1, 0)[0] > place(0, 0)[0]
    assert place(0, 1)[1] < place(0, 0)[1]


@pytest.mark.parametrize("same", [True, False])
def test_a_page_without_numbers_says_that_there_are_too_few_records(uniform, same):
    none = replace(uniform, mixing=None, records=1, shuffled_records=1, same=same)
    page = mixing_page(none, {"seed": 7})
    assert "Too few records to judge." in page
    assert "记录太少" in page
    assert "<svg" not in page
    assert "<dd>7</dd>" in page
    wanted = "the same records" if same else "NOT the same records"
    assert mixing_sentence(none).startswith("no mixing score, fewer than two records occur once; ")
    assert wanted in mixing_sentence(none)
