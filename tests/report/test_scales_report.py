"""The page of an audit: whole, escaped, in two languages, also where numbers are not finite."""

import re
import xml.etree.ElementTree as ET

import pytest
import torch
from torch import nn

from kexue.analysis.scales import audit_scales
from kexue.report.module_groups import grouped, short
from kexue.report.scales_report import scales_page, write_scales_report

ABOUT = {"model": "models/bert<b>", "loss": "masked-token cross-entropy", "seed": 0}


def stack(layers=12):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 64, 0.0, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


@pytest.fixture(scope="module")
def audit():
    return audit_scales(stack(), torch.randn(2, 6, 16)).as_json()


def figures(page):
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, flags=re.S)]


def test_the_page_shows_four_pictures_and_every_module(audit):
    page = scales_page(audit, ABOUT)
    assert len(figures(page)) == 4
    assert all(one["name"] in page for one in audit["rows"])
    assert "layers.*.linear1" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_page_speaks_both_languages_and_escapes_what_it_is_given(audit):
    page = scales_page(audit, ABOUT)
    for words in ("Audit of scales", "尺度体检", "Findings", "发现", "掩码预测的交叉熵"):
        assert words in page
    assert "bert&lt;b&gt;" in page
    assert "bert<b>" not in page
    for finding in audit["findings"]:
        assert finding["zh"] in page


def test_both_lines_of_the_identity_path_are_drawn_for_fresh_weights_alone(audit):
    def lines(found):
        page = scales_page(found, ABOUT)
        return len([one for one in figures(page)[2].iter() if one.tag == "path"])

    assert lines(audit) == 2
    assert lines(audit | {"fresh": False}) == 1
    assert lines(audit | {"formula": None}) == 1


def test_numbers_that_are_not_finite_are_shown_and_left_out_of_the_pictures():
    model = stack(2)
    model.layers[1].linear2.weight.data[0, 0] = torch.inf
    page = scales_page(audit_scales(model, torch.randn(2, 6, 16)).as_json(), ABOUT)
    assert len(figures(page)) == 4
    assert "出现 NaN 或无穷大" in page
    assert ">inf<" in page


def test_nothing_suspicious_is_said_in_words(audit):
    assert "Nothing suspicious was found" in scales_page(audit | {"findings": []}, ABOUT)


def test_groups_run_from_the_first_block_to_the_last(audit):
    groups = {one.name: one for one in grouped(audit["rows"])}
    assert groups["layers.*.linear1"].count == 12
    rows = [one for one in audit["rows"] if one["name"].endswith("linear1")]
    first, last = short(rows[0]["gradient"], 2), short(rows[-1]["gradient"], 2)
    assert groups["layers.*.linear1"].gradient == f"{first} → {last}"
    assert groups["layers.*.norm1"].gain == "1"
    assert groups["layers.*.norm1"].ratio == "—"
    assert sum(one.count for one in groups.values()) == len(audit["rows"])


def test_the_file_is_written_whole_into_new_folders(audit, tmp_path):
    path = write_scales_report(tmp_path / "new" / "report.html", audit, ABOUT)
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]
