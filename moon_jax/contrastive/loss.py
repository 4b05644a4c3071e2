"""InfoNCE over all positives and hard negatives of the global batch and of the ring (paper 3.2).

    L_i = -log  e^{s_ii / tau} / (e^{s_ii / tau} + sum_{n in S_i} e^{s_in / tau})

Runs inside the shard_map on one shard's B triplets; the negatives of the other shards come by all_gather, and the
gradient flows back through it to every embedding of the global batch. Ring entries are constants.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from moon_jax.config import LossConfig
from moon_jax.contrastive.ring import Ring, filled, newest_first
from moon_jax.parallel.mesh import BATCH_AXES

NEVER = -1e30


class Triplets(NamedTuple):
    """The unit vectors and product numbers of one shard's triplets."""

    query: Float[Array, "b d"]
    positive: Float[Array, "b d"]
    negative: Float[Array, "b d"]
    positive_product: Int[Array, " b"]
    negative_product: Int[Array, " b"]


def info_nce(
    triplets: Triplets, ring: Ring | None, config: LossConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns (mean loss over the global batch, metrics of the global batch), equal on every shard.

    Candidates are ordered: positives, then hard negatives of the global batch, then the ring from its newest batch.
    The metrics: negatives (mean effective number per query), possible_negatives = 2 B (filled + 1) - 1,
    masked_fraction, in_batch_accuracy (share of queries whose own positive beats every negative of the current batch),
    ring_fill.

    Args:
        triplets: of this shard.
        ring: this shard's part of the ring, or None for k = 0.
        config: temperature, false-negative mask, group size.
    """
    local = triplets.query.shape[0]
    gather = lambda x, axis: lax.all_gather(x, BATCH_AXES, axis=axis, tiled=True)  # noqa: E731
    current = gather(jnp.stack([triplets.positive, triplets.negative]), 1)
    products = gather(jnp.stack([triplets.positive_product, triplets.negative_product]), 1)
    batch, width = current.shape[1:]
    candidates, products = current.reshape(-1, width), products.reshape(-1)
    valid = jnp.ones(2 * batch, bool)
    ring_fill = jnp.int32(0)
    if ring is not None:
        past, fresh = newest_first(lax.stop_gradient(ring))
        candidates = jnp.concatenate([candidates, gather(past.embeddings, 2).reshape(-1, width)])
        products = jnp.concatenate([products, gather(past.products, 2).reshape(-1)])
        valid = jnp.concatenate([valid, jnp.repeat(fresh, 2 * batch)])
        ring_fill = filled(ring)

    own = lax.axis_index(BATCH_AXES) * local + jnp.arange(local)  # the column of each query's own positive
    is_own = own[:, None] == jnp.arange(len(products))
    groups = jnp.arange(len(products)) % batch // (config.group_size or batch)
    keep = valid & ~is_own & (groups[own][:, None] == groups)
    if config.mask_false_negatives:
        keep &= survivors(products, groups, triplets.positive_product, triplets.negative_product, own + batch)

    scores = jnp.matmul(triplets.query, candidates.T, precision=lax.Precision.HIGHEST) / config.temperature
    own_score = jnp.take_along_axis(scores, own[:, None], axis=1)[:, 0]
    loss = jax.nn.logsumexp(jnp.where(keep | is_own, scores, NEVER), axis=1) - own_score
    negatives = keep.sum(axis=1).mean()
    possible = 2 * batch * (ring_fill + 1) - 1
    if config.group_size:
        possible = jnp.int32(2 * config.group_size - 1)
    best_negative = jnp.max(jnp.where(keep, scores, NEVER)[:, : 2 * batch], axis=1)
    metrics = {
        "negatives": negatives,
        "masked_fraction": 1 - negatives / possible,
        "in_batch_accuracy": (own_score > best_negative).mean(),
    }
    loss, metrics = lax.pmean((loss.mean(), metrics), BATCH_AXES)
    return loss, metrics | {"possible_negatives": possible, "ring_fill": ring_fill}


def survivors(
    products: Int[Array, " c"],
    groups: Int[Array, " c"],
    positive_product: Int[Array, " b"],
    negative_product: Int[Array, " b"],
    own_negative: Int[Array, " b"],
) -> Bool[Array, "b c"]:
    """Returns which candidates may be negatives of which query.

    Never those of the query's own positive's product. Of the repeats of a product within a group one survives: the
    query's own hard negative, else the first in the order of the candidates (current batch, newest ring entry, lowest
    index).

    Args:
        products: product of each candidate.
        groups: group of each candidate; a query's candidates are those of one group.
        positive_product: of each query.
        negative_product: of each query's own hard negative.
        own_negative: column of each query's own hard negative.
    """
    order = jnp.lexsort((products, groups))  # stable; empty ring places are last, so that they hide nothing
    ordered = jnp.stack([products, groups])[:, order]
    new = jnp.concatenate([jnp.array([True]), (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)])
    first = jnp.zeros(len(products), bool).at[order].set(new)
    repeats_own_negative = products == negative_product[:, None]
    is_own_negative = jnp.arange(len(products)) == own_negative[:, None]
    return (products != positive_product[:, None]) & (is_own_negative | (first & ~repeats_own_negative))
