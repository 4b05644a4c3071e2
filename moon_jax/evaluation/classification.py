"""Classification by nearest candidate text: what counts as the prediction, and its measures.

A prediction is the best-ranked class. Two rules bend that, both of the paper's protocol (5.1, B) as it is read here:

- Top 10: with at least 100 classes a prediction counts as right if the true class is among the first ten: then the
  truth stands for the prediction, else the best-ranked class does. Top-1 is always reported beside it.
- Several right answers (an attribute with several values): the truth is the prediction where that is one of them, else
  the preferred one.

Example of the first rule, where the classes ranked best are [7, 3, 5, ...] and the truth is 5: top-1 says 7, which is
wrong; with the rule the prediction counts as 5. Is the truth not among the first ten, both say 7: that lowers the
recall of the true class, and the precision of class 7 if this is one that other queries ask for.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

RELAXED_CLASSES = 100  # with fewer classes the top-10 rule would say little


class Outcomes(NamedTuple):
    """Truth and predictions as class numbers, for `measures`."""

    gold: Int[np.ndarray, " q"]
    top1: Int[np.ndarray, " q"]
    relaxed: Int[np.ndarray, " q"] | None  # None: fewer than RELAXED_CLASSES classes, or not asked for


def outcomes(
    ranked: Int[np.ndarray, "q k"],
    truth: Sequence[Sequence[int]] | Int[np.ndarray, " q"],
    classes: int,
    relaxed: int = 10,
) -> Outcomes:
    """Returns what each query is about and what was predicted, by the rules above.

    Where none of several right answers is ranked first but one is among the first ten, the relaxed prediction is right.

    Args:
        ranked: class numbers, best first.
        truth: the right class of each query, or its right classes, the preferred one first.
        classes: how many there are.
        relaxed: ranks of the top-10 rule; 0 = top-1 only.

    Raises:
        ValueError: a query without a right class, class numbers out of range, a query without a ranked class, or fewer
            ranks kept than the rule needs.
    """
    right = _right(truth)
    q, kept = ranked.shape
    if len(right) != q:
        raise ValueError(f"there are ranked classes of {q} queries, but the truth of {len(right)}")
    wanted = relaxed if relaxed and classes >= RELAXED_CLASSES else 0
    if q and kept < max(1, wanted):
        raise ValueError(f"{kept} ranked classes were kept for each query; the rule needs {max(1, wanted)}")
    for name, numbers in (("ranked", ranked), ("true", right[right >= 0])):
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < classes:
            raise ValueError(f"{name} classes lie in 0..{classes - 1}, got {numbers.min()}..{numbers.max()}")
    ranked = ranked.astype(np.int64)
    top1 = ranked[:, 0] if q else np.zeros(0, np.int64)
    gold = np.where(_among(top1[:, None], right), top1, right[:, 0])
    loose = np.where(_among(ranked[:, :wanted], right), gold, top1) if wanted else None
    return Outcomes(gold, top1, loose)


def measures(
    gold: Int[np.ndarray, " q"],
    predicted: Int[np.ndarray, " predictions"],  # lengths are compared below, in words
    weights: Float[np.ndarray, " weights"] | Int[np.ndarray, " weights"] | None = None,
    betas: Sequence[float | int] = (1, 2, 0.5),
) -> dict[str, float]:
    """Returns "accuracy", "precision", "recall", "F1", "F2", "F0.5" (as `betas` say) and all but the first "weighted_".

    Precision, recall and F-beta are those of each class that occurs in the truth, averaged: plainly, or "weighted_" by
    the number of queries that ask for it. A class that is never predicted has precision 0, one that is never predicted
    rightly F-beta 0. Classes that are only predicted are not averaged over, but cost the recall of others.
    F-beta = (1 + beta^2) precision recall / (beta^2 precision + recall), of each class before averaging. The weighted
    recall is the accuracy.

    Args:
        gold: true class numbers.
        predicted: class numbers.
        weights: how often each query counts, as in a bootstrap draw; a class whose queries all count 0 does not occur.
        betas: of F-beta.

    Raises:
        ValueError: no queries (or none that counts), lengths that differ, or negative weights or numbers.
    """
    if not len(gold) == len(predicted) == len(gold if weights is None else weights):
        lengths = f"{len(gold)} true, {len(predicted)} predicted classes"
        raise ValueError(f"lengths differ: {lengths}" + ("" if weights is None else f", {len(weights)} weights"))
    weights = np.ones(len(gold)) if weights is None else np.asarray(weights, np.float64)
    total = weights.sum()
    if not total > 0 or weights.min() < 0:
        raise ValueError(f"a measure over no queries is not defined, nor one with negative weights (sum {total})")
    if min(gold.min(), predicted.min()) < 0:
        raise ValueError("class numbers are not negative")
    classes = 1 + int(max(gold.max(), predicted.max()))
    support = np.bincount(gold, weights, classes)
    there = support > 0
    support = support[there]
    hits = np.bincount(gold, np.where(gold == predicted, weights, 0.0), classes)[there]
    said = np.bincount(predicted, weights, classes)[there]
    columns = {"precision": np.divide(hits, said, out=np.zeros_like(hits), where=said > 0), "recall": hits / support}
    for beta in betas:  # in counts: (1 + beta^2) hits / (beta^2 support + said); no quotient is 0 / 0
        columns[f"F{beta:g}"] = (1 + beta**2) * hits / (beta**2 * support + said)
    values = {"accuracy": float(hits.sum() / total)}
    values |= {name: float(column.mean()) for name, column in columns.items()}
    return values | {f"weighted_{name}": float((column * support).sum() / total) for name, column in columns.items()}


def _right(truth: Sequence[Sequence[int]] | Int[np.ndarray, " q"]) -> Int[np.ndarray, "q most"]:
    """Returns the right classes of every query, the preferred one first, filled up with -1."""
    if isinstance(truth, np.ndarray):
        if truth.size and truth.min() < 0:
            raise ValueError(f"query {truth.argmin()} has the class number {truth.min()}, which is negative")
        return truth[:, None].astype(np.int64)
    lengths = np.array([len(one) for one in truth], np.int64)
    if len(lengths) and not lengths.min():
        raise ValueError(f"query {lengths.argmin()} has no right class: leave it out, there is nothing to predict")
    right = np.full((len(lengths), lengths.max(initial=1)), -1)
    numbers = np.array([number for one in truth for number in one], np.int64)
    if numbers.size and numbers.min() < 0:
        raise ValueError(f"a class number is {numbers.min()}, which is negative")
    right[np.arange(right.shape[1]) < lengths[:, None]] = numbers
    return right


def _among(found: Int[np.ndarray, "q k"], right: Int[np.ndarray, "q most"]) -> Bool[np.ndarray, " q"]:
    """Returns whether one of the found classes is a right one."""
    hit = np.zeros(len(found), bool)
    for column in right.T:
        hit |= (found == column[:, None]).any(axis=1)
    return hit
