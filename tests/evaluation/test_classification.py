"""The rules of what counts as a prediction by hand, and the measures against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from moon_jax.evaluation.classification import measures, outcomes

OTHERS = list(range(50, 60))


def ranked(*best):
    """Ten ranked classes: those given, then others."""
    return list(best) + OTHERS[: 10 - len(best)]


def test_the_top_ten_rule_by_hand():
    """Five queries, 120 classes, of which 1, 2 and 3 are asked for.

    query   truth   ranked                 top-1    with the rule
    0       1       1 first                1        1
    1       1       2 first, 1 second      2        1
    2       2       1 first, 2 tenth       1        2
    3       2       1 first, 2 eleventh    1        1
    4       3       7 first, 3 nowhere     7        7
    """
    ten = np.array([ranked(1), ranked(2, 1), [1, *OTHERS[:8], 2], [1, *OTHERS[:9]], ranked(7)])
    lists = np.concatenate([ten, np.array([[9], [9], [9], [2], [9]])], axis=1)  # the eleventh rank
    truth = np.array([1, 1, 2, 2, 3])
    found = outcomes(lists, truth, classes=120)
    assert found.gold.tolist() == [1, 1, 2, 2, 3]
    assert found.top1.tolist() == [1, 2, 1, 1, 7]
    assert found.relaxed.tolist() == [1, 1, 2, 1, 7]

    plain = measures(found.gold, found.top1)
    # class:     1              2              3
    # precision  1/3            0/1            0 (never predicted)
    # recall     1/2            0/2            0/1
    assert plain["accuracy"] == 1 / 5
    assert plain["precision"] == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert plain["recall"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert plain["F1"] == pytest.approx((2 / 5 + 0 + 0) / 3)

    relaxed = measures(found.gold, found.relaxed)
    # precision  2/3            1/1            0
    # recall     2/2            1/2            0/1
    # F1         4/5            2/3            0
    # F2         10/11          5/9            0     (5 p r / (4 p + r))
    assert relaxed["accuracy"] == 3 / 5
    assert relaxed["precision"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert relaxed["recall"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert relaxed["F1"] == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert relaxed["F2"] == pytest.approx((10 / 11 + 5 / 9 + 0) / 3)
    assert relaxed["weighted_precision"] == pytest.approx((2 * 2 / 3 + 2 * 1 + 0) / 5)
    assert relaxed["weighted_recall"] == relaxed["accuracy"]
    assert relaxed["weighted_F1"] == pytest.approx((2 * 4 / 5 + 2 * 2 / 3 + 0) / 5)


def test_the_rule_needs_a_hundred_classes_and_can_be_left_out():
    lists, truth = np.array([ranked(2, 1)]), np.array([1])
    assert outcomes(lists, truth, classes=100).relaxed.tolist() == [1]
    assert outcomes(lists, truth, classes=99).relaxed is None
    assert outcomes(lists[:, :1], truth, classes=100, relaxed=0).relaxed is None
    assert outcomes(lists, truth, classes=100, relaxed=1).relaxed.tolist() == [2]


def test_several_right_answers_by_hand():
    truth = [(4, 6), (4, 6), (4, 6), (4,), (8, 4, 6)]
    found = outcomes(np.array([ranked(4), ranked(6), ranked(5, 6), ranked(6), ranked(5, 7)]), truth, classes=100)
    assert found.top1.tolist() == [4, 6, 5, 6, 5]
    assert found.gold.tolist() == [4, 6, 4, 4, 8]  # the prediction where it is right, else the preferred one
    assert found.relaxed.tolist() == [4, 6, 4, 6, 5]  # in the third 6 is second, so the prediction is right
    one = outcomes(np.array([[5], [4]]), [(5,), (5,)], classes=6)
    assert (one.gold.tolist(), one.top1.tolist(), one.relaxed) == ([5, 5], [5, 4], None)


def scikit_learn(gold, predicted, beta, average, sample_weight=None):
    return precision_recall_fscore_support(
        gold, predicted, beta=beta, labels=np.unique(gold), average=average, zero_division=0,
        sample_weight=sample_weight,
    )[:3]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_against_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 30, 200) * 3  # many classes do not occur in the truth
    predicted = np.where(rng.random(200) < 0.4, gold, rng.integers(0, 95, 200))
    counts = rng.poisson(1.0, 200)
    kept, guesses = np.repeat(gold, counts), np.repeat(predicted, counts)
    for values, g, p in (
        (measures(gold, predicted), gold, predicted),
        (measures(gold, predicted, counts), kept, guesses),
    ):
        assert values["accuracy"] == pytest.approx(accuracy_score(g, p))
        for beta in (1, 2, 0.5):
            for prefix, average in (("", "macro"), ("weighted_", "weighted")):
                names = ("precision", "recall", f"F{beta}")
                found = [values[prefix + name] for name in names]
                assert found == pytest.approx(list(scikit_learn(g, p, beta, average))), (prefix, beta)


def test_names():
    names = [f"{prefix}{name}" for prefix in ("", "weighted_") for name in ("precision", "recall", "F1", "F2", "F0.5")]
    assert list(measures(np.array([0]), np.array([0]))) == ["accuracy", *names]
    assert set(measures(np.array([0, 1]), np.array([0, 1])).values()) == {1.0}
    assert set(measures(np.array([0, 1]), np.array([2, 2]), betas=(3,))) >= {"F3", "weighted_F3"}


def test_a_class_that_is_not_asked_for_is_not_averaged_over():
    gold, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 5, 1])
    assert measures(gold, predicted)["precision"] == 1.0
    assert measures(gold, predicted)["recall"] == pytest.approx((2 / 3 + 1) / 2)
    assert measures(gold, predicted, np.array([1, 1, 1, 0]))["recall"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("lists", "truth", "classes", "message"),
    [
        (np.ones((2, 3), int), [(1,)], 5, "ranked classes of 2 queries, but the truth of 1"),
        (np.ones((2, 3), int), [(1,), ()], 5, "query 1 has no right class"),
        (np.ones((2, 3), int), [(1,), (5,)], 5, r"true classes lie in 0\.\.4, got 1\.\.5"),
        (np.full((1, 3), 7), [(1,)], 5, r"ranked classes lie in 0\.\.4, got 7\.\.7"),
        (np.ones((1, 3), int), [(1, -1)], 5, "class number is -1"),
        (np.ones((2, 3), int), np.array([1, -1]), 5, "query 1 has the class number -1"),
        (np.ones((2, 3), int), np.array([1, 1]), 100, "3 ranked classes were kept for each query; the rule needs 10"),
        (np.ones((2, 0), int), np.array([1, 1]), 5, "0 ranked classes were kept"),
    ],
)
def test_outcomes_refuse(lists, truth, classes, message):
    with pytest.raises(ValueError, match=message):
        outcomes(lists, truth, classes)


@pytest.mark.parametrize(
    ("gold", "predicted", "weights", "message"),
    [
        ([], [], None, "over no queries"),
        ([1, 1], [1, 1], [0, 0], "over no queries"),
        ([1, 1], [1, 1], [2, -1], "negative weights"),
        ([1, 1], [1], None, "2 true, 1 predicted classes"),
        ([1, 1], [1, 2], [1.0], "2 true, 2 predicted classes, 1 weights"),
        ([1, -1], [1, 2], None, "not negative"),
    ],
)
def test_measures_refuse(gold, predicted, weights, message):
    weights = None if weights is None else np.array(weights)
    with pytest.raises(ValueError, match=message):
        measures(np.array(gold, int), np.array(predicted, int), weights)


def test_no_queries_have_no_outcomes():
    found = outcomes(np.zeros((0, 0), int), [], classes=200)
    assert [len(column) for column in found] == [0, 0, 0]
