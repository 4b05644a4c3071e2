"""Measures in plain numpy: recall and reciprocal rank over ranked lists, and the contrastive loss of a batch."""

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped

NO_PRODUCT = -1


def relevance(
    ranked: Int[np.ndarray, "q k"], labels: Shaped[np.ndarray, " n"], truth: Shaped[np.ndarray, " q"]
) -> Bool[np.ndarray, "q k"]:
    """Returns which of the ranked gallery entries are right: those whose label is the query's.

    Args:
        ranked: gallery indices, best first.
        labels: the label of every gallery entry: its product number, or its class where several entries are right.
        truth: the label that every query asks for.
    """
    return labels[ranked] == truth[:, None]


def recall_at(relevant: Bool[np.ndarray, "q k"], k: int) -> float:
    """Returns the share of queries with a right entry among their first k: the hit rate, the paper's Recall@k.

    Raises:
        ValueError: there are no queries.
    """
    _check(relevant)
    return float(relevant[:, :k].any(axis=1).mean())


def mean_reciprocal_rank(relevant: Bool[np.ndarray, "q k"]) -> float:
    """Returns the mean of 1 / rank of the first right entry, 0 where there is none among the ranked ones (MRR@k).

    Raises:
        ValueError: there are no queries.
    """
    _check(relevant)
    rank = 1 + relevant.argmax(axis=1)
    return float(np.where(relevant.any(axis=1), 1 / rank, 0.0).mean())


def info_nce(
    queries: Float[np.ndarray, "b d"],
    candidates: Float[np.ndarray, "2*b d"],
    products: Int[np.ndarray, " 2*b"],
    temperature: float,
    mask_false_negatives: bool,
) -> tuple[Float64[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    """Returns the loss of every query and how many negatives it had (paper 3.2, without a ring).

    The negatives of a query are all other positives and all hard negatives of the batch. With the mask, those of its
    own positive's product are left out, and of the repeats of a product one counts: the query's own hard negative, else
    the first.

    Args:
        queries: unit vectors; query i belongs to positive i.
        candidates: the positives, then the hard negatives.
        products: the product of each candidate, NO_PRODUCT where a triplet has no hard negative.
        temperature: tau.
        mask_false_negatives: as in LossConfig.
    """
    batch = len(queries)
    own = np.arange(batch)
    keep = np.broadcast_to(products != NO_PRODUCT, (batch, 2 * batch)).copy()
    if mask_false_negatives:
        first = np.zeros(2 * batch, bool)
        first[np.unique(products, return_index=True)[1]] = True
        own_negative = products[batch:, None]
        keep &= first & (products != own_negative) | (np.arange(2 * batch) == own[:, None] + batch)
        keep &= products != products[:batch, None]
    keep[own, own] = False
    scores = queries.astype(np.float64) @ candidates.astype(np.float64).T / temperature
    margins = np.where(keep, scores - scores[own, own][:, None], -np.inf)
    top = np.maximum(margins.max(axis=1), 0.0)
    loss = top + np.log(np.exp(-top) + np.exp(margins - top[:, None]).sum(axis=1))
    return loss, keep.sum(axis=1)


def _check(relevant: np.ndarray) -> None:
    if not relevant.size:
        raise ValueError(f"a measure over no queries is not defined (relevance of shape {relevant.shape})")
