"""A radar chart of all tasks (paper, Fig. 1): one polygon for each method, from 0 in the middle."""

import math
from collections.abc import Mapping, Sequence

from moon_jax.evaluation.page.dots import ceiling
from moon_jax.evaluation.page.html import Html, Number, el, number
from moon_jax.evaluation.page.methods import color, label, mark_class, percent

_WIDTH, _RADIUS = 460, 134
_CENTER = (_WIDTH / 2, 190)
_RINGS = 4


def radar(
    title: str, axes: Sequence[tuple[str, str]], values: Mapping[str, Sequence[float]], methods: Sequence[str]
) -> Html:
    """Returns the figure.

    Args:
        title: of the figure.
        axes: (name, measure) of each, clockwise from the top; three at least.
        values: by method, in the order of the axes, in [0, 1]; NaN where a method has none, and its polygon stays open.
        methods: all of the page, the model first.
    """
    top = ceiling([value for of in values.values() for value in of if math.isfinite(value)])
    drawn = [_web(len(axes), top)]
    spoken = []
    for method in (m for m in reversed(methods) if m in values):
        drawn.append(_polygon(method, values[method], methods, top))
        said = zip(axes, values[method], strict=True)
        spoken.insert(
            0, f"{label(method)}: " + ", ".join(f"{n} {percent(v)}" for (n, _), v in said if math.isfinite(v))
        )
    drawn += [
        _axis(place, len(axes), *axes[place], _tip(axes[place], place, values, methods)) for place in range(len(axes))
    ]
    aria = f"{title}. {'; '.join(spoken)}"
    bottom = max(_at(place, len(axes), 1.1)[1] for place in range(len(axes))) + 34
    svg = el("svg", *drawn, viewBox=f"0 0 {_WIDTH} {number(bottom)}", class_="radar", role="img", aria_label=aria)
    return el("figure", el("figcaption", title), svg, class_="chart")


def _at(place: int, count: int, share: Number) -> tuple[float, float]:
    angle = 2 * math.pi * place / count - math.pi / 2
    return _CENTER[0] + _RADIUS * share * math.cos(angle), _CENTER[1] + _RADIUS * share * math.sin(angle)


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{number(x)},{number(y)}" for x, y in places)


def _web(count: int, top: float) -> Html:
    rings = []
    for ring in range(1, _RINGS + 1):
        points = _points([_at(place, count, ring / _RINGS) for place in range(count)])
        rings.append(el("polygon", points=points, class_="base" if ring == _RINGS else "grid"))
    spokes = []
    for place in range(count):
        x, y = _at(place, count, 1.0)
        spokes.append(el("line", x1=_CENTER[0], y1=_CENTER[1], x2=x, y2=y, class_="grid"))
    ticks = [
        el(
            "text",
            percent(top * ring / _RINGS).removesuffix(".0"),
            x=_CENTER[0] + 4,
            y=_CENTER[1] - _RADIUS * ring / _RINGS + 10,
        )
        for ring in (2, 4)
    ]
    return el("g", rings, spokes, ticks, class_="axes", aria_hidden="true")


def _polygon(method: str, values: Sequence[float], methods: Sequence[str], top: float) -> Html:
    places = [
        _at(place, len(values), min(value / top, 1)) if math.isfinite(value) else None
        for place, value in enumerate(values)
    ]
    there = [place for place in places if place is not None]
    whole = len(there) == len(places)
    shape = el("polygon", points=_points(there), class_="area") if whole else _open_lines(places)
    dots = [el("circle", cx=x, cy=y, r=4 if method == methods[0] else 2.5, class_="dot") for x, y in there]
    return el("g", shape, dots, class_=mark_class(method, methods), style=color(method, methods))


def _open_lines(places: Sequence[tuple[float, float] | None]) -> list[Html]:
    pairs = zip(places, [*places[1:], places[0]], strict=True)
    return [el("line", x1=a[0], y1=a[1], x2=b[0], y2=b[1], class_="line") for a, b in pairs if a and b]


def _axis(place: int, count: int, name: str, measure: str, tip: str) -> Html:
    x, y = _at(place, count, 1.1)
    side = x - _CENTER[0]
    anchor = "middle" if abs(side) < 20 else "start" if side > 0 else "end"
    y += {True: -8, False: 4}[y < _CENTER[1] - _RADIUS] + (6 if y > _CENTER[1] + 60 else 0)
    lines = [el("tspan", name, x=x, class_="name"), el("tspan", measure, x=x, dy=15, class_="measure")]
    if y < _CENTER[1] - _RADIUS:
        y -= 9
    return el("text", *lines, x=x, y=y, text_anchor=anchor, class_="axis-name", data_tip=tip)


def _tip(axis: tuple[str, str], place: int, values: Mapping[str, Sequence[float]], methods: Sequence[str]) -> str:
    there = [(method, values[method][place]) for method in methods if method in values]
    return "\n".join([" ".join(axis), *(f"{label(m)}\t{percent(v)} %" for m, v in there if math.isfinite(v))])
