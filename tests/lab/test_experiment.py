"""Experiments: found by their modules, described in two languages."""

import re

import pytest

from kexue.lab import Finding, Verdict, experiments
from kexue.lab.experiment import discover


def test_every_experiment_is_described_in_both_languages():
    for one in experiments():
        assert re.fullmatch(r"S\d\d-[a-z0-9-]+", one.id)
        assert one.id.startswith(one.system)
        assert one.title_en
        assert one.claim_en
        assert one.published
        for chinese in (one.title_zh, one.claim_zh):
            assert re.search(r"[\u4e00-\u9fff]", chinese)


def test_every_verdict_has_words_in_both_languages():
    assert Verdict.HOLDS.zh == "成立"
    assert len({verdict.zh for verdict in Verdict}) == len(Verdict)


def test_a_finding_becomes_plain_values():
    finding = Finding({"a": 1.5}, "<svg></svg>", Verdict.PARTLY, "en", "zh")
    assert finding.as_json()["verdict"] == "holds partly"
    assert finding.as_json()["numbers"] == {"a": 1.5}


def test_two_experiments_of_one_name_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "twins"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("s01_a", "s02_b"):
        (package / f"{name}.py").write_text("from kexue.lab.s01_windows import EXPERIMENT\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="two experiments are called 'S01-windows'"):
        discover("twins")
