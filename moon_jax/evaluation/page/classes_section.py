"""Categories and attributes: by level, by key, and what is taken for what."""

import collections
from collections.abc import Iterable

from moon_jax.evaluation.page import dots
from moon_jax.evaluation.page.html import Html, bdi, el, join
from moon_jax.evaluation.page.measures_table import folded, paper_table
from moon_jax.evaluation.page.methods import legend, percent, short
from moon_jax.evaluation.page.overview import whole_group
from moon_jax.evaluation.page.predictions import BETWEEN, Predictions
from moon_jax.evaluation.page.results_file import SETS, Results, Row

GROUPS = 16  # rows of the confusion matrix
PAIRS = 12  # in the list of confusions
LINES = 24  # of a dot plot
_DRAWN = "accuracy"
_SHOWN = ("accuracy", "precision", "recall", "F1", "accuracy@10", "F1@10")  # in the table


def classes(task: str, key: str, results: Results, predictions: Predictions | None) -> Html:
    """Returns a section's inside.

    Args:
        task: "classification" or "attributes".
        key: of the grouping that a figure has a line for: "level" or "attribute".
        results: of the evaluation.
        predictions: for the confusions; of classification only.
    """
    figures = [
        figure
        for set_name in results.values(task, "set")
        for modality in results.values(task, "modality")
        if (figure := _dots(task, key, results, set_name, modality))
    ]
    overall = results.whole(task, by=whole_group(results, task))
    confusions = _confusions(predictions) if predictions and task == "classification" else []
    return join(
        legend(results.methods, results.values(task, "method")),
        el("div", *figures, class_="grid"),
        paper_table(overall, _SHOWN, results, task) if overall else None,
        el("div", *confusions, class_="grid two") if confusions else None,
        folded(results.distinct(task), results, f"by {key}, part and group, with all measures"),
    )


def _dots(task: str, key: str, results: Results, set_name: str, modality: str) -> Html | None:
    rows = [row for row in results.whole(task, set=set_name, modality=modality) if _DRAWN in row.measures]
    lines = []
    overall = {row.method: row for row in rows if not row.by}
    groups = sorted(results.groups(task, key), key=_level)[:LINES]
    if overall and "deepest" not in groups:  # which is the category as a whole
        lines.append(dots.Line("overall", "", overall, _DRAWN))
    for value in groups:
        found = {row.method: row for row in rows if row.by == {key: value}}
        if found:
            named = f"level {value}" if value.isdigit() else value.replace("_", " ")
            lines.append(dots.Line(named, _classes(found), found, _DRAWN))
    title = f"{modality.capitalize()}: {_DRAWN}"
    return dots.plot(title, lines, results.methods, note=f"{set_name} · with number of classes")


def _level(value: str) -> tuple[int, str]:
    """Returns a key that puts industry, 1, 2, ... in this order; other groups stay in theirs."""
    return (int(value), "") if value.isdigit() else (0 if value == "industry" else 99, "")


def _classes(rows: dict[str, Row]) -> str:
    of = next(iter(rows.values())).of
    return f"{of:,}" if of else ""


def _confusions(predictions: Predictions) -> list[Html]:
    out = []
    for set_name, pairs in sorted(predictions.pairs.items(), key=lambda item: SETS.index(item[0])):
        out += [_matrix(pairs, set_name), _list(pairs, set_name)]
    return [figure for figure in out if figure]


def grouped(pairs: collections.Counter[tuple[str, str]]) -> tuple[list[str], collections.Counter[tuple[str, str]]]:
    """Returns the groups of a matrix and the counts between them: the deepest level with at most `GROUPS` classes.

    If even the first level has more, the classes with most queries stand alone and the others together as "other".
    """
    depths = max(len(name.split(BETWEEN)) for pair in pairs for name in pair)
    for depth in range(depths, 0, -1):
        found: collections.Counter[tuple[str, str]] = collections.Counter()
        for (truth, predicted), count in pairs.items():
            found[_to(truth, depth), _to(predicted, depth)] += count
        totals: collections.Counter[str] = collections.Counter()
        for (truth, predicted), count in found.items():
            totals[truth] += count
            totals[predicted] += 0
        if len(totals) <= GROUPS:
            return sorted(totals), found
    large = {name for name, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0]))[: GROUPS - 1]}
    folded: collections.Counter[tuple[str, str]] = collections.Counter()
    for (truth, predicted), count in found.items():
        folded[truth if truth in large else "other", predicted if predicted in large else "other"] += count
    return [*sorted(large), "other"], folded


