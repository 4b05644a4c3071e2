"""Variants of a recipe, each trained with the same seeds: means, spreads and paired differences (paper 5.3, Fig. 8)."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moon_jax.config import ConfigError
from moon_jax.evaluation.results import align

SETS = ("unseen", "seen")  # what training never saw comes first
# Label -> flat name of the measure behind the set, see tasks.score; K is the smallest of config.eval.ks.
TASKS = {
    "image R@K": "image/R@K",
    "text R@K": "text/R@K",
    "item R@K": "item/R@K",
    "classification": "classification/item/accuracy",
    "attributes": "attributes/item/accuracy",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What one training run came to."""

    variant: str
    seed: int
    results: Mapping[str, Any]  # of its evaluation
    seconds: float | None = None  # the training took, where it was not interrupted


def summarize(runs: Sequence[Run], full: str) -> dict[str, Any]:
    """Returns for every measure that all runs have: values by seed, mean, spread and difference to the full variant.

        {"seeds": [0, 1], "variants": ["full", ...], "headline": {"unseen": {"image R@1": "unseen/image/R@1", ...}},
         "measures": {"unseen/image/R@1": {"full": {"values": [...], "mean": m, "spread": s},
                      "no_crop": {..., "difference": d, "difference_spread": s, "interval": [l, h], "lower": 2}}}}

    Spreads are standard deviations over seeds (ddof 1; null with one seed). A difference is that of two runs with the
    same seed: their data and the order of it are the same. Its 95% interval is Student's t, paired; "lower" counts the
    seeds with a negative difference.

    Args:
        runs: of all variants and seeds.
        full: the name of the variant that the others are compared with.

    Raises:
        ConfigError: runs are missing, or did not answer the same questions.
    """
    seeds, variants = sorted({run.seed for run in runs}), list(dict.fromkeys(run.variant for run in runs))
    variants = [full, *(name for name in variants if name != full)]
    by = {(run.variant, run.seed): run for run in runs}
    if missing := [f"{name}, seed {seed}" for name in variants for seed in seeds if (name, seed) not in by]:
        raise ConfigError(f"runs are missing: {'; '.join(missing)}")
    _check_same_questions(runs)
    shared = set.intersection(*(set(run.results["metrics"]) for run in runs))
    measures = {}
    for measure in by[full, seeds[0]].results["metrics"]:
        if measure not in shared:
            continue
        values = {name: [by[name, seed].results["metrics"][measure] for seed in seeds] for name in variants}
        measures[measure] = {name: _row(values[name], values[full], name == full) for name in variants}
    return {
        "seeds": seeds,
        "variants": variants,
        "headline": _headline(measures, min(by[full, seeds[0]].results["config"]["eval"]["ks"])),
        "measures": measures,
    }


def _row(values: Sequence[float], reference: Sequence[float], is_reference: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"values": list(values), "mean": float(np.mean(values)), "spread": _spread(values)}
    if not is_reference:
        differences = np.subtract(values, reference)
        row |= {
            "difference": float(differences.mean()),
            "difference_spread": _spread(differences),
            "interval": _interval(differences),
            "lower": int((differences < 0).sum()),
        }
    return row


def _spread(values: Any) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _interval(differences: Any) -> list[float] | None:
    """Returns the 95% interval of the mean of normal differences; None of a single one."""
    n = len(differences)
    if n < 2:
        return None
    reach = _T95[min(n - 2, len(_T95) - 1)] * float(np.std(differences, ddof=1)) / math.sqrt(n)
    return [float(differences.mean()) - reach, float(differences.mean()) + reach]


# Two-sided quantiles of Student's t with n - 1 = 1 ... 9 degrees of freedom; more take the last, a little too wide.
_T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


def _headline(measures: Mapping[str, Any], k: int) -> dict[str, dict[str, str]]:
    """Returns set -> label -> measure, without what was not measured."""
    out = {}
    for name in SETS:
        found = {label.replace("K", str(k)): f"{name}/{path.replace('K', str(k))}" for label, path in TASKS.items()}
        if found := {label: measure for label, measure in found.items() if measure in measures}:
            out[name] = found
    return out


def _check_same_questions(runs: Sequence[Run]) -> None:
    counts = {}
    for run in runs:
        asked = {name: run.results["counts"][name] for name in ("seen", "unseen", "listings")}
        counts.setdefault(repr(asked), []).append(f"{run.variant}, seed {run.seed}")
    if len(counts) > 1:
        said = "\n".join(f"  - {asked}: {names[0]} and {len(names) - 1} more" for asked, names in counts.items())
        raise ConfigError(f"the runs were not asked the same questions, so they cannot be compared:\n{said}")
    data: dict[str, list[str]] = {}
    for run in runs:
        data.setdefault(run.results["data"]["fingerprint"], []).append(f"{run.variant}, seed {run.seed}")
    if len(data) > 1:
        said = "\n".join(f"  - {fingerprint[:16]}: {'; '.join(names)}" for fingerprint, names in data.items())
        raise ConfigError(
            f"the data changed between the runs, so they cannot be compared (train them in another --workdir):\n{said}"
        )


def table(summary: Mapping[str, Any]) -> str:
    """Returns the headline measures as text: for each set the means, and below the differences to the full variant."""
    seeds, (full, *others) = len(summary["seeds"]), summary["variants"]
    blocks = []
    for name, tasks in summary["headline"].items():
        header = [f"{name} products", *tasks]
        rows = [[v, *(_with_spread(summary, m, v, "mean", "spread") for m in tasks.values())] for v in (full, *others)]
        said = (
            f"mean over {seeds} seeds, +- standard deviation" if seeds > 1 else "one seed, so that no spread is known"
        )
        blocks.append(f"{said}\n{align([header, *rows], left=1)}")
        if others:
            rows = [[v, *(_difference(summary, m, v) for m in tasks.values())] for v in others]
            said = (
                f"difference to {full} with the same seed (in so many of {seeds} seeds lower; * = clear of 0: the 95% "
            )
            said += "interval of Student's t)"
            blocks.append(f"{said}\n{align([header, *rows], left=1)}")
    return "\n\n".join(blocks)


def _with_spread(summary: Mapping[str, Any], measure: str, variant: str, value: str, spread: str) -> str:
    row = summary["measures"][measure][variant]
    sign = "+" if value == "difference" else ""
    text = f"{row[value]:{sign}.3f}"
    return text if row[spread] is None else f"{text} +- {row[spread]:.3f}"


def _difference(summary: Mapping[str, Any], measure: str, variant: str) -> str:
    said = _with_spread(summary, measure, variant, "difference", "difference_spread")
    row = summary["measures"][measure][variant]
    clear = row["interval"] is not None and (row["interval"][0] > 0 or row["interval"][1] < 0)
    return f"{said} ({row['lower']}){'*' if clear else ' '}"


def to_csv(summary: Mapping[str, Any]) -> str:
    """Returns all measures as CSV, one line for each measure and variant, with a column for each seed."""
    out = io.StringIO()
    numbers = ("mean", "spread", "difference", "difference_spread", "lower")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["measure", "variant", *numbers, *(f"seed {seed}" for seed in summary["seeds"])])
    for measure, rows in summary["measures"].items():
        for variant, row in rows.items():
            found = ("" if row.get(name) is None else row[name] for name in numbers)
            writer.writerow([measure, variant, *found, *row["values"]])
    return out.getvalue()
