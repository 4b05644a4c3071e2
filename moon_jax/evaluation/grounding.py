"""Grounding over a data set: how well the boxes that a model says agree with the known ones."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from moon_jax.config import Config, to_dict
from moon_jax.data.grounding import KINDS, Question, listing_questions, query_questions, training_questions
from moon_jax.data.grounding_answers import PARSED, UNREADABLE, Found
from moon_jax.data.picture_files import ImageError, upright_size
from moon_jax.data.records import Box, Dataset
from moon_jax.evaluation.benchmark import SETS
from moon_jax.evaluation.results import align
from moon_jax.evaluation.tasks import MODEL

GOOD_IOU = 0.5

Detect = Callable[[Sequence[Question]], Sequence[Found]]


def iou(a: Box, b: Box) -> float:
    """Returns the area that two boxes share over the area that they cover together, 0 where that is nothing."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def evaluate(
    dataset: Dataset, detect: Detect, config: Config, *, max_queries: int = 0, about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the results as a nested dict of plain numbers, lists and strings, as `tasks.evaluate` does.

    `rows` has one entry for each set x part x kind of picture x method; `metrics` those of the model under flat names:
    "unseen/query/IoU" (mean), "unseen/query/IoU@0.5" (share of at least that), "unseen/query/valid" (share of answers
    with a usable box), "grocery/unseen/listing/IoU". An answer without a box counts with the whole picture that stands
    for it. Beside the model: "whole picture", and "mean box", the mean of the training boxes as shares of their
    pictures: what can be known without looking.

    Args:
        dataset: its test sets, as far as pictures have boxes: queries, and the listings that they ask for.
        detect: what a model finds.
        config: of the run, for the record.
        max_queries: of each set and kind; more are cut to the first ones in the order of a hash. 0 = all.
        about: what else belongs in the file.

    Raises:
        ValueError: there is nothing to measure.
    """
    asked = {(name, kind): _questions(dataset, name, kind, max_queries) for name in SETS for kind in KINDS}
    flat = [question for questions in asked.values() for question in questions]
    if not flat:
        raise ValueError("no picture of the test sets has a box, so grounding cannot be measured")
    found = list(detect(flat))
    usual, rows, metrics, start = _mean_box(dataset, max(200, max_queries), config.data.on_error == "skip"), [], {}, 0
    for (name, kind), questions in asked.items():
        given = found[start : start + len(questions)]
        start += len(questions)
        pairs = [pair for pair in zip(questions, given, strict=True) if pair[1].status != UNREADABLE]
        for part in ("", *sorted({question.part for question, _ in pairs})):
            here = [pair for pair in pairs if part in ("", pair[0].part)]
            if not here:
                continue
            sizes = [upright_size(question.image.path) for question, _ in here]
            methods: dict[str, list[Box]] = {
                MODEL: [one.box for _, one in here],
                "whole picture": [(0.0, 0.0, float(w), float(h)) for w, h in sizes],
                "mean box": [tuple(usual * (w, h, w, h)) for w, h in sizes],
            }
            for method, boxes in methods.items():
                scores = [iou(box, question.image.box) for box, (question, _) in zip(boxes, here, strict=True)]
                row = {
                    "set": name, "part": part, "kind": kind, "method": method, "pictures": len(here),
                    "IoU": float(np.mean(scores)), f"IoU@{GOOD_IOU}": float(np.mean(np.array(scores) >= GOOD_IOU)),
                }  # fmt: skip
                if method == MODEL:
                    row["valid"] = sum(one.status == PARSED for _, one in here) / len(here)
                    prefix = "/".join(filter(None, (part, name, kind)))
                    metrics |= {f"{prefix}/{measure}": row[measure] for measure in ("IoU", f"IoU@{GOOD_IOU}", "valid")}
                rows.append(row)
    results = {
        "about": dict(about or {}),
        "config": to_dict(config),
        "data": {"fingerprint": dataset.fingerprint, "report": dataset.report},
        "protocol": {"max_queries": max_queries, "mean_box": usual.tolist()},
        "counts": {"pictures": len(flat), "unreadable": sum(one.status == UNREADABLE for one in found)},
        "reasons": _reasons(found),
        "rows": rows,
        "metrics": metrics,
    }
    return json.loads(json.dumps(results))  # tuples as lists: what a reader of the file gets


def table(results: Mapping[str, Any]) -> str:
    """Returns the results of `evaluate` as an aligned table."""
    rows = results["rows"]
    if len({row["part"] for row in rows if row["part"]}) == 1:  # the rows over all parts would repeat the only one's
        rows = [row for row in rows if row["part"]]
    header = ["set", "part", "picture", "method", "IoU", f"IoU@{GOOD_IOU}", "valid", "pictures"]
    lines = [
        [
            row["set"], row["part"] or "all", row["kind"], row["method"], f"{row['IoU']:.3f}",
            f"{row[f'IoU@{GOOD_IOU}']:.3f}", f"{row['valid']:.3f}" if "valid" in row else "", str(row["pictures"]),
        ]
        for row in rows
    ]  # fmt: skip
    return align([header, *lines], left=4)


def _questions(dataset: Dataset, name: str, kind: str, most: int) -> list[Question]:
    triplets = getattr(dataset, name)
    if kind == "query":
        found = [question for triplet in triplets for question in query_questions(triplet)]
    else:
        listings = {triplet.positive.id: triplet.positive for triplet in triplets}
        found = [question for _, product in sorted(listings.items()) for question in listing_questions(product)]
    found = [question for question in found if question.image.box is not None]
    if not most or len(found) <= most:
        return found
    return sorted(found, key=lambda q: hashlib.sha256(f"{q.id}\0{q.image.path}".encode()).digest())[:most]


def _mean_box(dataset: Dataset, most: int, skip: bool) -> Float[np.ndarray, "4"]:
    """Returns the mean of training boxes as shares of their pictures' width and height: x1, y1, x2, y2.

    Args:
        dataset: its training set.
        most: boxes, about.
        skip: whether pictures that cannot be read are left out.

    Raises:
        ImageError: a picture cannot be read, and is not to be skipped.
    """
    shares = []
    questions = training_questions(dataset)
    for question in questions[:: max(1, len(questions) // most)]:
        try:
            width, height = upright_size(question.image.path)
        except ImageError:
            if not skip:
                raise
            continue
        shares.append(np.array(question.image.box) / (width, height, width, height))
    return np.mean(shares, axis=0) if shares else np.array([0.0, 0.0, 1.0, 1.0])


def _reasons(found: Sequence[Found]) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for one in found:
        if one.status not in (PARSED, UNREADABLE):
            reasons[one.reason] = reasons.get(one.reason, 0) + 1
    return reasons
