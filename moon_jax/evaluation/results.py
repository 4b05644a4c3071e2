"""Results as text tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moon_jax.evaluation.choices import CLASSIFICATION, RETRIEVAL, TASKS

_CHOICES = ("accuracy", "precision", "recall", "F1")


def table(results: Mapping[str, Any]) -> str:
    """Returns the results of `tasks.score` as aligned tables, one a task, with the validation losses below.

    A line for each set, part, modality, `by` and method; lines by industry are in the file alone. "lacking" counts
    what has no such picture, text, level or attribute; "chance" is the first measure of a blind guess. With intervals,
    "+-" is half the width of the first measure's.
    """
    rows = [row for row in results["rows"] if "industry" not in row["by"]]
    if len({row["part"] for row in rows if row["part"]}) == 1:  # the rows over all parts repeat those of the only one
        rows = [row for row in rows if row["part"]]
    tables = []
    for task in TASKS:
        if of_task := [row for row in rows if row["task"] == task]:
            tables.append(_table(task, of_task))
    for name, loss in results["loss"].items():
        tables.append(
            f"{name} loss {loss['loss']:.4f} over {loss['triplets']} triplets in batches of {loss['batch_size']}"
            f" ({loss['negatives']:.1f} negatives per query)"
        )
    return "\n\n".join(tables)


def align(rows: Sequence[Sequence[str]], left: int) -> str:
    """Returns rows of cells as columns two spaces apart; the first `left` ones flush left, numbers flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        lines.append("  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in cells).rstrip())
    return "\n".join(lines)


def _table(task: str, rows: Sequence[Mapping[str, Any]]) -> str:
    names = _names(task, rows[0]["measures"])
    intervals = any(row["intervals"] for row in rows)
    size = "gallery" if task == RETRIEVAL else "classes"
    header = ["set", "part", task, "of", "method", names[0], *(["+-"] if intervals else []), *names[1:]]
    header += ["queries", "lacking", size, "chance"]
    return align([header, *_lines(rows, names, size, intervals)], left=5)


def _names(task: str, measures: Mapping[str, float]) -> list[str]:
    if task == RETRIEVAL:
        return [name for name in measures if name.startswith("R@")] + ["MRR"]
    return list(_CHOICES) + (["accuracy@10"] if task == CLASSIFICATION else [])


def _lines(rows: Sequence[Mapping[str, Any]], names: Sequence[str], size: str, intervals: bool) -> Iterator[list[str]]:
    for row in rows:
        measures = row["measures"]
        numbers = [f"{measures[name]:.3f}" if name in measures else "" for name in names]
        if intervals:
            low, high = row["intervals"].get(names[0], (0.0, 0.0))
            numbers.insert(1, f"{(high - low) / 2:.3f}" if row["intervals"] else "")
        by = " ".join(value if key != "level" else f"level {value}" for key, value in row["by"].items())
        yield [
            row["set"], row["part"] or "all", row["modality"], by, row["method"], *numbers, str(row["queries"]),
            str(row["lacking"]), "" if row[size] is None else str(row[size]), f"{row['chance'][names[0]]:.4f}",
        ]  # fmt: skip
