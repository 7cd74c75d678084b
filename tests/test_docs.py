import re
from pathlib import Path

import pytest

from kexue.systems import systems

ROOT = Path(__file__).resolve().parents[1]
READMES = (ROOT / "README.md", ROOT / "README.zh.md")
PAGES = [
    path
    for pattern in ("*.md", "docs/**/*.md", ".github/**/*.md")
    for path in sorted(ROOT.glob(pattern))
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(path: Path) -> str:
    """The page without its fenced code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)


def headings(path: Path) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", prose(path), flags=re.M)]


COMMANDS = {
    "find",
    "doctor",
    "clue",
    "pretrain",
    "shuffle",
    "leaderboard",
    "audit",
    "lab",
}


def commands(path: Path) -> set[str]:
    found = re.findall(r"\bkexue ([a-z]+)\b", path.read_text(encoding="utf-8"))
    return COMMANDS & set(found)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_both_readmes_name_the_same_commands_and_have_the_same_headings():
    english, chinese = READMES
    assert commands(english) == commands(chinese) == COMMANDS
    assert headings(english) == headings(chinese)


def test_both_readmes_show_the_same_commands_to_copy_apart_from_the_search_words():
    blocks = [
        re.findall(r"^```\w+\n(.*?)^```$", path.read_text(encoding="utf-8"), re.S | re.M)
        for path in READMES
    ]
    english, chinese = ([b for b in one if "kexue find" not in b] for one in blocks)
    assert english == chinese


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_page_has_its_twin_in_the_other_language(language: str):
    other = {"en": "zh", "zh": "en"}[language]
    pages = {path.name for path in (ROOT / "docs" / language).glob("*.md")}
    twins = {path.name for path in (ROOT / "docs" / other).glob("*.md")}
    assert pages
    assert pages <= twins


@pytest.mark.parametrize("path", sorted((ROOT / "docs/en").glob("*.md")), ids=name)
def test_twins_have_the_same_outline_and_the_same_tables(path: Path):
    twin = ROOT / "docs/zh" / path.name
    assert headings(path) == headings(twin)
    rows = [
        [line.count("|") for line in prose(p).split("\n") if line[:1] == "|"] for p in (path, twin)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("path", sorted((ROOT / "docs/en").glob("S*.md")), ids=name)
def test_twins_give_the_same_scores(path: Path):
    scores = [re.findall(r"\d+\.\d\d\b", prose(p)) for p in (path, ROOT / "docs/zh" / path.name)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_relative_link_leads_somewhere(path: Path):
    for target in LINK.findall(prose(path)):
        if not re.match(r"[a-z]+:|#", target):
            assert (path.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*/S*.md")), ids=name)
def test_a_system_page_cites_the_article_and_the_papers_of_its_row(path: Path):
    row = next(system for system in systems() if system.id == path.name[:3])
    text = prose(path)
    assert set(re.findall(r"kexue\.fm/archives/(\d+)", text)) >= set(row.article[:1])
    assert set(re.findall(r"arxiv\.org/abs/(\d{4}\.\d{5})", text)) == set(row.paper)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_fences_are_closed(path: Path):
    assert len(re.findall(r"^```", path.read_text(encoding="utf-8"), flags=re.M)) % 2 == 0


@pytest.mark.parametrize("path", READMES, ids=name)
def test_a_readme_says_how_to_report_install_and_work_offline(path: Path):
    text = path.read_text(encoding="utf-8")
    for words in ("make demo", 'pip install "kexue[nlp,lab]"', "HF_HUB_OFFLINE=1", "HF_ENDPOINT"):
        assert words in text


def test_the_bug_form_asks_for_version_device_code_and_doctor():
    text = (ROOT / ".github/ISSUE_TEMPLATE/bug.md").read_text(encoding="utf-8")
    for words in ("Version and device", "ten lines", "kexue doctor"):
        assert words in text
