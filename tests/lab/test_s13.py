"""S13-ranks: the numbers, a verdict that can come out either way, and the control."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from kexue.analysis.leaderboard import Leaderboard, built_in
from kexue.lab import s13_ranks
from kexue.lab.experiment import Verdict
from kexue.lab.s13_ranks import HumanRanks


@pytest.fixture(scope="module")
def found():
    return s13_ranks.human_ranks()


def test_human_is_first_where_the_columns_make_it_so_and_nowhere_else(found):
    assert found.superglue == (8, 8, 10)
    assert found.glue == (3, 3, 3)
    assert found.glue_mixed == (2, 1, 1)
    assert found.superglue_diagnostics == (1, 1, 1)


def test_the_verdict_follows_the_ranks(found):
    assert s13_ranks.verdict(found) is Verdict.HOLDS
    by_mean = replace(found, superglue=(8, 1, 1))
    assert s13_ranks.verdict(by_mean) is Verdict.PARTLY
    no_columns = replace(found, glue_mixed=(3, 3, 3))
    assert s13_ranks.verdict(no_columns) is Verdict.PARTLY
    neither = HumanRanks((8, 1, 1), (3, 3, 3), (3, 3, 3), (2, 2, 2))
    assert s13_ranks.verdict(neither) is Verdict.FAILS


def test_shuffled_columns_put_every_name_first_equally_often():
    board = Leaderboard.read(built_in("superglue"))
    share = s13_ranks.control(board, seed=1, shuffles=1500)
    assert share == pytest.approx(1 / 12, abs=4 * np.sqrt(1 / 12 / 1500))


def test_the_experiment_runs_and_draws_two_pictures():
    finding = s13_ranks.EXPERIMENT.run(seed=0)
    assert finding.numbers["Human on SuperGLUE, AM / GM / HM"] == "8 / 8 / 10"
    assert finding.numbers["Human by Borda"] == 4
    assert set(finding.names_zh) == set(finding.numbers)
    pictures = re.findall(r"<svg.*?</svg>", finding.figure, flags=re.S)
    assert len([ET.fromstring(one) for one in pictures]) == 2
    assert finding.as_json()["verdict"] == "holds"
    assert s13_ranks.EXPERIMENT.run(seed=0).numbers == finding.numbers
