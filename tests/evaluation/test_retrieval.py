"""Blockwise top-k against numpy's full sort; ties, blocks, and what it refuses."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from moon_jax.evaluation.retrieval import top_k


def reference(queries, gallery, k):
    """Full score matrix in float64, sorted by (score descending, index ascending)."""
    scores = queries.astype(np.float64) @ gallery.astype(np.float64).T
    indices = np.lexsort((np.broadcast_to(np.arange(len(gallery)), scores.shape), -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, indices, axis=1), indices


def whole_numbers(seed, *shape, span=3):
    """Small integers: every score is exact in float32, and most are tied."""
    return np.random.default_rng(seed).integers(-span, span + 1, shape).astype(np.float32)


@pytest.mark.parametrize("block", [(1024, 8192), (7, 5), (64, 1), (1, 64), (50, 301)])
@pytest.mark.parametrize("k", [1, 10, 300])
def test_matches_a_full_sort_with_many_ties(block, k):
    queries, gallery = whole_numbers(0, 23, 6), whole_numbers(1, 300, 6)
    scores, indices = top_k(queries, gallery, k, block=block)
    expected_scores, expected = reference(queries, gallery, k)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(scores, expected_scores.astype(np.float32))


def test_real_numbers_in_several_blocks():
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(150, 96)).astype(np.float32)
    gallery = rng.normal(size=(2000, 96)).astype(np.float32)
    scores, indices = top_k(queries, gallery, 20, block=(64, 256))
    expected_scores, expected = reference(queries, gallery, 20)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_copies_of_one_row_rank_by_index_wherever_they_lie():
    rng = np.random.default_rng(3)
    row = rng.normal(size=77).astype(np.float32)
    gallery = 0.01 * rng.normal(size=(1000, 77)).astype(np.float32)
    copies = [3, 5, 64, 130, 131, 517, 998, 999]
    gallery[copies] = row
    for block in [(16, 128), (64, 64), (1024, 8192)]:
        _, indices = top_k(row[None], gallery, len(copies), block=block)
        assert indices[0].tolist() == copies


def test_negative_zero_ties_with_zero():
    gallery = np.array([[-1e-30], [0.0], [1e-30], [-0.0]], np.float32)
    scores, indices = top_k(np.array([[1e-30]], np.float32), gallery, 4)  # every product underflows to +-0
    assert indices.tolist() == [[0, 1, 2, 3]]
    assert not np.signbit(scores).any()


def test_result_does_not_depend_on_the_mesh_around_it():
    queries, gallery = whole_numbers(0, 9, 6), whole_numbers(1, 40, 6)
    alone = top_k(queries, gallery, 5)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))):
        inside = top_k(queries, gallery, 5)
    np.testing.assert_array_equal(alone[1], inside[1])


def test_no_queries():
    scores, indices = top_k(np.zeros((0, 4), np.float32), np.ones((3, 4), np.float32), 2)
    assert scores.shape == indices.shape == (0, 2)


@pytest.mark.parametrize(
    ("queries", "gallery", "k", "message"),
    [
        (np.ones((2, 4)), np.ones((3, 4)), 4, "k is 4; it must lie in 1..3"),
        (np.ones((2, 4)), np.ones((3, 4)), 0, "k is 0"),
        (np.ones((2, 4)), np.ones((3, 5)), 1, "queries have 4 dimensions, the gallery has 5"),
        (np.array([[1.0], [np.nan]]), np.ones((3, 1)), 1, "1 query embeddings are not finite, the first is row 1"),
        (
            np.ones((2, 1)),
            np.array([[1.0], [1.0], [np.inf]]),
            1,
            "gallery embeddings are not finite, the first is row 2",
        ),
    ],
)
def test_refuses(queries, gallery, k, message):
    with pytest.raises(ValueError, match=message):
        top_k(queries, gallery, k)
