"""The shared look of every page: one self-contained HTML file in English and Chinese.

    atomic_write_text(path, page("CLUE", header("CLUE") + section("Scores", table(…))))

Nothing is loaded from elsewhere: style, script and pictures are inside. Text is escaped unless it
is `Html` (see `markup`). A reader switches the language with two buttons; the browser's language is
the first choice.
"""

from collections.abc import Iterable, Sequence

from kexue.report.markup import Html, bilingual, join, safe, tag
from kexue.report.style import STYLE

__all__ = [
    "Html",
    "badge",
    "bilingual",
    "contents",
    "details",
    "facts",
    "figure",
    "header",
    "headline",
    "join",
    "note",
    "page",
    "safe",
    "section",
    "table",
    "tag",
]

SCRIPT = """
(function () {
  var root = document.documentElement;
  var chosen = null;
  try { chosen = localStorage.getItem("kexue-language"); } catch (error) {}
  if (!chosen) chosen = /^zh/i.test(navigator.language || "") ? "zh" : "en";
  ["en", "zh"].forEach(function (language) {
    var button = document.getElementById("language-" + language);
    button.checked = language === chosen;
    if (button.checked) root.lang = language;
    button.addEventListener("change", function () {
      root.lang = language;
      try { localStorage.setItem("kexue-language", language); } catch (error) {}
    });
  });
})();
"""


def page(title: str, body: object, *, footer: object = "kexue 科学") -> Html:
    """A whole HTML file.

    Args:
        title: the name in the browser's tab, plain text.
        body: what is on the page, usually `header(…) + section(…) + …`.
        footer: the line at the end.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    content = tag(
        "body", _language_switch(), tag("main", body, tag("footer", footer)), _script(SCRIPT)
    )
    return Html("<!doctype html>\n") + tag("html", head, content, lang="en") + "\n"


def _language_switch() -> Html:
    def choice(language: str, name: str, checked: str | None) -> Html:
        button = tag(
            "input", type="radio", name="language", id=f"language-{language}", checked=checked
        )
        return tag("label", button, name)

    return tag("div", choice("en", "English", ""), choice("zh", "中文", None), class_="language")


def _script(code: str) -> Html:
    return tag("script", Html(code))


def header(title: object, *, eyebrow: object = None, lead: object = None) -> Html:
    """The page's title with a word above it and a sentence below it."""
    return tag(
        "header",
        tag("p", eyebrow, class_="eyebrow") if eyebrow else "",
        tag("h1", title),
        tag("p", lead, class_="lead") if lead else "",
    )


def headline(numbers: Iterable[tuple[object, object]]) -> Html:
    """A few big numbers, each with what it is."""
    return tag(
        "div",
        *(
            tag("div", tag("b", number), tag("span", what, class_="what"))
            for number, what in numbers
        ),
        class_="headline",
    )


def contents(links: Iterable[tuple[str, object]]) -> Html:
    """Links to the parts of this page, as (id, words)."""
    return tag(
        "nav", *(tag("a", words, href=f"#{anchor}") for anchor, words in links), class_="contents"
    )


def section(title: object, *content: object, id: str | None = None) -> Html:
    """A part of the page under its title."""
    return tag("section", tag("h2", title), *content, id=id)


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    align: str = "",
    wide: bool = False,
    named: bool = True,
) -> Html:
    """A table; empty without rows.

    Args:
        head: the names of the columns.
        rows: the cells.
        align: a letter per column, `l` or `r`; numbers go right. Left for what is missing.
        wide: as wide as the page.
        named: the first cell of a row is its name.
    """
    sides = align.ljust(len(head), "l")

    def line(cells: Sequence[object], kinds: Sequence[str]) -> Html:
        return tag(
            "tr",
            *(
                tag(kind, cell, class_="r" if side == "r" else None)
                for cell, kind, side in zip(cells, kinds, sides, strict=True)
            ),
        )

    kinds = ["th" if named else "td"] + ["td"] * (len(head) - 1)
    body = [line(row, kinds) for row in rows]
    if not body:
        return Html()
    whole = tag(
        "table",
        tag("thead", line(head, ["th"] * len(head))),
        tag("tbody", *body),
        class_="wide" if wide else None,
    )
    return tag("div", whole, class_="scroll")


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """Names and values, one pair per line."""
    return tag("dl", *(tag("dt", name) + tag("dd", value) for name, value in pairs), class_="facts")


def figure(picture: Html, caption: object = None) -> Html:
    """A picture in its frame, with words below."""
    return tag("figure", picture, tag("figcaption", caption) if caption else "")


def note(*content: object, kind: str = "") -> Html:
    """A marked remark; `kind` is empty, `warn` or `bad`."""
    return tag("div", *content, class_=f"note {kind}".strip())


def badge(words: object, kind: str = "") -> Html:
    """A short coloured label; `kind` is empty, `good`, `warn` or `bad`."""
    return tag("span", words, class_=f"badge {kind}".strip())


def details(summary: object, *content: object, open: bool = False) -> Html:
    """Content that opens on a click."""
    return tag("details", tag("summary", summary), *content, open="" if open else None)
