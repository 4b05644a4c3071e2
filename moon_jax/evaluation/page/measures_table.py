"""The tables of a task: as in the paper, a row for each method; and all rows with all measures."""

import re
from collections.abc import Sequence

from moon_jax.evaluation.page.html import Html, bdi, el, join
from moon_jax.evaluation.page.methods import color, label, percent, tip_value
from moon_jax.evaluation.page.results_file import Results, Row
from moon_jax.evaluation.page.table import Cell, Column, table

_FEW = 10  # columns that have room for the half width of an interval
_RANKS = ("first", "second", "third")  # classes of the style sheet


def paper_table(rows: Sequence[Row], measures: Sequence[str], results: Results, name: str) -> Html:
    """Returns a row for each set and method, and columns for each modality x measure (paper, tables 1 to 3).

    Args:
        rows: of whole tasks, one for each set, modality and method.
        measures: those that are shown; what no row has is left out.
        results: for the order of things.
        name: for screen readers.
    """
    found = {(row.set, row.method, row.modality): row for row in rows}
    sets, modalities = (results.values(rows[0].task, field) for field in ("set", "modality"))
    shown = [(modality, m) for modality in modalities for m in measures if any(
        row.modality == modality and m in row.measures for row in rows)]  # fmt: skip
    columns = [Column("method", text=True), *([Column("set", text=True)] if len(sets) > 1 else [])]
    columns += [Column(_head(measure), modality) for modality, measure in shown]
    places, body = _places(rows, measures), []
    for set_name in sets:
        for method in results.methods:
            of_method = [found.get((set_name, method, modality)) for modality, _ in shown]
            if not any(of_method):
                continue
            cells = [_method(method, results), *([Cell(set_name, set_name)] if len(sets) > 1 else [])]
            for row, (_, measure) in zip(of_method, shown, strict=True):
                place, few = places.get((id(row), measure)), len(shown) <= _FEW
                cells.append(Cell(None, None) if row is None else _measure(row, measure, place, half=few, tip=True))
            body.append(cells)
    return table(columns, body, name)


def measures_table(rows: Sequence[Row], results: Results, name: str) -> Html:
    """Returns a row for each row of the results: what differs between them, their macro measures and counts.

    Measures weighted by the support of the classes, and intervals, are in results.json alone.

    Args:
        rows: of one task.
        results: for the order of methods.
        name: for screen readers.
    """
    texts = {
        "set": lambda row: row.set,
        "part": lambda row: row.part or "all",
        "input": lambda row: row.modality,
        **{
            key: lambda row, key=key: row.by.get(key, "all") for key in dict.fromkeys(k for row in rows for k in row.by)
        },
    }
    texts = {head: of for head, of in texts.items() if len({of(row) for row in rows}) > 1}
    measures = sorted({name for row in rows for name in row.measures if not name.startswith("weighted_")}, key=_order)
    chance = next((name for name in measures if any(name in row.chance for row in rows)), None)
    numbers = {"queries": lambda row: row.queries}
    numbers["gallery" if rows[0].task == "retrieval" else "classes"] = lambda row: row.of
    if any(row.lacking for row in rows):
        numbers["lacking"] = lambda row: row.lacking
    columns = [
        Column("method", text=True),
        *(Column(head, text=True) for head in texts),
        *map(Column, map(_head, measures)),
    ]
    columns += [*map(Column, numbers), *([Column(f"chance {_head(chance)}")] if chance else [])]
    places, body = _places(rows, measures), []
    orders = (results.values(rows[0].task, "set"), results.values(rows[0].task, "modality"), results.methods)
    for row in sorted(rows, key=lambda row: _place_of(row, orders)):
        cells = [_method(row.method, results), *(Cell(bdi(of(row)), of(row)) for of in texts.values())]
        cells += [_measure(row, measure, places.get((id(row), measure)), half=False, tip=False) for measure in measures]
        cells += [Cell(None if (value := of(row)) is None else f"{value:,}", value) for of in numbers.values()]
        if chance:
            value = row.chance.get(chance)
            cells.append(Cell(None if value is None else f"{100 * value:.2g}", value, "muted"))
        body.append(cells)
    return table(columns, body, name)


def folded(rows: Sequence[Row], results: Results, what: str) -> Html | None:
    """Returns `measures_table` behind a line that opens it; None without rows."""
    if not rows:
        return None
    return el(
        "details", el("summary", f"All {len(rows):,} rows {what}"), measures_table(rows, results, f"All rows {what}")
    )


def _place_of(row: Row, orders: Sequence[Sequence[str]]) -> tuple:
    at = [order.index(value) for order, value in zip(orders, (row.set, row.modality, row.method), strict=True)]
    return at[0], row.part or "", tuple(sorted(row.by.items())), at[1], at[2]


def _order(name: str) -> tuple:
    """Returns a key that puts R@1, R@5, R@10 in this order, and accuracy and F1 before what is derived of them."""
    first = ("R@", "MRR", "nDCG", "mAP", "accuracy", "F1", "precision", "recall", "F2", "F0.5")
    place = next((i for i, start in enumerate(first) if name.startswith(start)), len(first))
    number = re.search(r"@(\d+)", name)
    return place, int(number.group(1)) if number else 0, name


def _head(name: str) -> str:
    return name.replace("_", " ")


def _method(method: str, results: Results) -> Cell:
    shown = join(el("i", class_="swatch", style=color(method, results.methods)), bdi(label(method)))
    return Cell(shown, label(method), "own" if method == results.methods[0] else None)


def _measure(row: Row, name: str, place: int | None, half: bool, tip: bool) -> Cell:
    """Returns the cell of a measure, its interval as half its width beside it and whole in a tooltip, or not."""
    if name not in row.measures:
        return Cell(None, None)
    value, interval, class_ = row.measures[name], row.intervals.get(name), None if place is None else _RANKS[place]
    if interval is None:
        return Cell(percent(value), value, class_)
    spread = el("small", f"±{50 * (interval[1] - interval[0]):.1f}") if half else None
    return Cell(
        join(percent(value), spread), value, class_, f"{_head(name)}\t{tip_value(value, interval)}" if tip else None
    )


def _places(rows: Sequence[Row], measures: Sequence[str]) -> dict[tuple[int, str], int]:
    """Returns 0, 1, 2 for the rows whose value is first, second and third of its group, but for the last of a few."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.set, row.part, row.modality, tuple(sorted(row.by.items()))), []).append(row)
    out = {}
    for group in groups.values():
        for name in measures:
            there = {id(row): percent(row.measures[name]) for row in group if name in row.measures}
            best = sorted(set(there.values()), key=float, reverse=True)[: min(3, len(there) - 1)]
            out |= {(row, name): best.index(value) for row, value in there.items() if value in best}
    return out
