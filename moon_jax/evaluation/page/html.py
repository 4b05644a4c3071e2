"""HTML and SVG as text: every text and attribute is escaped unless it already is markup."""

import html
from collections.abc import Iterable

_EMPTY = frozenset({"meta", "br", "img", "circle", "line", "path", "polygon", "rect", "polyline"})  # no children
_REPLACEMENT = "\ufffd"


class Html(str):
    """Markup: text that goes into the page as it is."""

    __slots__ = ()


Number = int | float
Child = str | None | Iterable["Child"]


def el(name: str, /, *children: Child, **attributes: str | Number | bool | None) -> Html:
    """Returns an element.

    Args:
        name: of the element.
        children: markup (`Html`), text (escaped), nothing (None), or several of them.
        attributes: a trailing underscore is dropped and others become hyphens (`class_`, `data_tip`); None and False
            leave an attribute out, True gives one without a value; numbers are written short.
    """
    said = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _EMPTY:
        return Html(f"<{name}{said}>" if name in ("meta", "br", "img") else f"<{name}{said}/>")
    return Html(f"<{name}{said}>{''.join(_markup(child) for child in children)}</{name}>")


def join(*children: Child) -> Html:
    """Returns children one after the other, without an element around them."""
    return Html("".join(_markup(child) for child in children))


def bdi(text: str, **attributes: str | Number | bool | None) -> Html:
    """Returns a text of the data, whose writing direction does not reach beyond it."""
    return el("bdi", text, **attributes)


def number(value: Number) -> str:
    """Returns a coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def clean(text: str) -> str:
    """Returns a text without what HTML or UTF-8 cannot hold: control characters and halves of surrogate pairs."""
    if text.isprintable():
        return text
    return "".join(_REPLACEMENT if _forbidden(ord(c)) else c for c in text)


def _forbidden(code: int) -> bool:
    control = code < 32 or 127 <= code < 160
    return (control and code not in (9, 10)) or 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE


def _attribute(key: str, value: str | Number | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{html.escape(clean(value) if isinstance(value, str) else number(value))}"'


def _markup(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str):
        return html.escape(clean(child))
    return "".join(_markup(one) for one in child)
