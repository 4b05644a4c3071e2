"""The contrastive loss of the test queries, as training computes it but for the ring."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from moon_jax.config import Config
from moon_jax.data.documents import has_modality
from moon_jax.data.records import Triplet
from moon_jax.evaluation import metrics
from moon_jax.evaluation.benchmark import MODALITIES, Benchmark, first_by_hash, stable_hash

Take = Callable[[Int[np.ndarray, " n"]], Float[np.ndarray, "n d"]]


def validation_loss(
    triplets: Sequence[Triplet], benchmark: Benchmark, take: Take, numbers: Mapping[str, int], config: Config
) -> dict[str, Any]:
    """Returns the loss over blocks of the training batch size, in the order of a hash, without a ring.

    The parts are mixed as in training, and each query has the one modality that a hash draws from the training mix. A
    last block that is not full is left out, for fewer negatives mean a lower loss; it is used where it is the only one.

    Args:
        triplets: of one set.
        benchmark: knows their documents.
        take: the vectors of documents, by number.
        numbers: product id -> number, `Dataset.numbers`.
        config: loss, batch size and modality mix.
    """
    size = config.train.batch_size
    triplets = first_by_hash(triplets)
    whole = len(triplets) // size * size or len(triplets)
    losses, negatives = [], []
    for start in range(0, whole, size):
        block = triplets[start : start + size]
        asked = [benchmark.queries[t.query, drawn_modality(t, config.data.modality_mix)] for t in block]
        items = [t.positive for t in block] + [t.negative or t.positive for t in block]
        products = [numbers[t.positive.id] for t in block]
        products += [numbers[t.negative.id] if t.negative else metrics.NO_PRODUCT for t in block]
        loss, kept = metrics.info_nce(
            take(np.array(asked)),
            take(np.array([benchmark.items[item.id] for item in items])),
            np.array(products),
            config.loss.temperature,
            config.loss.mask_false_negatives,
        )
        losses.append(loss)
        negatives.append(kept)
    return {
        "loss": float(np.concatenate(losses).mean()),
        "negatives": float(np.concatenate(negatives).mean()),
        "triplets": whole,
        "batch_size": min(size, whole),
    }


def drawn_modality(triplet: Triplet, mix: tuple[int, int, int]) -> str:
    """Returns how a query is asked for the loss: drawn from the training mix by a hash, among those that it can be."""
    names = [name for name, modality in MODALITIES.items() if has_modality(triplet.query, modality)]
    weights = np.array([dict(zip(MODALITIES, mix, strict=True))[name] for name in names], np.float64)
    bounds = np.cumsum(weights if weights.any() else weights + 1)
    draw = (stable_hash(f"modality\0{triplet.id}") >> 11) / 2**53  # in [0, 1), exactly
    return names[int(np.searchsorted(bounds, draw * bounds[-1], side="right"))]
