"""How methods look: one colour each, the model's the strongest; and a legend that brings one out."""

import re
from collections.abc import Sequence

from moon_jax.evaluation.page.html import Html, bdi, el
from moon_jax.evaluation.page.results_file import MODEL

COLORS = 8  # --m1 ... of the style sheet; --m0 is the model
_NAMES = {MODEL: "this model"}


def label(method: str) -> str:
    """Returns the name to show."""
    return _NAMES.get(method, method.replace("_", " "))


def color(method: str, methods: Sequence[str]) -> str:
    """Returns the CSS colour of a method, as a declaration of `--c`."""
    place = methods.index(method)
    return f"--c:var(--m{place if place == 0 else (place - 1) % COLORS + 1})"


def key(method: str, methods: Sequence[str]) -> str:
    """Returns the class that the marks of a method carry: safe in a selector whatever the name."""
    return f"m-{methods.index(method)}"


def mark_class(method: str, methods: Sequence[str], *others: str) -> str:
    """Returns the classes of a mark: its method, and whether it is the model's."""
    return " ".join(("mark", key(method, methods), *(("own",) if method == methods[0] else ()), *others))


def legend(methods: Sequence[str], there: Sequence[str]) -> Html | None:
    """Returns the legend: buttons, of which a pressed one brings its method out in every figure.

    Args:
        methods: all of the page, the model first.
        there: those of the section; None is returned for a single one.
    """
    if len(there) < 2:
        return None
    buttons = [
        el(
            "button",
            el("i", class_="swatch"),
            bdi(label(method)),
            type="button",
            class_="key own" if place == 0 else "key",
            data_key=key(method, methods),
            aria_pressed="false",
            style=color(method, methods),
        )
        for place, method in enumerate(methods)
        if method in there
    ]
    note = el("small", "bar: 95 % interval · dotted: chance")
    return el("div", *buttons, note, class_="legend", role="group", aria_label="Bring a method out")


def percent(value: float) -> str:
    """Returns a share as a percentage with one decimal, without the sign."""
    return f"{100 * value:.1f}"


def short(text: str, width: int) -> str:
    """Returns a text of at most `width` characters, an ellipsis at its end if it was longer."""
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def tip_value(value: float, interval: tuple[float, float] | None = None) -> str:
    """Returns a measure with its interval, for a tooltip."""
    text = f"{percent(value)} %"
    return text if interval is None else f"{text}  ({percent(interval[0])} to {percent(interval[1])})"
