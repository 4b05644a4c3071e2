"""The top of the page: the five tasks as numbers, as a radar and as dots."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from moon_jax.evaluation.page import dots
from moon_jax.evaluation.page.html import Html, bdi, el, join
from moon_jax.evaluation.page.methods import color, label, legend, mark_class, percent, tip_value
from moon_jax.evaluation.page.radar import radar
from moon_jax.evaluation.page.results_file import TASKS, Results, Row, recall_ks


class Task(NamedTuple):
    """One of the five tasks: how it is called, its rows, and the measure that stands for it."""

    name: str
    note: str
    task: str
    modality: str
    measure: str
    by: dict[str, str]

    def rows(self, results: Results, set_name: str) -> dict[str, Row]:
        """Returns the row of each method over all parts of a set."""
        found = results.whole(self.task, set=set_name, modality=self.modality, by=self.by)
        return {row.method: row for row in found if self.measure in row.measures}


def five_tasks(results: Results) -> list[Task]:
    """Returns those of the paper's tasks that were scored: retrieval at the smallest k, categories at their deepest.

    Where items were classified by several inputs, the one with pictures and text counts.
    """
    out = []
    ks = recall_ks(results.select("retrieval", by={}))
    for modality in results.values("retrieval", "modality"):
        if ks:
            out.append(Task(f"{modality.capitalize()} retrieval", "", "retrieval", modality, f"R@{ks[0]}", {}))
    for task, name in (("classification", "Categories"), ("attributes", "Attributes")):
        modality = next(iter(reversed(results.values(task, "modality"))), None)
        if modality:
            by = whole_group(results, task)
            note = f"level {by['level']}" if by.get("level", "").isdigit() else by.get("level", "")
            out.append(Task(name, note, task, modality, "accuracy", by))
    return out


def whole_group(results: Results, task: str) -> dict[str, str]:
    """Returns what the row of a whole task is grouped by: nothing, or a category level (the deepest, or the last)."""
    levels = sorted({row.by["level"] for row in results.select(task) if set(row.by) == {"level"}})
    if not levels or any(not row.by for row in results.select(task)):
        return {}
    return {"level": "deepest" if "deepest" in levels else levels[-1]}


def overview(results: Results) -> Html:
    """Returns the section's inside."""
    tasks = five_tasks(results)
    sets = list(dict.fromkeys(name for task in TASKS for name in results.values(task, "set")))
    tiles = el("div", *(_tile(task, results, sets) for task in tasks), class_="tiles")
    figures = [_radar(tasks, results, name) for name in sets if len(tasks) >= 3]
    figures += [_dots(tasks, results, name) for name in sets]
    key = legend(results.methods, results.methods)
    return join(tiles, key, el("div", *figures, class_="grid two"))


def _tile(task: Task, results: Results, sets: Sequence[str]) -> Html:
    of_sets = [(name, task.rows(results, name)) for name in sets]
    shown = [(name, rows[results.methods[0]], rows) for name, rows in of_sets if results.methods[0] in rows]
    if not shown:
        return el("div", el("h3", task.name), el("p", "not scored for this model", class_="muted"), class_="tile")
    name, own, rows = shown[0]
    others = [
        el("p", el("b", percent(row.measures[task.measure])), f" {said}", class_="muted") for said, row, _ in shown[1:]
    ]
    rivals = [(row.measures[task.measure], method) for method, row in rows.items() if method != own.method]
    gain = None
    if rivals:
        best, method = max(rivals)
        delta = 100 * (own.measures[task.measure] - best)
        class_ = "up" if delta >= 0.05 else "down" if delta <= -0.05 else None
        gain = el(
            "p",
            el("b", f"{delta:+.1f}".replace("-", "−"), class_=class_),
            " against ",
            bdi(label(method)),
            class_="muted",
        )
    interval = own.intervals.get(task.measure)
    spread = f"{percent(interval[0])} to {percent(interval[1])}" if interval else None
    return el(
        "div",
        el("h3", task.name),
        el("p", el("span", percent(own.measures[task.measure]), class_="big"), el("span", "%", class_="unit")),
        _strip(rows, task.measure, results.methods),
        el("p", " · ".join(filter(None, (task.measure, task.note, name))), class_="muted"),
        el("p", spread, class_="muted") if spread else None,
        others,
        gain,
        class_="tile",
    )


def _strip(rows: dict[str, Row], measure: str, methods: Sequence[str]) -> Html:
    """Returns all methods as dots on one thin line from 0 to 100 %."""
    marks, tips = [], []
    for method in (m for m in reversed(methods) if m in rows):
        value = rows[method].measures[measure]
        style = f"{color(method, methods)};left:{100 * value:.2f}%"
        marks.append(el("i", class_=mark_class(method, methods, "dot"), style=style))
        tips.insert(0, f"{label(method)}\t{tip_value(value, rows[method].intervals.get(measure))}")
    return el("div", *marks, class_="track strip", data_tip="\n".join([measure, *tips]), aria_hidden="true")


def _radar(tasks: Sequence[Task], results: Results, set_name: str) -> Html:
    rows = [task.rows(results, set_name) for task in tasks]
    there = [method for method in results.methods if sum(method in of for of in rows) >= 2]
    values = {
        method: [
            of[method].measures[task.measure] if method in of else math.nan
            for task, of in zip(tasks, rows, strict=True)
        ]
        for method in there
    }
    axes = [
        (first, f"{rest} {task.measure}".strip()) for task in tasks for first, _, rest in [task.name.partition(" ")]
    ]
    return radar(f"All tasks, {set_name}", axes, values, results.methods)


def _dots(tasks: Sequence[Task], results: Results, set_name: str) -> Html | None:
    ks = recall_ks(results.select("retrieval", by={}))
    lines = []
    for task in tasks:
        measures = [f"R@{k}" for k in ks] if task.task == "retrieval" else ["accuracy", "F1"]
        for measure in measures:
            rows = task._replace(measure=measure).rows(results, set_name)
            if rows:
                lines.append(dots.Line(task.name, measure, rows, measure))
    return dots.plot(f"Every measure, {set_name}", lines, results.methods, note="%")
