"""The ring against a plain list of the last k batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from meshes import mesh_of

from moon_jax.contrastive import ring as rings


def batch(number):
    """A global batch of 2 triplets and width 3 in which every number tells where it is from."""
    return jnp.arange(12.0).reshape(2, 2, 3) + 100 * number, jnp.arange(4, dtype=jnp.int32).reshape(2, 2) + 10 * number


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_keeps_the_last_batches_newest_first(k):
    ring = rings.empty(k, 2, 3)
    pushed = []
    for number in range(2 * k + 2):
        ordered, valid = rings.newest_first(ring)
        expected = pushed[::-1][:k]
        assert int(rings.filled(ring)) == len(expected)
        assert np.asarray(valid).tolist() == [age < len(expected) for age in range(k)]
        for age, (embeddings, products) in enumerate(expected):
            np.testing.assert_array_equal(ordered.embeddings[age], embeddings)
            np.testing.assert_array_equal(ordered.products[age], products)
        pushed.append(batch(number + 1))
        ring = rings.push(ring, *pushed[-1])
    assert int(ring.pushed) == 2 * k + 2


def test_an_empty_ring():
    ring = rings.empty(2, 4, 8)
    assert ring.embeddings.shape == (2, 2, 4, 8)
    assert ring.embeddings.dtype == jnp.float32
    assert ring.products.shape == (2, 2, 4)
    assert ring.products.dtype == jnp.int32
    assert int(rings.filled(ring)) == 0
    assert not np.asarray(rings.newest_first(ring)[1]).any()


def test_a_push_overwrites_only_the_oldest_place():
    ring = rings.empty(3, 2, 3)
    for number in range(4):
        before, ring = ring, rings.push(ring, *batch(number))
    same = [np.array_equal(a, b) for a, b in zip(before.embeddings, ring.embeddings, strict=True)]
    assert same == [False, True, True]  # batch 3 took the place of batch 0


def test_a_push_keeps_the_batch_axis_sharded():
    mesh = mesh_of((2, 2, 2, 1))
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))  # noqa: E731
    ring = jax.tree.map(place, rings.empty(2, 8, 4), rings.SPECS)
    with jax.set_mesh(mesh):
        embeddings = place(jnp.ones((2, 8, 4)), jax.sharding.PartitionSpec(None, ("data", "fsdp", "expert")))
        products = place(jnp.ones((2, 8), jnp.int32), jax.sharding.PartitionSpec(None, ("data", "fsdp", "expert")))
        after = jax.jit(rings.push)(ring, embeddings, products)
    for name in ("embeddings", "products"):
        assert getattr(after, name).sharding.is_equivalent_to(getattr(ring, name).sharding, getattr(ring, name).ndim)
        assert getattr(after, name).addressable_shards[0].data.shape[2] == 1
    assert int(after.pushed) == 1