def _to(name: str, depth: int) -> str:
    return BETWEEN.join(name.split(BETWEEN)[:depth])


def leaves(names: Iterable[str]) -> dict[str, str]:
    """Returns each class under the last of its levels, as many as it takes to tell it from the others."""
    levels = {name: name.split(BETWEEN) for name in names}
    ends = lambda count: {name: BETWEEN.join(path[-count:]) for name, path in levels.items()}  # noqa: E731
    shown = {}
    for count in range(max(map(len, levels.values())), 0, -1):  # fewer levels replace more
        counts = collections.Counter(ends(count).values())
        shown |= {name: end for name, end in ends(count).items() if counts[end] == 1}
    return shown


def _matrix(pairs: collections.Counter[tuple[str, str]], set_name: str) -> Html:
    names, found = grouped(pairs)
    short_names = leaves(names)
    totals = {name: sum(found[name, other] for other in names) for name in names}
    heads = [el("th", el("span", bdi(short(short_names[name], 18))), scope="col") for name in names]
    rows = []
    for truth in names:
        cells = []
        for predicted in names:
            count, total = found[truth, predicted], totals[truth]
            share = count / total if total else 0.0
            style = f"--v:{share:.3f}" if count else None
            tip = f"{truth}\ntaken for {predicted}\t{count:,} of {total:,}" if count else None
            class_ = "right" if truth == predicted else "wrong"
            text = (
                percent(share).removesuffix(".0") if share >= 0.995 else f"{100 * share:.0f}" if share >= 0.005 else ""
            )
            cells.append(el("td", text, style=style, class_=class_, data_tip=tip))
        rows.append(el("tr", el("th", bdi(short(short_names[truth], 24)), scope="row"), *cells))
    whole = el("table", el("thead", el("tr", el("td"), *heads)), el("tbody", *rows), class_="matrix")
    caption = el("figcaption", "What is taken for what", el("small", f"{set_name} · rows: true, % of each row"))
    return el(
        "figure",
        caption,
        el("div", whole, class_="scroll", tabindex="0", role="region", aria_label="Confusions"),
        class_="chart",
    )


def _list(pairs: collections.Counter[tuple[str, str]], set_name: str) -> Html | None:
    wrong = sorted(((n, pair) for pair, n in pairs.items() if pair[0] != pair[1]), key=lambda item: (-item[0], item[1]))
    if not wrong:
        return None
    most = wrong[0][0]
    rows = [
        el(
            "li",
            el(
                "span",
                el("b", _end(truth)),
                " → ",
                el("b", _end(predicted)),
                el("small", bdi(_start(truth, predicted))),
            ),
            el("span", f"{count:,}", class_="count"),
            el("i", class_="bar", style=f"width:{100 * count / most:.1f}%"),
            data_tip=f"{truth}\ntaken for\n{predicted}",
        )
        for count, (truth, predicted) in wrong[:PAIRS]
    ]
    total = sum(count for count, _ in wrong)
    caption = el("figcaption", "Most frequent mistakes", el("small", f"{set_name} · {total:,} in all"))
    return el("figure", caption, el("ol", *rows, class_="mistakes"), class_="chart")


def _end(name: str) -> Html:
    return bdi(short(name.split(BETWEEN)[-1], 32))


def _start(truth: str, predicted: str) -> str:
    """Returns the levels that two classes share, or say that they share none."""
    both = [a for a, b in zip(truth.split(BETWEEN), predicted.split(BETWEEN), strict=False) if a == b]
    same = truth.split(BETWEEN)[: len(both)] == predicted.split(BETWEEN)[: len(both)]
    return short(BETWEEN.join(both), 48) if both and same else "in different branches"
