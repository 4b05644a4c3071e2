"""A dot plot in HTML: a row for each thing, a dot for each method on one scale, the model's interval as a bar."""

import dataclasses
from collections.abc import Mapping, Sequence

from moon_jax.evaluation.page.html import Html, bdi, el
from moon_jax.evaluation.page.methods import color, label, mark_class, percent, tip_value
from moon_jax.evaluation.page.results_file import Row


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of the plot: a name, a remark, one results row of each method that has it, and the head of its group."""

    name: str
    note: str
    rows: Mapping[str, Row]
    measure: str
    head: str = ""


def plot(title: str, lines: Sequence[Line], methods: Sequence[str], *, top: float = 1.0, note: str = "") -> Html | None:
    """Returns the figure; None without lines.

    Args:
        title: of the figure.
        lines: from top to bottom.
        methods: all of the page, the model first; its value stands at the right.
        top: right end of the scale, in [0, 1].
        note: small, after the title.
    """
    if not lines:
        return None
    ticks = [
        el("span", percent(tick).removesuffix(".0"), style=f"left:{100 * tick / top:.2f}%") for tick in _ticks(top)
    ]
    scale = el(
        "div", el("span"), el("div", *ticks, class_="ticks"), el("span"), class_="dots-scale", aria_hidden="true"
    )
    rows = []
    for place, line in enumerate(lines):
        if line.head and (place == 0 or line.head != lines[place - 1].head):
            rows.append(el("h4", line.head.replace("_", " ")))
        rows.append(_line(line, methods, top))
    head = el("figcaption", title, el("small", note) if note else None)
    return el("figure", head, el("div", *rows, scale, class_="dots"), class_="chart")


def ceiling(values: Sequence[float]) -> float:
    """Returns the right end of a scale for values in [0, 1]: a multiple of 0.1 that encloses them, at least 0.2."""
    return min(1.0, max(0.2, -(-round(max(values, default=1.0) * 1000) // 100) / 10))


def _ticks(top: float) -> list[float]:
    step = 0.25 if top > 0.75 else 0.2 if top > 0.5 else 0.1
    return [round(step * place, 4) for place in range(int(top / step + 1e-9) + 1)]


def _line(line: Line, methods: Sequence[str], top: float) -> Html:
    marks, tips = [], [line.name + (f" ({line.note})" if line.note else "")]
    for method in reversed(methods):  # the model is drawn last
        row = line.rows.get(method)
        if row is None or line.measure not in row.measures:
            continue
        value, style = row.measures[line.measure], color(method, methods)
        interval = row.intervals.get(line.measure)
        if interval and method == methods[0]:
            low, high = (100 * min(end, top) / top for end in interval)
            marks.append(
                el(
                    "i",
                    class_=mark_class(method, methods, "range"),
                    style=f"{style};left:{low:.2f}%;width:{high - low:.2f}%",
                )
            )
        marks.append(el("i", class_=mark_class(method, methods, "dot"), style=f"{style};left:{100 * value / top:.2f}%"))
        tips.insert(1, f"{label(method)}\t{tip_value(value, interval)}")
    chance = [row.chance[line.measure] for row in line.rows.values() if line.measure in row.chance][:1]
    if chance:
        marks.insert(0, el("i", class_="chance", style=f"left:{100 * min(chance[0] / top, 1):.2f}%"))
        tips.append(f"chance\t{tip_value(chance[0])}")
    own = line.rows.get(methods[0])
    value = percent(own.measures[line.measure]) if own and line.measure in own.measures else ""
    name = el("span", bdi(line.name), el("small", line.note) if line.note else None, class_="dots-name")
    spoken = "; ".join(tip.replace("\t", " ") for tip in tips)
    track = el("div", *marks, class_="track")
    value = el("span", value, class_="dots-value")
    return el(
        "div",
        name,
        track,
        value,
        class_="dots-row",
        tabindex="0",
        role="img",
        aria_label=spoken,
        data_tip="\n".join(tips),
    )
