"""Pages: self-contained, in two languages, with everything escaped."""

from html.parser import HTMLParser

import pytest

from kexue.report.page import (
    Html,
    bilingual,
    details,
    facts,
    figure,
    header,
    note,
    page,
    safe,
    section,
    table,
    tag,
)

VOID = {"meta", "input", "br", "hr", "img", "link", "circle"}
EVIL = '<script>alert("x")</script>'


class Checker(HTMLParser):
    """Elements are closed in the order in which they were opened; nothing is loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.scripts, self.languages = [], 0, set()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.scripts += tag == "script"
        self.languages.add(given.get("lang"))
        assert "src" not in given
        assert given.get("href", "#").startswith("#")
        assert tag != "link"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def check(text):
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


def full_page():
    body = header(bilingual("T", "题"), eyebrow=EVIL, lead=EVIL)
    body += section(EVIL, table([EVIL, "n"], [[EVIL, 1], ["b", 2.5]], align="lr"), id="a")
    body += note(EVIL) + facts([(EVIL, EVIL)]) + details(EVIL, EVIL)
    return page(EVIL, body + figure(tag("svg"), EVIL))


def test_a_page_is_closed_loads_nothing_and_speaks_two_languages():
    text = full_page()
    assert {"en", "zh"} <= check(text).languages
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_text_never_becomes_markup():
    text = full_page()
    assert check(text).scripts == 1  # the page's own
    assert EVIL not in text
    assert safe(EVIL) in text


def test_attributes_cannot_be_left():
    assert tag("p", id='"><script>') == '<p id="&quot;&gt;&lt;script&gt;"></p>'


def test_markup_stays_and_everything_else_is_escaped():
    assert safe(Html("<b>")) == "<b>"
    assert safe("<b>") == "&lt;b&gt;"
    assert safe(None) == ""
    assert Html("<b>") + "<i>" == "<b>&lt;i&gt;"


def test_both_languages_are_in_the_page_and_the_style_hides_one():
    text = page("t", bilingual("score", "分数"))
    assert '<span lang="en">score</span><span lang="zh">分数</span>' in text
    assert 'html:has(#language-zh:checked) [lang="en"] { display: none; }' in text


def test_a_table_aligns_numbers_and_names_its_rows():
    text = table(["a", "b"], [["x", 1]], align="lr")
    assert '<th>x</th><td class="r">1</td>' in text
    assert table(["a"], []) == ""


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        table(["a", "b"], [["x"]])
