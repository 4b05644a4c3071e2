"""The ring buffer of past batches: temporal negatives that live in the donated train state (paper 3.2)."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from moon_jax.parallel.mesh import BATCH_AXES


class Ring(NamedTuple):
    """The positives and hard negatives of the last k global batches; constants for the gradient.

    Batch t lies in place t mod k, so `pushed` alone tells which places are valid and which is the newest.
    """

    embeddings: Float[Array, "k 2 batch d"]  # float32 unit vectors; [:, 0] positives, [:, 1] hard negatives
    products: Int[Array, "k 2 batch"]
    pushed: Int[Array, ""]  # batches pushed so far


SPECS = Ring(P(None, None, BATCH_AXES), P(None, None, BATCH_AXES), P())


def empty(ring_batches: int, batch_size: int, width: int) -> Ring:
    """Returns a ring of `ring_batches` empty places for global batches of `batch_size` triplets."""
    shape = (ring_batches, 2, batch_size)
    return Ring(jnp.zeros((*shape, width)), jnp.full(shape, -1, jnp.int32), jnp.int32(0))


def push(ring: Ring, embeddings: Float[Array, "2 batch d"], products: Int[Array, "2 batch"]) -> Ring:
    """Returns the ring with a global batch in place of the oldest one."""
    place = ring.pushed % ring.products.shape[0]
    return Ring(ring.embeddings.at[place].set(embeddings), ring.products.at[place].set(products), ring.pushed + 1)


def filled(ring: Ring) -> Int[Array, ""]:
    """Returns how many of the k places hold a batch."""
    return jnp.minimum(ring.pushed, ring.products.shape[0])


def newest_first(ring: Ring) -> tuple[Ring, Array]:
    """Returns (the ring with its places ordered from the newest to the oldest batch, valid flags [k])."""
    k = ring.products.shape[0]
    age = jnp.arange(k)
    place = (ring.pushed - 1 - age) % k
    return Ring(ring.embeddings[place], ring.products[place], ring.pushed), age < ring.pushed
