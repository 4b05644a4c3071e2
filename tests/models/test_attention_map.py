"""The blockwise maps against whole softmax matrices in numpy, against transformers' attentions, and on many devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moon_jax.models import attention_map
from moon_jax.models.attention_map import pooled_queries, received, rollout

pytestmark = pytest.mark.usefixtures("quick_compilation")

SEGMENTS = np.array([[1] * 5 + [2] * 9 + [3] * 2 + [0] * 5, [1] * 20 + [0], [0] * 21], np.int32)
KV, GROUP, WIDTH, LAYERS = 2, 3, 4, 3


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(LAYERS, *SEGMENTS.shape, KV, GROUP, WIDTH)).astype(np.float32) * 2
    k = rng.normal(size=(LAYERS, *SEGMENTS.shape, KV, WIDTH)).astype(np.float32) * 2
    return q, k


def matrices(q, k, causal):
    """The attention of one layer written out in float64: [rows, kv, group, queries, keys], zero between documents."""
    rows, length = SEGMENTS.shape
    out = np.zeros((rows, KV, GROUP, length, length))
    for row in range(rows):
        for i in range(length):
            mine = (SEGMENTS[row] == SEGMENTS[row, i]) & (SEGMENTS[row, i] > 0)
            seen = [j for j in range(length) if mine[j] and (j <= i or not causal)]
            for kv in range(KV if seen else 0):
                for group in range(GROUP):
                    weights = np.exp([q[row, i, kv, group].astype(float) @ k[row, j, kv] / WIDTH**0.5 for j in seen])
                    out[row, kv, group, i, seen] = weights / weights.sum()
    return out


def shares():
    """1 / n for the tokens of a document of n."""
    counts = (SEGMENTS[:, :, None] == SEGMENTS[:, None, :]).sum(2)
    return np.where(SEGMENTS > 0, 1 / counts, 0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("block_scores", [1, 3 * 6 * 21 * 4, 1 << 24])
def test_received_is_the_mean_row_of_the_softmax_matrix(arrays, causal, block_scores, monkeypatch):
    monkeypatch.setattr(attention_map, "BLOCK_SCORES", block_scores)  # one query at a time, 4 (21 is no multiple), all
    q, k = arrays[0][0], arrays[1][0]
    queries = pooled_queries(jnp.asarray(SEGMENTS), 5)
    np.testing.assert_allclose(queries, shares(), rtol=1e-6)
    found = np.asarray(received(jnp.asarray(q), jnp.asarray(k), jnp.asarray(SEGMENTS), queries, causal))
    expected = (shares()[:, None, None, :, None] * matrices(q, k, causal)).sum(3)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for row, segment in ((0, 1), (0, 2), (0, 3), (1, 1)):
        np.testing.assert_allclose(found[row][..., SEGMENTS[row] == segment].sum(-1), 1, rtol=1e-5)
    assert not found[np.broadcast_to((SEGMENTS == 0)[:, None, None], found.shape)].any()


@pytest.mark.parametrize("causal", [True, False])
def test_rollout_is_the_product_of_the_matrices(arrays, causal):
    q, k = arrays
    product = np.broadcast_to(np.eye(SEGMENTS.shape[1]), (len(SEGMENTS), *[SEGMENTS.shape[1]] * 2))
    for layer in range(LAYERS):  # each layer reads what those below have written
        mean = matrices(q[layer], k[layer], causal).mean((1, 2))
        product = (np.eye(SEGMENTS.shape[1]) + mean) / 2 @ product
    expected = np.einsum("ri,rij->rj", shares(), product)
    ids = jnp.asarray(SEGMENTS)
    found = rollout(jnp.asarray(q), jnp.asarray(k), ids, pooled_queries(ids, 4), causal, KV * GROUP)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.asarray(found).sum(1), [3, 1, 0], rtol=1e-5)


def test_no_array_is_as_large_as_the_attention_matrices(monkeypatch):
    """Of the program itself: the largest value of the traced computation is a block of scores."""
    monkeypatch.setattr(attention_map, "BLOCK_SCORES", 1 << 14)
    length, heads = 512, KV * GROUP
    shapes = [(1, length, KV, GROUP, WIDTH), (1, length, KV, WIDTH)]
    q, k = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    ids, queries = (jax.ShapeDtypeStruct((1, length), dtype) for dtype in (jnp.int32, jnp.float32))
    traced = jax.make_jaxpr(functools.partial(received, causal=True))(q, k, ids, queries)
    largest = max(_sizes(traced.jaxpr))
    assert largest <= 1 << 14 < heads * length**2 // 64
    assert largest > heads * length  # it has found the blocks


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        for parameter in equation.params.values():
            if isinstance(parameter, jax.extend.core.ClosedJaxpr):
                yield from _sizes(parameter.jaxpr)
        yield from (np.prod(v.aval.shape, dtype=int) for v in equation.outvars)
