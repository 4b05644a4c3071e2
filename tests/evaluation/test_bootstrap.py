"""Intervals: against the normal approximation and a plain loop, paired draws, groups, and what they refuse."""

import numpy as np
import pytest

from moon_jax.evaluation.bootstrap import intervals, intervals_of
from moon_jax.evaluation.classification import measures


def test_close_to_the_normal_approximation():
    """For a mean over many queries: 1.96 standard errors to each side."""
    rng = np.random.default_rng(0)
    values = {"R@1": (rng.random(4000) < 0.3).astype(float), "MRR": rng.random(4000) ** 2}
    for level, z in ((0.95, 1.960), (0.5, 0.674)):
        found = intervals(values, samples=4000, level=level)
        for name, column in values.items():
            reach = z * column.std() / np.sqrt(len(column))
            assert found[name] == pytest.approx((column.mean() - reach, column.mean() + reach), abs=0.08 * reach + 1e-4)


def test_a_plain_loop_over_the_same_draws():
    rng = np.random.default_rng(1)
    column = rng.random(37)
    draws = np.random.default_rng(5).integers(37, size=(200, 37))
    means = [sum(column[i] for i in drawn) / 37 for drawn in draws.tolist()]
    expected = tuple(np.quantile(means, [0.05, 0.95]))
    assert intervals({"x": column}, samples=200, level=0.9, seed=5)["x"] == pytest.approx(expected, rel=1e-12)
    mean = intervals_of(lambda w: {"x": (w * column).sum() / w.sum()}, 37, samples=200, level=0.9, seed=5)["x"]
    assert mean == pytest.approx(expected, rel=1e-12)


def test_measures_of_counts_against_repeated_queries():
    rng = np.random.default_rng(2)
    gold, predicted = rng.integers(0, 6, (2, 50))
    found = intervals_of(lambda weights: measures(gold, predicted, weights), 50, samples=100)
    draws = np.random.default_rng(0).integers(50, size=(100, 50))
    again = [measures(gold[drawn], predicted[drawn]) for drawn in draws]
    for name in ("accuracy", "F1", "weighted_precision"):
        assert found[name] == pytest.approx(tuple(np.quantile([m[name] for m in again], [0.025, 0.975])))


def test_methods_are_measured_on_the_same_draws():
    """A method that is better by .1 on every query is better by .1 at both ends, whatever else is measured."""
    column = np.random.default_rng(3).random(200)
    one, other = intervals({"x": column}), intervals({"y": column * 0, "x": column + 0.1})
    assert np.subtract(other["x"], one["x"]) == pytest.approx([0.1, 0.1])
    assert intervals({"x": column}, seed=1) != one


def test_queries_of_one_product_are_drawn_together():
    """Ten copies of every query: groups give the interval of the queries; without them it is sqrt(10) too narrow."""
    column = np.random.default_rng(4).random(60)
    products = np.repeat([f"p{i:02}" for i in range(60)], 10)
    order = np.random.default_rng(5).permutation(600)
    single = intervals({"x": column})["x"]
    grouped = intervals({"x": np.repeat(column, 10)[order]}, groups=products[order])["x"]
    assert grouped == pytest.approx(single)
    low, high = intervals({"x": np.repeat(column, 10)})["x"]
    assert (single[1] - single[0]) / (high - low) == pytest.approx(10**0.5, rel=0.15)
    copies = np.repeat(column, 10)[order]
    weighted = intervals_of(lambda w: {"x": (w * copies).sum() / w.sum()}, 600, groups=products[order])["x"]
    assert weighted == pytest.approx(single)


def test_groups_of_different_sizes_count_by_their_queries():
    column, groups = np.array([1.0, 1.0, 1.0, 0.0]), np.array(["a", "a", "a", "b"])
    assert intervals({"x": column}, groups, level=0.4)["x"] == (0.75, 0.75)  # one of each is half of all draws
    assert intervals({"x": column}, groups)["x"] == (0.0, 1.0)


def test_the_same_bits_whatever_is_drawn_at_once(monkeypatch):
    values = {"x": np.random.default_rng(6).random(300)}
    whole = intervals(values, samples=50)
    monkeypatch.setattr("moon_jax.evaluation.bootstrap._DRAWS_AT_ONCE", 1000)
    assert intervals(values, samples=50) == whole


def test_one_query_has_an_interval_of_no_width():
    assert intervals({"x": np.array([0.25])}) == {"x": (0.25, 0.25)}


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({}, {}, "measures over the same queries"),
        ({"x": [1.0], "y": [1.0, 2.0]}, {}, r"the same queries, got \[1, 2\] values"),
        ({"x": []}, {}, "over no queries"),
        ({"x": [1.0, np.nan], "y": [1.0, 2.0]}, {}, "values of x are not finite"),
        ({"x": [1.0]}, {"samples": 0}, "at least one sample"),
        ({"x": [1.0]}, {"level": 1.0}, "level between 0 and 1"),
        ({"x": [1.0, 2.0]}, {"groups": np.array(["a"])}, "2 queries, but groups of 1"),
    ],
)
def test_refuses(values, options, message):
    with pytest.raises(ValueError, match=message):
        intervals({name: np.array(column) for name, column in values.items()}, **options)


def test_a_measure_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="values of odd are not finite"):
        intervals_of(lambda w: {"odd": np.nan, "even": 1.0}, 3, samples=2)
