"""How it was measured: protocol, counts, methods and configuration as the results file has them."""

import json
from collections.abc import Mapping
from typing import Any

from moon_jax.evaluation.page.html import Html, bdi, el, join
from moon_jax.evaluation.page.methods import color, label, short
from moon_jax.evaluation.page.results_file import Results

_VALUE_CHARACTERS = 400


def about(results: Results, notes: Mapping[str, Any]) -> Html:
    """Returns the section's inside.

    Args:
        results: of the evaluation.
        notes: what is to be said of the page itself, say pictures left out; zeros are passed over.
    """
    said = results.said
    cards = [
        _card("Protocol", said.get("protocol", {})),
        _card("Counts", said.get("counts", {})),
        _card("This evaluation", said.get("about", {})),
        _card("Validation loss", said.get("loss", {})),
        _card("This page", {name: value for name, value in notes.items() if value}),
    ]
    methods = [
        el(
            "details",
            el("summary", el("i", class_="swatch", style=color(method, results.methods)), bdi(label(method))),
            _pairs(said["methods"][method]),
        )
        for method in results.methods
        if isinstance(said.get("methods", {}).get(method), Mapping)
    ]
    config = json.dumps(said.get("config", {}), indent=2, ensure_ascii=False)
    return join(
        el("div", *cards, class_="cards"),
        join(el("h3", "Methods"), methods) if methods else None,
        el("details", el("summary", "Configuration"), el("pre", config, tabindex="0")) if said.get("config") else None,
    )


def _card(name: str, said: Any) -> Html | None:
    if not said:
        return None
    return el("div", el("h3", name), _pairs(said if isinstance(said, Mapping) else {name: said}), class_="card")


def _pairs(said: Mapping[str, Any]) -> Html:
    """Returns names and values; a mapping in a mapping becomes names with a dot."""
    rows = [join(el("dt", bdi(name.replace("_", " "))), el("dd", bdi(value))) for name, value in _flat(said)]
    return el("dl", *rows)


def _flat(said: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    out = []
    for name, value in said.items():
        if isinstance(value, Mapping):
            out += _flat(value, f"{before}{name} · ")
        else:
            out.append((f"{before}{name}", short(_text(value), _VALUE_CHARACTERS)))
    return out


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value)
