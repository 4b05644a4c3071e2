"""Results as a text table and as a file."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any


def table(results: Mapping[str, Any]) -> str:
    """Returns the results of `tasks.evaluate` as an aligned table, with the validation losses below.

    One line per set, part, modality, kind of query and method. "lacking" counts queries that have no such picture or
    text; "chance" is the first recall column of a random ranking.
    """
    rows = results["rows"]
    if (
        len({row["part"] for row in rows if row["part"]}) == 1
    ):  # the rows over all parts would repeat those of the only one
        rows = [row for row in rows if row["part"]]
    ks = list(rows[0]["recall"])
    header = ["set", "part", "query", "kind", "method", *(f"R@{k}" for k in ks), "MRR"]
    header += ["queries", "lacking", "gallery", "chance"]
    lines = [
        [
            row["set"],
            row["part"] or "all",
            row["modality"],
            row["kind"] if row["kind"] is not None else "",
            row["method"],
            *(f"{row['recall'][k]:.3f}" for k in ks),
            f"{row['mrr']:.3f}",
            str(row["queries"]),
            str(row["lacking"]),
            "" if row["gallery"] is None else str(row["gallery"]),
            f"{row['chance'][ks[0]]:.4f}",
        ]
        for row in rows
    ]
    text = align([header, *lines], left=5)
    for name, loss in results["loss"].items():
        text += (
            f"\n{name} loss {loss['loss']:.4f} over {loss['triplets']} triplets in batches of {loss['batch_size']}"
            f" ({loss['negatives']:.1f} negatives per query)"
        )
    return text


def write_json(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the results as JSON; the file is either whole or not there.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def align(rows: Sequence[Sequence[str]], left: int) -> str:
    """Returns rows of cells as columns two spaces apart; the first `left` ones flush left, numbers flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        lines.append("  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in cells).rstrip())
    return "\n".join(lines)
