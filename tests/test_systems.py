import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from kexue.systems import System, find, systems

ROOT = Path(__file__).resolve().parents[1]
DONE = [pytest.param(system, id=system.id) for system in systems() if system.done]


def best(text: str) -> str:
    return find(text)[0].id


def test_there_are_38_systems_with_consecutive_ids():
    assert [system.id for system in systems()] == [f"S{n:02d}" for n in range(1, 39)]


@pytest.mark.parametrize("system", systems(), ids=lambda system: system.id)
def test_every_row_is_filled_in_both_languages(system: System):
    assert system.status in {"done", "planned"}
    assert system.module
    assert system.test
    assert system.lab
    for text in (system.title_en, system.title_zh, system.summary_en, system.summary_zh):
        assert text.strip() == text != ""
        assert "\n" not in text
        assert "|" not in text  # the index pages are Markdown tables
    assert system.keywords_en
    assert system.keywords_zh
    assert all(number.isdigit() for number in system.article)
    assert Path(system.docs_en).name == Path(system.docs_zh).name
    assert Path(system.docs_en).name.startswith(system.id)
    assert all(name.startswith(system.id) for name in system.lab)


def test_pages_and_experiments_belong_to_one_system_each():
    for values in ([s.docs_en for s in systems()], [name for s in systems() for name in s.lab]):
        assert len(values) == len(set(values))


@pytest.mark.parametrize("system", DONE)
def test_a_system_marked_done_has_modules_tests_and_pages(system: System):
    for module in system.module:
        assert importlib.util.find_spec(f"kexue.{module}") is not None, module
    for path in (*system.test, system.docs_en, system.docs_zh):
        assert (ROOT / path).exists(), path
    for path in system.test:
        if (ROOT / path).is_dir():
            assert list((ROOT / path).glob("test_*.py")), path


@pytest.mark.parametrize("system", DONE)
def test_a_system_marked_done_has_its_experiments(system: System):
    from kexue.lab import experiments

    known = {experiment.id for experiment in experiments()}
    assert set(system.lab) <= known


@pytest.mark.parametrize("text", ["S07", "s07", "s7", "S7", " s7 ", "Ｓ７"])
def test_an_id_finds_its_system_alone_however_it_is_written(text: str):
    assert [system.id for system in find(text)] == ["S07"]


@pytest.mark.parametrize(
    "text", ["8739", "https://kexue.fm/archives/8739", "kexue.fm/archives/8739#head", "８７３９"]
)
def test_an_article_is_found_by_number_or_address(text: str):
    assert [system.id for system in find(text)] == ["S01"]


@pytest.mark.parametrize(
    "text", ["2107.01152", "arXiv:2107.01152", "https://arxiv.org/abs/2107.01152v2"]
)
def test_a_paper_is_found_by_its_arxiv_id(text: str):
    assert [system.id for system in find(text)] == ["S03"]


@pytest.mark.parametrize(
    "text", ["losses.flat_nce", "kexue.losses.flat_nce", "flat_nce", "FlatNCE"]
)
def test_a_module_is_found_by_its_name(text: str):
    assert best(text) == "S03"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("熵不变", "S07"),
        ("长度外推", "S07"),
        ("log n", "S07"),
        ("类别不平衡", "S37"),
        ("class imbalance", "S37"),
        ("an optimizer with little state", "S29"),
        ("tiger优化器", "S29"),
        ("事件抽取", "S17"),
        ("event extraction", "S17"),
        ("《训练1000层的Transformer究竟有什么困难？》", "S19"),
        ("打乱", "S09"),
        ("CLUE", "S01"),
        ("成语", "S01"),
    ],
)
def test_a_role_or_a_problem_finds_the_method_in_both_languages(text: str, wanted: str):
    assert best(text) == wanted


@pytest.mark.parametrize("system", systems(), ids=lambda system: system.id)
def test_every_system_is_the_first_hit_for_its_own_titles(system: System):
    assert best(system.title_en) == system.id
    assert best(system.title_zh) == system.id


def test_a_role_finds_every_system_that_plays_it():
    assert {"S29", "S32", "S33"} <= {system.id for system in find("optimizer")}
    assert {"S29", "S32", "S33"} <= {system.id for system in find("优化器")}


@pytest.mark.parametrize("text", ["S99", "1234", "zzzzz", "没有这个方法"])
def test_what_is_not_there_is_not_found(text: str):
    assert find(text) == []


@pytest.mark.parametrize("text", ["", "  ", "《》"])
def test_an_empty_query_is_refused(text: str):
    with pytest.raises(ValueError, match="give a word"):
        find(text)


def test_the_index_needs_nothing_but_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import kexue.systems as s; s.find('clue');"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names) - {'kexue'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_index_pages_are_fresh():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/build_index.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
