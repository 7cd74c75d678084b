"""The folder's names come when they are asked for, and are what their files define."""

import pickle
import subprocess
import sys
from importlib import import_module

import pytest

import kexue.analysis


@pytest.mark.parametrize("name", kexue.analysis.__all__)
def test_every_name_is_the_one_of_its_file_and_can_be_pickled(name):
    found = getattr(kexue.analysis, name)
    home = import_module(f"kexue.analysis.{kexue.analysis.HOMES[name]}")
    assert found is getattr(home, name)
    assert pickle.loads(pickle.dumps(found)) is found


def test_there_is_a_file_for_every_name_and_no_other():
    assert sorted(kexue.analysis.HOMES) == kexue.analysis.__all__
    with pytest.raises(AttributeError, match=r"module 'kexue\.analysis' has no attribute 'none'"):
        kexue.analysis.none  # noqa: B018


def test_the_folder_and_its_score_tables_do_not_wait_for_torch():
    code = "import kexue.analysis.leaderboard, sys; print({'torch', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
