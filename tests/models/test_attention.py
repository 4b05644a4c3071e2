"""Attention on a cache in parts against numpy, from the formula."""

import jax.numpy as jnp
import numpy as np

from moon_jax.models.attention import Keys, cached_attention


def test_several_parts_count_as_one():
    r = np.random.default_rng(0)
    b, s, k, g, h = 2, 1, 2, 3, 4
    q = r.normal(size=(b, s, k, g, h)).astype(np.float32)
    sizes = (5, 3, 1)
    keys, values = ([r.normal(size=(b, t, k, h)).astype(np.float32) for t in sizes] for _ in range(2))
    seen = [
        np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool),
        np.array([[0, 0, 0], [1, 0, 1]], bool),
        np.ones((b, 1), bool),
    ]
    parts = [Keys(*map(jnp.asarray, part)) for part in zip(keys, values, seen, strict=True)]
    got = np.asarray(cached_attention(jnp.asarray(q), parts))
    keys, values, seen = (np.concatenate(x, axis=1).astype(np.float64) for x in (keys, values, seen))
    for i in range(b):
        for kv in range(k):
            for group in range(g):
                weights = np.exp(keys[i, :, kv] @ q[i, 0, kv, group] / np.sqrt(h)) * seen[i]
                want = weights @ values[i, :, kv] / weights.sum()
                np.testing.assert_allclose(got[i, 0, kv, group], want, atol=1e-6)
