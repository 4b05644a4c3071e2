"""Measures in plain numpy: of ranked lists, one value for each query, and the contrastive loss of a batch."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

NO_PRODUCT = -1


def retrieval_values(
    relevant: Bool[np.ndarray, "q k"], total: Int[np.ndarray, " q"], ks: Sequence[int]
) -> dict[str, Float64[np.ndarray, " q"]]:
    """Returns the values of every query under the names of the measures; a measure is their mean.

    - "R@k": 1 where a right entry is among the first k, the hit rate that the paper calls Recall@k, else 0.
    - "MRR": 1 / rank of the first right entry, 0 where none is among those ranked.
    - "nDCG@k": sum of 1 / log2(rank + 1) over right entries among the first k, over that of the best order.
    - "mAP@k": the precision at the rank of each right entry among the first k, summed, over min(total, k). With k the
      whole gallery it is the average precision.

    Args:
        relevant: which of the ranked entries are right, best first.
        total: how many entries of the whole gallery are right, at least 1.
        ks: of the measures. One may be larger than the number of ranked entries where all right ones are among these.

    Raises:
        ValueError: no queries, a query without a right entry in the gallery, more right ones than the gallery has, or
            a rank that was not kept.
    """
    _check(relevant, total, ks)
    ranks = np.arange(1, relevant.shape[1] + 1)
    gains = 1 / np.log2(ranks + 1)
    precision = np.cumsum(relevant, axis=1) / ranks
    first = first_ranks(relevant)
    values = {f"R@{k}": ((first > 0) & (first <= k)).astype(np.float64) for k in ks}
    values["MRR"] = np.where(first > 0, 1 / np.maximum(first, 1), 0.0)
    for k in ks:
        best = np.minimum(total, k)
        ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(1, best.max() + 1) + 1))])[best]
        values[f"nDCG@{k}"] = np.where(relevant[:, :k], gains[:k], 0.0).sum(axis=1) / ideal
        values[f"mAP@{k}"] = np.where(relevant[:, :k], precision[:, :k], 0.0).sum(axis=1) / best
    return values


def first_ranks(relevant: Bool[np.ndarray, "q k"]) -> Int[np.ndarray, " q"]:
    """Returns the rank of each query's first right entry, counted from 1, and 0 where none is among those ranked."""
    if not relevant.shape[1]:
        return np.zeros(len(relevant), np.int64)
    return np.where(relevant.any(axis=1), 1 + relevant.argmax(axis=1), 0)


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


def _check(relevant: np.ndarray, total: np.ndarray, ks: Sequence[int]) -> None:
    if not len(relevant):
        raise ValueError(f"a measure over no queries is not defined (relevance of shape {relevant.shape})")
    if not ks or min(ks) < 1:
        raise ValueError(f"the ks of a measure are positive, got {tuple(ks)}")
    missing = np.flatnonzero(total < 1)
    if len(missing):
        raise ValueError(f"{len(missing)} queries have no right entry in the gallery, the first is query {missing[0]}")
    found = relevant.sum(axis=1)
    if (found > total).any():
        q = np.flatnonzero(found > total)[0]
        raise ValueError(f"query {q} has {found[q]} right entries among its ranked ones, but {total[q]} in the gallery")
    if max(ks) > relevant.shape[1] and (found < total).any():
        q = np.flatnonzero(found < total)[0]
        raise ValueError(
            f"k is {max(ks)}, but {relevant.shape[1]} ranks were kept, and query {q} has {total[q] - found[q]} right "
            "entries past them: keep more"
        )
