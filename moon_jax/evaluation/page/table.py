"""A table that sorts by a click on a column's head; wide ones scroll inside their frame."""

import dataclasses
from collections.abc import Sequence

from moon_jax.evaluation.page.html import Child, Html, Number, el

ROWS = 1000  # of one table; a browser on a phone gets slow beyond


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell: what it shows, and by what it sorts (None goes last)."""

    shown: Child
    key: Number | str | None
    class_: str | None = None
    tip: str | None = None


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its head, the head above that neighbours share, and whether it holds text or numbers."""

    head: str
    group: str = ""
    text: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], name: str) -> Html:
    """Returns the table; beyond `ROWS` rows are left out, and a line below says so.

    Args:
        columns: from left to right; the first one stays in sight.
        rows: cells in the order of the columns.
        name: for screen readers.
    """
    heads = [
        el("th", el("button", c.head, type="button"), scope="col", class_=_kind(c), aria_sort="none") for c in columns
    ]
    starts = [place for place, c in enumerate(columns) if place == 0 or c.group != columns[place - 1].group]
    groups = [
        el(
            "th",
            columns[start].group,
            colspan=end - start,
            scope="colgroup",
            class_="group" if columns[start].group else None,
        )
        for start, end in zip(starts, [*starts[1:], len(columns)], strict=True)
    ]
    head = el("thead", el("tr", *groups) if len(groups) > 1 else None, el("tr", *heads, class_="heads"))
    edges = {place for place in starts if columns[place].group}
    body = [
        el("tr", *(_cell(cell, columns[place], place, place in edges) for place, cell in enumerate(row)))
        for row in rows[:ROWS]
    ]
    whole = el("table", head, el("tbody", *body), aria_label=name)
    cut = len(rows) - ROWS
    more = el("p", f"{cut:,} more rows are in results.json.", class_="note") if cut > 0 else None
    return el(
        "div", el("div", whole, class_="scroll", tabindex="0", role="region", aria_label=name), more, class_="table"
    )


def _kind(column: Column) -> str | None:
    return "text" if column.text else None


def _cell(cell: Cell, column: Column, place: int, edge: bool) -> Html:
    kind = " ".join(filter(None, (_kind(column), cell.class_, "edge" if edge else None))) or None
    key = None if cell.key is None else cell.key if isinstance(cell.key, str) else f"{cell.key:.9g}"
    tag, scope = ("th", "row") if place == 0 else ("td", None)
    return el(tag, cell.shown, class_=kind, data_v=key, data_tip=cell.tip, scope=scope)
