"""Retrieval: recall by rank, where it is strong and weak, the table, and the shown queries."""

from collections.abc import Sequence

import numpy as np

from moon_jax.evaluation.page import dots
from moon_jax.evaluation.page.html import Html, el, join
from moon_jax.evaluation.page.lines import Axes, Series, chart
from moon_jax.evaluation.page.measures_table import folded, paper_table
from moon_jax.evaluation.page.methods import color, label, legend, mark_class, percent
from moon_jax.evaluation.page.predictions import Predictions
from moon_jax.evaluation.page.results_file import Results, Row, recall_ks

_GROUPS = 16  # of one grouping that are drawn; all are in the table


def retrieval(results: Results, predictions: Predictions | None) -> Html:
    """Returns the section's inside, but for the shown queries."""
    curves = [
        found
        for set_name in results.values("retrieval", "set")
        for modality in results.values("retrieval", "modality")
        if (found := _curves(results, predictions, set_name, modality))
    ]
    whole, breakdowns = results.whole("retrieval", by={}), _breakdowns(results)
    measures = [f"R@{k}" for k in recall_ks(whole)]
    return join(
        legend(results.methods, results.values("retrieval", "method")),
        el("div", *curves, class_="grid"),
        paper_table(whole, measures, results, "Retrieval") if whole else None,
        join(el("h3", "Where it is strong and weak"), el("div", *breakdowns, class_="grid")) if breakdowns else None,
        folded(results.distinct("retrieval"), results, "by part, industry and kind of query, with all measures"),
    )


def _curves(results: Results, predictions: Predictions | None, set_name: str, modality: str) -> Html | None:
    """Returns Recall@k over k: at every k where ranks are known, otherwise at the k of the results."""
    rows = results.whole("retrieval", set=set_name, modality=modality, by={})
    by_method = {row.method: row for row in rows if recall_ks([row])}
    if not by_method:
        return None
    ks = recall_ks(by_method.values())
    series = []
    for method in (m for m in results.methods if m in by_method):
        series.append(_series(by_method[method], results, predictions, ks))
    own = by_method.get(results.methods[0]) or next(iter(by_method.values()))
    axes = Axes(
        ks, (0.0, 0.25, 0.5, 0.75, 1.0), True, "k", "{:g}".format, lambda value: percent(value).removesuffix(".0")
    )
    note = f"{set_name} · {own.queries:,} queries" + (f" · gallery of {own.of:,}" if own.of else "")
    return chart(f"{modality.capitalize()}: Recall@k", series, axes, note=note)


def _series(row: Row, results: Results, predictions: Predictions | None, ks: Sequence[int]) -> Series:
    style, class_ = color(row.method, results.methods), mark_class(row.method, results.methods)
    at = [k for k in ks if f"R@{k}" in row.measures]
    ranks = predictions.ranks.get((row.method, row.set, row.modality)) if predictions else None
    whiskers = [(k, *row.intervals[f"R@{k}"]) for k in at if f"R@{k}" in row.intervals]
    whiskers = whiskers if row.method == results.methods[0] else []
    if ranks is None:
        return Series(label(row.method), at, [row.measures[f"R@{k}"] for k in at], style, class_, whiskers)
    x = [int(k) for k in np.unique(np.round(np.geomspace(1, ks[-1], 60)).astype(int).tolist() + list(ks))]
    hits = np.cumsum([ranks.get(rank, 0) for rank in range(1, ks[-1] + 1)])
    y = [float(hits[k - 1]) / max(row.queries, 1) for k in x]
    return Series(label(row.method), x, y, style, class_, whiskers)


def _breakdowns(results: Results) -> list[Html]:
    """Returns dot plots of the smallest k by part and by each single grouping, a figure for each set and modality."""
    ks = recall_ks(results.select("retrieval"))
    if not ks:
        return []
    measure, out = f"R@{ks[0]}", []
    keys = sorted({key for row in results.select("retrieval") for key in row.by if len(row.by) == 1})
    for set_name in results.values("retrieval", "set"):
        for modality in results.values("retrieval", "modality"):
            rows = results.select("retrieval", set=set_name, modality=modality)
            parts = results.values("retrieval", "part")
            lines = [_line([r for r in rows if r.part == part and not r.by], "part", part, measure) for part in parts]
            lines = lines if len(parts) > 1 else []
            for key in keys:
                part = results.part_of_all(row for row in rows if set(row.by) == {key})
                for value in results.groups("retrieval", key)[:_GROUPS]:
                    there = [r for r in rows if r.part == part and r.by == {key: value}]
                    lines.append(_line(there, key, value, measure))
            lines = [line for line in lines if line is not None]
            figure = dots.plot(
                f"{modality.capitalize()}: {measure}",
                lines,
                results.methods,
                note=f"{set_name} · with number of queries",
            )
            out += [figure] if figure else []
    return out


def _line(rows: Sequence[Row], head: str, name: str, measure: str) -> dots.Line | None:
    found = {row.method: row for row in rows if measure in row.measures}
    if not found:
        return None
    queries = max(row.queries for row in found.values())
    return dots.Line(name.replace("_", " "), f"{queries:,}", found, measure, head)
