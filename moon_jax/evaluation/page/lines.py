"""A line chart as SVG: few grid lines, labels at the ends of lines, values of one place on hover or by arrow keys."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence

import numpy as np

from moon_jax.evaluation.page.html import Html, Number, clean, el, number
from moon_jax.evaluation.page.methods import short

WIDTH, HEIGHT = 340, 220
_LEFT, _TOP, _BOTTOM = 34, 12, 26
_LABEL_PX, _LINE_PX = 6.1, 12  # of a character and of a line of labels
_FEW = 6  # points that are also drawn as dots


@dataclasses.dataclass(frozen=True)
class Series:
    """A line; `whiskers` are (x, low, high). NaN leaves a gap."""

    name: str
    x: Sequence[Number]
    y: Sequence[float]
    style: str  # declares --c
    class_: str = "mark own"
    whiskers: Sequence[tuple[Number, float, float]] = ()


@dataclasses.dataclass(frozen=True)
class Axes:
    """Scales of a chart.

    Attributes:
        x_ticks, y_ticks: where lines and numbers stand; the first and last y tick are the ends of the axis.
        log_x: logarithmic.
        x_name: below the axis, at its left end.
        show_x, show_y: numbers as text.
    """

    x_ticks: Sequence[Number]
    y_ticks: Sequence[Number]
    log_x: bool = False
    x_name: str = ""
    show_x: Callable[[Number], str] = "{:g}".format
    show_y: Callable[[Number], str] = "{:g}".format


def chart(title: str, series: Sequence[Series], axes: Axes, *, note: str = "", labels: bool = True) -> Html:
    """Returns a figure with a caption above and the lines below, the first series on top of the others.

    Args:
        title: of the figure.
        series: at least one.
        axes: scales.
        note: small, after the title.
        labels: names at the ends of the lines.
    """
    longest = max(len(short(one.name, 16)) for one in series)
    right = 10 + (_LABEL_PX * longest if labels else 2)
    xs = [x for one in series for x in one.x]
    x_of = _scale(min(xs), max(xs), _LEFT, WIDTH - right, axes.log_x)
    y_of = _scale(axes.y_ticks[0], axes.y_ticks[-1], HEIGHT - _BOTTOM, _TOP, False)
    drawn = [_grid(axes, x_of, y_of, WIDTH - right)]
    for one in reversed(series):
        drawn.append(el("g", *_line(one, x_of, y_of), class_=one.class_, style=one.style))
    if labels:
        drawn.append(_labels(series, x_of, y_of))
    drawn.append(el("line", class_="cross", x1=0, x2=0, y1=_TOP, y2=HEIGHT - _BOTTOM, visibility="hidden"))
    svg = el(
        "svg",
        *drawn,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        class_="lines",
        role="img",
        tabindex="0",
        aria_label=f"{title}. {_spoken(series, axes)}",
        data_hover=json.dumps(_hover(series, axes, x_of), ensure_ascii=False, separators=(",", ":")),
    )
    return el("figure", el("figcaption", title, el("small", note) if note else None), svg, class_="chart")


def nice_ticks(low: Number, high: Number, count: int = 4) -> list[float]:
    """Returns about `count` round numbers whose ends enclose low and high."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / count
    step = min((m * 10 ** math.floor(math.log10(raw)) for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(round(place * step, 12)) for place in range(first, last + 1)]


def _scale(low: Number, high: Number, start: Number, end: Number, log: bool) -> Callable[[Number], float]:
    f = math.log if log else float
    spread = f(high) - f(low) or 1.0
    return lambda value: start + (f(value) - f(low)) / spread * (end - start)


def _grid(axes: Axes, x_of: Callable, y_of: Callable, right: Number) -> Html:
    rows = [
        (
            el("line", x1=_LEFT, x2=right, y1=y_of(tick), y2=y_of(tick), class_="base" if place == 0 else "grid"),
            el("text", axes.show_y(tick), x=_LEFT - 6, y=y_of(tick) + 3.5, text_anchor="end"),
        )
        for place, tick in enumerate(axes.y_ticks)
    ]
    ticks = [
        el("text", axes.show_x(tick), x=x_of(tick), y=HEIGHT - _BOTTOM + 14, text_anchor="middle")
        for tick in axes.x_ticks
    ]
    name = el("text", axes.x_name, x=_LEFT - 6, y=HEIGHT - _BOTTOM + 14, text_anchor="end") if axes.x_name else None
    return el("g", rows, ticks, name, class_="axes", aria_hidden="true")


def _line(one: Series, x_of: Callable, y_of: Callable) -> list[Html]:
    parts, pen = [], "M"
    for x, y in zip(one.x, one.y, strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        parts.append(f"{pen}{number(x_of(x))} {number(y_of(y))}")
        pen = "L"
    out = [
        el("line", x1=x_of(x), x2=x_of(x), y1=y_of(low), y2=y_of(high), class_="whisker")
        for x, low, high in one.whiskers
    ]
    out.append(el("path", d="".join(parts), class_="line"))
    if len(one.x) <= _FEW:
        out += [
            el("circle", cx=x_of(x), cy=y_of(y), r=2.5, class_="dot")
            for x, y in zip(one.x, one.y, strict=True)
            if math.isfinite(y)
        ]
    return out


def _labels(series: Sequence[Series], x_of: Callable, y_of: Callable) -> Html:
    """Returns the names at the ends of the lines, moved apart where they would cover each other."""
    ends = []
    for one in series:
        finite = [(x, y) for x, y in zip(one.x, one.y, strict=True) if math.isfinite(y)]
        if finite:
            ends.append((y_of(finite[-1][1]), x_of(finite[-1][0]), one))
    places = spread_out([y for y, _, _ in ends], _LINE_PX, _TOP, HEIGHT - _BOTTOM + 4)
    texts = [
        el("text", short(one.name, 16), x=x + 6, y=place + 3.5, class_=f"{one.class_} label", style=one.style)
        for place, (_, x, one) in zip(places, ends, strict=True)
    ]
    return el("g", texts, aria_hidden="true")


def spread_out(wanted: Sequence[float], gap: Number, low: Number, high: Number) -> list[float]:
    """Returns places in the order of `wanted`, at least `gap` apart and as near to what is wanted as blocks allow.

    Neighbours that are too near become a block around their mean (pool adjacent violators); all stay between low and
    high if there is room.
    """
    order = np.argsort(wanted, kind="stable")
    gap = min(gap, (high - low) / max(len(order) - 1, 1))
    blocks: list[list[float]] = []  # [sum of (wanted - offset), count]
    for place, index in enumerate(order):
        blocks.append([wanted[index] - place * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    out = [0.0] * len(order)
    starts = [total / count for total, count in blocks for _ in range(int(count))]
    top = high - gap * (len(order) - 1)
    for place, (index, start) in enumerate(zip(order, starts, strict=True)):
        out[index] = float(min(max(start, low), top) + place * gap)
    return out


def _spoken(series: Sequence[Series], axes: Axes) -> str:
    last = [(one.name, [y for y in one.y if math.isfinite(y)]) for one in series]
    said = "; ".join(f"{name} ends at {axes.show_y(ys[-1])}" for name, ys in last if ys)
    return f"{said}. Arrow keys show values."


def _hover(series: Sequence[Series], axes: Axes, x_of: Callable) -> dict[str, object]:
    """Returns what the script shows: the places along x, and each series' value at those that it has, as text."""
    xs = sorted({x for one in series for x in one.x})
    rows = []
    for one in series:
        at = {x: y for x, y in zip(one.x, one.y, strict=True) if math.isfinite(y)}
        values = [axes.show_y(at[x]) if x in at else "" for x in xs]
        rows.append({"name": clean(one.name), "style": one.style, "values": values})
    name = f"{axes.x_name} " if axes.x_name else ""
    return {"x": [round(x_of(x), 2) for x in xs], "at": [name + axes.show_x(x) for x in xs], "rows": rows}
