"""HTML from Python values, where whatever is not marked as HTML is escaped.

    tag("p", "a < b", class_="note")   →   <p class="note">a &lt; b</p>

`Html` marks text that is already safe; every other value goes through `html.escape`, so text of a
data set can never become markup.
"""

from collections.abc import Iterable
from html import escape

__all__ = ["Html", "bilingual", "join", "safe", "tag"]

VOID = frozenset({"br", "col", "hr", "img", "input", "meta"})
"""Elements of HTML that have no content and no end."""


class Html(str):
    """Text that is markup already and is put on a page as it is."""

    __slots__ = ()

    def __add__(self, other: object) -> "Html":
        """Append a value, escaped unless it is markup."""
        return Html(str.__add__(self, safe(other)))


def safe(value: object) -> Html:
    """The value as HTML text: markup stays, None is empty, everything else is escaped.

    Example:
        >>> safe("<script>")
        '&lt;script&gt;'
    """
    if isinstance(value, Html):
        return value
    return Html("" if value is None else escape(str(value), quote=True))


def join(values: Iterable[object], separator: str = "") -> Html:
    """All values as HTML, one after the other."""
    return Html(safe(separator).join(safe(value) for value in values))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """One element. `class_` is `class`, `stroke_width` is `stroke-width`; None leaves one out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{safe(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(children)}</{name}>")


def bilingual(en: object, zh: object) -> Html:
    """The same words in both languages; the page shows the one its reader chose.

    Example:
        >>> bilingual("score", "分数")
        '<span lang="en">score</span><span lang="zh">分数</span>'
    """
    return tag("span", en, lang="en") + tag("span", zh, lang="zh")
