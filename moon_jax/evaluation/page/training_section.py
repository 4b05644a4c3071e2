"""Training: what metrics.jsonl and eval/*.json of a run say, as small curves; and who visits which expert."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moon_jax.evaluation.page.html import Html, Number, bdi, el, join
from moon_jax.evaluation.page.lines import Axes, Series, chart, nice_ticks
from moon_jax.evaluation.page.methods import percent

POINTS = 300  # of a curve
# name in metrics.jsonl -> title, remark
CURVES = {
    "contrastive_loss": ("Contrastive loss", ""),
    "in_batch_accuracy": ("In-batch accuracy", "positive ranked first in its batch"),
    "negatives": ("Negatives per query", "after masking"),
    "grad_norm": ("Gradient norm", ""),
    "lr": ("Learning rate", ""),
    "router/balance_loss": ("Balance loss", "1 = even"),
    "router/entropy": ("Router entropy", "nats, mean over layers"),
    "triplets_per_second": ("Speed", "triplets per second"),
}


def training(runs: Sequence[pathlib.Path]) -> Html | None:
    """Returns the section's inside: a heading for each run with its curves; None if no run has any.

    Args:
        runs: work folders of training; those without metrics.jsonl are passed over.

    Raises:
        ValueError: a line of metrics.jsonl, or a file of eval/, cannot be read.
    """
    parts = []
    for run in runs:
        figures = _metrics(run / "metrics.jsonl") + _evaluations(run / "eval")
        if figures:
            head = el("h3", bdi(run.name)) if len(runs) > 1 else None
            parts.append(join(head, el("div", *figures, class_="grid")))
    return join(parts) if parts else None


def _metrics(path: pathlib.Path) -> list[Html]:
    if not path.exists():
        return []
    steps, columns = [], {name: [] for name in CURVES}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            steps.append(int(said["step"]))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"{path}, line {number} cannot be read: {error}") from None
        for name, values in columns.items():
            values.append(_mean(said.get(name)))
    figures = []
    for name, (title, note) in CURVES.items():
        found = [(step, value) for step, value in zip(steps, columns[name], strict=True) if math.isfinite(value)]
        if len(found) > 1:
            figures.append(_curve(title, note, found))
    return figures


def _curve(title: str, note: str, found: Sequence[tuple[int, float]]) -> Html:
    x, y = thinned(found)
    low, high = min(y), max(y)
    ticks = nice_ticks(0.0 if 0 <= low < high / 2 else low, high)
    axes = Axes(_steps(x), ticks, False, "step", "{:,.0f}".format, "{:.4g}".format)
    return chart(title, [Series(title, x, y, "--c:var(--m0)")], axes, note=note, labels=False)


def thinned(found: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """Returns steps and values, of long runs the mean of neighbours so that at most `POINTS` remain."""
    groups = np.array_split(np.asarray(found, np.float64), min(POINTS, len(found)))
    return [float(group[-1, 0]) for group in groups], [float(group[:, 1].mean()) for group in groups]


def _steps(x: Sequence[Number]) -> list[Number]:
    ticks = [tick for tick in nice_ticks(min(x), max(x), 3) if min(x) <= tick <= max(x)]
    return ticks if len(ticks) > 1 else [min(x), max(x)]


def _evaluations(folder: pathlib.Path) -> list[Html]:
    """Returns recall by step, a figure for each set; a line for each modality."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: (len(path.stem), path.stem)):
        if not path.stem.isdigit():
            continue
        try:
            recalls = _recalls(json.loads(path.read_text(encoding="utf-8")).get("metrics", {}))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read ({error})") from None
        for name, modality, value in recalls:
            found.setdefault(name, {}).setdefault(modality, []).append((int(path.stem), value))
    figures = []
    for name, lines in found.items():
        if max(map(len, lines.values())) < 2:
            continue
        series = [
            Series(modality, *thinned(points), f"--c:var(--m{place})", "mark own" if place == 0 else "mark")
            for place, (modality, points) in enumerate(lines.items())
        ]
        top = max(value for points in lines.values() for _, value in points)
        axes = Axes(
            _steps([step for points in lines.values() for step, _ in points]),
            nice_ticks(0.0, top),
            False,
            "step",
            "{:,.0f}".format,
            lambda value: percent(value).removesuffix(".0"),
        )
        figures.append(chart("Recall@1 in training", series, axes, note=name))
    return figures


def _recalls(metrics: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Returns (set, modality, value) of the flat names over all parts, "unseen/image/R@1"."""
    pieces = ((name.split("/"), value) for name, value in metrics.items() if name.endswith("/R@1"))
    return [(words[0], words[1], float(value)) for words, value in pieces if len(words) == 3]


def _mean(value: Any) -> float:
    """Returns a number, or the mean of a list; NaN for what is neither."""
    if isinstance(value, list):
        flat = np.asarray([v for v in value if isinstance(v, (int, float))], np.float64)
        return float(flat.mean()) if flat.size else math.nan
    return float(value) if isinstance(value, (int, float)) else math.nan
