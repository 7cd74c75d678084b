"""The page of an audit of words: whole, escaped, in two languages, and small however many words."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from torch import nn

from kexue.analysis.unargmaxable.words import WordsAudit, audit_words
from kexue.analysis.unargmaxable.words_summary import ranges, summary
from kexue.report.cloud import cloud_chart
from kexue.report.words_report import MOST, words_page, write_words_report

ABOUT = {"model": "models/gpt<b>2", "method": "auto", "box": None, "seconds": 1.5, "command": "x"}
ODD = ["<script>alert(1)</script>", "שלום", "a\\u202eb", "w" * 300, "明月", "&amp;", "\\n"]


def made(rows, bias=None, tokens=None, kinds=None, **options):
    """An audit of given rows under given names."""
    layer = nn.Linear(rows.shape[1], len(rows), bias=bias is not None)
    layer.weight.data = rows
    if bias is not None:
        layer.bias.data = bias
    found = audit_words(layer, **options)
    kinds = [""] * len(rows) if kinds is None else kinds
    return WordsAudit(found.head, found.report, found.boxed, tokens, kinds)


def many(inside, seed=0):
    """Four corners and words in the middle."""
    corners = torch.tensor([[9.0, 9], [9, -9], [-9, 9], [-9, -9]])
    generator = torch.Generator().manual_seed(seed)
    return torch.cat((corners, torch.rand(inside, 2, generator=generator)))


def figures(page):
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, flags=re.S)]


@pytest.fixture(scope="module")
def odd():
    """All odd tokens are hidden words, and corner tokens are names of the mix."""
    names = [*ODD[:4], *ODD]
    return summary(made(many(len(ODD)), tokens=names))


def test_the_page_shows_numbers_words_two_pictures_and_stages(odd):
    page = words_page(odd, ABOUT)
    assert len(figures(page)) == 2
    assert f"<b>{len(ODD)}</b>" in page
    for words in (
        "whitened probe",
        "白化探针",
        "Words that are never predicted",
        "永远预测不到的词",
    ):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_odd_tokens_are_escaped_isolated_and_cut(odd):
    page = words_page(odd, ABOUT)
    assert "<script>alert" not in page
    assert "<bdi>&lt;script&gt;alert(1)&lt;/script&gt;</bdi>" in page
    assert "<bdi>שלום</bdi>" in page
    assert "<bdi>&amp;amp;</bdi>" in page
    assert f"<bdi>{'w' * 39}…</bdi>" in page
    assert "gpt&lt;b&gt;2" in page


def test_five_thousand_words_make_a_small_page_that_says_what_it_left_out():
    few = summary(made(many(50), tokens=["x" * 60] * 54))
    found = few | {"hidden": few["hidden"] * 100, "bounds": few["bounds"] * 100}
    found["counts"] = few["counts"] | {"hidden": 5000}
    page = words_page(found, ABOUT)
    assert len(page.encode()) < 400_000
    assert f"{MOST} of 5,000 are listed; --out words.csv writes all" in page
    assert f"共 5,000 个，此处列出 {MOST} 个" in page
    assert page.count("<tr>") < MOST + 30


def test_the_summary_cuts_its_lists_and_not_its_counts():
    audit = made(many(50))
    found = summary(audit, 7)
    assert len(found["hidden"]) == 7
    assert found["counts"]["hidden"] == len(found["bounds"]) == 50
    assert found["hidden"] == summary(audit)["hidden"][:7]


def test_a_model_without_such_words_says_so():
    page = words_page(summary(made(torch.eye(6))), ABOUT)
    assert "No word with a row of its own is shut out." in page
    assert "没有哪个独占一行的词被挡在外面。" in page
    assert len(figures(page)) == 1
    assert "Ties and padding" not in page


def test_undecided_words_are_no_clean_result():
    page = words_page(summary(made(many(3), method="probe")), ABOUT)
    assert "shut out, as far as was decided." in page
    assert "Undecided" in page


def test_ties_padding_and_zeros_have_their_own_place():
    rows = torch.cat((many(2), many(2)[:1], torch.zeros(1, 2), torch.full((3, 2), 4.5)))
    kinds = [""] * 8 + ["padding"] * 3
    found = summary(made(rows, torch.zeros(11), [f"t{k}" for k in range(11)], kinds))
    assert [row["index"] for row in found["hidden"]] == [4, 5]
    assert [[one["index"] for one in tie["words"]] for tie in found["ties"]] == [[0, 6]]
    assert found["padding"] == [[8, 10]]
    assert [one["index"] for one in found["empty"]] == [7]
    page = words_page(found, ABOUT)
    for words in ("Same row", "没有对应词的行", "8–10", "Rows of zeros"):
        assert words in page


def test_of_the_same_row_the_one_with_the_largest_bias_can_win():
    rows = torch.cat((torch.eye(3), torch.eye(3)[:1]))
    found = summary(made(rows, torch.tensor([0.0, 0.0, 0.0, 1.0])))
    assert found["ties"][0]["wins"] == 3


def test_the_weaker_statement_has_its_own_heading():
    rows = torch.tensor([[1.0], [-1.0], [2.0]]) + 0.5
    found = summary(made(rows, torch.tensor([0.0, 0.0, -10.0]), box=5.0))
    page = words_page(found, ABOUT)
    assert found["counts"]["unreachable"] == 1
    assert found["counts"]["hidden"] == 0
    assert found["counts"]["can"] == 2
    assert "This is a weaker statement" in page
    assert "这是较弱的结论" in page


def test_rows_without_names_are_shown_by_number():
    assert "<code>#4</code>" in words_page(summary(made(many(2))), ABOUT)


def test_the_picture_counts_every_distinct_row_once():
    audit = made(torch.cat((many(30), many(1)[:2])))
    cloud = summary(audit)["cloud"]
    assert sum(count for _, _, count in cloud["cells"]) == 34
    assert len(cloud["dots"]) == len(audit.hidden) == 30
    for x, y in cloud["dots"]:
        assert cloud["x"][0] <= x <= cloud["x"][1]
        assert cloud["y"][0] <= y <= cloud["y"][1]


def test_rounding_alone_is_no_spread():
    cloud = summary(made(torch.eye(6)))["cloud"]
    assert cloud["y"][1] - cloud["y"][0] > 0.05


def test_stages_that_decided_nothing_are_left_out():
    page = words_page(summary(made(torch.eye(6))), ABOUT)
    assert "whitened probe" in page
    assert "linear program" not in page


def test_dots_lie_where_their_numbers_say():
    svg = cloud_chart(
        [[0, 0, 5]],
        [[0.0, 0.0], [1.0, 1.0]],
        x=[0, 1],
        y=[0, 1],
        grid=[2, 2],
        title="t",
        names=("all", "some"),
    )
    first, second = re.findall(r"M([\d.]+) ([\d.]+)h0", svg)
    assert float(first[0]) < float(second[0])
    assert float(first[1]) > float(second[1])
    assert "no data" in cloud_chart(
        [], [], x=[0, 1], y=[0, 1], grid=[2, 2], title="t", names=("all", "some")
    )


def test_layers_at_the_edge_are_drawn():
    for rows, bias in (
        (torch.zeros(3, 2), torch.tensor([0.0, 1.0, 2.0])),
        (torch.ones(2, 1), None),
        (torch.tensor([[1.0], [-1.0]]), None),
    ):
        page = words_page(summary(made(rows, bias)), ABOUT)
        assert page.rstrip().endswith("</html>")
        assert "nan" not in page.lower().replace("nancy", "")


def test_bounds_of_many_sizes_are_counted_completely():
    found = summary(made(many(40)))
    for bounds in ([0.2, 0.3], (10.0 ** -np.arange(40.0)).tolist(), [1e-5] * 7, [0.0, 0.5]):
        page = words_page(found | {"bounds": bounds}, ABOUT)
        bars = figures(page)[1]
        numbers = [one.text for one in bars.iter() if one.tag == "text" and one.get("fill")]
        counts = [int(n) for n in numbers if re.fullmatch(r"\d+", n or "")]
        assert sum(counts) == len(bounds), bounds


def test_ranges_are_runs_of_neighbours():
    assert ranges([]) == []
    assert ranges([1, 2, 3, 7, 9, 10]) == [[1, 3], [7, 7], [9, 10]]


def test_the_file_is_written_whole_into_new_folders(odd, tmp_path):
    path = write_words_report(tmp_path / "new" / "words.html", odd, ABOUT)
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [one.name for one in path.parent.iterdir()] == ["words.html"]
