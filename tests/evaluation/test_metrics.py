"""Recall@k and MRR on a hand-computed example."""

import numpy as np
import pytest

from moon_jax.evaluation.metrics import mean_reciprocal_rank, recall_at, relevance
from moon_jax.evaluation.retrieval import top_k


def test_one_right_entry_per_query():
    labels = np.array([70, 71, 72, 73])
    ranked = np.array([[0, 1, 2], [1, 0, 2], [3, 2, 1], [0, 1, 2]])
    relevant = relevance(ranked, labels, np.array([70, 70, 71, 73]))  # ranks 1, 2, 3, not among the three
    assert relevant.tolist() == [[True, False, False], [False, True, False], [False, False, True], [False] * 3]
    assert [recall_at(relevant, k) for k in (1, 2, 3)] == [0.25, 0.5, 0.75]
    assert mean_reciprocal_rank(relevant) == pytest.approx((1 + 1 / 2 + 1 / 3 + 0) / 4)


def test_several_right_entries_count_once():
    labels = np.array(["red", "red", "blue"])
    relevant = relevance(np.array([[2, 1, 0], [0, 1, 2]]), labels, np.array(["red", "red"]))
    assert [recall_at(relevant, k) for k in (1, 2, 3)] == [0.5, 1.0, 1.0]
    assert mean_reciprocal_rank(relevant) == 0.75


def test_a_tie_goes_to_the_lower_gallery_index():
    gallery = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    queries = np.array([[1.0, 0.0], [1.0, 0.0]])
    _, ranked = top_k(queries, gallery, 2)
    relevant = relevance(ranked, np.array([5, 6, 7]), np.array([5, 6]))  # the same score: index 0 wins both times
    assert recall_at(relevant, 1) == 0.5
    assert recall_at(relevant, 2) == 1.0


def test_no_queries_is_an_error():
    with pytest.raises(ValueError, match="no queries"):
        recall_at(np.zeros((0, 3), bool), 1)
