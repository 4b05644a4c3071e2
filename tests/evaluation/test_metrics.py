"""Measures of ranked lists: by hand, against scikit-learn, and by another way of counting."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from moon_jax.evaluation.metrics import first_ranks, retrieval_values
from moon_jax.evaluation.retrieval import top_k


def means(values):
    return {name: column.mean() for name, column in values.items()}


def test_one_right_entry_per_query_by_hand():
    relevant = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], bool)  # ranks 1, 2, 3, not among the three
    assert first_ranks(relevant).tolist() == [1, 2, 3, 0]
    found = means(retrieval_values(relevant, np.ones(4, int), (1, 2, 3)))
    expected = {"R@1": 1 / 4, "R@2": 2 / 4, "R@3": 3 / 4, "MRR": (1 + 1 / 2 + 1 / 3) / 4}
    expected |= {"mAP@1": 1 / 4, "mAP@2": (1 + 1 / 2) / 4, "mAP@3": (1 + 1 / 2 + 1 / 3) / 4}
    third = 1 / np.log2(3)  # the gain at rank 2; at rank 3 it is 1 / log2(4)
    expected |= {"nDCG@1": 1 / 4, "nDCG@2": (1 + third) / 4, "nDCG@3": (1 + third + 1 / 2) / 4}
    assert found == pytest.approx(expected)


def test_several_right_entries_by_hand():
    relevant = np.array([[0, 1, 1, 0], [1, 0, 0, 1]], bool)
    total = np.array([3, 2])  # the first query has one more, which was not ranked
    values = retrieval_values(relevant, total, (1, 2, 4))
    assert {name: values[name].tolist() for name in ("R@1", "R@2", "R@4", "MRR")} == {
        "R@1": [0, 1], "R@2": [1, 1], "R@4": [1, 1], "MRR": [1 / 2, 1],
    }  # fmt: skip
    assert values["mAP@1"].tolist() == [0, 1]
    assert values["mAP@2"].tolist() == [(1 / 2) / 2, 1 / 2]
    assert values["mAP@4"].tolist() == pytest.approx([(1 / 2 + 2 / 3) / 3, (1 + 2 / 4) / 2])
    gain = 1 / np.log2(np.array([2, 3, 4, 5]))
    assert values["nDCG@4"].tolist() == pytest.approx(
        [(gain[1] + gain[2]) / gain[:3].sum(), (gain[0] + gain[3]) / gain[:2].sum()]
    )


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(40, 8)).astype(np.float32), rng.normal(size=(60, 8)).astype(np.float32)
    right = rng.random((40, 60)) < 0.1
    right[np.arange(40), rng.integers(0, 60, 40)] = True
    _, ranked = top_k(queries, gallery, 60)
    relevant, total, scores = np.take_along_axis(right, ranked, axis=1), right.sum(axis=1), queries @ gallery.T
    values = retrieval_values(relevant, total, (5, 60))
    precisions = [average_precision_score(r, s) for r, s in zip(right, scores, strict=True)]
    np.testing.assert_allclose(values["mAP@60"], precisions)
    for k in (5, 60):
        each = [ndcg_score(r[None].astype(float), s[None], k=k) for r, s in zip(right, scores, strict=True)]
        np.testing.assert_allclose(values[f"nDCG@{k}"], each)
    cut = retrieval_values(relevant[:, :5], total, (5,))  # what lies past k does not matter
    assert all((cut[name] == values[name]).all() for name in ("R@5", "nDCG@5", "mAP@5"))


def test_by_counting_in_a_loop():
    rng = np.random.default_rng(1)
    relevant = rng.random((50, 12)) < 0.15
    total = relevant.sum(axis=1) + rng.integers(0, 4, 50)
    total = np.maximum(total, 1)
    values = retrieval_values(relevant, total, (3, 12))
    for q, row in enumerate(relevant):
        at = [rank for rank, right in enumerate(row.tolist(), start=1) if right]
        assert values["MRR"][q] == (1 / at[0] if at else 0)
        for k in (3, 12):
            inside = [rank for rank in at if rank <= k]
            assert values[f"R@{k}"][q] == bool(inside)
            precision = sum((i + 1) / rank for i, rank in enumerate(inside)) / min(int(total[q]), k)
            assert values[f"mAP@{k}"][q] == pytest.approx(precision)


def test_a_tie_goes_to_the_lower_gallery_index():
    gallery = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    _, ranked = top_k(np.array([[1.0, 0.0], [1.0, 0.0]]), gallery, 2)
    relevant = ranked == np.array([[0], [1]])  # the same score: index 0 is first both times
    values = retrieval_values(relevant, np.ones(2, int), (1, 2))
    assert values["R@1"].tolist() == [1, 0]
    assert values["R@2"].tolist() == [1, 1]


def test_a_gallery_smaller_than_k():
    """Ranks that do not exist count as wrong entries do, for all right ones are among those that do."""
    relevant = np.array([[0, 1], [1, 1]], bool)
    values = retrieval_values(relevant, np.array([1, 2]), (1, 10))
    assert values["R@10"].tolist() == [1, 1]
    assert values["mAP@10"].tolist() == [1 / 2, 1]
    assert values["nDCG@10"].tolist() == pytest.approx([1 / np.log2(3), 1])


@pytest.mark.parametrize(
    ("relevant", "total", "ks", "message"),
    [
        (np.zeros((0, 3), bool), np.zeros(0, int), (1,), "over no queries"),
        (np.zeros((2, 3), bool), np.ones(2, int), (), "ks of a measure are positive"),
        (np.zeros((2, 3), bool), np.ones(2, int), (0, 1), "ks of a measure are positive"),
        (np.zeros((3, 3), bool), np.array([1, 0, 0]), (1,), "2 queries have no right entry in the gallery, .* query 1"),
        (np.ones((1, 3), bool), np.array([2]), (1,), "query 0 has 3 right entries among .* but 2 in the gallery"),
        (np.eye(2, 3, dtype=bool), np.array([1, 3]), (5,), "k is 5, but 3 ranks were kept, and query 1 has 2 right"),
    ],
)
def test_refuses(relevant, total, ks, message):
    with pytest.raises(ValueError, match=message):
        retrieval_values(relevant, total, ks)
